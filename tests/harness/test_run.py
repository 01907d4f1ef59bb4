import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.harness import (
    DIGITS,
    REPOSITORY,
    SMALL,
    command,
    complete,
    finish_run,
    interrupted,
    small_config,
    start,
)
from support.patience import PATIENCE
from support.training import assert_equal, result

from experiments import run
from experiments.runs import checkpoint, lease
from experiments.runs.directory import RunDirectory
from experiments.runs.states import read_state
from experiments.tasks.image_classification import datasets
from experiments.training import loop, session


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("warnings.showwarning", None)  # `main` sets it; put back afterwards


def main(*settings: str) -> int:
    return run.main([str(DIGITS), *SMALL, *settings])


def several(*settings: str) -> subprocess.CompletedProcess[str]:
    """The real command: each of its runs is a process of its own."""
    return subprocess.run(command(*settings), cwd=REPOSITORY, capture_output=True, text=True)


def test_asking_twice_runs_once_and_says_what_commit_it_came_from(tmp_path, capsys, monkeypatch):
    done = several("optimizer=sgd", "seed=1,2", "epochs=1")
    assert done.returncode == 0, done.stderr
    assert "sgd seed 1: epoch 1/1" in done.stderr and "sgd seed 2: epoch 1/1" in done.stderr
    assert main("optimizer=sgd", "seed=1-2", "epochs=1") == 0
    assert capsys.readouterr().err.count(f"done already: {tmp_path}") == 2
    monkeypatch.setattr(session, "git_state", lambda: {"commit": "0123456789abcdef"})
    main("optimizer=sgd", "seed=1", "epochs=1")
    assert "this is 0123456789)" in capsys.readouterr().err


