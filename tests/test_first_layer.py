"""Convolutions of the data: torch's gradient, and a difference of gradients that is not noise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adahessian import AdaHessian
from adahessian.finite_difference import FiniteDifference
from adahessian.gates import Gates
from adahessian.pieces import GATES
from adahessian.probes import rademacher_like

CALLS = {
    "conv1d": lambda x, w, b: F.conv1d(x[..., 0, 0], w[..., 0, 0], b, 2, 1),
    "conv2d": lambda x, w, b: F.conv2d(x[..., 0], w[..., 0], b, stride=(2, 1), padding=[1, 2]),
    "conv3d": lambda x, w, b: torch.conv3d(x, w, b, dilation=(1, 2, 1)),
    "no bias": lambda x, w, b: F.conv2d(x[..., 0], w[..., 0]),
    "named": lambda x, w, b: F.conv2d(input=x[..., 0], weight=w[..., 0], bias=b, groups=1),
    "grouped": lambda x, w, b: F.conv2d(x[..., 0], w[:, :1, ..., 0], b, groups=2),
    "padding by name": lambda x, w, b: F.conv2d(x[..., 0], w[..., 0], b, padding="same"),
    "one image": lambda x, w, b: F.conv2d(x[0, ..., 0], w[..., 0], b),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_output_and_gradients_are_torchs(call):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 7, 6, 5, dtype=torch.float64)
    w = torch.randn(4, 2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    gates = Gates()

    def run(*where):
        out = call(x, w, b)
        loss = (out.tanh() * torch.arange(out.numel()).view_as(out)).sum()
        return out, torch.autograd.grad(loss, [w, b], materialize_grads=True, allow_unused=True)

    expected = run()
    for rewound in (False, True):
        if rewound:
            gates.rewind()
        with gates:
            out, grads = run()
        assert torch.equal(out, expected[0])
        for ours, theirs in zip(grads, expected[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gates.check_complete()


def images(count=64):
    """Mostly background, as those of Fashion-MNIST."""
    g = torch.Generator().manual_seed(0)
    x = torch.full((count, 1, 24, 24), -0.8)
    x[:, :, 9:15, 9:15] = torch.randn(count, 1, 6, 6, generator=g)
    return x, torch.randint(10, (count,), generator=g)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


def first_layer_error(loss_of):
    model, (x, y) = network(), images()
    optimizer = AdaHessian(model.parameters())

    def closure():
        optimizer.zero_grad()
        return loss_of(optimizer, model, x, y)

    error = optimizer.curvature_error(closure)
    return error.relative[0]


def once(optimizer, model, x, y):
    loss = F.cross_entropy(model(x), y)
    loss.backward(create_graph=optimizer.needs_graph)
    return loss


def micro_batches(optimizer, model, x, y):
    for xs, ys in zip(x.chunk(4), y.chunk(4), strict=True):
        once(optimizer, model, xs, ys)
    return 0.0


def two_losses_of_one_graph(optimizer, model, x, y):
    out = model(x)
    F.cross_entropy(out, y).backward(create_graph=optimizer.needs_graph, retain_graph=True)
    (0.1 * out.square().mean()).backward(create_graph=optimizer.needs_graph)
    return out.sum()


def checkpointed(optimizer, model, x, y):
    hidden = checkpoint(model[:3], x, use_reentrant=False)
    loss = F.cross_entropy(model[3:](hidden), y)
    loss.backward(create_graph=optimizer.needs_graph)
    return loss


def twice_differentiated(optimizer, model, x, y):
    loss = F.cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    penalized = loss + 0.01 * sum(g.square().sum() for g in grads)
    penalized.backward(create_graph=optimizer.needs_graph)
    return penalized


LOSSES = [once, micro_batches, two_losses_of_one_graph, checkpointed, twice_differentiated]


@pytest.mark.parametrize("loss_of", LOSSES, ids=lambda f: f.__name__)
def test_constant_areas_do_not_spoil_the_first_layer(loss_of):
    assert first_layer_error(loss_of) < 0.01


def test_without_the_gate_they_do(monkeypatch):
    monkeypatch.delitem(GATES, torch.conv2d)
    assert first_layer_error(once) > 0.05


def test_a_gradient_is_kept_for_the_first_layer_alone():
    model, (x, y) = nn.Sequential(network()[:2], nn.Conv2d(8, 8, 3), nn.Flatten()), images(2)
    params = list(model.parameters())

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    door = FiniteDifference(closure, params)
    door.first_pass()
    kept = [pattern for name, pattern in door._gates._tape if name == "conv2d"]
    assert [len(record) for record in kept] == [1, 0]
    door.product(params, rademacher_like(params, seed=0, step=0))
