"""Hugging Face accelerate, used as its documentation says, is the plain loop bit for bit."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from support.digits import (
    CURVATURES,
    accuracy,
    assert_same_parameters,
    build_model,
    build_optimizer,
    chunks,
    train_loader,
    train_plainly,
)
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerators share one state: of each test, its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Setup:
    """What a script prepares; ``dtype`` is of the parameters."""

    def __init__(self, curvature, dtype=torch.float32, accelerator=None, **options):
        self.accelerator = accelerator or Accelerator(cpu=True)
        model = build_model().to(dtype)
        optimizer = build_optimizer(model.parameters(), curvature, **options)
        scheduler = StepLR(optimizer, 20, 0.5)
        self.adahessian = optimizer
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            model, optimizer, train_loader(), scheduler
        )

    def train(self, epochs):
        for epoch in epochs:
            torch.manual_seed(epoch)
            for images, labels in self.loader:

                def closure(images=images, labels=labels):
                    self.optimizer.zero_grad()
                    loss = F.cross_entropy(self.model(images), labels)
                    self.accelerator.backward(loss, create_graph=self.adahessian.needs_graph)
                    return loss

                self.optimizer.step(closure)
                self.scheduler.step()


def plain(curvature, dtype=torch.float32, training=None, **options):
    model = build_model().to(dtype)
    optimizer = build_optimizer(model.parameters(), curvature, **options)
    train_plainly(model, optimizer, scheduler=StepLR(optimizer, 20, 0.5), **(training or {}))
    return model


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("options", [{}, {"update_interval": 3, "lr": 0.05}], ids=["", "interval"])
def test_a_closure_is_the_plain_loop(curvature, options):
    setup = Setup(curvature, **options)
    setup.train(range(3))
    assert_same_parameters(setup.model, plain(curvature, **options))
    assert accuracy(setup.model) > 0.9


def two_lines(setup, max_norm=None):
    """Train an epoch as accelerate's own examples do: backward, then step, without a closure."""
    accelerator, dtype = setup.accelerator, next(setup.model.parameters()).dtype
    torch.manual_seed(0)
    for images, labels in setup.loader:
        with accelerator.accumulate(setup.model):
            loss = F.cross_entropy(setup.model(images.to(dtype)), labels)
            accelerator.backward(loss, create_graph=setup.adahessian.needs_graph)
            if max_norm is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(setup.model.parameters(), max_norm)
            setup.optimizer.step()
            setup.scheduler.step()
            setup.optimizer.zero_grad()


@pytest.mark.parametrize(("accumulate", "max_norm"), [(1, None), (1, 0.5), (4, None)])
def test_two_lines_through_double_backward(accumulate, max_norm):
    """With accumulate(): the graphs of all micro-batches live until the step."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    setup = Setup("double_backward", torch.float64, accelerator)
    two_lines(setup, max_norm)
    assert setup.adahessian.param_groups[0]["step"] == 20 // accumulate
    training = {"epochs": 1, "accumulate": accumulate, "clip": max_norm}
    expected = plain("double_backward", torch.float64, training)
    for p, q in zip(setup.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_two_lines_are_refused_by_the_finite_difference():
    with pytest.raises(RuntimeError, match="optimizer.step\\(closure\\)"):
        two_lines(Setup("finite_difference"))


@pytest.mark.parametrize("curvature", CURVATURES)
def test_accumulation_in_a_closure(curvature):
    """accumulate() would skip the step, and with it the closure, for all micro-batches but one."""
    setup = Setup(curvature, accelerator=Accelerator(cpu=True, gradient_accumulation_steps=4))
    for epoch in range(3):
        torch.manual_seed(epoch)
        for batches in chunks(setup.loader, 4):

            def closure(batches=batches):
                setup.optimizer.zero_grad()
                for images, labels in batches:
                    loss = F.cross_entropy(setup.model(images), labels)
                    # backward() divides by gradient_accumulation_steps
                    setup.accelerator.backward(loss, create_graph=setup.adahessian.needs_graph)
                return loss

            setup.optimizer.step(closure)
            setup.scheduler.step()
    assert_same_parameters(setup.model, plain(curvature, training={"accumulate": 4}))
    assert accuracy(setup.model) > 0.9


@pytest.mark.parametrize("curvature", CURVATURES)
def test_bfloat16_autocast(curvature):
    setup = Setup(curvature, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    setup.train(range(3))
    assert_same_parameters(setup.model, plain(curvature, training={"amp": torch.bfloat16}))
    assert accuracy(setup.model) > 0.9


@pytest.mark.parametrize("curvature", CURVATURES)
def test_resume_from_a_saved_state(curvature, tmp_path):
    """20 steps are no multiple of the interval: the run stops between two refreshes."""
    options = {"update_interval": 3, "lr": 0.05}
    whole = Setup(curvature, **options)
    whole.train(range(2))

    first = Setup(curvature, **options)
    first.train(range(1))
    first.accelerator.save_state(tmp_path)
    resumed = Setup(curvature, **options)
    with torch.no_grad():
        nn.init.zeros_(resumed.model[-1].weight)
    resumed.accelerator.load_state(tmp_path)
    assert resumed.adahessian.needs_graph == first.adahessian.needs_graph
    resumed.train(range(1, 2))
    assert_same_parameters(resumed.model, whole.model)
