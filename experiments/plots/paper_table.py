"""A table of the paper whose lines differ in a number: the metric and the cost over it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.plots.canvas import panels, save
from experiments.plots.curves import Curve, draw_curve

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """The metric of one series of a table.

    Attributes:
        name, label: its name, and that in the legend.
        curve: means and spread over the places of the axis.
        dots: (place, metric) of each seed.
        levels: means, and stds or None, of lines that have no place: drawn across the picture.
        diverged: places at which runs diverged.
        published: (place, mean, std) of the paper's figures.
        published_name: theirs in the legend.
    """

    name: str
    label: str
    curve: Curve
    dots: Points
    levels: list[tuple[float, float | None]]
    diverged: list[float]
    published: list[tuple[float, float, float]]
    published_name: str


@dataclass(frozen=True)
class Costs:
    """The cost of a step of one series: (place, steps of the reference) of ours and the paper's."""

    name: str
    points: Points
    published: Points
    published_name: str


@dataclass(frozen=True)
class TablePlot:
    """What is drawn of a table.

    Attributes:
        title, x_title, y_title, cost_title: of the picture and its axes.
        ticks: places of the axis by their text.
        logarithmic: whether the axis is.
        series: of the metric.
        costs: of the steps; no second panel without `theory`.
        theory: (place, cost) as expected.
    """

    title: str
    x_title: str
    y_title: str
    ticks: dict[str, float]
    logarithmic: bool
    series: list[Series]
    cost_title: str = ""
    costs: list[Costs] = field(default_factory=list)
    theory: Points = field(default_factory=list)


def draw(plot: TablePlot, path: Path) -> None:
    """Draw the table's plot into a file."""
    number = 2 if plot.theory else 1
    figure, every = panels(number, (11 if plot.theory else 7.5, 5))
    for place, series in enumerate(plot.series):
        _draw_series(every[0], series, f"C{place}")
    every[0].set(ylabel=plot.y_title)
    if plot.theory:
        _draw_costs(every[1], plot)
    for axes in every:
        if plot.logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(list(plot.ticks.values()), list(plot.ticks))
        axes.minorticks_off()
        axes.set(xlabel=plot.x_title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.suptitle(plot.title, wrap=True, fontsize=10)
    save(figure, path)


def _draw_series(axes: Any, series: Series, color: str) -> None:
    """Means with one standard deviation, seeds as dots, divergence at the lower edge."""
    if series.curve.x:
        draw_curve(axes, series.curve, series.label, "o", color)
        x, y = zip(*series.dots, strict=True)
        axes.plot(x, y, ".", color=color, alpha=0.5, markersize=5)
    for mean, std in series.levels:
        axes.axhline(mean, color=color, linestyle="--", label=series.label)
        if std is not None:
            axes.axhspan(mean - std, mean + std, color=color, alpha=0.1, linewidth=0)
    if series.diverged:
        axes.plot(series.diverged, [0.02] * len(series.diverged), "x", color=color, markersize=9,
                  clip_on=False, transform=axes.get_xaxis_transform(),
                  label=f"{series.name}: diverges")  # fmt: skip
    if series.published:
        x, means, stds = zip(*series.published, strict=True)
        axes.errorbar(x, means, stds, fmt="s", fillstyle="none", color=color, capsize=3,
                      label=series.published_name)  # fmt: skip


def _draw_costs(axes: Any, plot: TablePlot) -> None:
    """Cost in steps of the reference: ours, in theory, and the paper's."""
    for place, costs in enumerate(plot.costs):
        if costs.points:
            axes.plot(*zip(*costs.points, strict=True), "o-", color=f"C{place}", label=costs.name)
        if costs.published:
            axes.plot(*zip(*costs.published, strict=True), "s:", fillstyle="none",
                      color=f"C{place}", label=costs.published_name)  # fmt: skip
    axes.plot(*zip(*plot.theory, strict=True), "k--", label="theory, 1 + 1/n")
    axes.set(ylabel=plot.cost_title, ylim=(1, None))
