import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import numpy
import pytest
import wandb
from support import harness
from support.harness import REPOSITORY, small_config
from support.patience import PATIENCE
from support.wandb_cases import (
    clean_machine,  # noqa: F401
    cut,
    describe,
    history,
    inspect,
    new_run,
    of_epochs,
    only,
    row,
    running_server,  # noqa: F401
    session,
    wait_for,
)
from support.wandb_server import API_KEY, WandbServer, answering

from experiments import upload
from experiments.config.metrics import Metric
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.tracking import tracker as tracking
from experiments.tracking.tracker import Tracker, records

UNREACHABLE = "http://127.0.0.1:9"  # the discard port, where nobody listens


# ------------------------------------------------------------------------------ who gets wandb


def test_without_a_key_it_records_offline_and_says_nothing(tmp_path, capsys):
    directory = new_run(tmp_path)
    session(directory, 1, 2)
    assert only(directory).name.startswith("offline-run-")
    assert [item["epoch"] for item in history(only(directory))] == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_foreign_netrc_is_no_key(tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine example.org login me password secret\n")
    (tmp_path / "home" / ".netrc").chmod(0o600)
    directory = new_run(tmp_path)
    session(directory, 1, 2)
    assert only(directory).name.startswith("offline-run-") and capsys.readouterr().err == ""


def test_a_mode_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="WANDB_MODE = 'ofline': did you mean 'offline'?"):
        Tracker(tmp_path)


