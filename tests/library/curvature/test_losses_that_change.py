"""A closure may compute another loss than before: what the first one has shown is not its own."""

import contextlib
import itertools

import pytest
import torch
from support.cubes import Cube
from support.second_derivative_uses import X
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian
from adahessian.curvature.earlier import Earlier

LATER = {
    "a kink": lambda y: F.relu(y).square().mean(),
    "another kink": lambda y: (y.sin() - 0.3).abs().mean(),
    "one that only kernels show": lambda y: torch.norm(y - 0.3, 1) / 10,
    "a step": lambda y: ((3 * y) % 1).square().mean(),
}
# None of these brings an operation that the loss has not had.
CONSTANTS = {
    "a target": lambda y: (y - 2 * y.roll(1, 0).detach()).square().mean(),
    "by data": lambda y: (y - y.data.exp()).square().mean(),
}


WAYS = "double_backward", "finite_difference"


def train(later, begins, *, smooth=True, steps=4, lr=0.01, factor=1.0, **options):
    """z · Hz of the last step, by the exact and the finite-difference product."""
    found = []
    for curvature in WAYS:
        torch.manual_seed(1)
        activation = nn.Tanh() if smooth else nn.ReLU()
        net = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3)).double()
        optimizer = AdaHessian(net.parameters(), lr=lr, curvature=curvature, **options)
        samples = []

        def keep(optimizer, params, estimates, samples=samples):
            samples[:] = [e.clone() for e in estimates]

        optimizer.register_curvature_hook(keep)
        for step in range(steps):

            def loss(x, net=net, step=step):
                y = net(x)
                # The same operations before and after, but for those of `later`.
                return factor * ((y - 1).square().mean() + (later(y) if step >= begins else 0))

            def closure(loss=loss, optimizer=optimizer):
                optimizer.zero_grad()
                value = loss(X)
                value.backward(create_graph=optimizer.needs_graph)
                return value

            def part(start, stop, loss=loss):
                return loss(X[round(16 * start) : round(16 * stop)])

            optimizer.step(closure, curvature_closure=part if options else None)
        found.append(torch.cat([s.flatten() for s in samples]))
    return found


@pytest.mark.parametrize("options", [{}, {"curvature_fraction": 0.5}], ids=["whole", "part"])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_pieces_that_come_later_are_frozen(later, smooth, options):
    exact, difference = train(later, begins=2, smooth=smooth, **options)
    torch.testing.assert_close(difference, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"curvature_fraction": 0.5}], ids=["whole", "part"])
@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e3])
@pytest.mark.parametrize("later", CONSTANTS.values(), ids=CONSTANTS)
def test_constants_that_come_later_are_frozen(later, factor, options):
    """The refresh in which they come is left out: there the loss moves as nothing explains."""
    exact, found = train(later, begins=2, steps=6, lr=0.0, factor=factor, **options)
    assert (found - exact).norm() < (1e-6 if not options else 0.05) * exact.norm()


