"""Whatever a step of finite differences evaluates, it leaves what one evaluation leaves.

Gradients of everything that backward reaches, buffers of every module of the model, and the states
of all global generators, bit for bit; also where an operation of a further evaluation fails.
"""

import contextlib
import copy
import itertools
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from support.device import random_state
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from adahessian import AdaHessian
from adahessian.curvature.snapshot import modules_around
from adahessian.spectrum import Hessian, top_eigenvalues


class Everything(nn.Module):
    """Not called itself: its ``loss`` is. Buffers, parameters and noise of all kinds."""

    def __init__(self, activation):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("later", None)
        self.embedding = nn.Embedding(9, 6)  # the head is tied to it
        self.matrices = nn.ParameterList([torch.randn(6, 6) for _ in range(2)])
        self.scale = nn.Parameter(torch.ones(6))
        self.norm = nn.BatchNorm1d(6)
        self.activation = activation

    def loss(self, x, tokens, y, loose):
        self.calls += 1
        h = self.activation(x @ self.matrices[0] * self.scale + self.embedding(tokens))
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        if self.later is None:
            self.later = torch.zeros(6)
        self.later.add_(h.detach().sum(0))
        h = F.dropout(self.norm(h @ self.matrices[1]) * loose, 0.1)
        h = h + random.random() + torch.from_numpy(np.random.rand(6)).to(h)
        return F.cross_entropy(h @ self.embedding.weight.t(), y)


class Problem:
    """A model, of which the optimizer has one part and a second optimizer another."""

    def __init__(self, activation=F.relu, detached=False):
        torch.manual_seed(0)
        self.model = Everything(activation)
        self.loose = torch.ones(6, requires_grad=True)
        self.x = torch.randn(16, 6, requires_grad=True)
        self.tokens, self.y = torch.randint(9, (16,)), torch.randint(9, (16,))
        self.params = [self.model.scale, *self.model.norm.parameters()]
        self.optimizer = AdaHessian(self.params, lr=0.0, curvature="finite_difference")
        self.detached = detached

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.model.loss(self.x, self.tokens, self.y, self.loose)
        loss.backward()
        return loss.detach() if self.detached else loss

    def traces(self):
        """Everything that an evaluation may change."""
        leaves = [*self.model.parameters(), self.loose, self.x]
        state = np.random.get_state()
        return {
            "gradients": [None if p.grad is None else p.grad.clone() for p in leaves],
            "parameters": [p.detach().clone() for p in leaves],
            "buffers": [b.clone() for b in self.model.buffers()],
            "random": [random.getstate(), random_state(), tuple(state[1]), state[2]],
        }


def seed():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)


def assert_same(found, expected):
    for kind, values in expected.items():
        for number, (a, b) in enumerate(zip(found[kind], values, strict=True)):
            same = torch.equal(a, b) if torch.is_tensor(b) else a == b
            assert same, f"{kind}, number {number}"


@pytest.mark.parametrize("detached", [False, True], ids=["", "detached"])
@pytest.mark.parametrize("activation", [F.relu, F.gelu], ids=["pieces", "smooth"])
def test_a_step_leaves_what_one_evaluation_leaves(activation, detached):
    stepped, plain = (Problem(activation, detached) for _ in range(2))
    seed()
    for _ in range(3):
        stepped.optimizer.step(stepped.closure)
    found = stepped.traces()
    seed()
    for _ in range(3):
        plain.closure()
    assert_same(found, plain.traces())


class Failing(TorchFunctionMode):
    """Raises at a call of a torch function."""

    def __init__(self, at):
        super().__init__()
        self.remaining = at

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.remaining -= 1
        if self.remaining == 0:
            raise InterruptedError
        return func(*args, **(kwargs or {}))


def test_also_where_an_operation_fails():
    """At every third operation of the further evaluations of a first step."""
    plain = Problem()
    seed()
    counting = Failing(0)
    with counting:
        plain.closure()
    once, expected = -counting.remaining, plain.traces()
    for number in range(1, 10**6, 3):
        problem, evaluations = Problem(), []

        def closure(problem=problem, evaluations=evaluations, number=number):
            evaluations.append(1)
            if len(evaluations) == 1:
                return problem.closure()
            skipped = (len(evaluations) - 2) * once
            with Failing(number - skipped):
                return problem.closure()

        seed()
        try:
            problem.optimizer.step(closure)
        except InterruptedError:
            assert_same(problem.traces(), expected)
        else:
            break
    assert 50 < (len(evaluations) - 1) * once < number


