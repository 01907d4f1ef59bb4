"""A spectral density for the eye: as a histogram and as a picture.

Both take a file of the form `spectra/epoch-0010.npz`: arrays `grid` (ascending) and `density`, and
`eigenvalues` where some were computed.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

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
