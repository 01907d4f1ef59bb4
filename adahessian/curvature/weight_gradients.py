"""Convolutions near the data: a weight gradient whose change is not lost in rounding.

A convolution's weight gradient is a sum over all pixels of all images. Where the images are
constant over large areas, and batch normalization behind the layer makes the incoming gradients add
up to zero, its terms cancel almost completely and leave the rounding errors of a sum in float32. In
a difference of two such gradients they were up to two thirds of the first layer's H·z in a trained
ResNet-20, and a tenth in the layer behind it (docs/curvature.md). The gradient W(x, g) is linear in
the layer's input x and in what comes in from behind, g. So the second evaluation sums changes:

    W(x₂, g₂) = W(x₁, g₁) + W(x₁, g₂ − g₁) + W(x₂ − x₁, g₂)

The last term is absent in the first layer, whose input is the data.

Private to :mod:`adahessian.curvature.gates`, and a gate like those of
:mod:`adahessian.curvature.piecewise`: what it records are inputs and incoming gradients of the
first evaluation. Each convolution makes the constant areas smaller, so that only the first
``LAYERS`` need it; they keep two tensors each, of the size of input and output (the very first one
its output's only).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from adahessian import _torch
from adahessian.curvature.layouts import copy_of, laid_out_as

LAYERS = 2  # along a path from the data
_OPTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NODES = 16  # of autograd's graph, to look back for the convolution before


class _Gradient(NamedTuple):
    """A backward pass through a layer: W(x, g) = dweight. x is None where it is the data."""

    x: Tensor | None
    g: Tensor
    dweight: Tensor
    dbias: Tensor | None


class FirstLayers:
    """The gate of convolutions; one that is not near the data it leaves alone."""

    def record(
        self, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Tensor, list[_Gradient] | None]:
        given = dict(zip(_OPTIONS, args, strict=False)) | kwargs
        before = _convolutions_before(given["input"])
        if before >= LAYERS or not _fits(given):
            return func(*args, **kwargs), None
        record: list[_Gradient] = []
        return _call(func, given, before, record, ()), record

    def replay(
        self, record: list[_Gradient] | None, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Tensor:
        if record is None:
            return func(*args, **kwargs)
        given = dict(zip(_OPTIONS, args, strict=False)) | kwargs
        return _call(func, given, _convolutions_before(given["input"]), None, record)


def _convolutions_before(x: Tensor) -> int:
    """Return the number of convolutions on the way from the data to x, or LAYERS for more."""
    if not x.requires_grad:
        return 0
    node = x.grad_fn
    for _ in range(_NODES):
        if hasattr(node, "convolutions_before"):
            return node.convolutions_before + 1
        if node is None or "Convolution" in node.name():  # one that does not fit
            break
        # The operation's first argument that depends on a parameter; a shortcut's sum has two.
        node = next((n for n, _ in node.next_functions if n is not None), None)
    return LAYERS


def _fits(given: dict[str, Any]) -> bool:
    x, weight = given["input"], given["weight"]
    return (
        weight.requires_grad
        and x.dtype == weight.dtype
        and type(weight) in (Tensor, nn.Parameter)
        and x.ndim == weight.ndim  # not a single image without a batch
        and not isinstance(given.get("padding"), str)
        and not torch.is_autocast_enabled(x.device.type)
        and not _torch.under_functorch()  # they need rules of their own
    )


def _call(func, given, before, record_into, replay_from) -> Tensor:
    dims = given["input"].ndim - 2
    stride, padding, dilation = (
        _per_dim(given.get(name, default), dims)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    options = (stride, padding, dilation, given.get("groups", 1))
    return _Convolution.apply(
        given["input"], given["weight"], given.get("bias"),
        func, options, before, record_into, replay_from,
    )  # fmt: skip


def _per_dim(value: int | tuple[int, ...], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


class _Convolution(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, func, options, before, record_into, replay_from):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.has_bias = options, bias is not None
        ctx.convolutions_before = before
        ctx.record_into, ctx.remaining = record_into, iter(replay_from)
        return func(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # for which a checkpoint computes again, through its gates
        with _torch.below_torch_functions():
            return _Convolution._backward(ctx, *grads, *saved)

    @staticmethod
    def _backward(ctx, grad, x, weight):
        of_data = not ctx.needs_input_grad[0]
        first = next(ctx.remaining, None)
        if first is None:
            dx, dweight, dbias = _gradients(ctx, x, grad, weight, (not of_data, True, ctx.has_bias))
        else:
            dx, _, _ = _gradients(ctx, x, grad, weight, (not of_data, False, False))
            dweight, dbias = _changed(ctx, first, x, grad, weight)
        if ctx.record_into is not None:
            # Copies: the gradients that are returned may become p.grad, and be changed in place.
            ctx.record_into.append(
                _Gradient(
                    None if of_data else x.detach(),
                    grad.detach(),
                    copy_of(dweight.detach()),
                    None if dbias is None else copy_of(dbias.detach()),
                )
            )
        return dx, dweight, dbias, None, None, None, None, None


def _changed(ctx, first: _Gradient, x: Tensor, grad: Tensor, weight: Tensor):
    """Return the gradients by weight and bias: the first evaluation's and their changes."""
    x1 = x if first.x is None else first.x
    _, dweight, dbias = _gradients(ctx, x1, grad - first.g, weight, (False, True, ctx.has_bias))
    dweight = first.dweight + dweight
    if first.x is not None:
        dweight = dweight + _gradients(ctx, x - x1, grad, weight, (False, True, False))[1]
    dweight = laid_out_as(dweight, first.dweight.stride())
    return dweight, first.dbias + dbias if ctx.has_bias else None


def _gradients(ctx, x: Tensor, grad: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]):
    """Return torch's gradients by input, weight and bias, as far as they are wanted."""
    stride, padding, dilation, groups = ctx.options
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]] if ctx.has_bias else None,
        stride, padding, dilation, False, [0] * len(stride), groups, wanted,
    )  # fmt: skip
