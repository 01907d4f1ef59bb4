import pytest

from experiments.errors import UserError
from experiments.runtime import threads


def test_one_thread_unless_the_variable_says_more(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.threads_per_run() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads.threads_per_run() == 4
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", wrong)
        with pytest.raises(UserError, match=f"OMP_NUM_THREADS = '{wrong}'"):
            threads.threads_per_run()


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("150000 100000", 1), ("400000 100000", 4), ("", 8)]
)
def test_a_container_may_have_fewer_cores_than_the_machine(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    if quota:
        threads.QUOTA.write_text(quota)
    assert threads.cores() == cores
