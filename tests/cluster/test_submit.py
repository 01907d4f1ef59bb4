"""Submission without a Slurm; tests/cluster/test_slurm.py has one."""

import os
import subprocess
import sys
import time

import pytest
from support.harness import DIGITS, REPOSITORY, SMALL, small_config
from support.patience import PATIENCE

from experiments.config.experiment import write_yaml
from experiments.errors import UserError
from experiments.runs import attempts, checkpoint
from experiments.runs.directory import RunDirectory
from slurm import cancel, jobs, status, submit
from slurm.profile import FOLDER, load_profile


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr("warnings.showwarning", None)
    return tmp_path / "runs"


def test_the_profiles_of_the_repository():
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert {"slurm", "local", "debug"} <= names
    for name in names:
        assert load_profile(name).parameters("x")["name"] == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster: slurm", "timeout_minutes: Field required"),
        ("cluster: pbs\ntimeout_minutes: 5", "cluster = 'pbs': Input should be 'slurm', 'local'"),
        ("cluster: slurm\ntimeout_minutes: 5\npartitoin: a", "did you mean 'partition'?"),
        ("cluster: slurm\ntimeout_minutes: 5\ngpus_per_node: 4", "need tasks_per_node: 4"),
        ("cluster: local\ntimeout_minutes: 5\nnodes: 2", "nodes: 2 need a Slurm cluster"),
        ("cluster: slurm\ntimeout_minutes: 2", "warning_seconds 120: longer than timeout_minutes"),
    ],
)
def test_a_mistake_in_a_profile_is_named_with_its_file(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(str(path))
    assert "mine.yaml" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "slrum"], "no profile 'slrum'; did you mean 'slurm'?"),
        (["--profile", "../profiles/slurm"], "no profile '../profiles/slurm'; known: debug"),
        (["--profile", ""], "no profile ''; known: debug, local"),
        (["--profile", "."], "no profile '.'; "),
        (["optimizer=sdg"], "did you mean 'sgd'?"),
        (["optimizer=sgd", "seed=x"], "seed = 'x': write whole numbers, 0 or more: 1-5"),
        (["optimizer=sgd", "epoch=1"], "did you mean 'epochs'?"),
        ([], "which optimizer? add optimizer=NAME[,NAME] with sgd, adam, adamw, adahessian"),
        (["optimizer=sgd"], "no Slurm here (no srun on the PATH); --profile local"),
        # What options there were says what is written in their place.
        (["--optimizers", "sgd"], "--optimizers is gone: write optimizer=A,B"),
        (["--seeds", "1-5"], "--seeds is gone: write seed=1-5"),
        (["--set", "a=1", "b=2"], "--set is gone: write key=value, without --set"),
        (["--dataset", "digits"], "--dataset is gone: write dataset=NAME"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    arguments, message, root, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit.main([str(DIGITS), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not root.exists()


def test_a_network_whose_import_needs_torchs_compiler(root):
    """In a process that has not imported it: `check` does without where it can."""
    model = (
        "model={constructor: torchvision.models.VisionTransformer, image_size: 8, patch_size: 2, "
        "num_layers: 1, num_heads: 1, hidden_dim: 4, mlp_dim: 4}"
    )
    command = [sys.executable, "-m", "slurm.submit", str(DIGITS), "optimizer=sgd", model,
               "dataset.channels=3", "--profile", "local", "--dry-run"]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "would send" in done.stdout, done.stderr


def test_in_this_process_and_then_not_again(root, capsys):
    """The profile `debug`: real jobs, real files, no cluster."""
    command = [str(DIGITS), "optimizer=sgd", "--profile", "debug", "seed=1-2", *SMALL, "epochs=1"]
    assert submit.main(command) == 0
    output = capsys.readouterr()
    assert "seed 1: epoch 1/1" in output.err and "seed 2: epoch 1/1" in output.err
    assert submit.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("skipped, done: ") == 2
    rows, note = status.collect(root, "s1")
    assert note == "" and [(row.state, row.epoch, row.attempts) for row in rows] == [
        ("done", "1/1", "1")
    ]
    assert status.main([]) == 0
    assert "2 done" in capsys.readouterr().out
    with pytest.raises(UserError, match="no run like \\*s3\\* below"):
        status.find(root, "s3")


def test_a_failed_run_is_shown_with_its_reason_and_its_neighbours_are_trained(root, capsys):
    command = [str(DIGITS), "optimizer=sgd,adam", "--profile", "debug", *SMALL, "epochs=1",
               "optimizers.sgd.lr=1e30"]  # fmt: skip
    with pytest.raises(SystemExit, match="failed: .*/sgd/"):
        submit.main(command)
    rows = {row.run.split("/")[2]: row for row in status.collect(root, None)[0]}
    assert rows["adam"].state == "done"
    assert rows["sgd"].state == "diverged" and "learning rate 1e+30" in rows["sgd"].reason


def test_a_job_from_inside_a_job_does_not_inherit_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "somewhere")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with submit._outside_of_jobs():
        left = {key for key in os.environ if key.startswith(("SLURM_", "SUBMITIT_"))}
        assert left == {"SLURM_CONF"}
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_where_slurm_does_not_answer_status_goes_by_files_and_submit_refuses(
    root, monkeypatch, capsys
):
    run = RunDirectory(root, small_config())
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(write_yaml(run.config))
    jobs.Submitted("12_3", "slurm", str(root), "login").write(run.path)
    monkeypatch.setenv("PATH", "/nowhere")
    (row,), note = status.collect(root, None)
    assert (row.state, row.job) == ("new", "12_3") and note.startswith(
        "from files alone: no squeue"
    )
    assert submit.main([str(run.path / "config.yaml"), "--profile", "local"]) == 2
    assert "no squeue here" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "NODE_FAIL", "PREEMPTED", "REQUEUED"])
def test_what_may_run_again_is_not_over(state):
    assert jobs.JobState(state).active


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED by 0", "TIMEOUT"])
def test_what_is_over(state):
    assert not jobs.JobState(state).active


@pytest.mark.slow
def test_on_this_machine_in_the_background_cancelled_and_sent_again(root, tmp_path, capsys):
    overrides = ("epochs=20", "checkpoint_every_steps=2")
    profile = tmp_path / "mine.yaml"
    profile.write_text("cluster: local\ntimeout_minutes: 60\narray_parallelism: 1\n")
    arguments = [str(DIGITS), "optimizer=sgd", "seed=1-2", "--profile", str(profile),
                 *SMALL, *overrides]  # fmt: skip
    directory = RunDirectory(root, small_config(*overrides))

    def send():
        command = [sys.executable, "-m", "slurm.submit", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.check_output(command, cwd=REPOSITORY, text=True, env=environment)

    assert send().count("job ") == 2
    assert submit.main(arguments) == 0
    assert capsys.readouterr().out.count("skipped, ") == 2
    wait_for(lambda: checkpoint.stamp(directory.path))
    cancel.cancel("sgd")
    wait_for(lambda: not jobs.local_job_runs(jobs.submitted(directory.path)))
    assert [row.state for row in status.collect(root, None)[0]] == ["stopped", "new"]
    assert send().count("job ") == 2
    wait_for(lambda: all(row.state == "done" for row in status.collect(root, None)[0]))
    reasons = [one.reason for one in attempts.read(directory.path)]
    assert reasons == ["stopped by SIGTERM", "done"]


def wait_for(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
