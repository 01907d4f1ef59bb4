"""Closures that write gradients by hand, beside those that backward passes bring."""

import warnings

import pytest
import torch
from support.reference import dense_hessian
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian
from adahessian.curvature.hutchinson import Probes


def problem():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    params = [
        torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((4, 5), (5, 3))
    ]

    def loss(first, last):
        return F.cross_entropy(torch.tanh(x @ first) @ last, y)

    return params, loss


def by_parts(params, loss):
    """Backward for the last layer, torch.autograd.grad for the first."""
    value = loss(*params)
    value.backward(inputs=params[1:], retain_graph=True)
    (params[0].grad,) = torch.autograd.grad(value, params[:1])
    return value


def the_other_way(params, loss):
    """torch.autograd.grad first."""
    value = loss(*params)
    (first,) = torch.autograd.grad(value, params[:1], retain_graph=True)
    value.backward(inputs=params[1:])
    params[0].grad = first
    return value


def in_addition(params, loss):
    """One half of the loss by backward, the other added by hand."""
    value = loss(*params)
    (value / 2).backward(retain_graph=True)
    for p, grad in zip(params, torch.autograd.grad(value / 2, params), strict=True):
        p.grad += grad
    return value


def clipped_without_effect(params, loss):
    value = loss(*params)
    value.backward()
    nn.utils.clip_grad_norm_(params, 2.0)
    return value


def all_by_hand(params, loss):
    value = loss(*params)
    for p, grad in zip(params, torch.autograd.grad(value, params), strict=True):
        p.grad = grad
    return value


def by_torch_func(params, loss):
    """No backward pass is seen; the alarm was that "inf%" of the loss's change is unexplained."""
    grads, value = torch.func.grad_and_value(lambda p: loss(*p))(params)
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    return value


def first_step(make, **options):
    """Take a first step; return the products, the exact ones, and what was warned of."""
    params, loss = problem()
    optimizer = AdaHessian(params, lr=0.0, curvature="finite_difference", **options)
    samples = []
    optimizer.register_curvature_hook(lambda _, __, found: samples.extend(s.clone() for s in found))

    def closure():
        optimizer.zero_grad()
        return make(params, loss)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step(closure)
    (z,) = Probes(params, seed=0, step=0).keep()
    flat = torch.cat([z[p].flatten() for p in params])
    exact = (dense_hessian(loss, params) @ flat).split([p.numel() for p in params])
    products = [(s * z[p]).flatten() for s, p in zip(samples, params, strict=True)]
    return products, exact, [str(w.message) for w in found]


class _Solver(torch.autograd.Function):
    """Whose gradient is linear in the loss up to a tolerance, as an adaptive solver's is."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 1e-6 * grad.log())


def by_a_solver(params, loss):
    value = loss(*params)
    _Solver.apply(value).backward()
    return value


@pytest.mark.parametrize(
    "make",
    [
        by_parts, the_other_way, in_addition, all_by_hand, clipped_without_effect, by_torch_func,
        by_a_solver,
    ],
)  # fmt: skip
def test_gradients_of_both_kinds_are_right_and_no_alarm(make):
    products, exact, found = first_step(make)
    assert not found
    for a, b in zip(products, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("detaches", [False, True])
def test_weight_decay_by_hand_has_a_curvature_unless_it_is_a_constant(detaches):
    def decayed(params, loss):
        value = loss(*params)
        value.backward()
        with torch.no_grad():
            for p in params:
                p.grad.add_(p.detach() if detaches else p, alpha=0.1)
        return value

    products, exact, found = first_step(decayed)
    params, _ = problem()
    (z,) = Probes(params, seed=0, step=0).keep()
    assert not found
    for a, b, p in zip(products, exact, params, strict=True):
        decay = 0.0 if detaches else 0.1 * z[p].flatten()
        torch.testing.assert_close(a, b + decay, rtol=1e-4, atol=1e-6)


def clipped_by_norm(params, loss):
    value = loss(*params)
    value.backward()
    nn.utils.clip_grad_norm_(params, 0.01)
    return value


def clipped_by_value(params, loss):
    value = loss(*params)
    value.backward()
    nn.utils.clip_grad_value_(params, 1e-3)
    return value


def signs(params, loss):
    value = loss(*params)
    value.backward()
    for p in params:
        p.grad.sign_()
    return value


def overwritten(params, loss):
    value = loss(*params)
    value.backward(retain_graph=True)
    (params[0].grad,) = torch.autograd.grad(value, params[:1])
    return value


@pytest.mark.parametrize("make", [clipped_by_norm, clipped_by_value, signs, overwritten])
def test_what_is_made_of_a_gradient_is_refused_by_name(make):
    with pytest.raises(RuntimeError, match="does something to the gradient.*clip.*inputs="):
        first_step(make)


class _OverflowsWhenScaled(torch.autograd.Function):
    """Its gradient is not finite for what a loss of 32 times the size hands it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1e38 / 1e38


def test_a_gradient_that_overflows_when_the_loss_is_larger_is_nobodys_fault():
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    layer = nn.Linear(4, 1)
    optimizer = AdaHessian(layer.parameters(), curvature="finite_difference")

    def closure():
        optimizer.zero_grad()
        loss = _OverflowsWhenScaled.apply(layer(x)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(p.isfinite().all() for p in layer.parameters())


def test_a_gradient_that_is_not_finite_is_not_called_not_repeatable():
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.bias)
    optimizer = AdaHessian(layer.parameters(), curvature="finite_difference")

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.zeros(3, 4)).norm(dim=1).sqrt().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert layer.weight.grad.isnan().all()
