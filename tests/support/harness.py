"""A small experiment for the tests of the harness, and the command that runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.patience import PATIENCE

from experiments.config.experiment import Config
from experiments.config.metrics import ACCURACY, LOSS, Metric, dump
from experiments.plans.load import load, resolve
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_json

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "configs" / "digits" / "resnet20.yaml"
SMALL = ("model.depth=8", "epochs=2")


def small_config(*overrides: str, optimizer: str = "sgd", seed: int = 1) -> Config:
    """A run on the digits that takes about a second."""
    return resolve(load(DIGITS, [*SMALL, *overrides]), optimizer, seed)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.run", str(DIGITS), *SMALL, *arguments]


def start(runs_root: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the real command in a process of its own."""
    return subprocess.Popen(
        command(*arguments),
        cwd=REPOSITORY,
        env={**os.environ, "RUNS_ROOT": str(runs_root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(runs_root: Path, *arguments: str) -> None:
    """Run the real command to its end, in a process of its own."""
    with start(runs_root, *arguments) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def finish_run(
    root: Path, config: Config, values, step_seconds=0.01, metric: Metric = ACCURACY, **more
) -> RunDirectory:
    """The files of a finished run, without the training.

    Args:
        root, config: where and which.
        values: of the headline metric on training and test set, one per epoch.
        step_seconds: of the mean and of the median step.
        metric: the headline metric; `meta.json` declares it beside the loss.
        more: goes into every row.
    """
    directory = RunDirectory(root, config)
    directory.path.mkdir(parents=True)
    session = {"commit": "c" * 40, "dirty": False, "host": "node1", "device": "cpu"}
    directory.describe(session, {"loss": "min", metric.name: metric.direction}, metric.name)
    if metric is not ACCURACY:
        meta = read_json(directory.path / "meta.json") | {"metrics": dump((LOSS, metric))}
        (directory.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for epoch, value in enumerate(values, 1):
        row = {"step": 100 * epoch, "epoch": epoch, "learning_rate": 0.1}
        for split in ("train", "test"):
            row |= {f"{split}/loss": 1 / epoch, f"{split}/{metric.name}": value}
        row |= {**more, "time/epoch_seconds": 100 * step_seconds, "time/step_seconds": step_seconds}
        directory.append(row)
    directory.finish(metric.name, metric.direction)
    return directory


def say_in_meta(directory: RunDirectory, **entries: Any) -> RunDirectory:
    """Give a run's `meta.json` other entries."""
    path = directory.path / "meta.json"
    path.write_text(json.dumps(read_json(path) | entries), encoding="utf-8")
    return directory


def interrupted(
    function: Callable,
    before: Callable[[int], bool],
    after: Callable[[int], bool] = lambda call: False,
) -> Callable:
    """The function, stopped before or after it ran at some of its calls, counted from 1."""
    calls = []

    def stopped(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if before(len(calls)):
            raise KeyboardInterrupt
        value = function(*arguments, **named)
        if after(len(calls)):
            raise KeyboardInterrupt
        return value

    return stopped


def until_done(session: Callable[[], Any], limit: int = 40) -> tuple[Any, int]:
    """Repeat what is interrupted until it ends; its value, and how many sessions that took."""
    for sessions in range(1, limit + 1):
        try:
            return session(), sessions
        except KeyboardInterrupt:
            pass
    raise AssertionError(f"still interrupted after {limit} sessions")
