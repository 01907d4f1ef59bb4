"""A run's state, told from its files: the words that reports, sweeps and `make status` share.

- `done`: trained to its end, with a result.
- `running`: a process that is alive holds its lease.
- `stopped`: a signal ended the last attempt (a time limit, a preemption, `scancel`, Ctrl-C), or it
  paused where halving compares trials; it goes on from the step that it saved.
- `killed`: the last attempt ended without a word; it goes on from its last checkpoint.
- `failed`: an error ended the last attempt; the reason is its text.
- `diverged`: its loss or weights became infinite or not a number, or a metric of its last row did.
- `no result`: marked as done, but its test metric is missing; nothing trains it again.
- `unreadable`: its files are damaged, or may not be read.
- `moved`: a copy, or moved: its place is not the one that its `meta.json` names. It is counted
  nowhere, and nothing trains it.
- `other problem`: in a sweep, a table of the paper or a benchmark: on other data than most of the
  plan's runs, or measured otherwise (`experiments.runs.problem`); it is in no mean there.
- `new`: never begun; it may be waiting in a queue, which no file tells.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.config import metrics
from experiments.runs import attempts, lease
from experiments.runs.jsonlines import read_rows
from experiments.runs.layout import misplaced

State = Literal[
    "done",
    "running",
    "stopped",
    "killed",
    "failed",
    "diverged",
    "no result",
    "unreadable",
    "moved",
    "other problem",
    "new",
]
STATES: tuple[State, ...] = get_args(State)


def read_state(directory: Path) -> tuple[State, str]:
    """A run's state, and the reason where its files tell more than the state's word does."""
    try:
        return _read_state(directory)
    except OSError as error:
        return "unreadable", f"{Path(error.filename or directory).name}: {error.strerror or error}"


def _read_state(directory: Path) -> tuple[State, str]:
    if why := misplaced(directory):
        return "moved", why
    if (directory / "DONE").exists():
        return _result(directory)
    if lease.alive(directory):
        return "running", ""
    tries = attempts.read(directory)
    if not tries:
        # Before attempts were recorded, a run that had begun left metrics alone.
        return ("killed" if (directory / "metrics.jsonl").exists() else "new"), ""
    reason = tries[-1].reason
    if reason is None:
        return "killed", ""
    # A second Ctrl-C does not wait for the step: KeyboardInterrupt.
    if reason.startswith(("stopped by ", "paused after ", "KeyboardInterrupt")):
        return "stopped", reason
    return "diverged" if reason.startswith("NonFiniteLoss") else "failed", reason


def _result(directory: Path) -> tuple[State, str]:
    try:
        meta: dict[str, Any] = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        key, names = metrics.result_key(meta), metrics.read(meta)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "unreadable", f"meta.json: {type(error).__name__}: {error}"
    rows, _ = read_rows(directory / "metrics.jsonl")
    row = next((row for row in reversed(rows) if key in row), None)
    if row is None:
        return "no result", f"it is marked as done but has no {key}"
    measured = {name: row[name] for name in row if name.partition("/")[2] in names}
    for name, value in measured.items():
        if not isinstance(value, int | float):
            return "unreadable", f"metrics.jsonl: TypeError: its last {name} is {value!r}"
    bad = [f"{name} is {value}" for name, value in measured.items() if not math.isfinite(value)]
    return ("diverged", f"its last {', '.join(bad)}") if bad else ("done", "")
