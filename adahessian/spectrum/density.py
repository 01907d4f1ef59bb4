"""The density of a symmetric matrix's eigenvalues, by stochastic Lanczos quadrature."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adahessian.spectrum.krylov import KrylovBasis
from adahessian.spectrum.products import Counter, Matvec, Progress, check_positive


class Quadrature(NamedTuple):
    """Nodes and weights of a spectral density, (num_repeats, num_lanczos_steps) each, float64.

    The weights of each row add up to one. A row whose sequence has ended early, with the Krylov
    space, repeats its largest node without weight.
    """

    nodes: Tensor
    weights: Tensor


def lanczos_quadrature(
    matvec: Matvec,
    num_lanczos_steps: int = 80,
    num_repeats: int = 1,
    *,
    on_host: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quadrature:
    """Return nodes and weights that stand for the spectrum (stochastic Lanczos quadrature).

    From each of ``num_repeats`` random vectors, Lanczos with full re-orthogonalization gives a
    symmetric tridiagonal matrix T. The mean of f over the eigenvalues of A is estimated by
    Σ weights·f(nodes), the eigenvalues of T and the squared first components of its eigenvectors:
    exact for polynomials of degree below 2 num_lanczos_steps, up to the randomness of the vector
    (Ubaru, Chen and Saad 2017; Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159).

    Args:
        matvec: the matrix.
        num_lanczos_steps: products per repeat; no more than the matrix's size are used.
        num_repeats: random vectors.
        on_host: keep the Lanczos vectors (num_lanczos_steps + 1) in the host's memory.
        seed: of the random vectors.
        progress: called after each product with the number done and the product of the two.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: a product that is not finite, or of the wrong shape.
    """
    check_positive("num_lanczos_steps", num_lanczos_steps)
    check_positive("num_repeats", num_repeats)
    steps = min(num_lanczos_steps, matvec.size)
    report = Counter(progress, steps * num_repeats)
    nodes = torch.empty(num_repeats, steps, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    basis = KrylovBasis(matvec, steps, on_host=on_host, seed=seed)
    for repeat in range(num_repeats):
        basis.clear()
        basis.start_anew()
        alive = True
        while alive and basis.num_products < steps:
            alive = basis.extend()
            report()
        values, vectors = torch.linalg.eigh(basis.tridiagonal())
        nodes[repeat] = values[-1]
        nodes[repeat, : len(values)] = values
        weights[repeat, : len(values)] = vectors[0] ** 2
    return Quadrature(nodes, weights)


def spectral_density(
    matvec: Matvec,
    num_lanczos_steps: int = 80,
    num_repeats: int = 1,
    *,
    width: float | None = None,
    num_points: int = 1024,
    **options,
) -> tuple[Tensor, Tensor]:
    """Return the density of the eigenvalues, smoothed, on a grid.

    Args:
        matvec: the matrix.
        num_lanczos_steps, num_repeats, options: see :func:`lanczos_quadrature`.
        width, num_points: see :func:`smooth`.

    Returns:
        (grid, density), (num_points,) each, float64 on the CPU. The grid is in units of the
        eigenvalues; the density integrates to one.
    """
    quadrature = lanczos_quadrature(matvec, num_lanczos_steps, num_repeats, **options)
    return smooth(quadrature, width=width, num_points=num_points)


def smooth(
    quadrature: Quadrature, *, width: float | None = None, num_points: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return (grid, density): each node as a normal distribution of standard deviation ``width``.

    Args:
        quadrature: from :func:`lanczos_quadrature`.
        width: in units of the eigenvalues (default: a hundredth of the nodes' range).
        num_points: of the grid, which extends 6 widths beyond the outermost nodes.
    """
    check_positive("num_points", num_points, least=2)
    if width is not None and not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, got {width}")
    nodes, weights = quadrature
    present = nodes[weights > 0]
    low, high = float(present.min()), float(present.max())
    if width is None:
        width = (high - low) / 100 or 0.01 * abs(high) or 0.01
    ends = low - 6 * width, high + 6 * width
    grid = torch.linspace(*ends, num_points, dtype=torch.float64, device=nodes.device)
    bumps = torch.exp(-0.5 * ((grid - nodes.unsqueeze(-1)) / width) ** 2)
    density = (weights.unsqueeze(-1) * bumps).sum((0, 1)) / len(nodes)
    return grid, density / (width * math.sqrt(2 * math.pi))
