"""A function whose second derivative is not a number, when a test wants it."""

import math

import torch


class Spoiled(torch.autograd.Function):
    """x³, element by element, with a finite gradient at ``at``.

    While ``spoil``, the last row has no second derivative, and no gradient elsewhere than at
    ``at``: both ways to H·z see it.
    """

    spoil = False
    at = None

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * _Slope.apply(x)


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        slope = 3 * x**2
        if Spoiled.spoil and not torch.equal(x, Spoiled.at):
            slope[-1:] *= math.nan
        return slope

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        curvature = grad * 6 * x
        if Spoiled.spoil:
            curvature[-1:] *= math.nan
        return curvature
