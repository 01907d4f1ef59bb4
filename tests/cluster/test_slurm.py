"""What must not happen, each against a real Slurm of four nodes; `make slurm-test`.

Every test disturbs the same run, and it must end with the metrics and weights of the undisturbed
one. What a test waits for is a file or a state, never a time.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.harness import DIGITS, REPOSITORY, SMALL, small_config
from support.slurm_cluster import run
from support.slurm_lab import LONG
from support.training import assert_equal, result, train_here
from support.wandb_cases import history, inspect, of_epochs, only

from experiments.plans.load import load, resolve
from experiments.runs import attempts, checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.tracking.tracker import records
from slurm import snapshot
from slurm.jobs import submitted
from slurm.status import collect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = small_config(*LONG, optimizer="adahessian")
    return result(train_here(tmp_path_factory.mktemp("undisturbed"), config))


def training_process(directory: RunDirectory) -> int:
    """Its id as this machine sees it, whatever the node calls it."""
    job = submitted(directory.path)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command, environment = path.read_bytes(), (path.parent / "environ").read_bytes()
        except OSError:
            continue
        words = command.split(b"\0")
        if b"submitit.core._submit" in words and words[0].endswith(b"python"):
            if f"SLURM_JOB_ID={job.job}".encode() in environment.split(b"\0"):
                return int(path.parent.name)
    raise AssertionError(f"no process of job {job}")


# Each sends one fault to a job that has a checkpoint and is running.
FAULTS = {
    "SIGUSR2": (lambda job: run("scancel", "--signal=USR2", job), "stopped by SIGUSR2"),
    "scontrol requeue": (lambda job: run("scontrol", "requeue", job), "stopped by SIGTERM"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_asked_to_go_it_goes_on_elsewhere(fault, lab, undisturbed):
    directory, job = lab.submit_and_wait_for_a_checkpoint()
    since = time.monotonic()
    FAULTS[fault][0](job)
    tries = lab.finish(directory, since, fault)
    assert [one.reason for one in tries] == [FAULTS[fault][1], "done"]
    assert {one.job for one in tries} == {job}
    assert tries[1].checkpoint
    assert_equal(result(directory), undisturbed)


def test_preempted_with_the_signal_it_is_one_run_of_wandb(lab, undisturbed, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory, job = lab.submit_and_wait_for_a_checkpoint(partition="main")
    lab.wait_for(lambda: records(directory.path), "record of wandb's")
    before = only(directory)
    tries = preempt(lab, directory, "preemption with the signal")
    assert [one.reason for one in tries] == ["stopped by SIGUSR2", "done"]
    assert_equal(result(directory), undisturbed)
    # The second attempt made a record of its own, of the same run, and with every epoch once.
    after = only(directory)
    assert after != before and wandb_id(after) == wandb_id(before)
    (described,) = {item["run"]["run_id"] for item in inspect(after) if item["type"] == "run"}
    assert described == wandb_id(after)
    assert [row["epoch"] for row in of_epochs(history(after))] == list(range(1, 9))


def wandb_id(record: Path) -> str:
    """The run that a record belongs to, by its folder's name: offline-run-DATE_TIME-ID."""
    return record.name.split("-", 3)[3]


def test_preempted_without_the_signal(lab, undisturbed):
    """SIGTERM, and SIGKILL five seconds later: submitit would have ignored the first."""
    directory, job = lab.submit_and_wait_for_a_checkpoint(partition="abrupt")
    lab.cluster.reconfigure("\nSlurmctldParameters", "\n#SlurmctldParameters")
    try:
        tries = preempt(lab, directory, "preemption without the signal")
    finally:
        lab.cluster.reconfigure("\n#SlurmctldParameters", "\nSlurmctldParameters")
    assert [one.reason for one in tries] == ["stopped by SIGTERM", "done"]
    assert_equal(result(directory), undisturbed)


def preempt(lab, directory, fault):
    since = time.monotonic()
    run("srun", "--partition=high", "--nodes=4", "--exclusive", "sleep", "1")
    return lab.finish(directory, since, fault)


def test_killed_it_starts_again_from_its_checkpoint(lab, undisturbed):
    directory, job = lab.submit_and_wait_for_a_checkpoint()
    since = time.monotonic()
    os.kill(training_process(directory), signal.SIGKILL)
    tries = lab.finish(directory, since, "SIGKILL of the training")
    assert [one.reason for one in tries] == [None, "done"] and tries[1].checkpoint
    assert_equal(result(directory), undisturbed)


def test_the_node_dies(lab, undisturbed):
    if not lab.cluster.own_namespaces:
        pytest.fail("a node can only be killed where nodes have namespaces: run this as root")
    directory, job = lab.submit_and_wait_for_a_checkpoint()
    node = run("squeue", "-h", "-j", job, "-o", "%N").strip()
    since = time.monotonic()
    lab.cluster.crash_node(node)
    tries = lab.finish(directory, since, "death of the node")
    lab.cluster.start_node(node)
    assert [one.reason for one in tries] == [None, "done"] and tries[1].checkpoint
    assert len({one.host for one in tries}) == 2
    (row,) = collect(lab.root, None)[0]
    assert (row.state, row.attempts, row.reason) == ("done", "2", "killed")
    assert_equal(result(directory), undisturbed)


