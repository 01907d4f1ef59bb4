"""Empty pictures and their files: nothing else sets matplotlib up."""

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's pyplot, without a window; imported here because it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def panels(number: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side.

    Args:
        size: of the figure, in inches.
    """
    figure, axes = pyplot().subplots(1, number, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes[0])


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write the picture and forget the figure; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)
