"""A small experiment for the tests of the harness, and the command that runs it."""

import os
import subprocess
import sys
from pathlib import Path

from experiments.config import Config, load, resolve

REPOSITORY = Path(__file__).parent.parent
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
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
