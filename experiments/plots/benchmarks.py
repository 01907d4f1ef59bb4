"""Lines of a benchmark's rows: performance profiles and what tuning brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.plots.canvas import panels, save
from experiments.plots.curves import COLORS, DASHES


@dataclass(frozen=True)
class LinesByRow:
    """One line per row of a benchmark.

    Attributes:
        title, x_title, y_title: of the plot and its axes.
        note: what the lines are.
        x: the places of all lines, ascending.
        lines: y by row; infinite where there is nothing to draw.
        bands: low and high by row, where there are any.
        steps: whether a line stays at its value until the next place.
        log_x, log_y: whether an axis is logarithmic.
        limits: of y, where they are known.
    """

    title: str
    x_title: str
    y_title: str
    note: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    steps: bool = False
    log_x: bool = False
    log_y: bool = False
    limits: tuple[float, float] | None = None


def draw(plots: Sequence[LinesByRow], title: str, path: Path) -> None:
    """Draw the plots side by side, with one legend."""
    rows = -(-len(plots[0].lines) // 4)
    figure, every = panels(len(plots), (max(7, 5.6 * len(plots)), 4.2 + 0.22 * rows))
    for axes, plot in zip(every, plots, strict=True):
        _draw(axes, plot)
    handles = every[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(title)
    save(figure, path)


def _draw(axes: Any, plot: LinesByRow) -> None:
    from matplotlib.ticker import LogFormatter, MaxNLocator

    for place, (row, values) in enumerate(plot.lines.items()):
        look = {"color": f"C{place % COLORS}", "linestyle": DASHES[place // COLORS % len(DASHES)]}
        marker = {} if plot.steps else {"marker": "o", "markersize": 4}
        kind = "steps-post" if plot.steps else "default"
        axes.plot(plot.x, values, label=row, drawstyle=kind, linewidth=1.4, **look, **marker)
        if row in plot.bands:
            axes.fill_between(
                plot.x, *plot.bands[row], alpha=0.12, color=look["color"], linewidth=0
            )
    margin = 0 if plot.steps else 0.2
    axes.set_xlim(plot.x[0] - margin, plot.x[-1] + margin)
    if plot.log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if plot.log_y:
        axes.set_yscale("log")
    for axis, is_log in ((axes.xaxis, plot.log_x), (axes.yaxis, plot.log_y)):
        if is_log:  # numbers in place of powers of ten
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter())
    axes.set(xlabel=plot.x_title, ylabel=plot.y_title, title=plot.title)
    if plot.limits:
        axes.set_ylim(plot.limits)
    axes.grid(alpha=0.3)
