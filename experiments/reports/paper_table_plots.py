"""What is drawn of a table of the paper, in numbers."""

import math
import statistics
from pathlib import Path
from typing import Any

from experiments.plans.paper_tables import PaperValue
from experiments.plots.paper_table import Costs, Series, TablePlot
from experiments.plots.paper_table import draw as draw_plot
from experiments.results.paper_tables import CellResult, TableResults, ratio
from experiments.results.statistics import curve_through, std


def draw(results: TableResults, path: Path) -> Path | None:
    """Draw the table; nothing where it has no axis, or nothing is finished."""
    if results.request.table.axis is None or not results.finished:
        return None
    draw_plot(table_plot(results), path)
    return path


def table_plot(results: TableResults) -> TablePlot:
    """The metric over the lines' `x`, and the cost beside it where the table has a theory of it."""
    table, places = results.request.table, _places(results)
    series = _series(results)
    return TablePlot(
        title=results.request.title,
        x_title=table.x,
        y_title=f"last epoch, {results.split} {results.metric.title}",
        ticks={str(value): place for value, place in places.items()},
        logarithmic=table.axis == "log",
        series=[_metric(results, name, found) for name, found in series.items()],
        cost_title=f"cost of a step (× {table.unit_of_cost})",
        costs=[_costs(results, name, found) for name, found in series.items()],
        theory=[
            (places[line.x], line.theory)
            for line in table.lines
            if line.x is not None and line.theory
        ],
    )


def _series(results: TableResults) -> dict[str, list[CellResult]]:
    """The lines of each curve: one per block and series."""
    curves: dict[str, list[CellResult]] = {}
    several = len(results.blocks) > 1
    for one in results.found:
        name = f"{one.cell.block}, {one.cell.line.series}" if several else one.cell.line.series
        curves.setdefault(name, []).append(one)
    return curves


def _places(results: TableResults) -> dict[Any, float]:
    """Where the values of `x` stand: numbers where they are, categories side by side."""
    values = dict.fromkeys(line.x for line in results.request.table.lines if line.x is not None)
    if results.request.table.axis == "category":
        return {value: float(place) for place, value in enumerate(values)}
    return {value: float(value) for value in values}


def _metric(results: TableResults, name: str, found: list[CellResult]) -> Series:
    places = _places(results)
    done = [one for one in found if one.finished]
    by_place = {places[one.cell.line.x]: one.last for one in done if one.cell.line.x is not None}
    published = [
        (places[one.cell.line.x], value.mean, value.std or 0.0)
        for one in found
        if one.cell.line.x is not None
        and isinstance(value := one.cell.line.paper.get(one.cell.block), PaperValue)
    ]
    return Series(
        name,
        f"{name} (n = {_counts(done)})",
        curve_through(by_place),
        [(place, value) for place, values in by_place.items() for value in values],
        [
            (statistics.mean(one.last), std(one.last) if len(one.last) > 1 else None)
            for one in done
            if one.cell.line.x is None
        ],
        [places[one.cell.line.x] for one in found if one.diverged and one.cell.line.x is not None],
        published if results.request.comparable else [],
        f"the paper, {found[0].cell.block}",
    )


def _costs(results: TableResults, name: str, found: list[CellResult]) -> Costs:
    places = _places(results)
    found = [one for one in found if one.cell.line.x is not None]
    points = [(places[one.cell.line.x], ratio(results, one)) for one in found]
    paper = [(places[one.cell.line.x], one.cell.line.paper_cost.get(one.cell.block))
             for one in found]  # fmt: skip
    published = [(x, y) for x, y in paper if y is not None]
    return Costs(
        name,
        [(x, y) for x, y in points if not math.isnan(y)],
        published if results.request.comparable else [],
        f"the paper, {found[0].cell.block}" if found else "",
    )


def _counts(found: list[CellResult]) -> str:
    counts = sorted({len(one.finished) for one in found})
    return "0" if not counts else "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