def test_a_node_is_cut_off_and_its_copy_lives_on(lab, undisturbed):
    """The requeued copy waits for the first one, which never knew, and finds the run done."""
    directory, job = lab.submit_and_wait_for_a_checkpoint()
    node = run("squeue", "-h", "-j", job, "-o", "%N").strip()
    orphan = training_process(directory)
    os.kill(orphan, signal.SIGSTOP)  # holds the moment, for as long as Slurm takes to notice
    since = time.monotonic()
    stopped = lab.cluster.cut_off_node(node)
    check_what_a_new_shell_sees(directory, job)  # there is time until Slurm notices
    lab.wait_for(lambda: "waiting for job" in lab.log(directory), "second copy")
    print(f"node cut off: second copy waits after {time.monotonic() - since:.1f} s")
    os.kill(orphan, signal.SIGCONT)
    lab.wait_for_the_end(directory)
    lab.wait_for(lambda: lab.cluster.jobs()[job] == "COMPLETED", "end of the second copy")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    reasons = [one.reason for one in attempts.read(directory.path)]
    assert reasons == ["done", "done"]  # the second found it so
    assert len(directory.meta()["sessions"]) == 1
    assert_equal(result(directory), undisturbed)


def check_what_a_new_shell_sees(directory, job):
    """Status and logs know of a run whose submitting shell is long gone."""
    status, logs = (
        subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True,
                       text=True, check=True).stdout
        for command in (["slurm.status", "adahessian"], ["slurm.logs", "adahessian"])
    )  # fmt: skip
    assert f"{directory.name}  running" in status and f" {job} " in status
    assert "Starting with JobEnvironment" in logs


def test_time_limit(lab, undisturbed):
    """Slurm looks at limits twice a minute, and may send the signal a minute early.

    submitit knows of one minute; Slurm's own limit is moved out of the way of both attempts' first
    imports, which take as long as they take.
    """
    directory = lab.submit_one(timeout_minutes=1, warning_seconds=20)
    job = submitted(directory.path).job

    def limit(minutes):
        run("scontrol", "update", f"job={job}", f"timelimit={minutes}")

    limit(60)
    lab.wait_for(lambda: checkpoint.stamp(directory.path), "checkpoint")
    since = time.monotonic()
    process = training_process(directory)
    os.kill(process, signal.SIGSTOP)  # however fast this machine is, the limit comes first
    minutes, seconds = map(int, run("squeue", "-h", "-j", job, "-o", "%M").split(":"))
    limit(minutes + (1 if seconds < 25 else 2))  # 35 s away or more: two looks of Slurm's

    def stopped():
        with suppress(OSError):  # Slurm may have woken it, so that it is gone by now
            if signal.SIGUSR2 in pending(process):
                os.kill(process, signal.SIGCONT)
        return attempts.read(directory.path)[0].reason

    lab.wait_for(stopped, "signal ahead of the limit")
    print(f"time limit: signal after {time.monotonic() - since:.1f} s")
    lab.wait_for(lambda: lab.cluster.jobs()[job] == "PENDING", "requeue")
    limit(60)
    tries = lab.wait_for_the_end(directory)
    assert [one.reason for one in tries] == ["stopped by SIGUSR2", "done"]
    assert_equal(result(directory), undisturbed)


def pending(process: int) -> set[int]:
    """The signals that wait for a process."""
    fields = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        if ":\t" in line
    )
    mask = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_one_array_member_fails_and_is_sent_again_alone(lab, capsys):
    sweep = lab.root.parent / "sweep.yaml"
    sweep.write_text(
        f"config: {DIGITS}\nset: {{model.depth: 8, epochs: 1}}\nseeds: 1-2\n"
        "list: [{optimizer: sgd}, {optimizer: sgd, optimizer.lr: 1e30}]\n"
    )
    assert lab.submit(str(sweep)) == 0
    first = capsys.readouterr().out.splitlines()
    assert len(first) == 4 and all(line.startswith("job ") for line in first)
    assert lab.submit(str(sweep)) == 0  # at once: all are queued or running
    again = capsys.readouterr().out.splitlines()
    assert len(again) == 4 and all(line.startswith("skipped, ") for line in again)

    def states():
        rows, note = collect(lab.root, None)
        assert note == ""
        return sorted(row.state for row in rows)

    lab.wait_for(lambda: states() == ["diverged", "diverged", "done", "done"], "end")
    rows, _ = collect(lab.root, None)
    assert all("learning rate 1e+30" in row.reason for row in rows if row.state == "diverged")
    lab.wait_for(lambda: not {"RUNNING", "COMPLETING"} & set(lab.cluster.jobs().values()), "end")
    assert lab.submit(str(sweep)) == 0
    third = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in third] == ["skipped,", "skipped,", "job", "job"]