def test_disabled_is_off_even_with_a_key(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    directory = new_run(tmp_path)
    session(directory, 1, 1)
    assert not (directory.path / "wandb").exists() and not server.runs


def test_not_installed_is_one_line_for_who_asked_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    directory = new_run(tmp_path)
    session(directory, 1, 2)
    assert not (directory.path / "wandb").exists() and capsys.readouterr().err == ""
    monkeypatch.setenv("WANDB_MODE", "offline")
    session(directory, 3, 3)
    session(new_run(tmp_path, seed=2), 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "wandb: not installed, so nothing is sent to it: pip install wandb"
    ]
    assert len(read_metrics(directory.metrics_path)) == 3


@pytest.mark.parametrize("hangs", [False, True])
def test_training_does_not_wait_for_wandb_to_start(hangs, tmp_path, monkeypatch, capsys):
    started, load = Event(), tracking.load_wandb

    def slow(place):
        assert started.wait(60)
        return load(place)

    monkeypatch.setattr(tracking, "load_wandb", slow)
    monkeypatch.setattr(tracking, "END_SECONDS", 0.1 if hangs else 60)
    directory = new_run(tmp_path)
    with Tracker(directory.path) as tracker:
        for epoch in range(1, 4):
            directory.append(row(epoch))
            tracker.log(row(epoch))
        assert tracker.run is None
        if not hangs:
            started.set()
    assert ("it hangs, and is left behind" in capsys.readouterr().err) == hangs
    started.set()
    tracker.thread.join()
    assert [item["epoch"] for item in history(only(directory))] == [1, 2, 3]


def test_online_without_a_key_records_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    directory = new_run(tmp_path)
    session(directory, 1, 2)
    assert only(directory).name.startswith("offline-run-")
    assert "no key: recording offline" in capsys.readouterr().err


def test_a_key_without_a_network_records_offline_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", UNREACHABLE)
    directory = new_run(tmp_path)
    before = time.monotonic()
    session(directory, 1, 2)
    assert time.monotonic() - before < 15  # wandb itself takes 101 s, and then fails
    assert [item["epoch"] for item in history(only(directory))] == [1, 2]
    assert f"{UNREACHABLE} does not answer: recording offline" in capsys.readouterr().err


# ---------------------------------------------------------------------------- what is recorded


def test_an_offline_record_holds_every_metric(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    directory = new_run(tmp_path)
    session(directory, 1, 5)
    items = inspect(only(directory))
    rows = history(only(directory))
    assert [{k: v for k, v in r.items() if k[0] != "_"} for r in rows] == [
        pytest.approx(row(epoch)) for epoch in range(1, 6)
    ]
    assert [r["_step"] for r in rows] == [10, 20, 30, 40, 50]
    summary = {}
    for item in items:
        if item["type"] == "summary":
            summary |= item["summary"]["update"]
    assert summary["test/accuracy"] == pytest.approx(0.96)  # the last
    assert (summary["best/epoch"], summary["best/test/accuracy"]) == (3, 1)
    run = next(item["run"] for item in items if item["type"] == "run")
    config = run["config"]["update"]
    assert config["optimizer"]["name"] == "sgd" and config["optimizer"]["lr"] == 0.1
    assert config["parameters"] == 77_754 and config["session"]["commit"] == "abc"
    assert run["run_group"].startswith("digits-resnet8-sgd-") and run["tags"] == [
        "digits",
        "resnet8",
        "sgd",
    ]
    metrics = [item["metric"] for item in items if item["type"] == "metric"]
    assert {"glob_name": "*", "step_metric": "epoch"}.items() <= metrics[1].items()
    # Nothing anywhere but in the run's directory.
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_spectrum_becomes_a_histogram_and_a_line_plot(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = new_run(tmp_path)
    grid = numpy.linspace(-2, 30, 1024)
    density = 0.9 * numpy.exp(-((grid / 0.1) ** 2) / 2) / (0.1 * numpy.sqrt(2 * numpy.pi))
    density += 0.1 * numpy.exp(-(((grid - 20) / 0.2) ** 2) / 2) / (0.2 * numpy.sqrt(2 * numpy.pi))
    (directory.path / "spectra").mkdir()
    numpy.savez(
        directory.path / "spectra" / "epoch-0002.npz",
        grid=grid,
        density=density,
        eigenvalues=numpy.array([20.4, 20.1]),
    )
    session(directory, 1, 3)
    rows = history(only(directory))
    assert [any("density" in key for key in item) for item in rows] == [False, True, False]
    shares, edges = (numpy.array(rows[1][f"hessian/density.{k}"]) for k in ("values", "bins"))
    assert shares.sum() == pytest.approx(1, abs=0.01)  # no peak is lost between the bins
    assert shares[edges[1:] > 10].sum() == pytest.approx(0.1, abs=0.01)
    (picture,) = only(directory).rglob("*.png")
    assert picture.stat().st_size > 5000


def test_a_damaged_spectrum_costs_a_picture_not_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = new_run(tmp_path)
    (directory.path / "spectra").mkdir()
    (directory.path / "spectra" / "epoch-0001.npz").write_bytes(b"PK torn")
    session(directory, 1, 2)
    assert [item["epoch"] for item in history(only(directory))] == [1, 2]
    assert "epoch-0001.npz cannot be shown" in capsys.readouterr().err


def test_online_the_server_gets_everything(tmp_path, server, capsys):
    directory = new_run(tmp_path)
    tracker = session(directory, 1, 4)
    ((name, run),) = server.runs.items()
    assert run.epochs() == [1, 2, 3, 4] and tracker.uploaded
    assert run.rows()[1].items() >= row(2).items()
    assert run.summary["test/accuracy"] == pytest.approx(0.99)
    assert run.summary["best/epoch"] == 3
    assert run.config["optimizer"]["value"]["constructor"] == "torch.optim.SGD"
    assert run.description["project"] == "adahessian" and run.description["jobType"] == "train"
    assert run.exit_code == 1  # there is no DONE
    marker = json.loads((directory.path / "wandb" / "uploaded.json").read_text())
    assert marker == {"epochs": 4, "url": f"{server.url}/me/adahessian/runs/{name}"}
    assert capsys.readouterr().err == f"wandb: {marker['url']}\n"


def test_done_is_success_and_the_same_directory_the_same_run(tmp_path, server):
    directory = new_run(tmp_path)
    session(directory, 1, 2)
    (directory.path / "DONE").write_text("{}")
    describe(directory)  # one session more
    session(directory, 3, 2)
    ((_, run),) = server.runs.items()
    assert run.epochs() == [1, 2] and run.exit_code == 0
    session(new_run(tmp_path, seed=2), 1, 1)
    assert len(server.runs) == 2
    assert len({run.description["groupName"] for run in server.runs.values()}) == 1


# -------------------------------------------------------------------------- crashes and resumes


def test_offline_sessions_leave_one_record_with_every_epoch_once(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = new_run(tmp_path)
    session(directory, 1, 7)
    cut(directory, 5)
    session(directory, 6, 8)
    assert [item["epoch"] for item in history(only(directory))] == list(range(1, 9))
    words = [sys.executable, "-m", "wandb", "sync", "--yes", str(only(directory))]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    ((_, run),) = server.runs.items()
    assert run.epochs() == list(range(1, 9))


def test_online_only_what_the_server_lacks_is_sent(tmp_path, server):
    """It had received 4 of the 7 epochs when the training was killed; the checkpoint is of 5."""
    directory = new_run(tmp_path)
    session(directory, 1, 7)
    ((_, run),) = server.runs.items()
    del run.history[4:]
    run.summary |= {"_step": 40, "step": 40}  # wandb sends both in one request
    cut(directory, 5)
    session(directory, 6, 9)
    assert run.epochs() == list(range(1, 10))
    # And it may have more than the checkpoint.
    cut(directory, 5)
    tracker = session(directory, 6, 10)
    assert run.epochs() == list(range(1, 11)) and tracker.uploaded


def test_online_then_offline_then_uploaded(tmp_path, monkeypatch, server):
    directory = new_run(tmp_path)
    session(directory, 1, 3)
    monkeypatch.setenv("WANDB_MODE", "offline")
    session(directory, 4, 6)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    assert upload.main([]) == 0 and upload.main([]) == 0
    ((_, run),) = server.runs.items()
    assert run.epochs() == [1, 2, 3, 4, 5, 6]
    assert not only(directory).name.startswith("offline-")  # or `wandb sync` sent it all again


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_passes_through_and_ends_the_run(error, tmp_path, server):
    directory = new_run(tmp_path)
    with pytest.raises(type(error)), Tracker(directory.path) as tracker:
        directory.append(row(1))
        tracker.log(row(1))
        raise error
    ((_, run),) = server.runs.items()
    assert run.epochs() == [1] and run.exit_code == 1 and tracker.uploaded


def test_a_server_that_dies_holds_nobody_up_and_loses_nothing(
    tmp_path, monkeypatch, server, capsys
):
    monkeypatch.setitem(tracking.SETTINGS, "finish_timeout", 2)
    directory = new_run(tmp_path)
    with Tracker(directory.path) as tracker:
        for epoch in range(1, 201):
            if epoch == 3:
                wait_for(lambda: tracker.epochs == 2)
                server.stop()
                before = time.monotonic()
            directory.append(row(epoch))
            tracker.log(row(epoch))
        assert time.monotonic() - before < 10
        before = time.monotonic()
    assert time.monotonic() - before < 10
    assert not tracker.uploaded
    assert "`make wandb-sync` sends what is missing" in capsys.readouterr().err
    # The next run of this process does not wait for the server again.
    before = time.monotonic()
    session(new_run(tmp_path, seed=2), 1, 1)
    assert time.monotonic() - before < 5

    wandb.teardown()
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    with WandbServer() as another:
        monkeypatch.setenv("WANDB_BASE_URL", another.url)
        assert upload.main([]) == 0
    assert sorted(run.epochs() for run in another.runs.values()) == [[1], list(range(1, 201))]


def run_script(text: str, folder: Path) -> str:
    """Run Python in a process of its own, which wandb's service may die in; returns its stderr."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    process = subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    return process.stderr


WITH_A_DEATH = """
import os, signal, subprocess, time
from pathlib import Path
from experiments.tracking.tracker import Tracker
from support.wandb_cases import new_run, row, wait_for

directory = new_run(Path("."))
with Tracker(directory.path) as tracker:
    for epoch in range(1, 5):
        directory.append(row(epoch))
        tracker.log(row(epoch))
        if epoch == 1:
            wait_for(lambda: tracker.epochs == 1)
            words = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
            os.kill(int(subprocess.check_output(words)), signal.SIGKILL)
            time.sleep(0.5)
"""


@pytest.mark.slow
def test_wandbs_own_death_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (line,) = run_script(WITH_A_DEATH, tmp_path).splitlines()
    assert line.startswith("wandb: ") and "whose files are complete" in line
    directory = RunDirectory(tmp_path / "runs", small_config())
    session(directory, 5, 5)
    assert [item["epoch"] for item in history(only(directory))] == [1, 2, 3, 4, 5]


def test_a_second_tracker_of_a_run_stays_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = new_run(tmp_path)
    with Tracker(directory.path) as tracker:
        wait_for(lambda: tracker.run is not None)
        session(directory, 1, 1)
        tracker.log(row(1))
    assert "another process is sending" in capsys.readouterr().err
    assert len(history(only(directory))) == 1


IMPATIENT = """
import time
from pathlib import Path
from experiments.tracking import tracker as tracking
from support.wandb_cases import new_run, session

tracking.SETTINGS |= {"init_timeout": 2, "finish_timeout": 2}
directory = new_run(Path("."))
before = time.monotonic()
assert not session(directory, 1, 3).uploaded
assert time.monotonic() - before < 60
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "body", "delay"),
    [
        (200, b"<html>Welcome to our hotel's network</html>", 0),
        (200, b'{"data": {}}', 0),  # wandb 0.31's service dies of this one
        (401, b'{"errors": ["unauthorized"]}', 0),
        (500, b"", 0),
        (200, b"", 60),
    ],
)
def test_a_server_that_answers_nonsense(code, body, delay, tmp_path, monkeypatch):
    http = answering(code, body, delay)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
    errors = run_script(IMPATIENT, tmp_path)
    http.shutdown()
    http.server_close()
    assert "make wandb-sync" in errors and "Traceback" not in errors
    assert len(read_metrics(RunDirectory(tmp_path / "runs", small_config()).metrics_path)) == 3


# ------------------------------------------------------------------------------- real trainings


def train(root: Path, seed: int, *settings: str) -> subprocess.Popen[str]:
    return harness.start(root, "optimizer=sgd", f"seed={seed}", *settings)


def wait_for_epochs(directory: RunDirectory, process: subprocess.Popen, epochs: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while directory.metrics_size() == 0 or len(read_metrics(directory.metrics_path)) < epochs:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
def test_killed_and_resumed_from_a_checkpoint_each_epoch_once(tmp_path, monkeypatch, server):
    """Offline, with what the kill leaves on disk, read by wandb's tools and synced by them."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = ("epochs=30", "checkpoint_every_epochs=5")
    directory = RunDirectory(tmp_path, small_config(*settings))
    process = train(tmp_path, 1, *settings)
    with process:
        wait_for_epochs(directory, process, 7)
        wait_for(lambda: records(directory.path) and history(only(directory)))
        assert process.poll() is None
        process.kill()
    rows = read_metrics(directory.metrics_path)
    kept = [item["epoch"] for item in of_epochs(history(only(directory)))]
    lost = [r["epoch"] for r in rows if r["epoch"] not in kept]
    # One second of wandb's buffer, and what the training did between our look and the kill.
    assert kept == list(range(1, len(kept) + 1))
    assert sum(r["time/epoch_seconds"] for r in rows if r["epoch"] in lost) < 3
    with train(tmp_path, 1, *settings) as process:
        finish(process)
    words = [sys.executable, "-m", "wandb", "sync", "--yes", str(only(directory))]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    ((_, run),) = server.runs.items()
    sent_rows = of_epochs(run.rows())
    assert [row["epoch"] for row in sent_rows] == list(range(1, 31)) and run.exit_code == 0
    for sent, written in zip(sent_rows, read_metrics(directory.metrics_path), strict=True):
        assert written.items() <= sent.items()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_ended_within_the_first_seconds_online(end, tmp_path, server):
    settings = ("epochs=3",)
    directory = RunDirectory(tmp_path, small_config(*settings))
    process = train(tmp_path, 1, *settings)
    with process:
        wait_for_epochs(directory, process, 1)
        process.send_signal(end)
    assert process.returncode
    with train(tmp_path, 1, *settings) as process:
        finish(process)
    ((_, run),) = server.runs.items()
    assert run.epochs() == [1, 2, 3] and run.exit_code == 0


@pytest.mark.slow
def test_parallel_runs_and_bitwise_the_same_rows_as_without_wandb(tmp_path, monkeypatch, server):
    both = [train(tmp_path / "a", 1), train(tmp_path / "a", 2)]
    for process in both:
        with process:
            finish(process)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with train(tmp_path / "b", 1) as process:
        assert "wandb" not in finish(process)
    assert [run.epochs() for run in server.runs.values()] == [[1, 2], [1, 2]]
    with_wandb, without = [
        [without_times(r) for r in read_metrics(RunDirectory(root, small_config()).metrics_path)]
        for root in (tmp_path / "a", tmp_path / "b")
    ]
    assert with_wandb == without


@pytest.mark.parametrize(("direction", "best"), [("min", 2), ("max", 3)])
def test_the_best_epoch_follows_the_metrics_direction(direction, best, tmp_path):
    metric = Metric("perplexity", direction, digits=2)
    values = [5.0, 3.0, 9.0, 4.0]
    directory = harness.finish_run(tmp_path / "runs", small_config(), values, metric=metric)
    with Tracker(directory.path, "offline"):
        pass  # opening sends everything
    summary = {}
    for item in inspect(only(directory)):
        if item["type"] == "summary":
            summary |= item["summary"]["update"]
    assert (summary["best/epoch"], summary["best/test/perplexity"]) == (best, values[best - 1])
    assert summary["test/perplexity"] == 4.0


@pytest.mark.parametrize(
    ("word", "mode"),
    [("", "auto"), ("dryrun", "offline"), ("run", "online"), ("shared", "online")],
)
def test_what_else_wandb_takes_for_a_mode(word, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", word)
    assert [tracking.requested_mode() for _ in range(2)] == [mode] * 2
    assert os.environ.get("WANDB_MODE") == (None if mode == "auto" else mode)


# ------------------------------------------------------------------------------------------- names


def described(root, *overrides, optimizer="sgd", seed=1):
    """What wandb is told of a run that was asked for with some overrides."""
    directory = RunDirectory(
        root / "runs", small_config(*overrides, optimizer=optimizer, seed=seed)
    )
    directory.path.mkdir(parents=True, exist_ok=True)
    describe(directory)
    config = read_yaml((directory.path / "config.yaml").read_text())
    return tracking.describe(directory.path, directory.meta(), config)


def test_runs_that_differ_have_names_that_differ(tmp_path):
    runs = [
        described(tmp_path, f"optimizers.sgd.lr={lr}", *more, seed=seed)
        for lr in (0.1, 0.2)
        for more in ([], ["batch_size=64"], ["optimizers.sgd.nesterov=true"])
        for seed in (1, 2)
    ]
    names = [run["name"] for run in runs]
    assert len(set(names)) == len(names) == 12
    assert names[0] == "sgd epochs=2 seed 1"
    assert "sgd lr=0.2 nesterov=True epochs=2 seed 2" in names
    assert runs[-1]["config"]["changed"] == {"lr": 0.2, "nesterov": True, "epochs": 2}


def test_names_and_tags_are_no_longer_than_wandb_takes(tmp_path):
    config = small_config()
    config = config.model_copy(update={"optimizers": {"x" * 80: config.optimizer}})
    directory = RunDirectory(tmp_path / "runs", config)
    directory.path.mkdir(parents=True)
    describe(directory)
    found = tracking.describe(directory.path, directory.meta(), config.model_dump(mode="json"))
    assert max(map(len, found["tags"])) == 64 and len(found["name"]) <= 128


# ------------------------------------------------------------------------------- inside an epoch


def step_row(step: int) -> dict:
    return {"step": step, "epoch": step / 10, "learning_rate": 0.1, "step/loss": 1 / step}


def session_with_steps(directory: RunDirectory, first: int, last: int) -> Tracker:
    """As `session`, with a row after every fifth step; the tenth ends an epoch."""
    with Tracker(directory.path) as tracker:
        for epoch in range(first, last + 1):
            for step in (10 * epoch - 5, 10 * epoch):
                directory.append_step(step_row(step))
                tracker.log(step_row(step))
            directory.append(row(epoch))
            tracker.log(row(epoch))
    return tracker


def test_steps_are_sent_once_and_with_the_epoch_that_they_end(tmp_path, monkeypatch, server):
    directory = new_run(tmp_path)
    session_with_steps(directory, 1, 3)
    ((_, run),) = server.runs.items()
    assert [item["epoch"] for item in run.rows()] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [item["_step"] for item in run.rows()] == [5, 10, 15, 20, 25, 30]
    assert run.rows()[1].items() >= {**step_row(10), **row(1)}.items()
    # Killed behind a step that ends an epoch, before that was evaluated: its row comes later.
    directory.append_step(step_row(35))
    directory.append_step(step_row(40))
    with Tracker(directory.path):
        pass
    assert [item["epoch"] for item in run.rows()][-1] == 3.5
    with Tracker(directory.path) as tracker:
        directory.append(row(4))
        tracker.log(row(4))
    assert run.rows()[-1].items() >= {**step_row(40), **row(4)}.items()
    assert [item["epoch"] for item in run.rows()] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert tracker.epochs == 4 and tracker.uploaded


def test_offline_one_record_has_steps_and_epochs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = new_run(tmp_path)
    session_with_steps(directory, 1, 2)
    session_with_steps(directory, 3, 3)
    rows = history(only(directory))
    assert [item["epoch"] for item in rows] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert ["step/loss" in item for item in rows] == [True] * 6
    assert ["train/loss" in item for item in rows] == [False, True] * 3


def test_a_run_that_an_earlier_version_began_to_send_goes_on(tmp_path, server):
    """It counted epochs in wandb's own step."""
    directory = new_run(tmp_path)
    session(directory, 1, 3)
    ((_, run),) = server.runs.items()
    for place, item in enumerate(run.history):
        run.history[place] = json.dumps({**json.loads(item), "_step": place + 1})
    run.summary["_step"] = 3
    session(directory, 4, 5)
    assert run.epochs() == [1, 2, 3, 4, 5]
