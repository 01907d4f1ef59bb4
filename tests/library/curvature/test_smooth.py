"""Losses without pieces: evaluated as they are, compiled code included, and centrally."""

import copy

import pytest
import torch
from support.device import random_state, set_random_state
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian
from adahessian.curvature import DoubleBackward, FiniteDifference, Probes
from adahessian.curvature.beside import filling_gradients
from adahessian.curvature.earlier import Earlier


class Smooth(nn.Module):
    """Everything that is smooth and has a state: embedding, dropout, normalizations, an LSTM.

    torch.compile does not compile the latter.
    """

    def __init__(self, activation=F.gelu, recurrent=True):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True) if recurrent else None
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.conv, self.group = nn.Conv1d(8, 8, 3), nn.GroupNorm(2, 8)
        self.last = nn.Linear(8, 3)
        self.activation = activation

    def forward(self, x):
        h = self.embedding(x)
        h = h if self.lstm is None else self.lstm(h)[0]
        h = self.first(h).transpose(1, 2)
        h = self.activation(self.norm(h))
        h = F.dropout(self.activation(self.group(self.conv(h))), 0.2, self.training)
        return self.last(h.mean(2))


def problem(activation=F.gelu, dtype=torch.float64, recurrent=True):
    torch.manual_seed(0)
    model = Smooth(activation, recurrent).to(dtype)
    return model, torch.randint(7, (64, 5)), torch.randint(3, (64,))


def difference(model, loss, earlier, **options):
    params = list(model.parameters())
    closure = filling_gradients(loss, params, create_graph=False)
    products = FiniteDifference(closure, params, earlier=earlier, **options)
    products.evaluate()
    return products


def taught(model, loss):
    """What one recorded evaluation shows."""
    earlier = Earlier()
    difference(model, loss, earlier)
    model.zero_grad()
    earlier.begin_refresh()
    return earlier


@pytest.mark.parametrize(
    ("activation", "smooth"),
    [
        (F.gelu, True),
        (F.silu, True),
        (torch.tanh, True),
        (F.softplus, True),
        (F.relu, False),
        (torch.abs, False),
        (lambda h: h * (h > 0), False),
        (lambda h: h / h.detach().norm(), False),
        (lambda h: h.clamp(-1, 1), False),
    ],
)
def test_what_is_smooth_is_found_by_recording_it(activation, smooth):
    model, x, y = problem(activation)
    earlier = taught(model, lambda: F.cross_entropy(model(x), y))
    # Convolutions near the data have a record of their own; these are not.
    assert earlier.is_smooth == smooth


@pytest.mark.parametrize(
    ("loss", "smooth"),
    [
        (F.mse_loss, True),
        (nn.MSELoss(), True),
        (lambda h, y: torch.stack(torch.meshgrid(h[:, 0], y[:, 0], indexing="ij")).sum(), True),
        (lambda h, y: torch.stack(torch.broadcast_tensors(h.detach() * y, h)).prod(0).sum(), False),
        (F.l1_loss, False),
    ],
)
def test_data_beside_values_of_the_graph_are_no_constants_of_it(loss, smooth):
    """Regression: torch 2.15's mse_loss broadcasts the target, which counted as one."""
    model, x, y = problem()
    targets = F.one_hot(y, 3).double()
    assert taught(model, lambda: loss(model(x), targets)).is_smooth == smooth


@pytest.mark.cpu_only(reason="CUDA's dropout of float64 is another one than of float32")
def test_central_differences_are_closer_than_one_sided_ones():
    model, x, y = problem(dtype=torch.float32, recurrent=False)  # cuDNN's has no second derivative
    loss = lambda model=model: F.cross_entropy(model(x), y)  # noqa: E731
    probe = Probes(list(model.parameters()), seed=0, step=0)
    (z,) = probe.keep()
    earlier = taught(model, loss)
    torch.manual_seed(1)
    random = random_state()
    errors = {}
    twin = copy.deepcopy(model).double()
    pairs = dict(zip(model.parameters(), twin.parameters(), strict=True))
    set_random_state(random)
    twin.zero_grad()
    closure = filling_gradients(lambda: loss(twin), list(twin.parameters()), create_graph=True)
    exact = DoubleBackward(closure, list(twin.parameters()), probe)
    exact.evaluate()
    truth = exact.product({pairs[p]: s.double() for p, s in z.items()})
    for central in (False, True):
        set_random_state(random)
        model.zero_grad()
        found = difference(model, loss, earlier, central=central).product(z)
        wrong = torch.cat([(found[p] - truth[pairs[p]]).flatten() for p in z])
        whole = torch.cat([truth[pairs[p]].flatten() for p in z])
        errors[central] = float(wrong.norm() / whole.norm())
    assert errors[True] < 0.1 * errors[False] and errors[True] < 1e-3


