"""How each attempt at a run began and ended: `attempts.jsonl` in the run's directory.

Two lines per attempt: `attempt`, `started`, `host`, `job`, `checkpoint` (which one was there, as
its time stamp); then `attempt`, `ended`, `reason`. An attempt without its second line was killed.
"""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs import checkpoint
from experiments.runs.jsonlines import read_rows
from experiments.runs.lease import Lease, LeaseLost, job_id
from experiments.runs.storage import StorageError, writing
from experiments.runtime.stopping import Paused, Stopped

NAME = "attempts.jsonl"
KILLED = "killed"
DONE = "done"
LIMIT = 3
_STARTED = {"attempt": int, "started": str, "host": str, "job": str | None,
            "checkpoint": int | None}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One attempt; `reason` is None while it goes on, or if it was killed."""

    number: int
    started: str
    host: str
    job: str | None
    checkpoint: int | None
    reason: str | None = None


@contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """Record an attempt; the caller holds the lease."""
    number = len(read(directory)) + 1
    start = {
        "attempt": number,
        "started": _now(),
        "host": platform.node(),
        "job": job_id(),
        "checkpoint": checkpoint.stamp(directory),
    }
    _append(directory, start)
    try:
        yield
    except LeaseLost:
        raise  # the directory is another one's
    except BaseException as error:
        _end(directory, number, describe(error))
        raise
    _end(directory, number, DONE)


def record_end(directory: Path, error: Exception) -> None:
    """Record an attempt that an error ended before it could take the lease, where that is free."""
    with suppress(UserError), Lease(directory).held(wait=False), suppress(type(error)):
        with recorded(directory):
            raise error


def read(directory: Path) -> list[Attempt]:
    """All attempts at a run, the oldest first; lines that are torn or damaged are passed over."""
    rows, _ = read_rows(directory / NAME)
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if isinstance(row.get("attempt"), int) and isinstance(row.get("reason"), str | None):
            found.setdefault(row["attempt"], {}).update(row)
    return [
        Attempt(
            row["attempt"], row["started"], row["host"], row["job"], row["checkpoint"],
            row.get("reason"),
        )
        for row in found.values()
        if all(key in row and isinstance(row[key], kind) for key, kind in _STARTED.items())
    ]  # fmt: skip


def hopeless(directory: Path, job: str | None) -> str | None:
    """Why this job should not try again: it ended `LIMIT` times alike, with nothing saved since.

    Another job may: whoever submits a run anew has mended something, or means to see it fail.

    Returns:
        The reason of the last attempts, or None.
    """
    last = [attempt for attempt in read(directory) if attempt.job == job][-LIMIT:]
    ways = {attempt.reason or KILLED for attempt in last}
    checkpoints = {attempt.checkpoint for attempt in last} | {checkpoint.stamp(directory)}
    if len(last) < LIMIT or len(ways) > 1 or len(checkpoints) > 1:
        return None
    (way,) = ways
    return None if way == DONE else way


def describe(error: BaseException) -> str:
    """An attempt's end in one line."""
    if isinstance(error, Stopped | Paused):
        return str(error)
    text = " ".join(str(error).split())
    if type(error) is UserError and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _end(directory: Path, number: int, reason: str) -> None:
    try:
        _append(directory, {"attempt": number, "ended": _now(), "reason": reason})
    except StorageError:
        pass  # most likely the very reason, which must not be hidden behind this one


def _append(directory: Path, row: dict[str, Any]) -> None:
    path = directory / NAME
    with writing(path):
        # After a torn line, start on a new one.
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(row) + "\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
