import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from support.harness import DIGITS, REPOSITORY, SMALL, small_config
from support.patience import PATIENCE
from support.training import assert_equal, result, train_here

from experiments.runs import attempts, lease
from experiments.runs.directory import RunDirectory
from experiments.runs.lease import Lease, LeaseHeld, LeaseLost
from experiments.runs.storage import StorageError
from experiments.runtime import stopping


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def elsewhere(directory, age=0.0):
    """Make the lease look as if its owner lived under another kernel, `age` seconds ago."""
    path = directory / "lease.json"
    owner = {**lease.read(path), "kernel": "another one", "host": "n7", "job": "12_3"}
    path.write_text(json.dumps(owner))
    os.utime(path, (lease.file_clock(directory) - age,) * 2)


def leave_behind(directory, age=0.0):
    """The lease of an owner on another node, dead since `age`."""
    one = Lease(directory)
    with one.held(wait=False):
        content = one.path.read_text()
    one.path.write_text(content)
    elsewhere(directory, age)


def test_held_by_one_and_gone_afterwards(tmp_path):
    first, second = Lease(tmp_path), Lease(tmp_path)
    with first.held(wait=False):
        assert lease.alive(tmp_path)
        with (
            pytest.raises(LeaseHeld, match=rf"another process is training .* {os.getpid()} on "),
            second.held(wait=False),
        ):
            pass
        first.check()
        assert names(tmp_path) == ["lease.json"]
    assert names(tmp_path) == [] and not lease.alive(tmp_path)
    with second.held(wait=False):
        second.check()


def test_an_owner_that_died_here_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e9)
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from experiments.runs.lease import Lease\n"
        f"with Lease(Path({str(tmp_path)!r})).held(wait=False): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL and names(tmp_path) == ["lease.json"]
    assert not lease.alive(tmp_path)
    with Lease(tmp_path).held(wait=False):
        assert names(tmp_path) == ["lease.json"]


def test_an_owner_on_another_node_is_replaced_when_its_heart_stops(tmp_path):
    """Its clock is not trusted: an old time stamp says nothing, one that stands still does."""
    leave_behind(tmp_path, age=-1e6)
    start = time.monotonic()
    with Lease(tmp_path).held(wait=False):
        assert 0.5 < time.monotonic() - start < 5
    assert names(tmp_path) == []


def test_an_owner_on_another_node_that_is_alive_is_not(tmp_path):
    leave_behind(tmp_path, age=1e6)
    script = f"import os, time\nwhile True: os.utime({str(tmp_path / 'lease.json')!r}, None); " \
        "time.sleep(0.05)"  # fmt: skip
    heart = subprocess.Popen([sys.executable, "-c", script])
    try:
        with (
            pytest.raises(LeaseHeld, match="job 12_3, process .* on n7"),
            Lease(tmp_path).held(wait=False),
        ):
            pass
    finally:
        heart.kill()
        heart.wait()


def test_who_waits_gets_it_when_the_first_is_done_and_can_be_stopped_before(tmp_path, capsys):
    first = Lease(tmp_path)
    with first.held(wait=False):
        with (
            pytest.raises(stopping.Stopped),
            stopping.listening(),
        ):
            os.kill(os.getpid(), signal.SIGUSR2)
            with Lease(tmp_path).held(wait=True):
                pass
    assert "waiting for process" in capsys.readouterr().out


def test_who_was_taken_for_dead_writes_nothing_more(tmp_path):
    directory = RunDirectory(tmp_path, small_config())
    with pytest.raises(LeaseLost, match="taken over by process .* it stops without writing"):
        with directory.locked():
            directory.append({"epoch": 1})
            before = attempts.read(directory.path)
            directory.lease.path.unlink()
            with RunDirectory(tmp_path, small_config()).locked():
                for write in (
                    lambda: directory.append({"epoch": 2}),
                    lambda: directory.cut_metrics(0),
                    lambda: directory.save_checkpoint({}),
                    lambda: directory.describe({}, {}, ""),
                ):
                    with pytest.raises(LeaseLost):
                        write()
                directory.append({"epoch": 2})
    assert directory.metrics_path.read_text() == '{"epoch": 1}\n'
    assert not (directory.path / "checkpoint.pt").exists()
    assert len(before) == 1


