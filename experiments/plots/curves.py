"""Lines of means with a band of their spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.plots.canvas import panels, save

COLORS = 10  # of matplotlib's cycle, each again with the next kind of line
DASHES = ("-", "--", "-.", ":")
LEGEND_CHARACTERS = 150  # that fit below two panels side by side


@dataclass(frozen=True)
class Curve:
    """Means over places of an axis, such as epochs, with the spread at each.

    Attributes:
        x: the places, ascending.
        means, stds: mean and sample standard deviation at each; 0 where there is one value.
    """

    x: list[float]
    means: list[float]
    stds: list[float]

    def band(self) -> tuple[list[float], list[float]]:
        """One standard deviation to both sides; a positive mean keeps a positive lower edge.

        A band that reaches zero has no lower edge on a logarithmic axis.
        """
        pairs = list(zip(self.means, self.stds, strict=True))
        low = [max(m - s, m / 10) if m > 0 else m - s for m, s in pairs]
        return low, [m + s for m, s in pairs]


def draw_curve(
    axes: Any, curve: Curve, label: str, marker: str = "", color: str | None = None, dash: str = "-"
) -> None:
    """A line of means with a band of one standard deviation."""
    style = {"marker": marker, "color": color, "linestyle": dash, "linewidth": 1.4}
    (line,) = axes.plot(curve.x, curve.means, label=label, **style)
    if any(curve.stds):
        low, high = curve.band()
        axes.fill_between(curve.x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def draw_training(
    title: str,
    losses: Mapping[str, Curve],
    metrics: Mapping[str, Curve],
    metric_title: str,
    limits: tuple[float, float],
    path: Path,
    log: bool = False,
) -> None:
    """Training loss and another metric over the epochs, a line per label.

    Args:
        losses, metrics: curves by label, the same labels in both.
        metric_title: of the metric's axis.
        limits: of the metric's axis.
        log: whether this axis is logarithmic.
    """
    columns = max(1, min(4, LEGEND_CHARACTERS // (8 + max(map(len, losses)))))
    rows = -(-len(losses) // columns)
    figure, (left, right) = panels(2, (11, 4.2 + 0.2 * rows))
    for axes, curves in ((left, losses), (right, metrics)):
        for place, (label, curve) in enumerate(curves.items()):
            draw_curve(axes, curve, label, dash=DASHES[place // COLORS % len(DASHES)])
        axes.grid(alpha=0.3)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel=metric_title, ylim=limits)
    if log:
        right.set_yscale("log")
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("{x:g}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    figure.suptitle(title)
    save(figure, path)
