"""Custom functions whose forward searches by comparing, as those of entmax do."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd import Function

from adahessian import AdaHessian
from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.hutchinson import Probes
from adahessian.curvature.replay import Earlier


class CubeRoot(Function):
    """y of y³ + y = x, by bisection."""

    @staticmethod
    def forward(ctx, x):
        low, width = -x.abs() - 1, 2 * (x.abs() + 1)
        for _ in range(60):
            width = width / 2
            middle = low + width
            low = torch.where(middle**3 + middle <= x, middle, low)
        ctx.save_for_backward(low)
        return low

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad / (3 * y**2 + 1)


class Spikes(Function):
    """It compares in a loop, too, and its outcomes are pieces: they jump, its derivative not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        potential, out = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(8):
            potential = potential + x
            spikes = (potential > 1).to(x.dtype)
            potential, out = potential - spikes, out + spikes
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x)


LOSSES = {
    "gates": lambda y: CubeRoot.apply(3 * y).square().sum(),
    # An absolute value that only the kernels reach.
    "kernels": lambda y: CubeRoot.apply(3 * y).square().sum() + torch.norm(y, 1) ** 2 / 10,
    "spikes": lambda y: Spikes.apply(2 * y).sum(),
    "both": lambda y: CubeRoot.apply(3 * y).square().sum() + Spikes.apply(2 * y).sum(),
}


def problem(loss, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x = torch.randn(6, 4).to(dtype)
    calls = []

    def closure(create_graph=False):
        calls.append(None)
        model.zero_grad()
        value = loss(model(x))
        value.backward(create_graph=create_graph)
        return value

    return list(model.parameters()), closure, calls


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_search_moves_and_a_piece_does_not(loss):
    params, closure, calls = problem(loss)
    probe = Probes(params, seed=0, step=0)
    (z,) = probe.keep()
    exactly = DoubleBackward(lambda: closure(create_graph=True), params, probe)
    exactly.evaluate()
    exact = exactly.product(z)
    earlier, counts = Earlier(), []
    for is_first in (True, False):
        calls.clear()
        difference = FiniteDifference(closure, params, check=is_first, earlier=earlier)
        difference.evaluate()
        gradients = [p.grad.clone() for p in params]
        found = difference.product(z)
        for p in params:
            torch.testing.assert_close(found[p], exact[p], rtol=1e-4, atol=1e-4)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=True))
        counts.append(len(calls))
    assert counts[1] == 2  # what the first refresh has learned holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_is_warned_of(dtype):
    params, closure, _ = problem(LOSSES["gates"], dtype)
    optimizer = AdaHessian(params, curvature="finite_difference", check_interval=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            optimizer.step(closure)
    error = optimizer.curvature_error(lambda: closure(create_graph=optimizer.needs_graph))
    assert error.largest < 0.01
