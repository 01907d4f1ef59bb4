"""Lines of means with a band of their spread."""

from typing import Any

from experiments.results.statistics import Curve


def draw_curve(
    axes: Any, mean: Curve, label: str, marker: str = "", color: str | None = None
) -> None:
    """A line of means with a band of one standard deviation."""
    style = {"marker": marker, "color": color, "linewidth": 1.4}
    (line,) = axes.plot(mean.epochs, mean.means, label=label, **style)
    if any(mean.stds):
        low, high = mean.band()
        axes.fill_between(mean.epochs, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
