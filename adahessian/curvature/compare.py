"""How far the finite difference is from the exact product."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.finite_difference import FiniteDifference


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