def test_who_has_lost_it_does_not_touch_the_next_ones(tmp_path, monkeypatch):
    first, second = Lease(tmp_path), Lease(tmp_path)
    with ExitStack() as later, monkeypatch.context() as patched:
        with first.held(wait=False):
            first.path.unlink()
            later.enter_context(second.held(wait=False))
            patched.setattr(lease.os, "rename", lambda *paths: pytest.fail("it was moved"))
        second.check()


def test_burying_spares_a_lease_that_is_not_the_dead_one(tmp_path):
    """Two processes that saw the same death: the slower one must not remove the faster's."""
    leave_behind(tmp_path)
    dead = lease.read(tmp_path / "lease.json")["token"]
    (tmp_path / "lease.json").unlink()
    slower, faster = Lease(tmp_path), Lease(tmp_path)
    with faster.held(wait=False):
        slower.token = "slower"
        slower._bury(dead)
        faster.check()
        assert names(tmp_path) == ["lease.json"]


@pytest.mark.slow
def test_a_frozen_training_is_taken_over_and_stops_when_it_wakes(tmp_path):
    """Two real processes as if on two nodes: the first is stopped (SIGSTOP) for longer than a lease
    lives."""
    overrides = ("epochs=12", "checkpoint_every_steps=4")
    arguments = [str(DIGITS), *SMALL, *overrides, "optimizer=adahessian"]
    script = (
        "import sys; from experiments import run; from experiments.runs import lease\n"
        "identity, lease.HEARTBEAT_SECONDS = lease._identity, 0.1\n"
        "lease._identity = lambda: {**identity(), 'kernel': str(identity()['pid'])}\n"
        f"lease.STALE_SECONDS = 3.0; sys.exit(run.main({arguments!r}))"
    )
    environment = {**os.environ, "RUNS_ROOT": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    config = small_config(*overrides, optimizer="adahessian")
    directory = RunDirectory(tmp_path / "runs", config)

    def start():
        return subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, env=environment,
                                stderr=subprocess.PIPE, text=True)  # fmt: skip

    first = start()
    while not (directory.path / "checkpoint.pt").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    time.sleep(3)
    second = start()
    while len(attempts.read(directory.path)) < 2:
        assert second.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == 2 and "taken over by process" in errors, errors
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert [one.reason for one in attempts.read(directory.path)] == [None, "done"]
    assert_equal(result(directory), result(train_here(tmp_path / "whole", config)))


@pytest.mark.parametrize("content", [b"", b'{"token": "a"', b"[]", b"{}", b"\xff\xff"])
def test_a_damaged_lease_holds_as_long_as_somebody_touches_it(content, tmp_path):
    """A power cut can leave one without an owner: it must not have to be removed by hand."""
    path = tmp_path / "lease.json"
    path.write_bytes(content)
    assert lease.alive(tmp_path)
    assert lease.describe(lease.read(path)) == "nobody known"
    start = time.monotonic()
    with Lease(tmp_path).held(wait=False):
        assert 0.5 < time.monotonic() - start < 5
        assert lease.read(path)["pid"] == os.getpid()
    assert names(tmp_path) == []


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_set_takes_no_lease_from_an_owner_that_lives(hours, tmp_path, monkeypatch):
    now = time.time
    with Lease(tmp_path).held(wait=False):
        monkeypatch.setattr(lease.time, "time", lambda: now() + 3600 * hours)
        assert lease.alive(tmp_path)
        with pytest.raises(LeaseHeld), Lease(tmp_path).held(wait=False):
            pass
        elsewhere(tmp_path)
        assert lease.alive(tmp_path), "its file is fresh by the clock that stamps files"
        elsewhere(tmp_path, age=1)
        assert not lease.alive(tmp_path)


HOLD = """
import os, sys, time
from pathlib import Path
from experiments.runs import lease
lease.HEARTBEAT_SECONDS = 0.05
with lease.Lease(Path(sys.argv[1])).held(wait=False):
    if len(sys.argv) == 2 or os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def holder(directory, *arguments):
    """A process that holds the lease, and the child that it has forked since."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory), *arguments],
                               cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)  # fmt: skip
    return process, process.stdout.readline().strip()


