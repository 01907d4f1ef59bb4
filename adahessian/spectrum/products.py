"""Symmetric matrices as functions, and what all computations with them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adahessian import _torch, probes

Progress = Callable[[int, int], None]  # (products done, products at most)


class Matvec(Protocol):
    """A symmetric matrix A of ``size`` rows by its action v -> A v."""

    @property
    def size(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors, in and out."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the vectors, in and out."""
        ...

    @property
    def exact(self) -> bool:
        """False where products have errors well above rounding (finite differences)."""
        ...

    def __call__(self, vector: Tensor) -> Tensor:
        """Return A·vector; both of shape (size,)."""
        ...


@dataclass(frozen=True)
class SymmetricMatvec:
    """A :class:`Matvec` from any function."""

    function: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    exact: bool = True

    def __post_init__(self) -> None:
        check_positive("size", self.size)
        if not self.dtype.is_floating_point:
            raise ValueError(
                f"dtype must be one of real numbers, such as float32, got {self.dtype}"
            )

    def __call__(self, vector: Tensor) -> Tensor:
        return self.function(vector)


def random_vector(matvec: Matvec, seed: int, sample: int) -> Tensor:
    """Return the ``sample``-th vector of random signs that fits ``matvec``."""
    like = torch.empty(matvec.size, dtype=matvec.dtype, device=matvec.device)
    return probes.rademacher_like([like], seed=seed, step=0, sample=sample)[0]


def checked(matvec: Matvec, vector: Tensor) -> Tensor:
    """Return the product with a vector.

    Raises:
        RuntimeError: it has another shape than the vector, or is not finite, or the vector itself
            has been changed.
    """
    version = _torch.version(vector)
    product = matvec(vector)
    if _torch.version(vector) != version:
        raise RuntimeError("the function of a matrix has changed the vector in place: return a new")
    if product.shape != vector.shape:
        raise RuntimeError(
            f"the product with a vector of shape {tuple(vector.shape)} has shape "
            f"{tuple(product.shape)}"
        )
    if not bool(torch.isfinite(product).all()):
        raise RuntimeError(
            "the product with a vector is not finite: are the weights and the loss finite, and "
            "the loss twice differentiable at these weights (no sqrt or norm of zero)?"
        )
    return product


class Counter:
    """Counts products for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self._progress, self._total = 0, progress, total

    def __call__(self) -> None:
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, self._total)


def check_positive(name: str, value: int, least: int = 1) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
