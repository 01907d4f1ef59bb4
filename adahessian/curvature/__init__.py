"""The curvature of a loss: ways to Hessian-vector products, and the estimates made from them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from adahessian.curvature.check import AccuracyCheck
from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.earlier import Earlier
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.hutchinson import Probes
from adahessian.curvature.products import HessianProducts

CURVATURES = ("double_backward", "finite_difference")  # the values of the option `curvature`


def hessian_products(
    curvature: str,
    closure: Callable[[], Any] | None,
    params: Sequence[Tensor],
    probes: Probes,
    *,
    check: bool = False,
    earlier: Earlier | None = None,
    central: bool = False,
    accuracy: AccuracyCheck | None = None,
) -> HessianProducts:
    """Return the way to Hessian-vector products that the option ``curvature`` names.

    Args:
        curvature: one of ``CURVATURES``.
        closure: see :mod:`adahessian.curvature.closures`.
        params: the parameters whose gradients it fills.
        probes: the vectors of all products that will be asked for, in this order.
        check: warn of what would be wrong; see both ways.
        central: the closure takes gradients beside a step; see both ways.
        earlier, accuracy: see :class:`FiniteDifference`.
    """
    if curvature == "double_backward":
        return DoubleBackward(closure, params, probes, check=check, asks=central)
    return FiniteDifference(
        closure, params, check=check, earlier=earlier, central=central, accuracy=accuracy
    )
