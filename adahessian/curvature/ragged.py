"""Pieces of nested tensors: those of their values.

Private to :mod:`adahessian.curvature.gates`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.constants import replaced, tensors_in
from adahessian.curvature.torch_calls import name_of, writes


def on_values(
    func: Callable, args: tuple, kwargs: dict[str, Any], *, is_elementwise: bool
) -> Tensor:
    """Call a function of nested tensors on all their values at once.

    Raises:
        RuntimeError: it is not a function of each element; or it writes in place, or a tensor has
            the older layout: then autograd does not follow what happens to the values.
    """
    ragged: list[Any] = [t for t in tensors_in((args, kwargs)) if t.is_nested]
    is_jagged = all(t.layout is torch.jagged for t in ragged)
    if not is_elementwise or writes(func, kwargs) or not is_jagged:
        raise RuntimeError(
            f"the finite difference cannot freeze the pieces of {name_of(func)} of a nested "
            "tensor: use curvature='double_backward', or give it padded values. (It can where "
            "each element is by itself, as in relu, not in place, and the layout is torch.jagged.)"
        )
    args, kwargs = (
        replaced(value, lambda t: t.values() if t.is_nested else t) for value in (args, kwargs)
    )
    out, like = func(*args, **kwargs), ragged[0]
    (at,) = (dim for dim, size in enumerate(like.shape) if not isinstance(size, int))
    return torch.nested.nested_tensor_from_jagged(
        out, like.offsets(), like.lengths(), jagged_dim=at
    )
