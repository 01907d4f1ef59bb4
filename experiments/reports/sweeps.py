"""How the results of a sweep are shown: columns, rows, words and axes."""

import math
import statistics
from typing import Any

from experiments.results.statistics import CONFIDENCE, Curve, compare, mean_and_std, std
from experiments.results.sweeps import Point, SweepResults, short

BEST = "★"


LOGARITHMIC_FROM = 10  # largest value by smallest, from which an axis is logarithmic


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
            *map(str, point.values.values()),
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
    return mean_and_std(results.tables[0], values) if values else ""


def caption(results: SweepResults) -> str:
    """What the figures are."""
    if not results.tables:
        return "No run is finished yet"
    (table,) = results.tables
    unit = f", {table.unit}" if table.unit else ""
    return f"test {table.headline}{unit}, last epoch: mean ± sample std over n seeds"


def verdict(results: SweepResults) -> str:
    """What the mark of the best combination is worth; nothing where there is no choice."""
    if results.best is None or len(results.tables[0].groups) == 1:
        return ""
    (table,) = results.tables
    _, others = compare(table)
    ahead = sum(other.certain for other in others)
    text = (
        f"{BEST} {results.best.label}: best of {len(others) + 1} combinations by the mean test "
        f"{table.headline} of the last epoch. It was chosen among many by the same runs, so its "
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


def is_line(results: SweepResults) -> bool:
    """Whether one swept key with numbers is what the plot is over."""
    return len(results.keys) == 1 and all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for point in results.points
        for value in point.values.values()
    )


def is_map(results: SweepResults) -> bool:
    """Whether two swept keys span the plot."""
    return len(results.keys) == 2


def logarithmic(results: SweepResults) -> bool:
    """Whether the values of the one swept key spread over at least a decade."""
    values = axis(results, results.keys[0])
    return values[0] > 0 and values[-1] >= LOGARITHMIC_FROM * values[0]


def axis(results: SweepResults, key: str) -> list[Any]:
    """The values of a swept key, numbers by their size, anything else in the file's order."""
    values = list({str(p.values[key]): p.values[key] for p in results.points}.values())
    try:
        return sorted(values)
    except TypeError:
        return values


def by_optimizer(results: SweepResults) -> dict[str, list[Point]]:
    """The points of each optimizer that has a result; those without one are gaps."""
    groups: dict[str, list[Point]] = {}
    for point in results.points:
        groups.setdefault(point.optimizer, []).append(point)
    return {name: points for name, points in groups.items() if any(p.finished for p in points)}


def line(results: SweepResults, points: list[Point]) -> Curve:
    """Mean and spread of the last epoch over the one swept key."""
    (key,), scale = results.keys, results.tables[0].scale
    points = sorted((p for p in points if p.finished), key=lambda point: point.values[key])
    values = [[scale * run.last() for run in point.finished] for point in points]
    spread = [std(v) if len(v) > 1 else 0.0 for v in values]
    return Curve([p.values[key] for p in points], [statistics.mean(v) for v in values], spread)


def cells(results: SweepResults, points: list[Point]) -> list[list[Point | None]]:
    """The points of one optimizer: a row per value of the second key, a column per first."""
    first, second = results.keys
    found = {(str(p.values[second]), str(p.values[first])): p for p in points}
    return [
        [found.get((str(low), str(across))) for across in axis(results, first)]
        for low in axis(results, second)
    ]


def mean(results: SweepResults, point: Point | None) -> float:
    """The mean of the last epoch as shown; nan where there is no result."""
    if point is None or not point.finished:
        return math.nan
    return results.tables[0].scale * statistics.mean(run.last() for run in point.finished)


def dots(results: SweepResults, points: list[Point]) -> tuple[list[float], list[float]]:
    """Each seed's last epoch over the one swept key: values of the key, metric as shown."""
    (key,), scale = results.keys, results.tables[0].scale
    pairs = [(p.values[key], scale * run.last()) for p in points for run in p.finished]
    return [x for x, _ in pairs], [y for _, y in pairs]


def limits(results: SweepResults) -> tuple[float, float]:
    """The smallest and the largest mean: the colors of all heat maps lie between them."""
    means = [mean(results, point) for point in results.points if point.finished]
    return min(means), max(means)


def cell_text(results: SweepResults, point: Point) -> str:
    """What stands in a heat map's cell: the mean, and n where seeds are missing, or the states."""
    if not point.finished:
        return point.states.replace(", ", "\n")
    text = f"{mean(results, point):.{results.tables[0].digits}f}"
    return text if point.complete else f"{text}\nn = {len(point.finished)}"


def ink(value: float, limits: tuple[float, float]) -> str:
    """The color of a text that can be read on a cell of a heat map; nothing on a gap."""
    if math.isnan(value):
        return ""
    return "black" if value >= statistics.mean(limits) else "white"
