"""The paper's curves with ours over them."""

import statistics
from pathlib import Path

from experiments.landscapes.pictures import _pyplot, _save
from experiments.results.published import OPTIMIZERS, Curve


def draw_paper_curves(
    title: str,
    paper: dict[str, dict[str, Curve]],
    ours: dict[str, dict[str, list[Curve]]],
    path: Path,
) -> None:
    """Training loss and test accuracy: the paper's curves dashed, the mean of ours over them.

    Args:
        paper: curve by optimizer, by quantity.
        ours: curves of the runs by optimizer, by quantity; the band is one standard deviation.
    """
    from matplotlib.ticker import LogFormatter

    figure, panels = _pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axes, quantity in zip(panels, ("train_loss", "test_acc"), strict=True):
        for index, (name, curve) in enumerate(paper[quantity].items()):
            color, spelling = f"C{index}", OPTIMIZERS[name]
            axes.plot(*zip(*curve, strict=True), "--", color=color, linewidth=1,
                      label=f"{spelling}, paper")  # fmt: skip
            runs = ours[quantity].get(name, [])
            if runs:
                epochs = [epoch for epoch, _ in runs[0]]
                columns = [[value for _, value in at] for at in zip(*runs, strict=True)]
                means = [statistics.mean(column) for column in columns]
                axes.plot(epochs, means, color=color, label=f"{spelling}, ours (n={len(runs)})")
                if len(runs) > 1:
                    spread = [statistics.stdev(column) for column in columns]
                    low, high = (
                        [m + sign * s for m, s in zip(means, spread, strict=True)]
                        for sign in (-1, 1)
                    )
                    axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    panels[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    panels[0].yaxis.set_major_formatter(LogFormatter())
    panels[0].yaxis.set_minor_formatter(LogFormatter())
    panels[1].set(xlabel="epoch", ylabel="test accuracy (%)")
    panels[1].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)
