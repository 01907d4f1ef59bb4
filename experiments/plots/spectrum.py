"""A spectral density for the eye: as a histogram and as a picture.

Both take a file of the form `spectra/epoch-0010.npz`: arrays `grid` (ascending) and `density`, and
`eigenvalues` where some were computed.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from experiments.training.curvature import Spectrum

if TYPE_CHECKING:
    from PIL.Image import Image


def histogram(path: Path, num_bins: int = 256) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The share of the eigenvalues in each of `num_bins` bins, and the bins' edges.

    By differences of the integral (trapezoids), which lose nothing of a peak narrower than a bin.
    """
    with numpy.load(path) as arrays:
        grid, density = arrays["grid"], arrays["density"]
    steps = numpy.diff(grid) * (density[1:] + density[:-1]) / 2
    integral = numpy.concatenate([[0], numpy.cumsum(steps)])
    edges = numpy.linspace(grid[0], grid[-1], num_bins + 1)
    return numpy.diff(numpy.interp(edges, grid, integral)), edges


def picture(path: Path, epoch: int) -> "Image":
    """The density on a logarithmic scale, with the largest eigenvalues; `epoch` for the title."""
    from matplotlib.figure import Figure
    from PIL import Image

    with numpy.load(path) as arrays:
        grid, density = arrays["grid"], arrays["density"]
        eigenvalues = arrays["eigenvalues"] if "eigenvalues" in arrays else ()
    figure = Figure(figsize=(7, 4), layout="constrained")  # not pyplot's: that keeps all of them
    axes = figure.add_subplot(xlabel="eigenvalue", ylabel="density (log)")
    axes.semilogy(grid, density, linewidth=1.2)
    axes.set_ylim(max(density.max() * 1e-8, density[density > 0].min()), 2 * density.max())
    for i, value in enumerate(eigenvalues):
        label = f"{len(eigenvalues)} largest eigenvalues" if i == 0 else None
        axes.axvline(value, color="C1", linewidth=1.2, label=label)
    if len(eigenvalues):
        axes.legend()
    axes.grid(alpha=0.3)
    axes.set_title(f"spectrum of the Hessian after epoch {epoch}")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return Image.open(png)


def _what(result: Spectrum) -> str:
    return (
        f"{result.num_params} parameters, {result.num_images} images, {result.settings.mode} mode, "
        f"{result.seconds:.0f} s"
    )


def draw(result: Spectrum, title: str, path: Path) -> None:
    """The density on a logarithmic scale, and how many eigenvalues are how large."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid, density = result.grid, result.density
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.semilogy(grid, density, linewidth=1.2)
    for value in result.top.eigenvalues:
        left.axvline(float(value), color="C1", linewidth=0.8, alpha=0.8)
    left.plot([], [], color="C1", label=f"{len(result.top.eigenvalues)} largest eigenvalues")
    # A single eigenvalue's bump has the height 1 / (n · width · 2.5): two decades below is nothing.
    width = float(grid[1] - grid[0]) * (len(grid) - 1) / 112
    left.set_ylim(0.01 / (result.num_params * 2.5 * width), 2 * float(density.max()))
    left.set(xlabel="eigenvalue", ylabel="density (log)", title="whole spectrum")
    left.legend()

    nodes, order = result.quadrature.nodes.flatten().sort()
    counts = result.quadrature.weights.flatten()[order]
    counts *= result.num_params / len(result.quadrature.nodes)
    for sign, color, label in ((1, "C0", "positive"), (-1, "C3", "negative")):
        chosen = sign * nodes > 0
        sizes, largest_first = (sign * nodes[chosen]).sort(descending=True)
        right.step(
            sizes, counts[chosen][largest_first].cumsum(0), where="post", color=color, label=label
        )
    right.set(xscale="log", yscale="log", ylim=(0.5, 2 * result.num_params))
    right.set(xlabel="magnitude of the eigenvalue", ylabel="eigenvalues of at least that magnitude")
    right.set_title("how many are large")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{title}\nafter epoch {result.epoch}, {_what(result)}", fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
