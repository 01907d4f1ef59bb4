"""Convolutions near the data: torch's gradient, and a difference of gradients without noise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adahessian import AdaHessian
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.gates import Gates
from adahessian.curvature.piecewise import GATES
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


@pytest.mark.parametrize("before", [0, 1], ids=["of the data", "behind another"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_output_and_gradients_are_torchs(call, before):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 7, 6, 5, dtype=torch.float64)
    w0 = torch.randn(2, 2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    gates = Gates()

    def run():
        out = call(F.conv3d(x, w0).tanh() if before else x, w, b)
        loss = (out.tanh() * torch.arange(out.numel()).view_as(out)).sum()
        grads = torch.autograd.grad(loss, [w0, w, b], materialize_grads=True, allow_unused=True)
        return out, grads

    def compare():
        expected = run()
        with gates:
            out, grads = run()
        assert torch.equal(out, expected[0])
        for ours, theirs in zip(grads, expected[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    compare()
    gates.rewind()
    with torch.no_grad():
        for p in (w0, w, b):  # as far as the finite difference goes, and further
            p.add_(torch.randn_like(p), alpha=0.01)
    compare()
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


def deep_network():
    torch.manual_seed(0)
    return nn.Sequential(
        network()[:3],
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


def weight_errors(loss_of, model, x, y):
    optimizer = AdaHessian(model.parameters())

    def closure():
        optimizer.zero_grad()
        return loss_of(optimizer, model, x, y)

    errors = optimizer.curvature_error(closure).relative
    return [e for e, p in zip(errors, model.parameters(), strict=True) if p.ndim == 4]


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
    # The rounding that remains at h = 4e-5: 0.6 to 0.8 % by AVX2's kernels, 1.1 % by SSE's.
    assert weight_errors(loss_of, network(), *images())[0] < 0.02


@pytest.mark.parametrize("loss_of", LOSSES, ids=lambda f: f.__name__)
def test_every_backward_pass_finds_its_own_record(loss_of):
    x, y = images(8)
    assert max(weight_errors(loss_of, deep_network().double(), x.double(), y)) < 1e-5


def change_of_the_second_layer():
    """The error of a weight gradient's change in float32; the same inputs make the exact one."""
    g = torch.Generator().manual_seed(0)
    (data, _), weight = images(), torch.randn(8, 8, 3, 3, generator=g, requires_grad=True)
    from_behind = torch.randn(64, 8, 24, 24, generator=g)
    from_behind -= from_behind.mean((0, 2, 3), keepdim=True)  # as batch normalization does
    gates, gradients, exact = Gates(), [], []
    for h in (0, 7e-5):
        first = torch.ones(8, 1, 1, 1) + h * torch.randn(8, 1, 1, 1, generator=g)
        grad = from_behind + h * torch.randn(from_behind.shape, generator=g)
        with gates:
            x = F.conv2d(data, first.requires_grad_())
            out = F.conv2d(x, weight, padding=1)
            gradients.append(torch.autograd.grad(out, weight, grad)[0].double())
        gates.rewind()
        out = F.conv2d(x.double(), weight.double(), padding=1)
        exact.append(torch.autograd.grad(out, weight, grad.double())[0])
    change, truth = gradients[1] - gradients[0], exact[1] - exact[0]
    return float((change - truth).norm() / truth.norm())


def test_constant_areas_do_not_spoil_the_second_layer():
    assert change_of_the_second_layer() < 0.001


@pytest.mark.cpu_only(reason="cuDNN sums so that the first layer's gate makes no difference")
def test_without_the_gate_they_do(monkeypatch):
    """By how much, is the kernel's: 38 % and 6 % by AVX2's, which sum otherwise than SSE's, 2.6 %
    and 0.8 %."""

    def errors():
        return weight_errors(once, network(), *images())[0], change_of_the_second_layer()

    first, second = errors()
    monkeypatch.delitem(GATES, torch.conv2d)
    first_without, second_without = errors()
    assert first_without > 2 * first and second_without > 10 * second


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.conv2(F.relu(self.conv1(x))) + x
        return self.conv3(F.relu(x)).flatten(1)


NEAR = {
    "in a row": (lambda: deep_network()[:5].append(nn.Flatten()), [1, 1, None]),
    "a shortcut": (Residual, [1, 1, None, None]),
    "one that does not fit": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding="same"), nn.Conv2d(8, 8, 3), nn.Flatten()),
        [None, None],
    ),
    "behind an embedding": (
        lambda: nn.Sequential(nn.Linear(24, 24), nn.Conv2d(1, 8, 3), nn.Flatten()),
        [None],
    ),
}


@pytest.mark.parametrize(("build", "kept"), NEAR.values(), ids=NEAR)
def test_only_layers_near_the_data_keep_anything(build, kept):
    model, (x, y) = build(), images(2)
    params = list(model.parameters())

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    gates = Gates()
    difference = FiniteDifference(closure, params, gates=gates)
    difference.evaluate()
    records = [pattern for name, pattern, _ in gates._tape if name == "conv2d"]
    assert [record and len(record) for record in records] == kept
    z = rademacher_like(params, seed=0, step=0)
    difference.product(dict(zip(params, z, strict=True)))