@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_rounding_is_nothing_that_moves(factor):
    """Of logits that are larger than the loss by orders of magnitude: no refresh is left out."""
    torch.manual_seed(1)
    x, y = torch.randn(4, 10), torch.randint(4, (4,))
    net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))
    options = {"betas": (0.9, 0.9), "eps": 1e-4 * factor, "curvature": "finite_difference"}
    optimizer = AdaHessian(net.parameters(), **options)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = factor * F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(60):
        loss = optimizer.step(closure)
        state = optimizer.state[net[0].weight]
        average = state["exp_hessian_diag_sq"] / (1 - 0.9 ** float(state["num_refreshes"]))
        seen.append(float(average.sum()))
    assert loss < 1e-5 * factor
    assert all(abs(a - b) > 1e-5 * a for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize("first", [0, 1])
def test_two_tasks_in_turns(first):
    found = []
    for curvature in WAYS:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 8), nn.GELU()).double()
        heads = [
            nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 3)).double()
            for activation in (nn.GELU(), nn.ReLU())
        ]
        params = [p for module in (body, *heads) for p in module.parameters()]
        optimizer = AdaHessian(params, lr=1e-9, curvature=curvature)
        samples = []
        optimizer.register_curvature_hook(lambda _, __, s, samples=samples: samples.extend(s))
        for step in range(first, first + 6):

            def closure(step=step, optimizer=optimizer, heads=heads, body=body):
                optimizer.zero_grad()
                value = heads[step % 2](body(X)).square().mean()
                value.backward(create_graph=optimizer.needs_graph)
                return value

            optimizer.step(closure)
        found.append(torch.cat([s.flatten() for s in samples]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_precision_that_comes_later():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = AdaHessian(net.parameters(), lr=1e-3, curvature="finite_difference")
    seen = []
    for step in range(4):
        autocast = torch.autocast("cpu", torch.bfloat16) if step > 1 else contextlib.nullcontext()

        def closure(autocast=autocast):
            optimizer.zero_grad()
            with autocast:
                value = net(X.float()).square().mean()
            value.backward()
            return value

        optimizer.step(closure)
        seen.append(optimizer._earlier.autocast_dtype)
    assert seen == [None, None, torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("curvature_fraction", [1.0, 0.5])
def test_a_loss_that_stays_smooth_is_evaluated_as_it_is(curvature_fraction):
    """Also with a loop that runs more often for one batch than for another."""
    net = nn.RNNCell(4, 4).double()
    optimizer = AdaHessian(
        net.parameters(),
        curvature="finite_difference",
        curvature_fraction=curvature_fraction,
        check_interval=0,
    )
    evaluations = []
    for step in range(6):

        def loss(x=X[:8], step=step):
            evaluations[-1] += 1
            h = x.new_zeros(len(x), 4)
            for _ in range(2 + step):
                h = net(x, h)
            return h.square().mean()

        def closure(loss=loss):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        evaluations.append(0)
        part = None if curvature_fraction == 1 else lambda a, b, loss=loss: loss(X[:2])
        optimizer.step(closure, curvature_closure=part)
    # A part comes in two halves, and each of them is looked at from both sides.
    assert evaluations[1:] == [2 if curvature_fraction == 1 else 5] * 5
    assert optimizer._earlier.is_smooth


@pytest.mark.parametrize("options", [{}, {"curvature_fraction": 0.5}], ids=["whole", "part"])
def test_a_function_without_a_second_derivative_that_comes_later_is_refused(options):
    with pytest.raises(RuntimeError, match="Cube is once_differentiable"):
        train(lambda y: Cube.apply(y).mean(), begins=2, **options)


@pytest.mark.parametrize("returned", [torch.Tensor.detach, torch.Tensor.item, lambda _: None])
def test_a_loss_that_is_not_shown_is_always_recorded(returned):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer = AdaHessian(net.parameters(), curvature="finite_difference")
    for _ in range(3):

        def closure():
            optimizer.zero_grad()
            value = net(X).square().mean()
            value.backward()
            return returned(value)

        optimizer.step(closure)
        assert not optimizer._earlier.is_smooth


def test_nothing_is_known_at_first():
    earlier = Earlier()
    assert not earlier.smooth and not earlier.looked_at


def test_a_single_example_may_go_another_way_when_it_is_repeated():
    """A reshape of sizes of one does, behind an embedding: that counted as another loss."""
    found = []
    for curvature in WAYS:
        torch.manual_seed(0)
        embedding, heads = nn.Embedding(9, 4).double(), torch.ones(2, 2).double()
        optimizer = AdaHessian(
            embedding.parameters(), curvature=curvature, curvature_fraction=0.25, check_interval=0
        )
        optimizer.register_curvature_hook(lambda _, __, estimates: found.append(estimates[0] + 0))

        def part(start, stop, embedding=embedding, heads=heads):
            rows = torch.arange(40).view(8, 5)[round(8 * start) : round(8 * stop)] % 9
            y = embedding(rows).view(-1, 5, 2, 2).transpose(1, 2).reshape(-1, 5, 2) @ heads
            return y.tanh().square().mean()

        def closure(optimizer=optimizer, part=part):
            optimizer.zero_grad()
            loss = part(0, 1)
            loss.backward()
            return loss

        optimizer.step(closure, curvature_closure=part)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)
