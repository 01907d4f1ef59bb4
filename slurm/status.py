"""Status: `python -m slurm.status [PATTERN] [--long] [--watch]`.

One row per run below `RUNS_ROOT`: from the runs' own files, and from Slurm where it answers.
PATTERN is a part of the run's directory, such as `digits/resnet8` or `s3`, or has `*` in it.
"""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.config import metrics
from experiments.config.metrics import Metric
from experiments.config.yaml_reader import read_yaml_file
from experiments.errors import UserError
from experiments.runs import attempts, layout
from experiments.runs.labels import settings_apart, words
from experiments.runs.metrics import read_json, read_metrics
from experiments.runs.states import read_state
from experiments.runtime.paths import runs_root
from slurm import jobs

WATCH_SECONDS = 10
SHORT = 60  # characters of a reason, where no terminal says how wide it is
REASON = "last reason"
GAP = "  "
CLEAR = "\033[2J\033[H"


@dataclass(frozen=True)
class Row:
    """What is known of one run.

    Attributes:
        run: its directory below the root.
        settings: what sets it apart from the other runs of its data set and model.
        metric: what its task measures, None where that is not known (yet).
        value: the metric on the test set after the last epoch.
        reason: why the last attempt, or the one before this one, ended; or what is unreadable.
    """

    run: str
    settings: str
    state: str
    epoch: str
    metric: Metric | None
    value: float | None
    attempts: str
    job: str
    left: str
    reason: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.status", description=__doc__)
    parser.add_argument("pattern", nargs="?", help="only runs whose directory has this in it")
    parser.add_argument("--long", action="store_true", help="reasons at full length")
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_SECONDS} s")
    return cli.execute(parser, _status, arguments)


def _status(parsed: argparse.Namespace) -> None:
    while True:
        rows, note = collect(runs_root(), parsed.pattern)
        show(rows, note, clear=parsed.watch, whole=parsed.long)
        if not parsed.watch:
            return
        time.sleep(WATCH_SECONDS)


def find(root: Path, pattern: str | None) -> list[Path]:
    """The directories of the runs that match a pattern.

    Raises:
        UserError: there is none.
    """
    found = layout.find(root)
    if pattern:
        pattern = pattern if "*" in pattern else f"*{pattern}*"
        found = [path for path in found if fnmatch(str(path.relative_to(root)), pattern)]
    if not found:
        raise UserError(f"no run{f' like {pattern}' if pattern else ''} below {root}")
    return found


def collect(root: Path, pattern: str | None) -> tuple[list[Row], str]:
    """The rows, and a note where Slurm could not be asked."""
    directories = find(root, pattern)
    sent, problems = jobs.submissions(directories)
    configs: dict[Path, dict[str, Any]] = {}
    for path in directories:
        try:
            configs[path] = _config(path)
        except (OSError, UserError) as error:
            problems.setdefault(path, describe(path, error))
    wanted = {job.job for path, job in sent.items()
              if job.cluster == "slurm" and not layout.holds(path, "DONE")}  # fmt: skip
    try:
        known, note = jobs.slurm_jobs(wanted), ""
        over = {job for job in sent.values() if jobs.is_over(job, known)}
    except UserError as error:
        known, note, over = {}, f"from files alone: {error}", set()
    before_training = _ends_before_training(sent, over)
    models = [path.parts[-3] for path in configs]
    apart = dict(zip(configs, settings_apart(list(configs.values()), models), strict=True))
    return [
        _unreadable(root, path, problems[path], sent.get(path))
        if path in problems
        else _row(root, path, configs[path], apart[path], sent.get(path), known,
                  before_training.get(path, ""))
        for path in directories
    ], note  # fmt: skip


def _ends_before_training(
    sent: Mapping[Path, jobs.Submitted], over: set[jobs.Submitted]
) -> dict[Path, str]:
    """Why jobs ended that began none of their runs: the setup failed, say, or Python's start."""
    silent = {path: job for path, job in sent.items()
              if job in over and not layout.holds(path, "DONE")}  # fmt: skip
    begun = set()
    for path, job in silent.items():
        with suppress(OSError):  # the row of the run says so
            begun |= {job for attempt in attempts.read(path) if attempt.job == job.job}
    return {path: jobs.last_words(job) for path, job in silent.items() if job not in begun}


