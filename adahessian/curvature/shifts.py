"""What is written to values of the graph behind autograd's back.

``y.clamp_()`` under ``torch.no_grad``, ``y.data[0] = 1``: autograd takes y for unchanged, so the
derivative is that of y plus a constant. A replay adds this constant, and does not write again.

Private to :mod:`adahessian.curvature.gates`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.curvature.constants import in_memory, is_leaf, requires_grad, tensors_in
from adahessian.curvature.torch_calls import written_by
from adahessian.replicas import local


class Shifts(NamedTuple):
    """What one call has written to, and what it has made of that."""

    before: list[Tensor]
    after: list[Tensor]

    @classmethod
    def record(
        cls, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, "Shifts | None"]:
        """Call a function that writes; None where a difference of values says nothing."""
        targets = tensors_in(written_by(args, kwargs))
        before = [_values(t).clone() for t in targets]
        out = func(*args, **kwargs)
        after = [_values(t).clone() for t in targets]  # ``.data = `` has brought another memory
        comparable = all(a.shape == b.shape for a, b in zip(before, after, strict=True))
        return out, cls(before, after) if comparable else None

    @torch.no_grad()
    def repeat(self, targets: Iterable[Tensor], condition: Tensor | None = None) -> None:
        """Change other values by as much.

        Args:
            targets: the tensors.
            condition: one bool that says whether to do so; a device is not waited for.
        """
        for target, before, after in zip(targets, self.before, self.after, strict=True):
            t = _values(target)
            # Bit for bit where nothing has moved, and where what is infinite stays so.
            moved = torch.where(t == before, after, after + (t - before))
            t.copy_(moved if condition is None else torch.where(condition.to(t.device), moved, t))


def distance(some: Iterable[Tensor], others: Iterable[Tensor]) -> Tensor:
    """Return the sum of the norms of differences, one element, on the first one's device."""
    pairs = zip(map(local, some), map(local, others), strict=True)
    norms = [(a - b).norm().float() for a, b in pairs]
    return torch.stack([n.to(norms[0].device) for n in norms]).sum()


def is_of_the_graph(t: Tensor) -> bool:
    """Whether autograd knows how a tensor came from others. A view without it looks like a leaf."""
    if not requires_grad(t):
        return False
    base = _torch.innermost(t)._base if is_leaf(t) else None
    return not is_leaf(t if base is None else base)


def _values(t: Tensor) -> Tensor:
    return t.detach() if t.layout is torch.strided else in_memory(t)
