"""The paper's curves with ours over them."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.plots.canvas import panels, save

Points = list[tuple[int, float]]  # (epoch, value)


@dataclass(frozen=True)
class Panel:
    """One quantity over the epochs.

    Attributes:
        title: of its axis.
        logarithmic: whether that axis is.
        paper: the paper's curve by optimizer.
        ours: the curves of our runs by optimizer, as long as each other.
    """

    title: str
    logarithmic: bool
    paper: dict[str, Points]
    ours: dict[str, list[Points]]


def draw(title: str, quantities: list[Panel], names: dict[str, str], path: Path) -> None:
    """The paper's curves dashed, the mean of ours over them with a band of one std.

    Args:
        quantities: side by side; the last one has the legend.
        names: how each optimizer is called in the legend.
    """
    figure, every = panels(len(quantities), (12, 4.6))
    for axes, panel in zip(every, quantities, strict=True):
        for place, (name, curve) in enumerate(panel.paper.items()):
            color = f"C{place}"
            axes.plot(*zip(*curve, strict=True), "--", color=color, linewidth=1,
                      label=f"{names[name]}, paper")  # fmt: skip
            if runs := panel.ours.get(name):
                _draw_ours(axes, runs, names[name], color)
        axes.set(xlabel="epoch", ylabel=panel.title)
        if panel.logarithmic:
            _use_plain_numbers(axes)
    handles = every[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(panel.paper), fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path, dpi=100)


def _draw_ours(axes: Any, runs: list[Points], name: str, color: str) -> None:
    epochs = [epoch for epoch, _ in runs[0]]
    columns = [[value for _, value in at] for at in zip(*runs, strict=True)]
    means = [statistics.mean(column) for column in columns]
    axes.plot(epochs, means, color=color, label=f"{name}, ours (n={len(runs)})")
    if len(runs) > 1:
        pairs = list(zip(means, map(statistics.stdev, columns), strict=True))
        low, high = [m - s for m, s in pairs], [m + s for m, s in pairs]
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)


def _use_plain_numbers(axes: Any) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set(yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