def test_a_finished_runs_own_configuration_is_the_same_run(tmp_path, capsys):
    main("optimizer=sgd", "seed=3", "epochs=1")
    (path,) = (tmp_path / "runs").glob("*/*/*/*/config.yaml")
    capsys.readouterr()
    assert run.main([str(path)]) == 0
    assert "done already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=addam"], "did you mean 'adam'?"),
        (["optimizer=sgd", "seed=x"], "seed = 'x': write whole numbers, 0 or more"),
        ([], "which optimizer? add optimizer=NAME[,NAME] with sgd, adam, adamw, adahessian"),
        (["optimizer=sgd", "epoch=1"], "did you mean 'epochs'?"),
        # Refused before the first of the two trains.
        (["optimizer=adam,sgd", "optimizers.sgd.momentum=-1"], "Invalid momentum"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(settings, message, tmp_path, capsys):
    assert main(*settings) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and message in output and "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_cifar_without_data_or_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets, "can_connect", lambda url: False)
    config = DIGITS.parent.parent / "cifar10" / "resnet20.yaml"
    assert run.main([str(config), "optimizer=adahessian"]) == 2
    output = capsys.readouterr().err
    assert f"{tmp_path}/data/cifar-10-batches-py/data_batch_1 is not there" in output
    assert "`make quickstart` needs no download" in output


def test_a_run_that_explodes_fails_and_the_others_go_on():
    done = several("optimizer=sgd,adam", "optimizers.sgd.lr=1e30", "epochs=1")
    assert done.returncode == 1
    assert "learning rate 1e+30" in done.stderr and "adam seed 1: epoch 1/1" in done.stderr


def test_results_do_not_depend_on_how_many_are_trained_at_a_time(tmp_path, monkeypatch):
    settings = ("optimizer=adahessian", "seed=1-3", "epochs=1")
    found = []
    for jobs in ("1", "3"):
        monkeypatch.setenv("RUNS_ROOT", str(tmp_path / jobs))
        done = several(*settings, "--jobs", jobs)
        assert done.returncode == 0 and f"3 runs, {jobs} at a time, 1 thread each" in done.stderr
        configs = [
            small_config("epochs=1", optimizer="adahessian", seed=seed) for seed in (1, 2, 3)
        ]
        directories = [RunDirectory(tmp_path / jobs, config) for config in configs]
        found.append([result(directory) for directory in directories])
        assert {directory.meta()["sessions"][-1]["threads"] for directory in directories} == {1}
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_stops_all_of_them_and_the_same_command_goes_on(number, tmp_path):
    settings = ("optimizer=sgd", "seed=1-3", "epochs=60", "checkpoint_every_epochs=60", "--jobs=2")
    process = start(tmp_path / "runs", *settings)
    runs = [
        RunDirectory(tmp_path / "runs", small_config(*settings[2:4], seed=s)) for s in (1, 2, 3)
    ]
    while not all(run.metrics_size() for run in runs[:2]):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    assert errors.endswith(f"stopped by {number.name}; the same command goes on from here\n")
    for one in runs[:2]:
        assert checkpoint.stamp(one.path) and read_state(one.path)[0] == "stopped"
    assert not runs[2].path.exists(), "none is begun any more"


@pytest.mark.slow
def test_a_process_that_is_killed_takes_no_other_with_it(tmp_path):
    process = start(tmp_path / "runs", "optimizer=sgd", "seed=1-2", "epochs=20", "--jobs=2")
    runs = [RunDirectory(tmp_path / "runs", small_config("epochs=20", seed=s)) for s in (1, 2)]
    while not all(run.metrics_size() for run in runs):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(lease.read(runs[0].path / lease.NAME)["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL
    assert "error: digits resnet8 sgd seed 1: killed by SIGKILL" in errors
    assert [run.done for run in runs] == [False, True]


@pytest.mark.slow
def test_without_their_parent_they_stop_as_well(tmp_path):
    settings = ("optimizer=sgd", "seed=1-2", "epochs=200", "checkpoint_every_epochs=200")
    process = start(tmp_path / "runs", *settings)
    runs = [RunDirectory(tmp_path / "runs", small_config(*settings[2:], seed=s)) for s in (1, 2)]
    while not all(run.metrics_size() for run in runs):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    end = time.monotonic() + PATIENCE
    while {read_state(run.path)[0] for run in runs} != {"stopped"}:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_sweep_in_the_foreground(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"config: {DIGITS}\nset: {{model.depth: 8, epochs: 1, optimizer: sgd}}\n"
        "grid: {optimizer.lr: [0.1, 0.3]}\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, "-m", "experiments.run", str(path)], cwd=REPOSITORY,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("done: ")
    assert {line.partition(":")[0] for line in lines[1:-1]} == {
        "digits resnet8 sgd lr=0.1 seed 1",
        "digits resnet8 sgd lr=0.3 seed 1",
    }


@pytest.mark.filterwarnings("default:.* was trained with 1 thread")
def test_going_on_with_another_number_of_threads_is_said(tmp_path, monkeypatch, capsys):
    config = small_config("epochs=2", "checkpoint_every_epochs=1")
    monkeypatch.setattr(loop, "evaluate", interrupted(loop.evaluate, lambda call: call == 2))
    assert main("optimizer=sgd", "epochs=2") == 130
    monkeypatch.setattr(session.torch, "get_num_threads", lambda: 3)
    capsys.readouterr()
    assert main("optimizer=sgd", "epochs=2") == 0
    said = capsys.readouterr().err
    path = RunDirectory(tmp_path / "runs", config).path
    assert f"{path} was trained with 1 thread(s) so far and goes on with 3" in said
    assert "OMP_NUM_THREADS=1 goes on as before" in said


@pytest.mark.filterwarnings("default:.*meta.json is damaged")
@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_is_done_and_describes_itself_no_more_is_done(text, tmp_path, capsys):
    run_directory = finish_run(tmp_path / "runs", small_config(), [0.5])
    (run_directory.path / "meta.json").write_text(text)
    assert main("optimizer=sgd") == 0
    assert "done already" in capsys.readouterr().err


def test_the_command_in_a_process_of_its_own(tmp_path):
    complete(tmp_path / "runs", "optimizer=adamw", "epochs=1")
    directory = RunDirectory(tmp_path / "runs", small_config("epochs=1", optimizer="adamw"))
    assert json.loads((directory.path / "DONE").read_text())["last_epoch"]["epoch"] == 1
    names = {path.name for path in directory.path.iterdir()} - {"attempts.jsonl"}
    assert names == {"config.yaml", "meta.json", "metrics.jsonl", "checkpoint.pt", "DONE"}


def test_interrupting_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "train", interrupt)
    assert main("optimizer=sgd") == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_each_process_sees_the_gpu_of_its_slot(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "train_unless_done", lambda *_, **__: seen.append(
        os.environ["CUDA_VISIBLE_DEVICES"]) or 0)  # fmt: skip
    monkeypatch.setattr(run.Progress, "bars", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    job = run.Job(small_config(), "a run", run._gpus(), bar=False)
    assert [run._train_one(job, slot) for slot in (0, 1, 2)] == [0, 0, 0]
    assert seen == ["4", "7", "4"]


def test_a_dry_run_shows_what_would_be_trained_and_writes_nothing(tmp_path, capsys):
    groups = "optimizers.adamw.groups=[{match: 1-D, weight_decay: 0}]"
    settings = ("optimizer=sgd,adamw", "seed=1-2", groups, "freeze=['conv.*']", "--dry-run")
    assert main(*settings, "schedule={name: linear, warmup_epochs: 1}") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "digits resnet8 sgd seed 1"
    assert shown[1].endswith("2 epochs of 11 steps")
    assert "  frozen: 144 parameters in 1 tensor" in shown
    assert "  learning rate: linear, from 0.00909 to 0.00909 in the last step" in shown
    assert "digits resnet8 sgd seed 2: as above" in shown
    assert any(line.startswith("  1-D: ") and line.endswith("weight_decay=0.0") for line in shown)
    assert not any(tmp_path.iterdir())
    assert main(*settings, "freeze=[x]") == 2
    assert "freeze: 'x' matches no parameter" in capsys.readouterr().err
