"""A sweep in words: its table, what is best in it, every run's state, and what is missing."""

import statistics
from pathlib import Path

from experiments.config.flat import shown
from experiments.reports.sections import Figure, Grid, Section, Text
from experiments.results.statistics import CONFIDENCE, compare, mean_and_std
from experiments.results.sweeps import Point, SweepResults, short

BEST = "★"


def section(results: SweepResults, picture: Path | None, every_state: bool) -> Section:
    """The sweep in short.

    Args:
        picture: of it, where there is one.
        every_state: whether all runs are listed, rather than those that are not done.
    """
    blocks: list = [Grid("", columns(results), rows(results), caption(results))]
    if words := verdict(results):
        blocks.append(Text(words))
    blocks += [Text(sentence, "warning") for table in results.tables for sentence in table.warnings]
    lines = [
        f"{state}: {run} ({place}){f': {problem}' if problem else ''}"
        for (state, run, place, problem), one in zip(states(results), results.members, strict=True)
        if state != "done" and not one.stopped
    ]
    if lines and not every_state:
        blocks.append(Text("\n".join(lines), "lines"))
    if missing := advice(results):
        blocks += [Text(missing), Text(results.command, "command")]
    if picture:
        blocks.append(Figure(results.title, picture=picture))
    if every_state:
        blocks.append(Grid("", ("state", "run", "directory", "problem"), states(results)))
    return Section(results.title, blocks)


def states(results: SweepResults) -> list[tuple[str, str, str, str]]:
    """State, combination, directory and problem of every run, in the file's order."""
    return [
        (one.state, f"{point.label}, seed {one.run.config.seed}",
         str(one.directory.relative_to(results.root)), one.problem)
        for point in results.points
        for one in point.members
    ]  # fmt: skip


def columns(results: SweepResults) -> list[str]:
    return ["optimizer", *map(short, results.keys), "n", "last epoch", "best", "runs"]


def rows(results: SweepResults) -> list[list[str]]:
    """One row per combination, in the order of `columns`."""
    return [
        [
            point.optimizer,
            *map(shown, point.values.values()),
            str(len(point.finished)),
            measured(results, point),
            BEST if point is results.best else "",
            point.states,
        ]
        for point in results.points
    ]


def measured(results: SweepResults, point: Point) -> str:
    """Mean and spread of the last epoch over the seeds; nothing without a finished run."""
    values = [run.last() for run in point.finished]
    return mean_and_std(results.tables[0].metric, values) if values else ""


def mean(results: SweepResults, point: Point | None) -> float:
    """The mean of the last epoch as shown; nan where there is no result."""
    if point is None or not point.finished:
        return float("nan")
    return results.tables[0].metric.scale * statistics.mean(run.last() for run in point.finished)


def caption(results: SweepResults) -> str:
    """What the figures are."""
    if not results.tables:
        return "No run is finished yet"
    title = results.tables[0].result_title
    return f"{title}, last epoch: mean ± sample std over n seeds"


def verdict(results: SweepResults) -> str:
    """What the mark of the best combination is worth; nothing where there is no choice."""
    if results.best is None or len(results.tables[0].groups) == 1:
        return ""
    (table,) = results.tables
    _, others = compare(table)
    ahead = sum(other.certain for other in others)
    text = (
        f"{BEST} {results.best.label}: best of {len(others) + 1} combinations by the mean "
        f"{table.result_name} of the last epoch. It was chosen among many by the same runs, so its "
        "mean is flattered: new seeds tell by how much. It is ahead for certain "
        f"({CONFIDENCE:.0%}, all pairs at once) of {ahead} of the other {len(others)}."
    )
    if results.best.complete:
        return text
    return f"{text} It is incomplete ({results.best.states}): only what is done is in its mean."


def advice(results: SweepResults) -> str:
    """How many runs are missing, as what `results.command` sends; nothing where none are."""
    if not results.missing:
        return ""
    count = f"{len(results.missing)} of {len(results.members)} runs"
    return f"{count} are missing; this trains them (CLUSTER=slurm: on a cluster):"