def test_a_run_that_fails_three_times_alike_is_left_alone(lab):
    directory = RunDirectory(lab.root, small_config(*LONG, optimizer="adahessian"))
    (directory.path / checkpoint.CURRENT).mkdir(parents=True)  # can be neither read nor written
    lab.submit_one()
    job = submitted(directory.path).job
    lab.wait_for(lambda: lab.cluster.jobs().get(job) == "FAILED", "failure")
    tries = attempts.read(directory.path)
    assert len(tries) == 3 and len({one.reason for one in tries}) == 1
    assert "checkpoint.pt: Is a directory" in tries[0].reason
    assert "ended 3 times alike without a new checkpoint" in lab.log(directory)
    (row,) = collect(lab.root, None)[0]
    assert (row.state, row.attempts) == ("failed", "3")


def test_cancelled_it_is_saved_and_not_requeued(lab, undisturbed):
    from slurm.cancel import cancel

    directory, job = lab.submit_and_wait_for_a_checkpoint()
    cancel("adahessian")
    lab.wait_for(lambda: lab.cluster.jobs()[job] == "CANCELLED", "cancelled job")
    assert [one.reason for one in attempts.read(directory.path)] == ["stopped by SIGTERM"]
    (row,) = collect(lab.root, None)[0]
    assert row.state == "stopped"
    lab.submit_one()
    lab.wait_for_the_end(directory)
    assert_equal(result(directory), undisturbed)


def test_what_is_submitted_is_what_the_dry_run_shows_and_holds_no_secret(lab, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-forty-letters")
    options = (str(DIGITS), "optimizer=sgd,adam", *SMALL, "epochs=1")
    lab.submit(*options, "--dry-run")
    shown = capsys.readouterr().out
    assert not lab.root.exists()
    lab.submit(*options)
    (script,) = lab.root.glob(".slurm/*/*_submission.sh")
    folder = str(script.parent)
    assert script.read_text().replace(folder, str(lab.root / ".slurm" / "TIME")) in shown
    for path in lab.root.rglob("*"):
        assert path.is_dir() or b"a-secret" not in path.read_bytes()
    directory = RunDirectory(lab.root, small_config("epochs=1"))
    lab.wait_for_the_end(directory)
    (session,) = directory.meta()["sessions"]
    here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True,
                          text=True, check=True).stdout.strip()  # fmt: skip
    assert session["commit"] == here  # though it ran from a copy of the code


def test_the_code_of_submission_runs(lab, monkeypatch, tmp_path):
    """A job that waits while the code is edited does not get the edit."""
    code = tmp_path / "code"
    for name in snapshot.PACKAGES:
        shutil.copytree(REPOSITORY / name, code / name)
    monkeypatch.setattr(snapshot, "REPOSITORY", code)
    run("scontrol", "update", "partition=main", "state=down")
    try:
        lab.submit(str(DIGITS), "optimizer=sgd", *SMALL, "epochs=1")
        edited = code / "experiments" / "train.py"
        edited.write_text("raise SystemExit('edited while the job waited')\n")
    finally:
        run("scontrol", "update", "partition=main", "state=up")
    directory = RunDirectory(lab.root, small_config("epochs=1"))
    lab.wait_for_the_end(directory)


@pytest.mark.parametrize("nodes", [1, 2])
def test_several_processes_compute_what_one_does(nodes, lab, tmp_path):
    """Two tasks per node; also stopped and resumed on the way. float64, no batch normalization."""
    overrides = ("model.name=convnet", "model.depth=3", "dtype=float64", "epochs=5",
                 "checkpoint_every_epochs=5")  # fmt: skip
    options = ("optimizer=adahessian", *overrides)
    assert lab.submit(str(DIGITS), *options, nodes=nodes, tasks_per_node=2) == 0
    config = resolve(load(DIGITS, overrides), "adahessian", 1)
    directory = RunDirectory(lab.root, config)
    lab.wait_for(directory.metrics_size, "first epoch")
    run("scancel", "--signal=USR2", submitted(directory.path).job)
    whole = train_here(tmp_path / "whole", config)
    tries = lab.wait_for_the_end(directory)
    assert [one.reason for one in tries] == ["stopped by SIGUSR2", "done"]
    ours, theirs = (
        [without_times(row) for row in read_metrics(one.metrics_path)] for one in (directory, whole)
    )
    assert len(ours) == 5
    for row, reference in zip(ours, theirs, strict=True):
        assert row == pytest.approx(reference, rel=1e-10, abs=1e-12)
    weights = (
        torch.load(one.path / "checkpoint.pt", weights_only=True)["model"]
        for one in (directory, whole)
    )
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-11)
