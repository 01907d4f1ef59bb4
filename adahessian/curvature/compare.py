"""How far the finite difference is from the exact product."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.earlier import Earlier
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.hutchinson import Probes
from adahessian.dtypes import widest
from adahessian.replicas import local


class CurvatureError(NamedTuple):
    """How far the finite difference is from the exact product, for one probe.

    Attributes:
        relative: ‖approximate − exact‖ / ‖exact‖ of each parameter; NaN for those in ``flat``.
        flat: for parameters without curvature to speak of (a bias before batch normalization), by
            number: the error's root mean square over that of the whole network's curvature.
        mean_ratio: mean |z · Hz| of the finite difference over that of double backward; NaN for a
            loss without curvature, all of whose parameters are flat.
    """

    relative: list[float]
    flat: dict[int, float]
    mean_ratio: float

    @property
    def median(self) -> float:
        """Of ``relative``, without those in ``flat``."""
        return statistics.median([e for e in self.relative if e == e] or [math.nan])

    @property
    def largest(self) -> float:
        """Of ``relative`` and ``flat``: double backward may have no curvature and be wrong."""
        return max((e for e in (*self.relative, *self.flat.values()) if e == e), default=math.nan)


def compare_products(
    closure: Callable[[], Any], params: Sequence[Tensor], probe: Probes
) -> CurvatureError:
    """Compute one product in both ways; change nothing but the gradients.

    Args:
        closure: see :mod:`adahessian.curvature.closures`; it is evaluated once with
            ``create_graph``, if it can be asked to.
        params: the parameters whose gradients it fills.
        probe: a single one; parameters without a gradient are left out.
    """
    (z,) = probe.keep()
    values = [local(p.detach()).clone() for p in params]

    def undo() -> None:  # a closure may write to parameters, to constrain them
        with torch.no_grad():
            torch._foreach_copy_([local(p.detach()) for p in params], values)
        difference.replay.undo()

    difference = FiniteDifference(closure, params, check=True, earlier=Earlier())
    difference.evaluate()
    approximate = difference.product(z)
    with difference.replay.rewound():
        undo()
        exact_products = DoubleBackward(closure, params, probe, check=True)
        exact_products.evaluate()
        exact = exact_products.product(z)
    undo()
    pairs = [(approximate[p], exact[p]) for p in approximate]

    def rms(tensors: Sequence[Tensor]) -> float:
        count = sum(t.numel() for t in tensors)
        return (sum(float(_wide(t).square().sum()) for t in tensors) / count) ** 0.5

    network = rms([e for _, e in pairs])
    relative, flat = [], {}
    for i, (a, e) in enumerate(pairs):
        if rms([e]) <= 1e-6 * network:
            flat[i] = rms([a - e]) / network if network else rms([a - e])
        relative.append(math.nan if i in flat else rms([a - e]) / rms([e]))
    means = [sum(float(_wide(t).abs().sum()) for t in side) for side in zip(*pairs, strict=True)]
    return CurvatureError(relative, flat, means[0] / means[1] if means[1] else math.nan)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(widest(tensor.device))
