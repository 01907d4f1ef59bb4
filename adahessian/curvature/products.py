"""Hessian-vector products, and the estimate of the Hessian's diagonal that is made from them.

There are two doors to H·z: :class:`DoubleBackward` differentiates the gradient once more and is
exact; :class:`FiniteDifference` evaluates the gradient once more and needs no second derivative of
anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

Draw = Callable[[], list[list[Tensor | None]]]


class Door(Protocol):
    """A way from a closure to H·z.

    Args:
        closure: see :mod:`adahessian.curvature.closures`.
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
