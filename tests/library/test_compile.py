"""Compiled models: the steps that refresh the curvature run eagerly, those between them compiled.

A compiled function has no second derivative, and shows the finite difference no gates.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian

CURVATURES = ("double_backward", "finite_difference")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(36, 3),
    )


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 8, 8, generator=generator)
    return images, (images.mean(dim=(1, 2, 3)) * 20).round().clamp(-1, 1).long() + 1


def train(model, curvature, loss_function=F.cross_entropy, steps=7, **options):
    """Train ``model`` and return the loss of each step."""
    optimizer = AdaHessian(model.parameters(), lr=0.05, curvature=curvature, **options)
    images, labels = batch()
    torch.manual_seed(1)

    def closure():
        optimizer.zero_grad()
        loss = loss_function(model(images), labels)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return [optimizer.step(closure).item() for _ in range(steps)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that compiles nothing and counts the calls of what it was given."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(("interval", "compiled"), [(1, 0), (3, 4)])
def test_only_the_steps_between_refreshes_are_compiled(curvature, interval, compiled):
    backend = Counting()
    losses = train(torch.compile(network(), backend=backend), curvature, update_interval=interval)
    assert backend.calls == compiled  # of 7 steps
    assert losses == train(network(), curvature, update_interval=interval)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_the_same(curvature, backend):
    plain, model = network(), network()
    expected = train(plain, curvature, update_interval=3)
    losses = train(torch.compile(model, backend=backend), curvature, update_interval=3)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
    for p, q in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


# The compiler looks at the gradient of all that goes into a compiled function.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_model_compiled_in_place_and_a_compiled_loss(curvature):
    expected = train(network(), curvature, update_interval=2)
    model = network()
    model.compile(backend="aot_eager")
    compiled_loss = torch.compile(F.cross_entropy, backend="aot_eager")
    losses = train(model, curvature, compiled_loss, update_interval=2)
    assert losses == pytest.approx(expected, rel=1e-4)


def test_a_graph_by_hand_needs_an_eager_model():
    """Without a closure nobody but the user can run the refreshing step eagerly."""
    images, labels = batch()
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = AdaHessian(model.parameters())
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        F.cross_entropy(compiled(images), labels).backward(create_graph=True)
        optimizer.step()
    optimizer.zero_grad()
    with torch.compiler.set_stance("force_eager"):
        F.cross_entropy(compiled(images), labels).backward(create_graph=True)
    optimizer.step()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("what", ["training step", "training step, two lines", "optimizer.step"])
def test_what_is_compiled_around_the_step_leaves_it_as_it_is(what):
    """Regression: the compiler went into the step, and raised."""
    steps = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 3)
        optimizer = AdaHessian(model.parameters(), update_interval=2)
        step = optimizer.step

        def closure(model=model, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        def train(closure=closure, optimizer=optimizer):
            if what.endswith("lines"):
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)

        if compiles and what == "optimizer.step":
            step = torch.compile(step, backend="eager")
        elif compiles:
            train = torch.compile(train, backend="eager")
        for _ in range(3):
            step(closure) if what == "optimizer.step" else train()
        steps.append(list(model.parameters()))
    for p, q in zip(*steps, strict=True):
        assert torch.equal(p, q)


@pytest.mark.slow
@pytest.mark.parametrize("curvature", CURVATURES)
def test_inductor(curvature):
    """Its dropout draws other numbers than eager's, so there is none here."""

    def perceptron():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 3))

    expected = train(perceptron(), curvature, update_interval=3)
    losses = train(torch.compile(perceptron(), backend="inductor"), curvature, update_interval=3)
    assert losses == pytest.approx(expected, rel=1e-3)
