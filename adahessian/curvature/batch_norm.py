"""Normalizations with a second derivative of our own (private to double backward).

torch differentiates batch normalization's backward pass through some forty elementary operations,
each of which reads and writes a whole activation: on a ResNet that is a third of the step. Here it
takes one fused kernel, two reductions and a few elementwise passes, for the same result.

Of weight normalization torch's fused second derivative is wrong: it takes the norm for a constant.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from adahessian import _torch


def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):  # noqa: A002 (torch's names)
    """Stand in for ``F.batch_norm``, with the closed-form second derivative in training mode.

    Calls that it does not cover (evaluation mode, no weight, reduced precision) go their usual way.
    """
    if not training and running_mean is not None and running_var is not None:
        # torch saves the buffers themselves for its derivatives, and does not notice when a pass in
        # training mode changes them: another one of the closure, or a checkpoint's within backward.
        running_mean, running_var = running_mean.clone(), running_var.clone()
    full_precision = input.dtype in (torch.float32, torch.float64)
    # Checkpointing runs the forward again within backward, where this mode is off: what is saved
    # under its hooks must be what torch itself saves.
    hooked = _torch.has_saved_tensor_hooks()
    usual = hooked or not training or weight is None or bias is None or not full_precision
    # torch refuses a single value per channel, whose variance is no number.
    usual = usual or input.ndim < 2 or input.numel() <= input.shape[1]
    if usual or _torch.under_functorch():  # they need rules of their own
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class _BatchNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, mean, inv_std = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        dx, dweight, dbias = _Backward.apply(grad, *ctx.saved_tensors, ctx.eps)
        return dx, dweight, dbias, None, None, None, None


def _first_backward(grad, x, weight, mean, inv_std, eps):
    return torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, inv_std, True, eps, [True, True, True]
    )


class _Backward(Function):
    """The first derivative, as a function of the incoming gradient, the input and the weight.

    With x̂ = (x − μ)·r, r = 1/σ, means over the n elements of a channel, and the gradient g:

        dbias = Σ g,  dweight = Σ g x̂,  dx = w r (g − mean(g) − x̂ mean(g x̂))
    """

    @staticmethod
    def forward(ctx, grad, x, weight, mean, inv_std, eps):
        dx, dweight, dbias = _first_backward(grad, x, weight, mean, inv_std, eps)
        ctx.save_for_backward(grad, x, weight, mean, inv_std, dweight, dbias)
        ctx.eps = eps
        return dx, dweight, dbias

    @staticmethod
    def backward(ctx, *vectors):
        """The derivative of s = Σ dx·v + dweight·v_weight + dbias·v_bias.

        Let m = mean(g x̂), k = mean(v x̂) and p = mean(g v) − mean(g) mean(v) − m k, so that
        Σ dx·v = n w r p. From dr/dx_i = −r² x̂_i / n and dx̂_j/dx_i = r (δ_ij − 1/n − x̂_i x̂_j / n):

            ds/dg = w r (v − mean(v) − x̂ k) + x̂ v_weight + v_bias
            ds/dw = n r p
            ds/dx = b (g − mean(g) − x̂ m) + c (v − mean(v) − x̂ k) − w r² p x̂
                    with b = r v_weight − w r² k,  c = −w r² m
        """
        v, v_weight, v_bias = vectors
        g, x, weight, mean, inv_std, dweight, dbias = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative may follow, as of a gradient penalty
            return _differentiable_backward(ctx, g, x, weight, (v, v_weight, v_bias))
        n = x.numel() // x.shape[1]
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)

        def per_channel(t: Tensor) -> Tensor:
            return t.view(shape)

        r, w = inv_std, weight
        ds_dg, sum_vx, sum_v = _first_backward(v, x, weight, mean, inv_std, ctx.eps)
        mean_g, m = dbias / n, dweight / n
        mean_v, k = sum_v / n, sum_vx / n
        p = (g * v).sum(dims) / n - mean_g * mean_v - m * k
        # x̂ = r x − r μ: everything is a linear combination of x, g and v for each channel.
        ds_dg.addcmul_(x, per_channel(r * v_weight)).add_(per_channel(v_bias - r * mean * v_weight))
        b = r * v_weight - w * r * r * k
        c = -w * r * r * m
        a = -(b * m + c * k + w * r * r * p)
        ds_dx = torch.addcmul(per_channel(-a * r * mean - b * mean_g - c * mean_v), x,
                              per_channel(a * r))  # fmt: skip
        ds_dx.addcmul_(g, per_channel(b)).addcmul_(v, per_channel(c))
        return ds_dg, ds_dx, n * r * p, None, None, None


def _differentiable_backward(ctx, g, x, weight, vectors):
    """What ``_Backward.backward`` returns, from operations that torch differentiates further."""
    # Aliases: g depends on x, and that way is not to be counted here.
    inputs = g, x, weight = [t.view_as(t) for t in (g, x, weight)]
    dims = [d for d in range(x.ndim) if d != 1]
    r = torch.rsqrt(x.var(dims, correction=0, keepdim=True) + ctx.eps)
    x_hat = (x - x.mean(dims, keepdim=True)) * r
    g_hat = g - g.mean(dims, keepdim=True) - x_hat * (g * x_hat).mean(dims, keepdim=True)
    dx = weight.view(r.shape[1:]) * r * g_hat
    outputs = dx, (g * x_hat).sum(dims), g.sum(dims)
    asked = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(outputs, asked, vectors, create_graph=True))
    return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), *[None] * 3
