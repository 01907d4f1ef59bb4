"""Hessian-vector products: what every way to compute them offers.

:class:`~adahessian.curvature.double_backward.DoubleBackward` differentiates the gradient once more
and is exact. :class:`~adahessian.curvature.finite_difference.FiniteDifference` evaluates the
gradient once more and needs no second derivative of anything.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

# One tensor of each parameter's shape and dtype, by parameter; of a DTensor this process's part.
Vector = Mapping[Tensor, Tensor]


class HessianProducts(Protocol):
    """Products of vectors with the Hessian of the loss that a closure computes.

    ``evaluate()`` comes first and once; then ``product(z)``, any number of times.
    """

    def evaluate(self) -> Any:
        """Evaluate the closure, which fills the gradients; return what it returns."""
        ...

    def product(self, z: Vector) -> dict[Tensor, Tensor]:
        """Return H·z, by parameter, for the parameters of ``z`` that have a gradient."""
        ...

    def resolution(self) -> float:
        """Return how fine products are: an element below this times |gradient| is rounding noise.

        0 where products are exact up to the rounding of the parameters' precision.
        """
        ...
