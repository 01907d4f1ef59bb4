"""Closures that change more than buffers: both ways train alike, and each call counts once."""

import copy
import dataclasses
from collections import defaultdict, deque
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adahessian import AdaHessian
from adahessian.probes import rademacher_like

X, Y = torch.randn(2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


class Annealed(Model):
    """A weight of the loss that grows with the number of calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []

    def loss(self):
        self.calls += 1
        out = self.net(X)
        self.seen.append(self.calls)
        return F.cross_entropy(out, LABELS) + self.calls * out.square().mean()


class Momentum(Model):
    """The target is a slow copy of the network, moved before each use."""

    def __init__(self):
        super().__init__()
        self.slow = copy.deepcopy(self.net).requires_grad_(False)

    def loss(self):
        with torch.no_grad():
            self.move(list(self.net.parameters()), list(self.slow.parameters()))
            target = F.normalize(self.slow(Y), dim=1)
        return -(F.normalize(self.net(X), dim=1) * target).exp().sum(1).mean()


class ByData(Momentum):
    def move(self, fast, slow):
        for p, q in zip(fast, slow, strict=True):
            q.data = q.data * 0.6 + p.data * 0.4


class InPlace(Momentum):
    def move(self, fast, slow):
        for p, q in zip(fast, slow, strict=True):
            q.data.mul_(0.6).add_(0.4 * p.detach())


class ByForeach(Momentum):
    def move(self, fast, slow):
        torch._foreach_lerp_(slow, fast, 0.4)


class WithGradient(ByData):
    """Nobody said that the slow one's parameters take none."""

    def __init__(self):
        super().__init__()
        self.slow.requires_grad_(True)


class InTheGraph(InPlace):
    """Its parameters get gradients, which nobody uses."""

    def __init__(self):
        super().__init__()
        self.slow.requires_grad_(True)

    def loss(self):
        with torch.no_grad():
            self.move(list(self.net.parameters()), list(self.slow.parameters()))
        return -(F.normalize(self.net(X), dim=1) * F.normalize(self.slow(Y), dim=1)).exp().mean()


class Bank(Model):
    """Features of earlier batches, in a tensor and in a queue that are no buffers."""

    def __init__(self):
        super().__init__()
        self.rows, self.queue, self.last = torch.zeros(5, 4).double(), deque(maxlen=3), None

    def loss(self):
        out = self.net(X)
        old = self.rows.sum(0) + sum(self.queue, start=torch.zeros(4).double())
        if self.last is not None:
            old = old + self.last
        with torch.no_grad():
            self.rows.copy_(self.rows.roll(1, 0))
            self.rows[0] = out.mean(0)
        self.queue.append(out.mean(0).detach())
        self.last = out.mean(0).detach() + 1
        return F.cross_entropy(out, LABELS) + (out * old).exp().mean()


class Records(Model):
    """What it counts is in an array, a tuple with a tensor, and an object of its own kind."""

    def __init__(self):
        super().__init__()
        self.array, self.pair = np.zeros(2), (1, torch.zeros(2))
        self.range = range(0)

    def loss(self):
        self.array = self.array + 1
        self.pair = (1, self.pair[1] + 1)
        self.range = range(len(self.range) + 1)
        weight = self.array[0] + float(self.pair[1].sum()) + len(self.range)
        return F.cross_entropy(self.net(X), LABELS) + weight * self.net(X).square().mean()


class Constrained(Model):
    """Rows of norm one."""

    def loss(self):
        with torch.no_grad():
            self.net[2].weight.copy_(F.normalize(self.net[2].weight, dim=1))
        return F.cross_entropy(self.net(X), LABELS)


class ConstrainedByData(Model):
    def loss(self):
        self.net[2].weight.data = F.normalize(self.net[2].weight.data, dim=1)
        self.net[0].weight.data.clamp_(-0.2, 0.2)
        torch._foreach_mul_([self.net[0].bias.detach(), self.net[2].bias.detach()], 0.7)
        return F.cross_entropy(self.net(X), LABELS)


class Observer(nn.Module):
    """As quantization's observers are: empty before they have seen a batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.empty(0))
        self.widest = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            found = x.detach().abs().amax(0)
            for seen in (self.largest, self.widest):
                if seen.numel() == 0:
                    seen.resize_(found.shape).copy_(found)
                seen.lerp_(found, 0.5)
        return x / self.largest


class Observed(Model):
    def __init__(self):
        super().__init__()
        self.net.append(Observer())

    def loss(self):
        return F.cross_entropy(self.net(X), LABELS)


class Outside(Model):
    """A mask that is computed once, where no module keeps it, and a generator of its own."""

    def __init__(self):
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)
        self.drawn = self._generator.get_state()
        self._mask = lru_cache(self._mask)

    def _mask(self, size):
        return (torch.arange(size).double() - 1).abs() < 2

    def loss(self):
        out = self.net(X).relu() * self._mask(4)
        noise = torch.randn(out.shape, generator=self._generator, dtype=out.dtype)
        self.drawn = self._generator.get_state()
        return F.cross_entropy(out + noise.abs(), LABELS)


class Checkpointed(Model):
    """Behind the pass in evaluation mode, the running statistics that it has read change again."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
        self.statistics = list(self.net.buffers())

    def loss(self):
        x = torch.cat([X, Y])
        out = checkpoint(self.net, x, use_reentrant=False)
        loss = F.cross_entropy(out, LABELS.repeat(2)) + (out - self.net.eval()(x)).square().mean()
        self.net.train()
        return loss


@dataclasses.dataclass
class State:
    hidden: torch.Tensor | None = None
    seen: dict = dataclasses.field(default_factory=lambda: {"calls": [0], "last": []})


class Carried(nn.Module):
    """A hidden state that goes on from batch to batch, in containers within others."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4))
        self.carried = State()
        self.layers = {"queue": [torch.ones(4).double()]}
        self.log = defaultdict(list)

    def loss(self):
        state = self.carried
        out = self.net(X) + (0 if state.hidden is None else state.hidden)
        out = out * (1 + 0.1 * state.seen["calls"][0] + 0.1 * len(self.log["sums"]))
        loss = F.cross_entropy(out * self.layers["queue"][0].clone(), LABELS)
        state.hidden = out.detach().tanh()
        state.seen["calls"][0] += 1
        self.log["sums"].append(out.detach().sum())
        self.layers["queue"][0].mul_(0.9).add_(out.detach().abs().mean(0), alpha=0.1)
        return loss


KINDS = [
    Checkpointed, Observed, Annealed, ByData, InPlace, ByForeach, WithGradient, Bank, Records,
    Constrained, ConstrainedByData, InTheGraph, Outside, Carried,
]  # fmt: skip


def attributes(model):
    """All that is no module: numbers, lists and tensors, and the parameters."""
    plain = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    for name, value in plain.items():
        value = vars(value) if isinstance(value, State) else value
        plain[name] = list(value) if isinstance(value, list | deque) else value
    return plain | dict(model.named_parameters())


def assert_close(found, expected):
    """Up to the difference's truncation in four steps; a value that moves costs per cents."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_both_ways_train_alike(kind):
    left = []
    for way in ("double_backward", "finite_difference"):
        torch.manual_seed(1)
        model = kind().double()
        optimizer = AdaHessian(model.net.parameters(), lr=0.1, curvature=way)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model.loss()
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        for _ in range(4):
            optimizer.step(closure)
        left.append(attributes(model))
    exact, found = left
    assert_close(found, exact)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_step_leaves_what_one_evaluation_leaves(kind):
    """Bit for bit: the learning rate is zero, and so is nothing of what the closure does itself."""
    models = []
    for way in ("finite_difference", "double_backward", None):
        torch.manual_seed(1)
        model = kind().double()
        options = {} if way is None else {"curvature": way}
        optimizer = AdaHessian(model.net.parameters(), lr=0.0, **options)

        def closure(model=model, create_graph=way == "double_backward"):
            model.zero_grad()
            loss = model.loss()
            loss.backward(create_graph=create_graph)
            return loss

        for _ in range(4):
            closure() if way is None else optimizer.step(closure)
        models.append(attributes(model))
    for stepped in models[:2]:
        torch.testing.assert_close(stepped, models[2], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [InPlace, ByForeach, InTheGraph], ids=lambda k: k.__name__)
def test_what_is_written_in_place_stays_in_its_place(kind):
    model = kind().double()
    optimizer = AdaHessian(model.net.parameters(), curvature="finite_difference")
    addresses = [p.data_ptr() for p in model.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [p.data_ptr() for p in model.parameters()] == addresses


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_error_is_that_of_one_evaluation_and_nothing_is_left_of_it(kind):
    torch.manual_seed(1)
    model = kind().double()
    optimizer = AdaHessian(model.net.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    before = copy.deepcopy(attributes(model))
    assert optimizer.curvature_error(closure).largest < 1e-5
    torch.testing.assert_close(attributes(model), before, rtol=0, atol=0)


def test_large_frozen_weights_are_not_copied():
    """As a language model's under an adapter; what is small beside the parameters may be."""
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "frozen": nn.Linear(2000, 2000)})
    model["frozen"].requires_grad_(False)
    optimizer = AdaHessian(model["net"].parameters(), lr=0.0, curvature="finite_difference")
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func in (torch.clone, torch.Tensor.clone):
                largest.append(out.numel())
            return out

    def closure():
        model.zero_grad()
        loss = model["net"](torch.ones(3, 2)).exp().sum()
        loss.backward()
        return loss

    with Watch():
        optimizer.step(closure)
    assert largest and max(largest) < 2000**2


def test_a_whole_model_in_a_reentrant_checkpoint_is_refused():
    """Not one gradient has a graph then, and the loss is not linear for all that."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    optimizer = AdaHessian(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        x = X.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True)
        loss = F.cross_entropy(out, LABELS)
        loss.backward(create_graph=True)
        return loss

    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        optimizer.step(closure)


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("kind", KINDS[:8], ids=lambda kind: kind.__name__)
def test_a_part_of_the_batch_leaves_nothing(kind, way):
    """Also where the slow copy moves only later: what the part's evaluations do is undone."""
    models = []
    for fraction in (1.0, 0.5):
        torch.manual_seed(1)
        model = kind().double()
        options = {"curvature_fraction": fraction} if fraction < 1 else {"update_interval": 10**6}
        optimizer = AdaHessian(model.net.parameters(), lr=0.0, curvature=way, **options)
        for _ in range(3):
            model.zero_grad()
            model.loss().backward(create_graph=optimizer.needs_graph and fraction == 1)
            with torch.no_grad():
                for p in model.net.parameters():
                    p.add_(0.1)
            if fraction < 1:
                optimizer.step(curvature_closure=lambda start, stop, model=model: model.loss())
        models.append(attributes(model))
    torch.testing.assert_close(*models, rtol=0, atol=0)


def by_addition(params, moves):
    with torch.no_grad():
        for p, move in zip(params, moves, strict=True):
            p.add_(move)
    return lambda: by_addition(params, [-move for move in moves])


def by_data(params, moves):
    before = [p.detach().clone() for p in params]
    for p, move in zip(params, moves, strict=True):
        p.data.add_(move)

    def put_back():
        for p, value in zip(params, before, strict=True):
            p.data.copy_(value)

    return put_back


def by_other_data(params, moves):
    before = [p.data for p in params]
    for p, move in zip(params, moves, strict=True):
        p.data = p.data + move

    def put_back():
        for p, value in zip(params, before, strict=True):
            p.data = value

    return put_back


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("move", [by_addition, by_data, by_other_data])
def test_parameters_that_are_moved_and_put_back(move, way, dtype):
    """As in sharpness-aware minimization: the Hessian is that where the gradient is taken."""
    torch.manual_seed(1)
    model = Model().net.to(dtype)
    params = list(model.parameters())
    optimizer = AdaHessian(params, lr=0.0, curvature=way)
    seen = []
    optimizer.register_curvature_hook(
        lambda _, __, samples: seen.append([*map(torch.clone, samples)])
    )

    def loss(weights):
        out = torch.func.functional_call(model, weights, (X.to(dtype),))
        return F.cross_entropy(out, LABELS)

    def closure():
        optimizer.zero_grad()
        loss(dict(model.named_parameters())).backward()
        put_back = move(params, [2 * p.grad / p.grad.norm() for p in params])
        optimizer.zero_grad()
        value = loss(dict(model.named_parameters()))
        value.backward(create_graph=optimizer.needs_graph)
        put_back()
        return value

    before = [p.detach().clone() for p in params]
    optimizer.step(closure)
    for p, value in zip(params, before, strict=True):
        if move is by_addition:  # which rounds
            torch.testing.assert_close(p, value)
        assert move is by_addition or torch.equal(p, value)

    grads = torch.autograd.grad(loss(dict(model.named_parameters())), params)
    there = [
        (p.detach() + 2 * g / g.norm()).requires_grad_() for p, g in zip(params, grads, strict=True)
    ]
    value = loss(dict(zip(dict(model.named_parameters()), there, strict=True)))
    grads = torch.autograd.grad(value, there, create_graph=True)
    z = rademacher_like(params, seed=0, step=0)
    inner = sum((g * signs).sum() for g, signs in zip(grads, z, strict=True))
    for found, hz, signs in zip(seen[0], torch.autograd.grad(inner, there), z, strict=True):
        torch.testing.assert_close(found, signs * hz, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_another_optimizer_steps_within_the_closure(kind):
    """Its parameters are in the gradient's graph, at the values that they had."""
    torch.manual_seed(1)
    body, head = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
    optimizer, other = AdaHessian(body.parameters(), lr=0.0), kind(head.parameters(), lr=0.5)
    seen = []
    optimizer.register_curvature_hook(
        lambda _, __, samples: seen.append([*map(torch.clone, samples)])
    )

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(head(body(X).tanh()), LABELS)
        loss.backward(create_graph=True)
        return loss

    optimizer.step(closure)

    def with_the_other():
        loss = closure()
        other.step()
        return loss

    optimizer.param_groups[0] |= {"step": 0, "last_refresh": None}  # the same probe
    optimizer.step(with_the_other)
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)
