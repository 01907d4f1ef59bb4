"""What a loss's change from one evaluation to the next says of them.

It costs some twenty kernels, and is looked at wherever no check of the curvature is due. Two things
show in it: the second evaluation is another computation than the first; and something moves that is
to stand still. A smooth loss is not recorded at each refresh (:mod:`adahessian.curvature.earlier`).
A constant that joins it without an operation of its own (a target of the network's own, a weight by
``detach``) moves with the parameters until the next record. Then the loss changes otherwise than
its gradients say.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.check import Evaluation
from adahessian.replicas import local


class Change:
    """That of a loss.

    Args:
        after: the evaluation that is a step further.
        first_value, first_grads: what the other one returned, and left.
        width: of the step.

    Attributes:
        is_seen: whether the values are a loss's, and there are gradients to compare.
    """

    def __init__(
        self,
        after: Evaluation,
        first_value: Any,
        first_grads: Mapping[Tensor, Tensor],
        width: float,
    ) -> None:
        self._params = [p for p in after.grads if p in first_grads]
        self._seconds = [local(after.grads[p]) for p in self._params]
        self._firsts = [local(first_grads[p]) for p in self._params]
        self._values = after.value, first_value
        self._width = width
        are_scalars = all(isinstance(v, Tensor) and v.numel() == 1 for v in self._values)
        self.is_seen = are_scalars and bool(self._params)

    def is_anothers(self) -> Tensor:
        """Return whether the second evaluation was not the first one's computation, one element.

        The loss may change by h·zᵀg and by half of h·zᵀ(g₂ − g); both are bounded here, the former
        as for random signs, thirty times its usual size.
        """
        second, first = self._losses
        growth = norms(torch._foreach_sub(self._seconds, self._firsts)).norm()
        root = sum(g.numel() for g in self._firsts) ** 0.5
        allowed = 1e-3 * first.abs() + self._width * (30 * self._size + root / 2 * growth)
        return (second - first).abs() > allowed

    def strays(self, z: Mapping[Tensor, Tensor], *, eps: float, tolerance: float) -> Tensor:
        """Return whether the loss changes otherwise than both gradients explain, one element.

        Args:
            z: the direction.
            eps: of the numbers that the loss is computed in.
            tolerance: the part that may be left open, as in a check.
        """
        products = torch._foreach_add(self._firsts, self._seconds)
        torch._foreach_mul_(products, [z[p] for p in self._params])
        # The sum of a list's elements, of which torch has no function: twice the positive part,
        # less all.
        both = norms([*products, *torch._foreach_clamp_min(products, 0)], 1)
        total, positive = both.view(2, -1).sum(1).unbind()
        along = 2 * positive - total
        second, first = self._losses
        # A small loss is rounded as the logits are that it is computed from: of the order of one.
        rounding = 8 * eps * (0.5 + second.abs() + first.abs())
        unexplained = (second - first - self._width / 2 * along).abs()
        return unexplained > rounding + tolerance * self._width * self._size

    @cached_property
    def _size(self) -> Tensor:
        return norms(self._firsts).norm()

    @cached_property
    def _losses(self) -> tuple[Tensor, Tensor]:
        size = self._size
        second, first = (
            v.detach().reshape(()).to(size.device, torch.promote_types(v.dtype, size.dtype))
            for v in self._values
        )
        return second, first


def norms(tensors: Sequence[Tensor], order: int = 2) -> Tensor:
    """Return the norm of each of some tensors, on the device of the first."""
    found = torch._foreach_norm(list(tensors), order)
    return torch.stack([n.to(found[0]) for n in found])
