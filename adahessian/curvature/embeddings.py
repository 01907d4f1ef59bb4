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

from adahessian import _torch


class Embedding:
    """The gate of ``torch.embedding``; one without padding it leaves alone."""

    def record(
        self, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        out = func(*args, **kwargs)
        weight, _, place = _given(args, kwargs)
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
        _, indices, place = _given(args, kwargs)
        assert place is not None  # as when it was recorded
        return torch.where(indices.eq(place).unsqueeze(-1), row.to(out.dtype), out)


def _given(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, int | None]:
    """Return weight, indices, and the index of the padding; None where there is none."""
    given = dict(zip(("weight", "indices", "padding_idx"), args, strict=False)) | kwargs
    place = given.get("padding_idx", -1)
    return given["weight"], given["indices"], None if place == -1 else place


GATES = {torch.embedding: Embedding()}