@pytest.mark.parametrize("central", [False, True])
def test_one_evaluation_is_left_behind(central):
    model, x, y = problem()
    loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    earlier = taught(model, loss)
    weights, random = [p.detach().clone() for p in model.parameters()], random_state()
    loss()
    once = random_state()
    batches = int(model.norm.num_batches_tracked)
    set_random_state(random)
    products = difference(model, loss, earlier, central=central)
    (z,) = Probes(list(model.parameters()), seed=0, step=0).keep()
    one, other = products.product(z), products.product(z)
    assert all(torch.equal(one[p], other[p]) for p in z)
    assert torch.equal(random_state(), once)
    assert int(model.norm.num_batches_tracked) == batches + 1
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize(
    ("later", "seen"),
    [
        (lambda h: F.relu(h) * 2, [False, True, False, False, False, False, False]),
        # Nothing in the graph tells of it: it waits for the next record.
        (lambda h: F.gelu(h) * h.detach().sign(), [False, True, True, True, False, False, False]),
    ],
    ids=["by its operations", "in time"],
)
def test_a_kink_in_the_middle_of_a_training_is_found(later, seen, monkeypatch):
    monkeypatch.setattr(Earlier, "LOOK_AGAIN", 3)
    model, x, y = problem()
    earlier, smooth = Earlier(), []
    for step in range(7):
        model.activation = (lambda h: F.gelu(h) * 2) if step < 2 else later
        earlier.begin_refresh()
        smooth.append(
            difference(model, lambda: F.cross_entropy(model(x), y), earlier).replay.is_smooth
        )
        model.zero_grad()
    assert smooth == seen


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_resume_looks_first_and_is_bitwise(fraction):
    runs = []
    for resumes in (False, True):
        model, x, y = problem(dtype=torch.float32)
        options = {"curvature": "finite_difference", "curvature_fraction": fraction}
        optimizer = AdaHessian(model.parameters(), **options)

        def loss(start, stop, model=model, x=x, y=y):
            rows = slice(round(start * 64), round(stop * 64))
            return F.cross_entropy(model(x[rows]), y[rows])

        def closure(model=model, x=x, y=y):
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for step in range(6):
            if resumes and step == 3:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = AdaHessian(model.parameters(), **options)
                optimizer.load_state_dict(saved)
            optimizer.step(closure, curvature_closure=loss if fraction < 1 else None)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_later_evaluations_are_compiled(fraction):
    """Only the first refresh is eager, where the gates are looked for."""
    model, x, y = problem(recurrent=False)
    model.eval()
    calls = []

    def backend(graph, inputs):
        def run(*args):
            calls.append(len(args))
            return graph(*args)

        return run

    compiled = torch.compile(model, backend=backend)
    optimizer = AdaHessian(
        model.parameters(), curvature="finite_difference", curvature_fraction=fraction
    )

    def loss(start, stop):
        rows = slice(round(start * 64), round(stop * 64))
        return F.cross_entropy(compiled(x[rows]), y[rows])

    def closure():
        model.zero_grad()
        value = loss(0, 1)
        value.backward()
        return value

    seen = []
    for _ in range(3):
        calls.clear()
        optimizer.step(closure, curvature_closure=loss if fraction < 1 else None)
        seen.append(len(calls))
    graphs = seen[1]
    assert graphs > 0 and seen[2] == graphs and seen[0] < graphs


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_compiled_model_trains_as_the_eager_one(fraction):
    """By inductor."""
    weights = []
    for compiles in (False, True):
        model, x, y = problem(dtype=torch.float32, recurrent=False)
        model.eval()
        net = torch.compile(model) if compiles else model
        optimizer = AdaHessian(
            model.parameters(), 0.05, curvature="finite_difference", curvature_fraction=fraction
        )

        def loss(start, stop, net=net, x=x, y=y):
            rows = slice(round(start * 64), round(stop * 64))
            return F.cross_entropy(net(x[rows]), y[rows])

        def closure(model=model, loss=loss):
            model.zero_grad()
            value = loss(0, 1)
            value.backward()
            return value

        for _ in range(4):
            optimizer.step(closure, curvature_closure=loss if fraction < 1 else None)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 1e-3
