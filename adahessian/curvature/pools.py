"""Max pooling with given winners: the gates of torch's max pools.

Private to :mod:`adahessian.curvature.piecewise`, where it is said what a gate is. What a pool
records are the indices of the pixels that won their windows. The replay takes these pixels, and its
derivative is the kernel of torch's own backward pass, which gets the same indices: windows that
overlap add up their gradients in its order and precision.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from adahessian import _torch
from adahessian.curvature.snapshot import generator_state, set_generator_state
from adahessian.curvature.torch_calls import bind, name_of

_aten = torch.ops.aten
_Backward = Callable[[Tensor, Tensor, Tensor], Tensor]  # (gradient, input, indices) -> gradient


class MaxPool(NamedTuple):
    """Max pooling over the last ``dims`` dimensions."""

    dims: int
    with_indices: Callable
    parameters: tuple[str, ...]  # what follows the input
    backward: Callable[[int, dict[str, Any], Tensor], _Backward]  # (dims, arguments, indices)

    def bind(self, func: Callable, args: tuple, kwargs: dict[str, Any]):
        given = bind(self.parameters, args, kwargs)
        # torch's own function of this name returns both, that of torch.nn.functional one.
        both = name_of(func).endswith("_with_indices") or func is torch.adaptive_max_pool1d
        return given.pop("input"), given.pop("return_indices", False) or both, given

    def record(self, func: Callable, args: tuple, kwargs: dict[str, Any]):
        x, wants_indices, given = self.bind(func, args, kwargs)
        out, indices = self.with_indices(x, **given)
        # What is drawn next must be the same where the windows are not drawn again.
        drawn = generator_state(x.device) if "_random_samples" in self.parameters else None
        if wants_indices:  # a model may change what it gets
            return (out, indices), (indices.clone(), out.dtype, drawn)
        return out, (indices, out.dtype, drawn)

    def replay(self, pattern: tuple, func: Callable, args: tuple, kwargs: dict[str, Any]):
        x, wants_indices, given = self.bind(func, args, kwargs)
        indices, dtype, drawn = pattern
        if drawn is not None:
            set_generator_state(x.device, drawn)
        x = x.to(dtype)  # autocast lets some pools compute in float32
        if self.dims == 1:  # is pooling over two, the first of size one
            out = _pool(x.unsqueeze(-2), indices.unsqueeze(-2), 2, self.backward(1, given, indices))
            out = out.squeeze(-2)
        else:
            out = _pool(x, indices, self.dims, self.backward(self.dims, given, indices))
        return (out, indices.clone()) if wants_indices else out


class _Pool(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, indices, dims, backward):
        return x.flatten(-dims).gather(-1, indices.flatten(-dims)).view(indices.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, indices, _, ctx.kernel = inputs
        ctx.save_for_backward(x, indices)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        x, indices = ctx.saved_tensors
        with _torch.below_torch_functions():
            return ctx.kernel(grad, x, indices), None, None, None


def _pool(x: Tensor, indices: Tensor, dims: int, backward: _Backward) -> Tensor:
    return _Pool.apply(x, indices, dims, backward)


def _windows(dims: int, given: dict[str, Any], _: Tensor) -> _Backward:
    kernel_size = given["kernel_size"]
    size, stride, padding, dilation = (
        _per_dim(value, dims, fill)
        for value, fill in (
            (kernel_size, 1),
            (given.get("stride") or kernel_size, 1),
            (given.get("padding", 0), 0),
            (given.get("dilation", 1), 1),
        )
    )
    kernel = getattr(_aten, f"max_pool{max(dims, 2)}d_with_indices_backward")
    ceil_mode = given.get("ceil_mode", False)
    return lambda grad, x, indices: kernel(
        grad, x, size, stride, padding, dilation, ceil_mode, indices
    )


def _per_dim(value: int | tuple[int, ...], dims: int, fill: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    values = values * dims if len(values) == 1 else values
    return [fill, *values] if dims == 1 else values


def _adaptive(dims: int, given: dict[str, Any], _: Tensor) -> _Backward:
    return getattr(_aten, f"adaptive_max_pool{max(dims, 2)}d_backward")


def _fractional(dims: int, given: dict[str, Any], indices: Tensor) -> _Backward:
    kernel = getattr(_aten, f"fractional_max_pool{dims}d_backward")
    size, out_size = _per_dim(given["kernel_size"], dims, 1), indices.shape[-dims:]
    return lambda grad, x, indices: kernel(grad, x, size, out_size, indices)


_WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_FRACTION = ("kernel_size", "output_size", "output_ratio", "return_indices", "_random_samples")


def _build_table() -> dict[str, MaxPool]:
    table = {}
    for kind, every_dims, parameters, backward in (
        ("max_pool", (1, 2, 3), _WINDOWS, _windows),
        ("adaptive_max_pool", (1, 2, 3), ("output_size", "return_indices"), _adaptive),
        ("fractional_max_pool", (2, 3), _FRACTION, _fractional),
    ):
        for dims in every_dims:
            name = f"{kind}{dims}d"
            with_indices = getattr(F, name + "_with_indices")
            gate = MaxPool(dims, with_indices, parameters, backward)
            table[name] = table[name + "_with_indices"] = gate
    return table


GATES = _build_table()
