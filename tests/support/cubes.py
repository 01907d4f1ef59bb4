"""Custom functions that cube: what saves its input, and what says that it has one derivative."""

from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Saving(Function):
    """x³, which saves x; how its derivative is made, a subclass says."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3


class Cube(Saving):
    """As many a library's kernel is: its derivative was written for one gradient."""

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad
