"""What ran where and when, from which commit, and what is not done."""

import shlex
import time
from collections import Counter
from collections.abc import Iterator

from experiments.reports.sections import Cell, Grid, Section, Text, duration, number
from experiments.results.tables import Results
from experiments.runs import attempts
from experiments.runs.reading import Run

NAMED = 6  # commits and hosts that a sentence names one by one
FOLD_FROM = 40  # rows from which the table of all runs is shown on demand only


def runs(results: Results) -> Iterator[Section]:
    """What ran where and when, from which commit, and what is not done."""
    if not results.runs:
        return
    finished = results.having("done")
    section = Section("Runs", [Text(_origin(finished))] if finished else [])
    dirty = sum(any(session.get("dirty") for session in _sessions(run)) for run in results.runs)
    if dirty:
        text = f"{dirty} run(s) had files that differed from their commit (dirty)."
        section.blocks.append(Text(text, "warning"))
    incomplete = [run for run in results.runs if run.state != "done"]
    if incomplete or results.unreadable:
        section.blocks.append(_incomplete_grid(incomplete, results))
    section.blocks.append(_runs_grid(results.runs))
    yield section


def _sessions(run: Run) -> list[dict]:
    return run.meta["sessions"]


def _commit(session: dict) -> str:
    return str(session.get("commit") or "unknown")[:10]


def _origin(finished: list[Run]) -> str:
    sessions = [session for run in finished for session in _sessions(run)]
    commits = Counter(_commit(session) for session in sessions)
    hosts = sorted({f"{s.get('host', '?')} ({s.get('device', '?')})" for s in sessions})
    versions = sorted({f"torch {session.get('torch', '?')}" for session in sessions})
    found = ", ".join(commit for commit, _ in commits.most_common(NAMED))
    more = f" and {len(commits) - NAMED} more" if len(commits) > NAMED else ""
    return (
        f"The finished runs took {len(sessions)} session(s), at {_count(len(commits), 'commit')} "
        f"({found}{more}), on {_count(len(hosts), 'host')} ({', '.join(hosts[:NAMED])}), with "
        f"{', '.join(versions)}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _incomplete_grid(incomplete: list[Run], results: Results) -> Grid:
    rows: list[list] = []
    for run in incomplete:
        epochs = run.config.get("epochs", "?")
        rows.append(
            [
                _place(run, results),
                run.state,
                Cell(f"{run.epoch()} of {epochs}", float(run.epoch())),
                _written(run),
                run.problem,
            ]
        )
    for directory, problem in results.unreadable.items():
        rows.append([str(directory.relative_to(results.root)), "unreadable", "", "", problem])
    columns = ("run", "state", "epochs", "last written", "problem")
    return Grid("Runs that are not done", columns, rows)


def _written(run: Run) -> Cell:
    """When the run last wrote into its directory."""
    seconds = max(path.stat().st_mtime for path in run.directory.iterdir())
    return Cell(time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)), seconds)


def _place(run: Run, results: Results) -> str:
    return str(run.directory.relative_to(results.root))


def _last(run: Run) -> Cell | str:
    if not run.evaluated:
        return ""
    value, metric = run.evaluated[-1][run.test_key], run.headline
    return Cell(f"{number(metric.scale * value, metric.digits)} {metric.unit}".strip(), value)


def _job(run: Run) -> str:
    """The job of the last attempt, where a session of an earlier version does not know its own."""
    try:
        tries = attempts.read(run.directory)
    except OSError:
        return ""
    return str(tries[-1].job or "") if tries else ""


def _command(run: Run, first: dict) -> str:
    """The command that trains the run again, elsewhere: in its directory it would be found done."""
    command = str(first.get("command", ""))
    if "/.slurm/" in command:  # of a job, which an earlier version named by its folder
        command = shlex.join(["python", "-m", "experiments.run", f"{run.directory}/config.yaml"])
    return command


def _runs_grid(every: list[Run]) -> Grid:
    rows = []
    for run in every:
        sessions = _sessions(run)
        first, last = (sessions[0], sessions[-1]) if sessions else ({}, {})
        commits = dict.fromkeys(_commit(session) for session in sessions)
        mark = " dirty" if any(session.get("dirty") for session in sessions) else ""
        seconds = run.training_seconds()
        rows.append(
            [
                f"{run.meta['optimizer']}, seed {run.meta['seed']}",
                f"{run.meta['dataset']} {run.meta['model']}",
                run.directory.name,
                run.state,
                run.epoch(),
                _last(run),
                Cell(duration(seconds / 3600), seconds),
                len(sessions),
                ", ".join(commits) + mark,
                last.get("host", ""),
                str(last.get("job") or _job(run)),
                last.get("device", ""),
                Cell(str(last.get("threads", "")), last.get("threads", "")),
                last.get("torch", ""),
                last.get("python", ""),
                str(first.get("started", "")),
                _command(run, first),
            ]
        )
    columns = (
        "run", "experiment", "directory", "state", "epochs", "last result", "training",
        "sessions", "commit", "host", "job", "device", "threads", "torch", "python", "started",
        "command",
    )  # fmt: skip
    caption = "All runs; host, job, device and versions are those of the last session"
    return Grid(caption, columns, rows, folded=len(rows) >= FOLD_FROM)
