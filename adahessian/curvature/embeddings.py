"""The row of an embedding that stands for padding, which autograd takes as a constant.

The loss may well depend on it (a convolution over the tokens, a mean over them), but its gradient
is set to zero. So it must not move with the probe where it is looked up; as a row of a weight that
serves as the output layer, too, it does.

Private to the gates (:mod:`adahessian.curvature.piecewise`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adahessian import _torch


class Embedding:
    """The gate of ``embedding``; one without padding it leaves alone."""

    def record(
        self, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        out = func(*args, **kwargs)  # which may renormalize its rows
        _, weight, place = _given(func, args, kwargs)
        # Within vmap a weight does not say whether it requires a gradient.
        if place is None or not (weight.requires_grad or _torch.under_functorch()):
            return out, None
        # Also where no index is that of padding: the next batch, not recorded, may have one.
        return out, weight.detach()[place].clone()

    def replay(
        self, row: Tensor | None, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Tensor:
        out = func(*args, **kwargs)
        if row is None:
            return out
        indices, _, place = _given(func, args, kwargs)
        assert place is not None  # as when it was recorded
        return torch.where(indices.eq(place).unsqueeze(-1), row.to(out.dtype), out)


def _given(
    func: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, int | None]:
    """Return indices, weight, and the index of the padding; None where there is none."""
    if func is F.embedding:
        given = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | kwargs
        indices, place = given["input"], given.get("padding_idx")
    else:
        given = dict(zip(("weight", "indices", "padding_idx"), args, strict=False)) | kwargs
        indices, place = given["indices"], given.get("padding_idx", -1)
        place = None if place == -1 else place
    weight = given["weight"]
    if place is not None and place < 0:
        place += len(weight)
    return indices, weight, place


GATES = {"embedding": Embedding()}
