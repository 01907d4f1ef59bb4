"""The curvature of a loss: ways to Hessian-vector products, and the estimates made from them."""

from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.products import Door

DOORS: dict[str, type[Door]] = {
    "double_backward": DoubleBackward,
    "finite_difference": FiniteDifference,
}
