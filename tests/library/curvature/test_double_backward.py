"""Accumulation over micro-batches with double backward: one graph at a time, H of the sum."""

import gc
import weakref

import pytest
import torch
from support.device import on_gpu
from support.problems import conv_problem
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian, probes
from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.hutchinson import Probes

NUM_PARTS = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 7), nn.Tanh(), nn.Linear(7, 5)
    ).double()


def data():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 6, 6, generator=g, dtype=torch.float64)
    return x, torch.randint(5, (16,), generator=g)


def train(num_parts, steps=7, hold=lambda hidden: None, **options):
    """Train; ``hold`` sees an activation of each micro-batch. Groups differ in their interval."""
    model, (x, y) = network(), data()
    groups = [
        {"params": model[0].parameters(), "update_interval": 1},
        {"params": model[3:].parameters(), "update_interval": 3},
    ]
    optimizer = AdaHessian(groups, lr=0.05, **options)

    def closure():
        optimizer.zero_grad()
        for xs, ys in zip(x.chunk(num_parts), y.chunk(num_parts), strict=True):
            hidden = model[:3](xs)
            hold(hidden)
            loss = F.cross_entropy(model[3:](hidden), ys) / num_parts
            del hidden
            loss.backward(create_graph=optimizer.needs_graph)
            del loss
        return 0.0

    for _ in range(steps):
        optimizer.step(closure)
    state = [value for p in model.parameters() for value in optimizer.state[p].values()]
    return [*model.parameters(), *state]


@pytest.mark.parametrize(
    "options", [{}, {"num_samples": 3}, {"averaging": "signed", "num_samples": 2}], ids=str
)
def test_micro_batches_are_the_whole_batch(options):
    for ours, whole in zip(train(NUM_PARTS, **options), train(1, **options), strict=True):
        factor = 100 if on_gpu() else 1  # its kernels for a part and for the whole sum otherwise
        torch.testing.assert_close(ours, whole, rtol=factor * 1e-11, atol=factor * 1e-12)


def test_one_graph_at_a_time():
    """Regression: the published ones keep the graph of every micro-batch until the step."""
    alive, most = weakref.WeakSet(), 0

    def hold(hidden):
        nonlocal most
        alive.add(hidden)
        most = max(most, len(alive))

    gc.collect()
    gc.disable()
    try:
        train(NUM_PARTS, steps=2, hold=hold)
    finally:
        gc.enable()
    assert most == 2  # the one that has just been computed, and the one before it


def gradient_and_curvature(closure_of):
    """Take a step of zero length; return the gradients and the squares of the curvature."""
    params, loss = conv_problem()
    params = [p.requires_grad_() for p in params]
    optimizer = AdaHessian(params, lr=0.0, betas=(0.0, 0.0))
    optimizer.step(closure_of(optimizer, params, loss))
    states = [optimizer.state[p] for p in params]
    return [s[key] for s in states for key in ("exp_avg", "exp_hessian_diag_sq")]


def test_losses_that_share_a_graph():
    def apart(optimizer, params, loss):
        def closure():
            optimizer.zero_grad()
            value = loss(*params)
            (0.25 * value).backward(create_graph=True)
            (value**2).backward(create_graph=True)
            return value

        return closure

    def together(optimizer, params, loss):
        def closure():
            optimizer.zero_grad()
            value = loss(*params)
            (0.25 * value + value**2).backward(create_graph=True)
            return value

        return closure

    pairs = zip(gradient_and_curvature(apart), gradient_and_curvature(together), strict=True)
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_gradient_that_is_cleared_on_the_way_takes_its_curvature_along(set_to_none):
    def cleared(optimizer, params, loss):
        def closure():
            for scale in (1.0, 3.0):
                optimizer.zero_grad(set_to_none)
                for _ in range(2):
                    value = scale * loss(*params)
                    value.backward(create_graph=True)
            return value

        return closure

    def once(optimizer, params, loss):
        def closure():
            optimizer.zero_grad()
            value = 6.0 * loss(*params)
            value.backward(create_graph=True)
            return value

        return closure

    for ours, expected in zip(
        gradient_and_curvature(cleared), gradient_and_curvature(once), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def two_passes(between, create_graph):
    """Take a step of which the first backward pass builds a graph or not; return z · Hz."""
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    other = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = AdaHessian([w], lr=0.0)
    found = []
    optimizer.register_curvature_hook(lambda *args: found.append(args[2][0].tolist()))

    def closure():
        optimizer.zero_grad()
        first, second = create_graph
        (other**2 if between == "of others" else w**4).sum().backward(create_graph=first)
        if between == "cleared":
            optimizer.zero_grad()
        elif between == "zeroed":
            optimizer.zero_grad(set_to_none=False)
        elif between == "inputs":
            (w**4 * other).sum().backward(inputs=[other])
        (w**4).sum().backward(create_graph=second)

    optimizer.step(closure)
    return found[0]


@pytest.mark.parametrize("create_graph", [(False, True), (True, False)])
def test_a_backward_pass_without_a_graph_beside_one_with_it_is_refused(create_graph):
    """Regression: its part of the curvature was missing without a word."""
    with pytest.raises(RuntimeError, match="some of the closure's backward passes.*in all of them"):
        two_passes("", create_graph)


@pytest.mark.parametrize("between", ["cleared", "zeroed", "of others"])
def test_a_backward_pass_without_a_graph_whose_gradient_is_not_taken(between):
    """As SAM's first one."""
    assert two_passes(between, (False, True)) == [12.0, 48.0]


def test_a_backward_pass_without_a_graph_for_other_inputs():
    assert two_passes("inputs", (True, True)) == [24.0, 96.0]


def test_a_parameter_that_only_some_micro_batches_use():
    def parts(optimizer, params, loss):
        def closure():
            optimizer.zero_grad()
            loss(*params).backward(create_graph=True)
            (params[0] ** 4).sum().backward(create_graph=True)
            params[1].sum().backward(create_graph=True)  # linear: no graph of its own
            return 0.0

        return closure

    def whole(optimizer, params, loss):
        def closure():
            optimizer.zero_grad()
            value = loss(*params) + (params[0] ** 4).sum() + params[1].sum()
            value.backward(create_graph=True)
            return value

        return closure

    for ours, expected in zip(
        gradient_and_curvature(parts), gradient_and_curvature(whole), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_each_probe_is_drawn_once(curvature, num_parts, monkeypatch):
    drawn, draw = [], probes.rademacher_like

    def counted(tensors, *, step, sample, **options):
        drawn.append((step, sample))
        return draw(tensors, step=step, sample=sample, **options)

    monkeypatch.setattr(probes, "rademacher_like", counted)
    train(num_parts, steps=4, num_samples=2, curvature=curvature)
    assert drawn == [(step, sample) for step in range(4) for sample in range(2)]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (0, 1, 1), (0, 0, 1)])
