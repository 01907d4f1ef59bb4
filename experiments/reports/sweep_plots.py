"""What is drawn of a sweep, in numbers: lines over one swept number, or maps over two keys."""

from pathlib import Path
from typing import Any

from experiments.plots import sweeps as plots
from experiments.plots.sweeps import HeatMap, HeatMaps, Line, LinePlot
from experiments.reports.sweeps import mean
from experiments.results.statistics import curve_through
from experiments.results.sweeps import Point, SweepResults, short

LOGARITHMIC_FROM = 10  # largest value by smallest, from which an axis is logarithmic


def draw(results: SweepResults, path: Path) -> Path | None:
    """Draw the sweep; nothing where nothing is finished or the keys are more, or no number."""
    if (plot := sweep_plot(results)) is None:
        return None
    plots.draw(plot, path)
    return path


def sweep_plot(results: SweepResults) -> LinePlot | HeatMaps | None:
    """The last epoch's result over one swept number, or over two keys; else nothing."""
    if not results.tables:
        return None
    if len(results.keys) == 1 and all(map(is_number, axis(results, results.keys[0]))):
        return _lines(results)
    # Points of a space share no rows and columns; 1 and "1" would share a cell.
    cells = {(p.optimizer, *map(str, p.values.values())) for p in results.points}
    has_cells = len(results.keys) == 2 and len(cells) == len(results.points)
    return _maps(results) if has_cells and not results.searched else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def axis(results: SweepResults, key: str) -> list[Any]:
    """The values of a swept key, numbers by their size, anything else in the file's order."""
    values = list({str(p.values[key]): p.values[key] for p in results.points}.values())
    try:
        return sorted(values)
    except TypeError:
        return values


def _by_optimizer(results: SweepResults) -> dict[str, list[Point]]:
    """The points of each optimizer that has a result; those without one are gaps."""
    groups: dict[str, list[Point]] = {}
    for point in results.points:
        groups.setdefault(point.optimizer, []).append(point)
    return {name: points for name, points in groups.items() if any(p.finished for p in points)}


def _lines(results: SweepResults) -> LinePlot:
    (key,), ticks = results.keys, axis(results, results.keys[0])
    return LinePlot(
        results.title,
        short(key),
        f"last epoch, {results.tables[0].result_title}",
        [_line(name, points, key) for name, points in _by_optimizer(results).items()],
        (results.best.values[key], mean(results, results.best)),
        ticks,
        ticks[0] > 0 and ticks[-1] >= LOGARITHMIC_FROM * ticks[0],
    )


def _line(name: str, points: list[Point], key: str) -> Line:
    values = {
        point.values[key]: [run.headline.scale * run.last() for run in point.finished]
        for point in sorted(points, key=lambda point: point.values[key])
        if point.finished
    }
    return Line(
        name,
        curve_through(values),
        [(x, y) for x, seeds in values.items() for y in seeds],
        [f"seed {run.meta['seed']}" for x in values for point in points
         if point.values[key] == x for run in point.finished],
    )  # fmt: skip


def _maps(results: SweepResults) -> HeatMaps:
    first, second = results.keys
    means = [mean(results, point) for point in results.points if point.finished]
    return HeatMaps(
        results.title,
        short(first),
        short(second),
        f"last epoch, {results.tables[0].result_title}",
        [str(value) for value in axis(results, first)],
        [str(value) for value in axis(results, second)],
        (min(means), max(means)),
        [_map(results, name, points) for name, points in _by_optimizer(results).items()],
    )


def _map(results: SweepResults, name: str, points: list[Point]) -> HeatMap:
    first, second = results.keys
    found = {(str(p.values[second]), str(p.values[first])): p for p in points}
    grid = [
        [found.get((str(low), str(across))) for across in axis(results, first)]
        for low in axis(results, second)
    ]
    best = [
        (row, column)
        for row, line in enumerate(grid)
        for column, point in enumerate(line)
        if point is not None and point is results.best
    ]
    return HeatMap(
        name,
        [[mean(results, point) for point in line] for line in grid],
        [[point and _text(results, point) for point in line] for line in grid],
        best[0] if best else None,
    )


def _text(results: SweepResults, point: Point) -> str:
    """A cell's text: the mean, and n where seeds are missing, or the states."""
    if not point.finished:
        return point.states.replace(", ", "\n")
    metric = results.tables[0].metric
    text = f"{mean(results, point):.{metric.digits}f}"
    return text if point.complete else f"{text}\nn = {len(point.finished)}"