def test_an_owner_on_this_host_that_is_frozen_keeps_it(tmp_path):
    process, _ = holder(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.7)  # longer than a lease lives elsewhere
        os.utime(tmp_path / "lease.json", (0, 0))
        assert lease.alive(tmp_path)
        with pytest.raises(LeaseHeld), Lease(tmp_path).held(wait=False):
            pass
    finally:
        process.kill()
        process.communicate()
    with Lease(tmp_path).held(wait=False):
        pass


def test_what_the_owner_forked_does_not_hold_it_when_the_owner_is_dead(tmp_path):
    process, child = holder(tmp_path, "fork")
    try:
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # alive
        with Lease(tmp_path).held(wait=False):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate()


def test_across_hosts_file_times_are_compared_with_file_times(tmp_path, monkeypatch):
    """Minutes behind the clock that stamps files, a beat that was missed tells enough."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 100.0)
    leave_behind(tmp_path, age=101)
    start = time.monotonic()
    with Lease(tmp_path).held(wait=False):
        assert 0.15 < time.monotonic() - start < 5
    leave_behind(tmp_path, age=50)
    waiting = lease._Watch(tmp_path / "lease.json")
    owner = lease.read(tmp_path / "lease.json")
    assert not waiting.dead(owner)
    time.sleep(0.3)
    assert not waiting.dead(owner) and lease.alive(tmp_path)


def test_without_flock_the_heartbeat_has_to_do(tmp_path, monkeypatch):
    def unknown(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lease.fcntl, "flock", unknown)
    with Lease(tmp_path).held(wait=False):
        assert lease.read(tmp_path / "lease.json")["flock"] is False
        with pytest.raises(LeaseHeld), Lease(tmp_path).held(wait=False):
            pass
        content = (tmp_path / "lease.json").read_text()
    (tmp_path / "lease.json").write_text(content)
    with Lease(tmp_path).held(wait=True):
        assert lease.alive(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["read", "stat", "open"])
def test_a_file_system_that_does_not_answer_is_named_and_changes_nothing(
    call, tmp_path, monkeypatch
):
    leave_behind(tmp_path, age=1)
    mine = Lease(tmp_path)

    def away(*arguments, **named):
        raise OSError(errno.EIO, "Input/output error")

    place = {"read": (lease, "read"), "stat": (lease._Watch, "dead"), "open": (lease.os, "open")}
    with monkeypatch.context() as patched, pytest.raises(StorageError, match="Input/output error"):
        patched.setattr(*place[call], away)
        with mine.held(wait=False):
            pass
    assert names(tmp_path) == ["lease.json"]


def test_a_lease_whose_file_system_goes_away_at_the_end_does_not_hide_the_result(
    tmp_path, monkeypatch
):
    def away(*arguments, **named):
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(ValueError, match="the reason"), Lease(tmp_path).held(wait=False):
        monkeypatch.setattr(lease.os, "rename", away)
        raise ValueError("the reason")


CONTEND = """
import os, random, sys, time
from pathlib import Path
from experiments.runs import lease
lease.POLL_SECONDS = 0.002
directory, draw = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
for _ in range(25):
    with lease.Lease(directory).held(wait=True):
        inside = directory / "inside"
        before = inside.read_text() if inside.exists() else ""
        command = Path(f"/proc/{before}/cmdline")  # empty of who is dead and not yet waited for
        if before and command.exists() and command.read_bytes():
            sys.exit(f"{before} is inside")
        inside.write_text(str(os.getpid()))
        time.sleep(draw.random() / 200)
        if draw.random() < 0.05:
            os._exit(9)  # killed while it holds the lease
        inside.unlink()
"""


def test_of_many_that_want_it_one_has_it_also_when_owners_are_killed(tmp_path):
    """Whoever comes after a killed one begins anew, until all have had it 25 times."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def start(seed):
        return subprocess.Popen([sys.executable, "-c", CONTEND, str(tmp_path), str(seed)],
                                env=environment, stderr=subprocess.PIPE, text=True,
                                stdout=subprocess.DEVNULL)  # fmt: skip

    running, seed, killed = [start(seed) for seed in range(4)], 4, 0
    while running:
        process = running.pop(0)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode in (0, 9), errors
        if process.returncode == 9 and seed < 12:
            killed, seed = killed + 1, seed + 1
            running.append(start(seed))
    assert killed and not lease.alive(tmp_path)


def test_a_job_is_named_by_what_there_is_of_its_array(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    assert lease.job_id() == "14"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert lease.job_id() == "12_3"
