"""What Slurm's commands print, on clusters where they are wrapped, slow, broken or talkative."""

import stat

import pytest

from experiments.errors import UserError
from slurm import jobs

BANNER = "*** Maintenance on 1 December | all queues ***"
SQUEUE = "job=12_3|RUNNING|None|1-02:03:04\njob=13|PENDING|(Resources|Priority)|UNLIMITED"
FOUND = {
    "12_3": jobs.JobState("RUNNING", "", "1-02:03:04"),
    "13": jobs.JobState("PENDING", "(Resources|Priority)", "UNLIMITED"),
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Writes commands that print something and exit with a code."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name, output, code=0, error=""):
        (tmp_path / f"{name}.out").write_bytes(
            output if isinstance(output, bytes) else output.encode()
        )
        path = tmp_path / name
        asked = f'echo "$@" > {tmp_path}/{name}.asked'
        lines = ("#!/bin/sh", asked, f"cat {path}.out", f"echo '{error}' >&2", f"exit {code}")
        path.write_text("\n".join(lines))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    write("sacct", "")
    return write


@pytest.mark.parametrize(
    "output",
    [
        SQUEUE,
        f"{BANNER}\n\n{SQUEUE}\n{BANNER}",
        f"\x1b[1m{BANNER}\x1b[0m\r\n{SQUEUE}",
        f"warning: no newline {SQUEUE}",
        "slurm_load_jobs error: Unable\n|||\n|\n12|RUNNING|x\n" + SQUEUE,
        SQUEUE.encode() + b"\njob=14|\xff\xfe|x|y\n\xff\xff",
    ],
)
def test_what_is_no_row_is_passed_over(output, slurm, tmp_path):
    slurm("squeue", output)
    assert jobs.slurm_jobs({"12_3", "13"}) == FOUND
    assert jobs.SQUEUE_FORMAT in (tmp_path / "squeue.asked").read_text()


@pytest.mark.parametrize("output", ["", BANNER, "\n\n", b"\xff\x00|\xfe", "job=|||", "12|RUNNING"])
def test_nothing_known_is_nothing_known(output, slurm):
    slurm("squeue", output)
    slurm("sacct", output)
    assert jobs.slurm_jobs({"12_3"}) == {}


def test_what_squeue_forgot_the_accounting_tells(slurm):
    slurm("squeue", BANNER)
    slurm("sacct", f"{BANNER}\n12_3|CANCELLED by 1000\n13|COMPLETED\n14|RUNNING\n15+0|FAILED\n|")
    assert jobs.slurm_jobs({"12_3", "13", "14"}) == {
        "12_3": jobs.JobState("CANCELLED by 1000"), "13": jobs.JobState("COMPLETED"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["squeue", "scancel"])
def test_a_command_that_fails_is_one_line_with_its_last_word(name, slurm):
    slurm(name, "", 1, "traceback line 1\nslurm_load_jobs error: Unable to contact controller")
    with pytest.raises(UserError, match=f"^{name}.* failed: slurm_load_jobs error: Unable[^\n]*$"):
        jobs.run(name, "12")


def test_without_accounting_nothing_is_lost(slurm):
    slurm("squeue", SQUEUE)
    slurm("sacct", "", 1, "Slurm accounting storage is disabled")
    assert jobs.slurm_jobs({"12_3", "99"}) == {"12_3": FOUND["12_3"]}
