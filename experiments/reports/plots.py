"""The pictures of the report."""

import math
from pathlib import Path
from typing import Any

from experiments.plots.curves import draw_curve
from experiments.reports import sweeps as reports_sweeps
from experiments.reports.sweeps import (
    axis,
    by_optimizer,
    cell_text,
    cells,
    dots,
    is_line,
    is_map,
    limits,
    logarithmic,
    mean,
)
from experiments.results import sweeps as results_sweeps
from experiments.results.statistics import curve
from experiments.results.sweeps import SweepResults
from experiments.results.tables import Table

TICKS = 12  # values of a swept key that are all written on its axis


def draw(table: Table, path: Path) -> Path:
    """Training loss and test metric over the epochs: mean line, band of one std over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    headline, percent = table.headline, table.unit == "%"
    legend_rows = math.ceil(len(table.groups) / 4)
    size = (11, 4.2 + 0.2 * legend_rows)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=size, layout="constrained")
    for label, runs in table.groups.items():
        text = f"{label} (n={len(runs)})"
        draw_curve(left, curve(runs, "train/loss"), text)
        draw_curve(right, curve(runs, f"test/{headline}", table.scale), text)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel=f"test {headline}{' (%)' if percent else ''}")
    if percent:
        right.set_ylim(*_accuracy_limits(table))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(table.title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _accuracy_limits(table: Table) -> tuple[float, float]:
    """Limits that fit the second half of the training, where the optimizers differ little."""
    late = [
        table.scale * row[run.test_key]
        for run in table.runs
        for row in run.evaluated[len(run.evaluated) // 2 :]
    ]
    low, high = min(late), max(late)
    margin = max(high - low, 1.0)
    return max(0.0, low - margin), min(100.0, high + 0.5)


def draw_sweep(results: SweepResults, path: Path) -> Path | None:
    """The last epoch's test metric over one swept number, or over two keys; else no picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = by_optimizer(results)
    if not groups or not (is_line(results) or is_map(results)):
        return None
    if is_line(results):
        figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
        _draw_lines(axes, results, groups)
    else:
        across = len(axis(results, results.keys[0]))
        down = len(axis(results, results.keys[1]))
        size = (len(groups) * max(3.2, 0.9 * across + 1.2) + 1, max(3.2, 0.55 * down + 1.8))
        figure, panels = pyplot.subplots(1, len(groups), figsize=size, squeeze=False,
                                         layout="constrained")  # fmt: skip
        _draw_maps(figure, panels[0], results, groups)
    figure.suptitle(results.title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _draw_lines(axes: Any, results: SweepResults, groups: dict[str, list[Any]]) -> None:
    """A line with its spread per optimizer, the seeds as dots, a ring around the best mean."""
    (key,) = results.keys
    for place, (name, points) in enumerate(groups.items()):
        draw_curve(axes, reports_sweeps.line(results, points), name, "o")
        x, y = dots(results, points)
        axes.plot(x, y, ".", color=f"C{place}", alpha=0.5, markersize=5)
    best = results.best
    axes.plot([best.values[key]], [mean(results, best)], "o", color="black",
              fillstyle="none", markersize=13, label="best mean", linestyle="none")  # fmt: skip
    if logarithmic(results):
        axes.set_xscale("log")
    values = axis(results, key)
    if len(values) <= TICKS:
        axes.set_xticks(values, map(str, values))
        axes.minorticks_off()
    axes.set(
        xlabel=results_sweeps.short(key), ylabel=f"last epoch, {results.tables[0].headline_title}"
    )
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_maps(figure: Any, panels: Any, results: SweepResults, groups: dict[str, Any]) -> None:
    """A heat map per optimizer on common colors, the means written in, a frame on the best."""
    first, second = results.keys
    grids = {name: cells(results, points) for name, points in groups.items()}
    for axes, (name, grid) in zip(panels, grids.items(), strict=True):
        means = [[mean(results, point) for point in line] for line in grid]
        low, high = limits(results)
        image = axes.imshow(means, vmin=low, vmax=high, origin="lower", aspect="auto")
        for row, line in enumerate(grid):
            for column, point in enumerate(line):
                if point is None:
                    continue
                ink = reports_sweeps.ink(means[row][column], (low, high)) or "black"
                text = cell_text(results, point)
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
                if point is results.best:
                    axes.add_patch(_frame(column, row))
        for key, ticks in ((first, axes.set_xticks), (second, axes.set_yticks)):
            values = axis(results, key)
            ticks(range(len(values)), map(str, values))
        axes.set(
            title=name, xlabel=results_sweeps.short(first), ylabel=results_sweeps.short(second)
        )
    figure.colorbar(image, ax=panels, label=f"last epoch, {results.tables[0].headline_title}")


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="red", lw=2)
