"""Trace, diagonal and Frobenius norm of a symmetric matrix, from products with random signs."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adahessian.dtypes import widest
from adahessian.spectrum.estimate import Estimate
from adahessian.spectrum.krylov import KrylovBasis
from adahessian.spectrum.products import (
    Counter,
    Matvec,
    Progress,
    check_positive,
    checked,
    random_vector,
)

# Before a standard error is believed: with fewer samples it is often far too small by chance.
_MIN_SAMPLES = 12


def trace(
    matvec: Matvec,
    num_matvecs: int = 60,
    *,
    method: str = "hutch++",
    relative_error: float | None = None,
    on_host: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """Return an unbiased estimate of the trace, with its standard error.

    ``"hutchinson"`` is the mean of z·Az over random signs z, of variance 2 Σ_{i≠j} A_ij² for one
    sample (Hutchinson 1989). ``"hutch++"`` (Meyer et al. 2021, arXiv:2010.09649) spends two thirds
    of the products on a space that holds the large eigenvalues, takes the trace there exactly, and
    samples what is left; it wins where few eigenvalues dominate, as in networks. Given the space,
    the samples are independent, so for both the standard error is that of a mean.

    Args:
        matvec: the matrix.
        num_matvecs: products to spend, at least 4.
        method: ``"hutch++"`` or ``"hutchinson"``.
        relative_error: stop sooner, when the standard error is at most this part of the estimate
            (not before 12 samples: the standard error of fewer is often too small by chance).
        on_host: keep the vectors of Hutch++ (a third of the products) in the host's memory.
        seed: of the random vectors.
        progress: called after each product with the number done and ``num_matvecs``.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: a product that is not finite, or of the wrong shape.
    """
    if method not in ("hutch++", "hutchinson"):
        raise ValueError(f"method must be 'hutch++' or 'hutchinson', got {method!r}")
    check_positive("num_matvecs", num_matvecs, least=4)
    if relative_error is not None and not relative_error > 0:
        raise ValueError(f"relative_error must be positive, got {relative_error}")
    report = Counter(progress, num_matvecs)
    sketch = min(num_matvecs // 3, matvec.size) if method == "hutch++" else 0
    basis = KrylovBasis(matvec, sketch, on_host=on_host, seed=seed)
    for sample in range(sketch):
        basis.add(checked(matvec, random_vector(matvec, seed, sample)))
        report()
    inside = 0.0
    for q in basis:
        inside += _dot(q, checked(matvec, q))
        report()
    samples: list[float] = []
    while report.done < num_matvecs:
        # No probe serves both the space and the samples: that would be a bias.
        y = basis.remove(random_vector(matvec, seed, sketch + len(samples)))
        samples.append(_dot(y, checked(matvec, y)))
        report()
        value, error = _mean(samples)
        if relative_error is not None and len(samples) >= _MIN_SAMPLES:
            if error <= relative_error * abs(inside + value):
                break
    return Estimate(inside + value, error, report.done)


def block_traces(
    matvec: Matvec,
    block_sizes: Sequence[int],
    num_matvecs: int = 60,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Estimate]:
    """Return Hutchinson's estimate of the trace of each diagonal block, from the same products.

    The sum over a block of z·Az is unbiased for that block's trace. It has more variance than
    products with the block alone would give, by Σ A_ij² over the block's rows outside of it, but
    costs nothing more for a hundred layers than for one.

    Args:
        matvec: the matrix.
        block_sizes: lengths of the consecutive blocks; they add up to the matrix's size.
        num_matvecs, seed, progress: as for :func:`trace`; at least 2 products.
    """
    if sum(block_sizes) != matvec.size or min(block_sizes, default=0) < 0:
        raise ValueError(
            f"block_sizes, none below 0, must add up to the matrix's {matvec.size} rows, got "
            f"{list(block_sizes)}"
        )
    samples = [
        [float(part.sum(dtype=widest(part.device))) for part in (z * az).split(list(block_sizes))]
        for z, az in _sampled_products(matvec, num_matvecs, seed, progress)
    ]
    return [Estimate(*_mean(column), num_matvecs) for column in zip(*samples, strict=True)]


def diagonal(
    matvec: Matvec, num_matvecs: int = 60, *, seed: int = 0, progress: Progress | None = None
) -> Estimate:
    """Return the mean of z ⊙ Az over random signs z (Bekas, Kokiopoulou and Saad 2007).

    Args:
        matvec: the matrix.
        num_matvecs, seed, progress: as for :func:`trace`; at least 2 products.

    Returns:
        ``value`` and ``standard_error``, tensors of shape (size,) on the matrix's device. One
        sample's variance at element i is Σ_{j≠i} A_ij².
    """
    mean = torch.zeros(matvec.size, dtype=matvec.dtype, device=matvec.device)
    squares = torch.zeros_like(mean)  # Welford's running sum of squared deviations
    products = _sampled_products(matvec, num_matvecs, seed, progress)
    for count, (z, az) in enumerate(products, 1):
        deviation = z * az - mean
        mean += deviation / count
        squares += deviation * (z * az - mean)
    error = (squares / (num_matvecs * (num_matvecs - 1))).sqrt()
    return Estimate(mean, error, num_matvecs)


def frobenius_norm(
    matvec: Matvec, num_matvecs: int = 60, *, seed: int = 0, progress: Progress | None = None
) -> Estimate:
    """Return an estimate of the Frobenius norm, (Σ A_ij²)^½.

    The mean of ‖Az‖² over random signs z is unbiased for the square. Its root is biased by
    −standard_error²/(2 value), which the standard error dwarfs.

    Args:
        matvec: the matrix.
        num_matvecs, seed, progress: as for :func:`trace`; at least 2 products.
    """
    products = _sampled_products(matvec, num_matvecs, seed, progress)
    square, error = _mean([_dot(az, az) for _, az in products])
    norm = math.sqrt(square)
    return Estimate(norm, error / (2 * norm) if norm else 0.0, num_matvecs)


def _sampled_products(
    matvec: Matvec, num_matvecs: int, seed: int, progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (z, A z) for random signs z."""
    check_positive("num_matvecs", num_matvecs, least=2)
    for sample in range(num_matvecs):
        z = random_vector(matvec, seed, sample)
        yield z, checked(matvec, z)
        if progress is not None:
            progress(sample + 1, num_matvecs)


def _mean(samples: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    values = torch.tensor(samples, dtype=torch.float64, device="cpu")
    error = float(values.std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf
    return float(values.mean()), error


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=widest(a.device)))
