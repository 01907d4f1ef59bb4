"""Pictures of a spectral density.

`histogram` and `picture` take a file of the form `spectra/epoch-0010.npz`: arrays `grid` and
`density`, the grid ascending, and `eigenvalues` where some were computed.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from experiments.plots.canvas import panels, save

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


@dataclass(frozen=True)
class SpectrumPlot:
    """A spectrum in numbers.

    Attributes:
        title: of the picture.
        grid, density: (points,), the grid ascending and even.
        eigenvalues: the largest ones, (k,).
        nodes, weights: of the quadratures, (repeats, nodes); the weights of each add up to 1.
        num_params: the number of all eigenvalues.
    """

    title: str
    grid: numpy.ndarray
    density: numpy.ndarray
    eigenvalues: numpy.ndarray
    nodes: numpy.ndarray
    weights: numpy.ndarray
    num_params: int


def counts(plot: SpectrumPlot, sign: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Magnitudes of one sign, descending, and how many eigenvalues are at least as large as each.

    The largest ones are counted as they were computed; those below them by the quadratures' nodes,
    whose weights are estimates: of a single eigenvalue, by a factor that can be far from 1.
    """
    nodes = sign * plot.nodes.ravel()
    shares = plot.weights.ravel() * plot.num_params / len(plot.nodes)
    # The computed ones are the most positive of all; nothing is known of the most negative.
    known = plot.eigenvalues[plot.eigenvalues > 0] if sign > 0 else numpy.empty(0)
    below = known.min() if len(known) else numpy.inf
    chosen = (nodes > 0) & (nodes < below)
    sizes = numpy.concatenate([known, nodes[chosen]])
    numbers = numpy.concatenate([numpy.ones(len(known)), shares[chosen]])
    order = numpy.argsort(-sizes, kind="stable")
    return sizes[order], numbers[order].cumsum()


def draw(plot: SpectrumPlot, path: Path) -> None:
    """The density on a logarithmic scale, and how many eigenvalues are how large."""
    figure, (left, right) = panels(2, (11, 4.2))
    left.semilogy(plot.grid, plot.density, linewidth=1.2)
    for value in plot.eigenvalues:
        left.axvline(value, color="C1", linewidth=0.8, alpha=0.8)
    left.plot([], [], color="C1", label=f"{len(plot.eigenvalues)} largest eigenvalues")
    # A single eigenvalue's bump has the height 1 / (n · width · 2.5): two decades below is nothing.
    width = (plot.grid[1] - plot.grid[0]) * (len(plot.grid) - 1) / 112
    left.set_ylim(0.01 / (plot.num_params * 2.5 * width), 2 * plot.density.max())
    left.set(xlabel="eigenvalue", ylabel="density (log)", title="whole spectrum")
    left.legend()

    for sign, color, label in ((1, "C0", "positive"), (-1, "C3", "negative")):
        right.step(*counts(plot, sign), where="post", color=color, label=label)
    # A hundredth of an eigenvalue, as on the left.
    right.set(xscale="log", yscale="log", ylim=(0.01, 2 * plot.num_params))
    right.set(xlabel="magnitude of the eigenvalue", ylabel="eigenvalues of at least that magnitude")
    right.set_title("how many are large")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(plot.title, fontsize=9)
    save(figure, path)
