"""Fake quantization (private to the gates, :mod:`adahessian.curvature.piecewise`).

It rounds to a grid. Its derivative is that of clipping, to both ways to H·z: to autograd an element
within the range moves as if it were not rounded. So that is how a replay moves it.
"""

import torch

from adahessian import _torch
from adahessian.curvature.torch_calls import split


class FakeQuantization:
    """The pattern: where the input lay, what it was rounded to, and which elements move."""

    def record(self, func, args, kwargs):
        x, args, kwargs = split(args, kwargs)
        if not x.requires_grad or not torch.is_grad_enabled() or _torch.under_functorch():
            return func(x, *args, **kwargs), None
        x = x.view_as(x)  # hooks of x are for the loss's gradient
        out = func(x, *args, **kwargs)
        (slope,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
        return out, (x.detach().clone(), out.detach().clone(), slope != 0)

    def replay(self, pattern, func, args, kwargs):
        if pattern is None:
            return func(*args, **kwargs)
        at, value, moves = pattern
        x, *_ = split(args, kwargs)
        return value + torch.where(moves, x - at, 0)


GATES = dict.fromkeys(
    (
        "fake_quantize_per_tensor_affine",
        "fake_quantize_per_channel_affine",
        "fused_moving_avg_obs_fake_quant",
    ),
    FakeQuantization(),
)
