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

from adahessian.replicas import local


class Change:
    """That of a loss and its gradients, from one evaluation to the next.

    Args:
        second, first: the gradients, by parameter; what one of them lacks is left out.
        values: what the second and the first evaluation returned.
        width: of the step between them.

    Attributes:
        is_seen: whether the values are a loss's, and there are gradients to compare.
    """

    def __init__(
        self,
        second: Mapping[Tensor, Tensor],
        first: Mapping[Tensor, Tensor],
        values: tuple[Any, Any],
        width: float,
    ) -> None:
        self._params = [p for p in second if p in first]
        self._seconds = [local(second[p]) for p in self._params]
        self._firsts = [local(first[p]) for p in self._params]
        self._values, self._width = values, width
        are_scalars = all(isinstance(v, Tensor) and v.numel() == 1 for v in values)
        self.is_seen = are_scalars and bool(self._params)

    @torch.no_grad()
    def quotients(self) -> dict[Tensor, Tensor]:
        """Return the differences of the gradients, divided by the width, by parameter.

        They take the memory of the differences: to be asked for last.
        """
        if self._params:
            torch._foreach_div_(self._differences, self._width)
        return dict(zip(self._params, self._differences, strict=True))

    def at_all(self) -> tuple[Tensor, Tensor]:
        """Return how far the loss changes, and how far one and the same computation's may.

        It may change by h·zᵀg and by half of h·zᵀ(g₂ − g); both are bounded here, the former as for
        random signs, thirty times its usual size. One element each.
        """
        second, first = self._losses
        growth = norms(self._differences).norm()
        root = sum(g.numel() for g in self._firsts) ** 0.5
        allowed = 1e-3 * first.abs() + self._width * (30 * self._size + root / 2 * growth)
        return (second - first).abs(), allowed

    def unexplained(
        self, z: Mapping[Tensor, Tensor], *, eps: float, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Return how far the loss changes otherwise than both gradients say, and how far it may.

        Args:
            z: the direction.
            eps: of the numbers that the loss is computed in.
            tolerance: the part that may be left open, as in a check.

        Returns:
            One element each. The second has the rounding of the loss itself.
        """
        products = torch._foreach_add(self._firsts, self._seconds)
        torch._foreach_mul_(products, [z[p] for p in self._params])
        along = _total(products)
        second, first = self._losses
        rounding = 8 * eps * (second.abs() + first.abs())
        unexplained = (second - first - self._width / 2 * along).abs()
        return unexplained, rounding + tolerance * abs(self._width) * self._size

    @cached_property
    def _differences(self) -> list[Tensor]:
        with torch.no_grad():
            return list(torch._foreach_sub(self._seconds, self._firsts)) if self._params else []

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


def _total(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of all elements, on the device of the first tensor, in few kernels."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for t in tensors:
        by_device.setdefault(t.device, []).append(t.reshape(-1))
    sums = [torch.cat(parts).sum() for parts in by_device.values()]
    return sum((s.to(sums[0].device) for s in sums[1:]), sums[0])


class Usual:
    """Tells a change that is too large from the rounding of what a loss is computed from.

    A cross entropy of 1e-6 comes from logits of 20, a squared error of one from targets of a
    thousand, and either may be scaled. So its rounding is no function of the loss; but refreshes
    that went well have shown it. Where that is all that changes, a normal number is ``MARGIN``
    times the largest of five earlier ones once in some ten thousand times. ``FADES`` forgets the
    rounding of a loss that was larger in as many refreshes as there are between two records.
    """

    MARGIN, FADES = 8.0, 0.98

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    def exceeded(self, change: Tensor, allowed: Tensor) -> Tensor:
        """Return whether a change is too large, and remember it if not; the device decides."""
        largest = torch.zeros_like(allowed) if self._largest is None else self._largest.to(allowed)
        is_exceeded = change > allowed.add(largest, alpha=self.MARGIN)
        # fmax: what is no number is not remembered.
        self._largest = torch.where(is_exceeded, largest, torch.fmax(self.FADES * largest, change))
        return is_exceeded


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of each of some tensors, on the device of the first."""
    found = torch._foreach_norm(list(tensors))
    return torch.stack([n.to(found[0]) for n in found])