def _config(path: Path) -> dict[str, Any]:
    config = read_yaml_file(path / "config.yaml")
    try:
        ((_, optimizer),) = config["optimizers"].items()
        optimizer.items(), config["dataset"]["name"], config["model"], int(config["epochs"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"config.yaml is no run's configuration ({what})") from None
    return config


def describe(directory: Path, error: Exception) -> str:
    """Why a run's file cannot be read, in one line that names it within the directory."""
    if isinstance(error, OSError):
        name = Path(error.filename or directory).name
        return f"{name}: {error.strerror or error}"
    return " ".join(str(error).replace(f"{directory}/", "").split())


def _unreadable(root: Path, path: Path, problem: str, job: jobs.Submitted | None) -> Row:
    run, number = str(path.relative_to(root)), job.job if job else ""
    state = "unreadable"
    if problem.startswith("config.yaml: No such file"):
        state = read_state(path)[0]  # it has just begun
    return Row(run, "", state, "", None, None, "", number, "", problem)


def _row(
    root: Path,
    path: Path,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    job: jobs.Submitted | None,
    known: Mapping[str, jobs.JobState],
    before_training: str,
) -> Row:
    state, reason, left = _state(path, job, known)
    if before_training and state == "new":  # and Slurm has forgotten the job
        state = "failed"
    try:
        tries, last = attempts.read(path), (read_metrics(path / "metrics.jsonl") or [{}])[-1]
        metric, value = _measured(path, last)
    except OSError as error:
        return _unreadable(root, path, describe(path, error), job)
    going_on = tries and tries[-1].reason is None and state not in ("killed", "queued", "starting")
    ended = tries[:-1] if going_on else tries
    reasons = [one.reason or attempts.KILLED for one in ended if one.reason != attempts.DONE]
    last_reason = before_training or reason or (reasons[-1] if reasons else "")
    return Row(
        run=str(path.relative_to(root)),
        settings=words(settings),
        state=state,
        epoch=f"{last.get('epoch', 0)}/{config['epochs']}",
        metric=metric,
        value=value,
        attempts=str(len(tries)) if tries else "",
        job=job.job if job else "",
        left=left,
        reason=last_reason.replace(f"{path.absolute()}/", ""),
    )


def _state(
    path: Path, job: jobs.Submitted | None, known: Mapping[str, jobs.JobState]
) -> tuple[str, str, str]:
    """State, reason, and the time that its job has left."""
    state, reason = read_state(path)
    seen = known.get(job.job) if job else None
    if job is None or state == "done":
        return state, reason, ""
    if seen and seen.active:
        if state != "running":
            state = "starting" if seen.state in ("RUNNING", "CONFIGURING") else "queued"
            reason = reason or seen.reason
        return state, reason, seen.left
    if seen and state == "new":
        return seen.state.split()[0].lower(), reason, ""
    if job.cluster == "local" and state == "new" and jobs.local_job_runs(job):
        return "queued", reason, ""
    return state, reason, ""


def _measured(path: Path, row: Mapping[str, Any]) -> tuple[Metric | None, float | None]:
    """The metric that reports show, and its value in a row."""
    try:
        meta = read_json(path / "meta.json")
        metric = metrics.read(meta)[meta["headline"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, None  # the state says so where it matters
    value = row.get(f"test/{metric.name}")
    return metric, value if isinstance(value, int | float) else None


def show(rows: Sequence[Row], note: str, clear: bool = False, whole: bool = False) -> None:
    """Print a table, and how many runs are in which state.

    Args:
        rows, note: see `collect`.
        clear: the screen first.
        whole: whether reasons are shown at full length, rather than as far as they fit.
    """
    columns = {name: [name, *values] for name, values in cells(rows).items()}
    widths = {name: max(map(len, texts)) for name, texts in columns.items()}
    if REASON in columns and not whole:
        others = sum(width + len(GAP) for name, width in widths.items() if name != REASON)
        terminal = shutil.get_terminal_size().columns - others if sys.stdout.isatty() else SHORT
        columns[REASON] = [shortened(text, max(terminal, len(REASON))) for text in columns[REASON]]
    if clear:
        print(CLEAR, end="")
    for texts in zip(*columns.values(), strict=True):
        padded = (text.ljust(widths[name]) for name, text in zip(widths, texts, strict=True))
        print(GAP.join(padded).rstrip())
    counts = Counter(row.state for row in rows)
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    if note:
        print(note)


def cells(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The columns of the table that have something in them, by their headings."""
    measured = {row.metric for row in rows if row.metric}
    same = len(measured) == 1
    heading = f"test {next(iter(measured)).title}" if same else "test metric"
    columns = {
        "run": [row.run for row in rows],
        "settings": [row.settings for row in rows],
        "state": [row.state for row in rows],
        "epoch": [row.epoch for row in rows],
        heading: [_value(row, named=not same) for row in rows],
        "attempts": [row.attempts for row in rows],
        "job": [row.job for row in rows],
        "left": [row.left for row in rows],
        REASON: [row.reason for row in rows],
    }
    return {name: values for name, values in columns.items() if any(values)}


def _value(row: Row, named: bool) -> str:
    if row.metric is None or row.value is None:
        return ""
    text = row.metric.text(row.value)
    return f"{row.metric.name} {text}{row.metric.unit}" if named else text


def shortened(text: str, room: int) -> str:
    """A text in so many characters."""
    return text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"


if __name__ == "__main__":
    sys.exit(main())
