"""Pictures of the paper's tables whose lines differ in a number: accuracy and cost over it."""

import math
import statistics
from pathlib import Path
from typing import Any

from experiments.plans.paper_tables import PaperValue
from experiments.plots.curves import draw_curve
from experiments.results.paper_tables import Found, TableResults, cost
from experiments.results.statistics import Curve, std


def draw(results: TableResults, path: Path) -> Path | None:
    """Draw the table; nothing where it has no axis, or nothing is finished."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = results.request.table
    if table.axis is None or not any(one.finished for one in results.found):
        return None
    priced = any(line.theory for line in table.lines)
    size = (11 if priced else 7.5, 5)
    figure, panels = pyplot.subplots(1, 1 + priced, figsize=size, squeeze=False,
                                     layout="constrained")  # fmt: skip
    _accuracies(panels[0][0], results)
    if priced:
        _costs(panels[0][1], results)
    for axes in panels[0]:
        _axis(axes, results)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.suptitle(results.request.title, wrap=True, fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _series(results: TableResults) -> dict[str, list[Found]]:
    """The lines of each curve: one per block and series."""
    curves: dict[str, list[Found]] = {}
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


def _accuracies(axes: Any, results: TableResults) -> None:
    """Means with one standard deviation, seeds as dots, divergence at the lower edge."""
    places = _places(results)
    for number, (name, found) in enumerate(_series(results).items()):
        color = f"C{number}"
        done = [one for one in found if one.finished]
        over = [one for one in done if one.cell.line.x is not None]
        text = f"{name} (n = {_counts(done)})"
        if over:
            spread = [std(one.last) if len(one.last) > 1 else 0.0 for one in over]
            at = [places[one.cell.line.x] for one in over]
            means = [statistics.mean(one.last) for one in over]
            draw_curve(axes, Curve(at, means, spread), text, "o", color)
            dots = [(place, value) for place, one in zip(at, over, strict=True)
                    for value in one.last]  # fmt: skip
            axes.plot(*zip(*dots, strict=True), ".", color=color, alpha=0.5, markersize=5)
        for one in done:
            if one.cell.line.x is None:
                mean, spread = statistics.mean(one.last), std(one.last)
                axes.axhline(mean, color=color, linestyle="--", label=text)
                if len(one.last) > 1:
                    axes.axhspan(mean - spread, mean + spread, color=color, alpha=0.1, linewidth=0)
        lost = [places[one.cell.line.x] for one in found if one.diverged]
        if lost:
            axes.plot(lost, [0.02] * len(lost), "x", color=color, markersize=9, clip_on=False,
                      transform=axes.get_xaxis_transform(), label=f"{name}: diverges")  # fmt: skip
        if results.request.comparable:
            _paper(axes, results, found, color)
    axes.set(ylabel="last epoch, test accuracy (%)")


def _paper(axes: Any, results: TableResults, found: list[Found], color: str) -> None:
    places = _places(results)
    pairs = [(one.cell.line.x, one.cell.line.paper.get(one.cell.block)) for one in found]
    pairs = [(places[x], v) for x, v in pairs if x is not None and isinstance(v, PaperValue)]
    if pairs:
        axes.errorbar([x for x, _ in pairs], [v.mean for _, v in pairs],
                      [v.std or 0 for _, v in pairs], fmt="s", fillstyle="none", color=color,
                      capsize=3, label=f"the paper, {found[0].cell.block}")  # fmt: skip


def _costs(axes: Any, results: TableResults) -> None:
    """Cost in steps of the reference: ours, theory, and the paper's where it compares."""
    table, places = results.request.table, _places(results)
    for number, (name, found) in enumerate(_series(results).items()):
        found = [one for one in found if one.cell.line.x is not None]
        points = [(places[one.cell.line.x], cost(results, one).ratio) for one in found]
        points = [(x, y) for x, y in points if not math.isnan(y)]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=name)
        costs = [(places[one.cell.line.x], one.cell.line.paper_cost.get(one.cell.block))
                 for one in found]  # fmt: skip
        priced = [(x, y) for x, y in costs if y is not None]
        if priced and results.request.comparable:
            axes.plot(*zip(*priced, strict=True), "s:", fillstyle="none", color=f"C{number}",
                      label=f"the paper, {found[0].cell.block}")  # fmt: skip
    theory = {places[line.x]: line.theory for line in table.lines
              if line.x is not None and line.theory}  # fmt: skip
    axes.plot(theory.keys(), theory.values(), "k--", label="theory, 1 + 1/n")
    axes.set(ylabel=f"cost of a step (× {table.unit_of_cost})", ylim=(1, None))


def _axis(axes: Any, results: TableResults) -> None:
    table, places = results.request.table, _places(results)
    if table.axis == "log":
        axes.set_xscale("log")
    axes.set_xticks(list(places.values()), [str(value) for value in places])
    axes.minorticks_off()
    axes.set(xlabel=table.x)


def _counts(found: list[Found]) -> str:
    counts = sorted({len(one.finished) for one in found})
    return "0" if not counts else "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
