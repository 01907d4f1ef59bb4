"""A metric over one swept number, or over two swept keys."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.plots.canvas import panels, save
from experiments.plots.curves import Curve, draw_curve

TICKS = 12  # values of a swept key that are all written on its axis


@dataclass(frozen=True)
class Line:
    """The metric of one optimizer.

    Attributes:
        name: the optimizer's.
        curve: means and spread over the swept number.
        dots: (swept number, metric) of each seed.
        dot_names: a name for each dot.
    """

    name: str
    curve: Curve
    dots: list[tuple[float, float]]
    dot_names: list[str]


@dataclass(frozen=True)
class LinePlot:
    """A line per optimizer.

    Attributes:
        title, x_title, y_title: of the picture and its axes.
        lines: one per optimizer that has a result.
        best: (swept number, metric) of the best mean.
        ticks: all values of the swept number, ascending.
        logarithmic: whether its axis is.
    """

    title: str
    x_title: str
    y_title: str
    lines: list[Line]
    best: tuple[float, float]
    ticks: list[float]
    logarithmic: bool


@dataclass(frozen=True)
class HeatMap:
    """The metric of one optimizer: a row per value of the second key, a column per first.

    Attributes:
        name: the optimizer's.
        means: nan where there is no result.
        texts: of the cells; None where the sweep has no such combination.
        best: row and column of the best mean of all maps, where it is in this one.
    """

    name: str
    means: list[list[float]]
    texts: list[list[str | None]]
    best: tuple[int, int] | None

    @property
    def cells(self) -> list[tuple[int, int, float, str]]:
        """Row, column, mean and text of each combination."""
        return [
            (row, column, self.means[row][column], text)
            for row, line in enumerate(self.texts)
            for column, text in enumerate(line)
            if text is not None
        ]


@dataclass(frozen=True)
class HeatMaps:
    """A map per optimizer, with the same colors in all.

    Attributes:
        title, x_title, y_title, value_title: of the picture, its axes and its colors.
        across, down: the values of the first and the second key, as text.
        limits: the smallest and the largest mean.
        maps: one per optimizer that has a result.
    """

    title: str
    x_title: str
    y_title: str
    value_title: str
    across: list[str]
    down: list[str]
    limits: tuple[float, float]
    maps: list[HeatMap]


def ink(value: float, limits: tuple[float, float]) -> str:
    """The color of a text that can be read on a cell of a heat map; nothing on a gap."""
    if math.isnan(value):
        return ""
    return "black" if value >= mean(limits) else "white"


def draw(plot: LinePlot | HeatMaps, path: Path) -> None:
    """Draw a sweep's plot into a file."""
    if isinstance(plot, LinePlot):
        figure, (axes,) = panels(1, (7, 4.4))
        _draw_lines(axes, plot)
    else:
        number = len(plot.maps)
        width, height = 0.9 * len(plot.across) + 1.2, 0.55 * len(plot.down) + 1.8
        figure, every = panels(number, (number * max(3.2, width) + 1, max(3.2, height)))
        _draw_maps(figure, every, plot)
    figure.suptitle(plot.title)
    save(figure, path)


def _draw_lines(axes: Any, plot: LinePlot) -> None:
    """A line with its spread per optimizer, the seeds as dots, a ring around the best mean."""
    for place, line in enumerate(plot.lines):
        draw_curve(axes, line.curve, line.name, "o")
        x, y = zip(*line.dots, strict=True)
        axes.plot(x, y, ".", color=f"C{place}", alpha=0.5, markersize=5)
    axes.plot(*([value] for value in plot.best), "o", color="black", fillstyle="none",
              markersize=13, label="best mean", linestyle="none")  # fmt: skip
    if plot.logarithmic:
        axes.set_xscale("log")
    if len(plot.ticks) <= TICKS:
        axes.set_xticks(plot.ticks, map(str, plot.ticks))
        axes.minorticks_off()
    axes.set(xlabel=plot.x_title, ylabel=plot.y_title)
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_maps(figure: Any, every: list[Any], plot: HeatMaps) -> None:
    """A heat map per optimizer, the means written in, a frame on the best."""
    low, high = plot.limits
    for axes, one in zip(every, plot.maps, strict=True):
        image = axes.imshow(one.means, vmin=low, vmax=high, origin="lower", aspect="auto")
        for row, column, value, text in one.cells:
            color = ink(value, plot.limits) or "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        if one.best is not None:
            axes.add_patch(_frame(*one.best))
        axes.set_xticks(range(len(plot.across)), plot.across)
        axes.set_yticks(range(len(plot.down)), plot.down)
        axes.set(title=one.name, xlabel=plot.x_title, ylabel=plot.y_title)
    figure.colorbar(image, ax=every, label=plot.value_title)


def _frame(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="red", lw=2)