def test_a_gradient_of_zero_is_no_cleared_one(order, set_to_none):
    """LoRA's A has a gradient of zero while B is zero, but not a curvature of zero."""
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for apart in (True, False):
        a = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
        b = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        c = torch.ones(4, dtype=torch.float64, requires_grad=True)
        losses = [
            lambda: (x @ a.T @ b.T + 1).pow(3).sum(),  # noqa: B023
            lambda: (x * c).pow(4).sum(),  # noqa: B023
            lambda: (c**3).sum() + c.prod(),  # noqa: B023
        ]
        optimizer = AdaHessian([a, b, c], lr=0.0)

        def closure():
            optimizer.zero_grad(set_to_none)  # noqa: B023
            values = [losses[i]() for i in order]  # noqa: B023
            for value in values if apart else [sum(values)]:  # noqa: B023
                value.backward(create_graph=True)
            return sum(values)

        for _ in range(2):  # the second time the gradients are there
            optimizer.step(closure)
        results.append([optimizer.state[p]["exp_hessian_diag_sq"] for p in (a, b, c)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        assert (expected > 0).any()


# --- where torch's own second derivative is wrong, or missing -------------------------------------


def chunked_cross_entropy(y):
    options = pytest.importorskip("torch.nn.modules.linear_cross_entropy_options")
    weight = torch.linspace(-1, 1, 12, dtype=y.dtype).view(3, 4)
    return F.linear_cross_entropy(
        y.view(5, 4), weight, torch.arange(5) % 3, options=options.LinearCrossEntropyOptions()
    )


FUNCTIONS = {
    "weight_norm": lambda y: torch._weight_norm(y.view(5, 4), 1 + y.view(5, 4)[:, :1] ** 2, 0),
    "weight_norm, last dim": lambda y: torch._weight_norm(y.view(5, 4), 1 + y[None, :4] ** 2, 1),
    "chunked cross-entropy": chunked_cross_entropy,
    "hardsigmoid": lambda y: F.hardsigmoid(3 * y) * y,
    "hardsigmoid in place": lambda y: F.hardsigmoid(3 * y, inplace=True) * y,
    "prelu": lambda y: F.prelu(y.view(5, 4), y[:4] ** 2),
    "multi_margin_loss": lambda y: F.multi_margin_loss(y.view(5, 4) * y[0], torch.arange(5) % 4),
    "squared": lambda y: F.multi_margin_loss(
        y.view(5, 4), torch.arange(5) % 4, p=2, weight=torch.arange(4.0).to(y), reduction="sum"
    ),
    "multilabel_margin_loss": lambda y: F.multilabel_margin_loss(
        y.view(5, 4) * y[0], torch.tensor([[0, 2, -1, 1]]).expand(5, 4)
    ),
}


# CUDA's kernel computes its norms in float32, too little for differences.
PLAIN = {
    FUNCTIONS["weight_norm"]: lambda y: F.normalize(y.view(5, 4)) * (1 + y.view(5, 4)[:, :1] ** 2),
    FUNCTIONS["weight_norm, last dim"]: lambda y: (
        F.normalize(y.view(5, 4), dim=0) * (1 + y[None, :4] ** 2)
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_second_derivatives_are_differences_of_gradients(function):
    w = torch.linspace(-1.3, 1.4, 20, dtype=torch.float64, requires_grad=True)

    def closure():
        w.grad = None
        value = function(w).square().sum()
        value.backward(create_graph=True)
        return value

    probes = Probes([w], seed=0, step=0, num_samples=1)
    z = probes.keep()[0][w]
    products = DoubleBackward(closure, [w], probes)
    products.evaluate()
    found = products.product({w: z})[w]
    sides = []
    plain = PLAIN.get(function, function)
    for sign in (1, -1):
        shifted = (w.detach() + sign * 1e-6 * z).requires_grad_()
        sides.append(torch.autograd.grad(plain(shifted).square().sum(), shifted)[0])
    torch.testing.assert_close(found, (sides[0] - sides[1]) / 2e-6, rtol=1e-6, atol=1e-7)


def test_without_a_closure_a_wrong_second_derivative_is_named():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    optimizer = AdaHessian(layer.parameters())
    for step in range(2):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward(create_graph=True)
        if step == 0:
            with pytest.warns(UserWarning, match="weight_norm is wrong"):
                optimizer.step()
        else:
            optimizer.step()
