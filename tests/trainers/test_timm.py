"""timm's training conventions: no closure, so double backward.

timm asks ``is_second_order`` once an epoch and then calls ``loss.backward(create_graph=...)`` and
``optimizer.step()``, directly or through a ``NativeScaler``.
"""

import copy

import pytest
import torch
from support.digits import (
    accuracy,
    assert_same_parameters,
    build_model,
    train_loader,
    train_plainly,
)
from timm.optim import OptimInfo, create_optimizer_v2, get_optimizer_class
from timm.optim._optim_factory import default_registry
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, NativeScaler
from torch.nn import functional as F

from adahessian import AdaHessian

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def our_adahessian(monkeypatch):
    """timm has a class of this name: ours replaces it for the test."""
    monkeypatch.setattr(default_registry, "_optimizers", {**default_registry._optimizers})
    default_registry.register(
        OptimInfo("adahessian", AdaHessian, has_betas=True, second_order=True)
    )


def build(name="adahessian", dtype=torch.float64, **options):
    """Return a model and its optimizer, without weight decay on tensors below two dimensions."""
    model = build_model().to(dtype)
    optimizer = create_optimizer_v2(model, name, lr=0.15, weight_decay=1e-3, **options)
    return model, optimizer


def train_as_timm(model, optimizer, scaler=None, accumulate=1, scheduler=None, ema=None, epochs=1):
    """Train as timm's train.py does."""
    dtype = next(model.parameters()).dtype
    for epoch in range(epochs):
        second_order = hasattr(optimizer, "is_second_order") and optimizer.is_second_order
        torch.manual_seed(epoch)
        for i, (images, labels) in enumerate(train_loader()):
            need_update = (i + 1) % accumulate == 0
            loss = F.cross_entropy(model(images.to(dtype)), labels) / accumulate
            if scaler is not None:
                scaler(
                    loss,
                    optimizer,
                    parameters=model.parameters(),
                    create_graph=second_order,
                    need_update=need_update,
                )
            else:
                loss.backward(create_graph=second_order)
                if need_update:
                    optimizer.step()
            if not need_update:
                continue
            optimizer.zero_grad()
            if ema is not None:
                ema.update(model)
        if scheduler is not None:
            scheduler.step(epoch + 1)


def assert_close(model, expected):
    """Equal but for rounding: without a closure batch normalization takes torch's own path."""
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_factory_makes_our_optimizer_with_two_groups():
    assert get_optimizer_class("adahessian", bind_defaults=False) is AdaHessian
    _, optimizer = build(update_interval=2)
    assert type(optimizer) is AdaHessian and optimizer.is_second_order
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 1e-3]
    assert optimizer.param_groups[1]["update_interval"] == 2


@pytest.mark.parametrize("accumulate", [1, 4])
def test_timms_loop_is_the_plain_loop(accumulate):
    model, optimizer = build()
    train_as_timm(model, optimizer, accumulate=accumulate)
    expected, optimizer = build()
    train_plainly(expected, optimizer, epochs=1, accumulate=accumulate)
    assert_close(model, expected)


def test_a_good_accuracy():
    model, optimizer = build(dtype=torch.float32)
    train_as_timm(model, optimizer, epochs=3)
    assert accuracy(model) > 0.93


def test_native_scaler():
    """It scales the loss by 65,536, and so gradient and Hessian."""
    model, optimizer = build()
    train_as_timm(model, optimizer, NativeScaler("cpu"))
    expected, optimizer = build()
    train_as_timm(expected, optimizer)
    assert_close(model, expected)


def test_clipping_by_the_native_scaler_names_ours():
    model, optimizer = build()
    scaler = NativeScaler("cpu")
    loss = F.cross_entropy(model(torch.rand(8, 1, 8, 8).double()), torch.arange(8))
    with pytest.raises(RuntimeError, match="max_grad_norm"):
        scaler(loss, optimizer, clip_grad=0.5, parameters=model.parameters(), create_graph=True)


def test_finite_difference_needs_a_closure():
    model, optimizer = build(curvature="finite_difference")
    assert not optimizer.is_second_order
    with pytest.raises(RuntimeError, match="optimizer.step\\(closure\\)"):
        train_as_timm(model, optimizer)


def test_lookahead():
    """It keeps its slow weights in our state."""
    model, optimizer = build("lookahead_adahessian", torch.float32)
    assert optimizer.is_second_order
    train_as_timm(model, optimizer, epochs=2)
    assert accuracy(model) > 0.85

    twin, resumed = build("lookahead_adahessian", torch.float32)
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[0]["lookahead_step"] == 40
    train_as_timm(model, optimizer)
    train_as_timm(twin, resumed)
    assert_same_parameters(twin, model)


def test_scheduler_and_ema():
    model, optimizer = build(dtype=torch.float32)
    scheduler = CosineLRScheduler(optimizer, t_initial=2, lr_min=1e-3, warmup_t=0)
    ema = ModelEmaV3(model, decay=0.9)
    train_as_timm(model, optimizer, scheduler=scheduler, ema=ema, epochs=2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert accuracy(model) > 0.85 and accuracy(ema.module) > 0.85


def test_resume_between_two_refreshes_is_bitwise():
    model, optimizer = build(update_interval=3, dtype=torch.float32)
    train_as_timm(model, optimizer)
    twin, resumed = build(update_interval=3, dtype=torch.float32)
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train_as_timm(model, optimizer)
    train_as_timm(twin, resumed)
    assert_same_parameters(twin, model)