def test_the_modules_around_parameters_are_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()))
    whole = nn.ModuleDict({"model": model, "other": nn.Linear(1, 1)})
    copied, stranger = copy.deepcopy(whole), nn.Linear(1, 1)
    unready = nn.Linear.__new__(nn.Linear)
    found = modules_around([model[1][0].weight])
    assert set(found) == set(whole.modules()) and unready is not None
    assert not {copied, stranger} & set(found)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrizations_cached_around_the_step():
    """Regression: the second evaluation took the first one's weight."""
    found = []
    for around in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        parametrize.register_parametrization(model[0], "weight", Doubled())
        optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
        x = torch.randn(16, 3)

        def closure(model=model, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for _ in range(3):  # the first one is recorded, and the loss is smooth
            with parametrize.cached() if around else contextlib.nullcontext():
                optimizer.step(closure)
        found.append(list(model.parameters()))
    for p, q in zip(*found, strict=True):
        assert torch.equal(p, q)


class Own(nn.Module):
    """A model whose methods of torch's names are something else, as others' are."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)))

    def parameters(self, which):
        return getattr(self, which).parameters()

    def named_parameters(self):
        return {}

    def buffers(self):
        return []

    @property
    def modules(self):
        return [self.layer]

    def named_modules(self):
        raise NotImplementedError


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_methods_of_modules_may_have_other_arguments(curvature, fraction):
    """Regression: that of any model in the process raised within the step."""
    model, unrelated = Own(), Own()
    assert set(modules_around([model.head.weight])) == {model, model.layer, model.head}
    params = [model.layer.weight, model.head.weight, model.head.bias]
    optimizer = AdaHessian(params, curvature=curvature, curvature_fraction=fraction)
    x = torch.randn(16, 3)
    if fraction < 1:
        optimizer.curvature_closure = lambda start, stop: model(x).square().mean()

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    losses = [optimizer.step(closure) for _ in range(2)]
    assert losses[1] < losses[0] and unrelated is not None


class Neighbour:
    """Another model, trained by a thread of its own: a study of Optuna's with n_jobs=2 does so."""

    def __init__(self):
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.x = torch.arange(32.0).view(8, 4).sin()
        self.steps = 0

    def step(self):
        self.optimizer.zero_grad()
        with torch.device(self.x.device):  # a thread knows nothing of the default device
            (self.model(self.x) - 1).square().mean().backward()
        self.optimizer.step()
        self.steps += 1

    def step_in_its_thread(self):
        thread = threading.Thread(target=self.step)
        thread.start()
        thread.join()


def watched(meanwhile, way):
    """Train a model in one of the ways; return its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    x = torch.arange(64.0).view(16, 4).cos()

    def loss(start=0.0, stop=1.0):
        meanwhile()
        return (model(x[int(16 * start) : int(16 * stop)]) - 2).square().mean()

    if way == "spectrum":
        hessian = Hessian(loss, model, curvature="finite_difference")
        return [top_eigenvalues(hessian, 1, tolerance=0.1).eigenvalues]
    curvature, fraction = way
    optimizer = AdaHessian(model.parameters(), curvature=curvature, curvature_fraction=fraction)
    optimizer.curvature_closure = loss

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=optimizer.needs_graph)
        return value

    for _ in range(3):
        optimizer.step(closure)
    return list(model.parameters())


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
def test_gradients_that_nobody_can_write_to(way):
    """The derivative of a sum is one number, seen many times."""
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p, q], curvature=way, lr=0.0)

    def closure():
        loss = p.sum() + (q**4).sum()
        grads = torch.autograd.grad(loss, [p, q], create_graph=optimizer.needs_graph)
        p.grad, q.grad = grads[0].sum().div(3).expand(3), grads[1]
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert p.grad is not None and p.grad.tolist() == [1, 1, 1]


def test_parameters_that_are_computed_are_left_alone():
    """``functional_call`` puts them where a module has its own; they have no ``grad`` to keep."""
    model = nn.Linear(3, 2)
    flat = torch.randn(8, requires_grad=True)
    x = torch.randn(5, 3)
    optimizer = AdaHessian([flat], curvature="finite_difference")

    def closure():
        optimizer.zero_grad()
        weights = {"weight": flat[:6].view(2, 3), "bias": flat[6:]}
        loss = torch.func.functional_call(model, weights, (x,)).square().mean()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # the first product of a thread
@pytest.mark.parametrize(
    "way", ["spectrum", *itertools.product(["double_backward", "finite_difference"], [1.0, 0.5])]
)
def test_what_another_thread_trains_meanwhile_is_left_alone(way):
    neighbour, alone = Neighbour(), Neighbour()
    found = watched(neighbour.step_in_its_thread, way)
    assert all(map(torch.equal, found, watched(lambda: None, way)))
    while alone.steps < neighbour.steps:
        alone.step()
    assert alone.steps > 2
    for (name, value), expected in zip(
        neighbour.model.state_dict().items(), alone.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), name
