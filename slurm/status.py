"""Status: `python -m slurm.status [PATTERN] [--watch]`.

One row per run below `RUNS_ROOT`: from the runs' own files, and from Slurm where it answers.
PATTERN is a part of the run's directory, such as `digits/resnet8` or `s3`, or has `*` in it.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiments.errors import USER_ERROR, UserError
from experiments.plans.load import load
from experiments.runs import attempts
from experiments.runs.metrics import read_metrics
from experiments.runs.states import read_state
from experiments.runtime.paths import runs_root
from slurm import jobs

COLUMNS = ("run", "state", "epoch", "accuracy", "attempts", "last reason", "job", "left")
WATCH_SECONDS = 10


@dataclass(frozen=True)
class Row:
    """What is known of one run."""

    run: str
    state: str
    epoch: str
    accuracy: str
    attempts: str
    reason: str
    job: str
    left: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.status", description=__doc__)
    parser.add_argument("pattern", nargs="?", help="only runs whose directory has this in it")
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_SECONDS} s")
    parsed = parser.parse_args(arguments)
    try:
        while True:
            rows, note = collect(runs_root(), parsed.pattern)
            show(rows, note, clear=parsed.watch)
            if not parsed.watch:
                return 0
            time.sleep(WATCH_SECONDS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 0


def find(root: Path, pattern: str | None) -> list[Path]:
    """The directories of the runs that match a pattern.

    Raises:
        UserError: there is none.
    """
    found = sorted(path.parent for path in root.glob("*/*/*/*/config.yaml"))
    if pattern:
        pattern = pattern if "*" in pattern else f"*{pattern}*"
        found = [path for path in found if fnmatch(str(path.relative_to(root)), pattern)]
    if not found:
        raise UserError(f"no run{f' like {pattern}' if pattern else ''} below {root}")
    return found


def collect(root: Path, pattern: str | None) -> tuple[list[Row], str]:
    """The rows, and a note where Slurm could not be asked."""
    directories = find(root, pattern)
    sent = {path: jobs.submitted(path) for path in directories}
    wanted = {job.job for path, job in sent.items()
              if job and job.cluster == "slurm" and not (path / "DONE").exists()}  # fmt: skip
    try:
        known, note = jobs.slurm_jobs(wanted), ""
    except UserError as error:
        known, note = {}, f"from files alone: {error}"
    return [_row(root, path, sent[path], known) for path in directories], note


def _row(
    root: Path, path: Path, job: jobs.Submitted | None, known: dict[str, jobs.JobState]
) -> Row:
    (now, reason), left = read_state(path), ""
    tries = attempts.read(path)
    going_on = tries and tries[-1].reason is None and now != "killed"
    ended = tries[:-1] if going_on else tries
    reasons = [one.reason or attempts.KILLED for one in ended if one.reason != attempts.DONE]
    reason = reason or (reasons[-1] if reasons else "")
    if job and now != "done":
        seen = known.get(job.job)
        if seen and seen.active:
            left = seen.left
            if now != "running":
                now = "starting" if seen.state in ("RUNNING", "CONFIGURING") else "queued"
                reason = reason or seen.reason
        elif seen and now == "new":
            now = seen.state.split()[0].lower()
        elif job.cluster == "local" and now == "new" and jobs.local_job_runs(job):
            now = "queued"
    config = load(path / "config.yaml")
    last = (read_metrics(path / "metrics.jsonl") or [{}])[-1]
    accuracy = last.get("test/accuracy")
    return Row(
        run=str(path.relative_to(root)),
        state=now,
        epoch=f"{last.get('epoch', 0)}/{config.epochs}",
        accuracy="" if accuracy is None else f"{accuracy:.4f}",
        attempts=str(len(tries)) if tries else "",
        reason=reason,
        job=job.job if job else "",
        left=left,
    )


def show(rows: Sequence[Row], note: str, clear: bool) -> None:
    """Print a table, and how many runs are in which state."""
    from rich.console import Console
    from rich.table import Table

    # Off a terminal nothing is cut: the output goes to a file or to grep.
    console = Console() if sys.stdout.isatty() else Console(width=400)
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*_cells(row, cut=sys.stdout.isatty()))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    if clear:
        console.clear()
    console.print(table)
    console.print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    if note:
        console.print(note)


def _cells(row: Row, cut: bool) -> list[Any]:
    from rich.text import Text

    values = [row.run, row.state, row.epoch, row.accuracy, row.attempts, row.reason, row.job,
              row.left]  # fmt: skip
    if cut and len(row.reason) > 40:
        values[5] = row.reason[:39] + "…"
    return [Text(value) for value in values]  # as text: brackets in a message are no markup


if __name__ == "__main__":
    sys.exit(main())
