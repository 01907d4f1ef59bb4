"""What the tests of everything that talks to wandb share: a clean machine, runs, records."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from support.harness import small_config
from support.patience import PATIENCE
from support.wandb_server import WandbServer

from experiments.runs.directory import RunDirectory
from experiments.tracking import tracker as tracking
from experiments.tracking.tracker import Tracker, records


@pytest.fixture(autouse=True)
def clean_machine(tmp_path, monkeypatch):
    """A machine without key, account or history, and a wandb that has read nothing of it yet."""
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CACHE_DIR", "")  # or what the tracker sets would outlive the test
    monkeypatch.delenv("WANDB_CACHE_DIR")
    monkeypatch.setattr(Tracker, "server_failed", False)
    tracking.say.cache_clear()
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(name="server")
def running_server(monkeypatch):
    with WandbServer() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def row(epoch: int) -> dict:
    return {
        "step": 10 * epoch,
        "epoch": epoch,
        "learning_rate": 0.1,
        "train/loss": 1 / epoch,
        "test/accuracy": 1 - (epoch - 3) ** 2 / 100,  # best at 3
        "hessian/layer_trace/layer1.0.conv1.weight": 2.0 * epoch,
        "time/step_seconds": 0.01 * epoch,
    }


def new_run(root: Path, seed: int = 1) -> RunDirectory:
    """The directory of a run that is about to start."""
    directory = RunDirectory(root / "runs", small_config(seed=seed))
    directory.path.mkdir(parents=True)
    describe(directory)
    return directory


def describe(directory: RunDirectory) -> None:
    session = {"command": "python -m experiments.run", "started": "2026", "commit": "abc"}
    directory.describe(session, {"loss": "min", "accuracy": "max"}, "accuracy", 77_754)


def session(directory: RunDirectory, first: int, last: int, mode: str | None = None) -> Tracker:
    """What a training does that starts after epoch `first - 1` and ends after `last`."""
    with Tracker(directory.path, mode) as tracker:
        for epoch in range(first, last + 1):
            directory.append(row(epoch))
            tracker.log(row(epoch))
    return tracker


def wait_for(condition, seconds: float = PATIENCE) -> None:
    """Wait for what a tracker's thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def record_rows(directory: RunDirectory, last: int) -> None:
    """What a training leaves that knew no wandb."""
    for epoch in range(1, last + 1):
        directory.append(row(epoch))


def cut(directory: RunDirectory, epochs: int) -> None:
    """Back to the rows of a checkpoint, as a resumed training does."""
    lines = directory.metrics_path.read_text().splitlines(keepends=True)[:epochs]
    directory.cut_metrics(len("".join(lines)))
    describe(directory)


def inspect(record: Path) -> list[dict]:
    """A record as wandb's own tool reads it."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def history(record: Path) -> list[dict]:
    return [item["history"]["item"] for item in inspect(record) if item["type"] == "history"]


def of_epochs(rows: list[dict]) -> list[dict]:
    """Without those of single steps."""
    return [row for row in rows if not any(key.startswith("step/") for key in row)]


def only(directory: RunDirectory) -> Path:
    (record,) = records(directory.path)
    return record
