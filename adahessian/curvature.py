"""Hessian-vector products, and the estimate of the Hessian's diagonal that is made from them.

There are two doors to H·z: :class:`DoubleBackward` differentiates the gradient once more and is
exact; :class:`FiniteDifference` evaluates the gradient once more and needs no second derivative of
anything.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from adahessian import probes
from adahessian.double_backward import DoubleBackward
from adahessian.finite_difference import FiniteDifference

Draw = Callable[[], list[list[Tensor | None]]]


class Door(Protocol):
    """A way from a closure to H·z.

    Args:
        closure: see :mod:`adahessian.closures`.
        params: the parameters whose gradients it fills.
        draw: returns the vectors of all products that will be asked for, in their order: for each
            product one tensor for each of ``params``, None for those that take no part.
    """

    def __init__(
        self, closure: Callable[[], Any] | None, params: Sequence[Tensor], draw: Draw
    ) -> None: ...

    def first_pass(self, check: bool) -> Any:
        """Evaluate the closure and return what it returns; ``check`` it the first time."""

    def product(self, params: Sequence[Tensor], vectors: Sequence[Tensor], more: bool):
        """Return the Hessian's product with a vector; ``more`` says that another one follows."""

    def resolution(self, params: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the size below which an element of a product is noise; None if it is exact."""


DOORS: dict[str, type[Door]] = {
    "double_backward": DoubleBackward,
    "finite_difference": FiniteDifference,
}


class CurvatureError(NamedTuple):
    """How far the finite difference is from the exact product, for one probe.

    Attributes:
        relative: ‖approximate − exact‖ / ‖exact‖ of each parameter; NaN for those in ``flat``.
        flat: for parameters without curvature to speak of (a bias before batch normalization), by
            number: the error's root mean square over that of the whole network's curvature.
        mean_ratio: mean |z · Hz| of the finite difference over that of double backward.
    """

    relative: list[float]
    flat: dict[int, float]
    mean_ratio: float

    @property
    def median(self) -> float:
        return statistics.median(e for e in self.relative if e == e)

    @property
    def largest(self) -> float:
        return max(e for e in self.relative if e == e)


def compare_doors(
    closure: Callable[[], Any], params: Sequence[Tensor], vectors: Sequence[Tensor]
) -> CurvatureError:
    """Compute one product through both doors; change nothing but the gradients.

    Args:
        closure: as for the doors; ``backward`` is called with create_graph in the exact one.
        params: the parameters; those without a gradient are left out.
        vectors: the vector.
    """
    difference = FiniteDifference(closure, params)
    difference.first_pass(check=True)
    used = [(p, v) for p, v in zip(params, vectors, strict=True) if p.grad is not None]
    params, vectors = [p for p, _ in used], [v for _, v in used]
    approximate = difference.product(params, vectors)
    with difference.rerun():
        door = DoubleBackward(closure, params, lambda: [list(vectors)])
        door.first_pass()
        exact = door.product(params, vectors)
    difference.undo()

    def rms(tensors: Sequence[Tensor]) -> float:
        count = sum(t.numel() for t in tensors)
        return (sum(float(t.double().square().sum()) for t in tensors) / count) ** 0.5

    network = rms(exact)
    relative, flat = [], {}
    for i, (a, e) in enumerate(zip(approximate, exact, strict=True)):
        if rms([e]) < 1e-6 * network:
            flat[i] = rms([a - e]) / network
        relative.append(math.nan if i in flat else rms([a - e]) / rms([e]))
    means = [sum(float(t.double().abs().sum()) for t in side) for side in (approximate, exact)]
    return CurvatureError(relative, flat, means[0] / means[1])


def hutchinson_samples(
    hvp: Callable[[list[Tensor], bool], list[Tensor]],
    params: Sequence[Tensor],
    *,
    seed: int,
    step: int,
    num_samples: int = 1,
    tensor_indices: Sequence[int] | None = None,
) -> Iterator[list[Tensor]]:
    """Yield ``num_samples`` unbiased estimates z·Hz of the Hessian's diagonal.

    E[z zᵀ] = I makes E[z·Hz] = diag(H) (Bekas, Kokiopoulou and Saad 2007; the paper's Eq. 8). One
    estimate's error at element i has the variance of the off-diagonal row, Σ_{j≠i} H_ij².

    Args:
        hvp: takes a vector (one tensor for each parameter) and whether another product follows,
            and returns the Hessian's product with it.
        params: the parameters.
        seed, step, tensor_indices: see :func:`adahessian.probes.rademacher_like`.
        num_samples: how many probes.

    Yields:
        Lists with one tensor of each parameter's shape, signed and unaveraged.
    """
    for sample in range(num_samples):
        z = probes.rademacher_like(
            params, seed=seed, step=step, sample=sample, tensor_indices=tensor_indices
        )
        products = hvp(z, sample + 1 < num_samples)
        yield [zi * hz for zi, hz in zip(z, products, strict=True)]
