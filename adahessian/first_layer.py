"""Convolutions of the data: a weight gradient whose change is not lost in rounding.

A convolution's weight gradient is a sum over all pixels of all images. Where the images are
constant over large areas, and batch normalization behind the layer makes the incoming gradients add
up to zero, its terms cancel almost completely and leave the rounding errors of a sum in float32. In
a difference of two such gradients they were up to two thirds of the first layer's H·z in a trained
ResNet-20 (docs/curvature.md). The gradient is linear in what comes in from behind, and the data are
the same in both evaluations: so the second one takes the difference of what comes in and sums that.

Private to :mod:`adahessian.gates`, and a gate like those of :mod:`adahessian.pieces`: what it
records are the incoming gradients of the first evaluation. Only a first layer sees such inputs. It
keeps one tensor of the size of the layer's output.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

_OPTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# What came in from behind at each backward pass through a layer, and its weight's gradient there.
Record = list[tuple[Tensor, Tensor]]


class FirstLayer:
    """The gate of convolutions; one whose input needs a gradient it leaves alone."""

    def record(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Record]:
        record: Record = []
        return self._call(func, args, kwargs, record, None), record

    def replay(self, record: Record, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        return self._call(func, args, kwargs, None, record)

    def _call(self, func, args, kwargs, record_into, replay_from) -> Tensor:
        given = dict(zip(_OPTIONS, args, strict=False)) | kwargs
        x, weight = given["input"], given["weight"]
        fits = (
            not x.requires_grad
            and weight.requires_grad
            and x.dtype == weight.dtype
            and type(weight) in (Tensor, nn.Parameter)
            and x.ndim == weight.ndim  # not a single image without a batch
            and not isinstance(given.get("padding"), str)
            and not torch.is_autocast_enabled(x.device.type)
            and not torch._C._are_functorch_transforms_active()  # they need rules of their own
        )
        if not fits:
            return func(*args, **kwargs)
        dims = x.ndim - 2
        stride, padding, dilation = (
            _per_dim(given.get(name, default), dims)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        options = (stride, padding, dilation, given.get("groups", 1))
        return _Convolution.apply(
            x, weight, given.get("bias"), func, options, record_into, replay_from
        )


def _per_dim(value: int | tuple[int, ...], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


class _Convolution(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, func, options, record_into, replay_from):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.has_bias = options, bias is not None
        ctx.record_into, ctx.remaining = record_into, iter(replay_from or ())
        return func(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, grad):
        first, first_dweight = next(ctx.remaining, (None, None))
        dweight = _weight_gradient(ctx, grad if first is None else grad - first)
        if first is not None:
            dweight = first_dweight + dweight
        if ctx.record_into is not None:
            # A copy: the gradient that is returned may become p.grad, and be changed in place.
            ctx.record_into.append((grad.detach(), dweight.detach().clone()))
        dbias = grad.sum([0, *range(2, grad.ndim)]) if ctx.has_bias else None
        return None, dweight, dbias, None, None, None, None


def _weight_gradient(ctx, grad: Tensor) -> Tensor:
    x, weight = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.options
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
        [False, True, False],
    )[1]  # fmt: skip
