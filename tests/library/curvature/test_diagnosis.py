"""A failed check names the operation, on models as strangers write them; sound ones get no word.

The line that is to be named is marked by ``# here``.
"""

import functools
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.device import random_state
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from adahessian import AdaHessian, CurvatureWarning
from adahessian.curvature import diagnosis, finite_difference

FILE = Path(__file__).name
DTYPES = [torch.float32, torch.float64]


def first_step(params, loss, seed=0):
    """Take a first step; return what the check says."""
    optimizer = AdaHessian(params, lr=0.0, curvature="finite_difference", seed=seed)

    def closure():
        optimizer.zero_grad()
        value = loss()
        if value.requires_grad:
            value.backward()
        return value

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step(closure)
    return [str(w.message) for w in found if issubclass(w.category, CurvatureWarning)]


def failed_check(params, loss):
    """Return what the check says where it fails; along some probes all looks well."""
    params = list(params)
    return next(found[0] for seed in range(16) if (found := first_step(params, loss, seed)))


def marked_line(function):
    """Return the line of this file that a model has marked."""
    lines, start = inspect.getsourcelines(function)
    (at,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    return start + at


def numpy_of(x):
    return np.from_dlpack(x.data.cpu())  # what ``numpy()`` returns would be replayed


def batch(dtype, features=20, classes=5, count=200):
    torch.manual_seed(0)
    return torch.randn(count, features, dtype=dtype), torch.randint(classes, (count,))


class Net(nn.Module):
    """A classifier with something in its middle."""

    def __init__(self, middle, dtype, width=200):
        super().__init__()
        self.first, self.middle = nn.Linear(20, width), middle
        self.last = nn.Linear(width, 5)
        self.to(dtype)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


# --- kinks and jumps ------------------------------------------------------------------------------


class NumpyReLU(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(numpy_of(x).clip(0)).to(x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return grads[0] * torch.from_numpy((numpy_of(x) > 0).astype(np.float32)).to(x)


class NumpyShrink(Function):
    """Soft thresholding."""

    @staticmethod
    def forward(ctx, x, limit):
        a = numpy_of(x)
        ctx.mask = torch.from_numpy((np.abs(a) > limit).astype(np.float32)).to(x)
        return torch.from_numpy(np.sign(a) * np.maximum(np.abs(a) - limit, 0)).to(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.mask, None


class TwoOutputs(Function):
    """The positive and the negative part."""

    @staticmethod
    def forward(ctx, x):
        a = numpy_of(x)
        ctx.positive = torch.from_numpy((a > 0).astype(np.float32)).to(x)
        return tuple(torch.from_numpy(v).to(x) for v in (a.clip(0), (-a).clip(0)))

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.positive - grads[1] * (1 - ctx.positive)


class NumpySort(Function):
    @staticmethod
    def forward(ctx, x):
        order = np.argsort(numpy_of(x), axis=-1)
        ctx.order = torch.from_numpy(order).to(x.device)
        return torch.from_numpy(np.take_along_axis(numpy_of(x), order, -1)).to(x)

    @staticmethod
    def backward(ctx, *grads):
        return torch.zeros_like(grads[0]).scatter_(-1, ctx.order, grads[0])


@torch.library.custom_op("strangers::hinge", mutates_args=())
def hinge(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(numpy_of(x).clip(0)).to(x)


def _hinge_context(ctx, inputs, output):
    ctx.mask = torch.from_numpy((numpy_of(inputs[0]) > 0).astype(np.float32)).to(inputs[0])


hinge.register_autograd(lambda ctx, grad: grad * ctx.mask, setup_context=_hinge_context)


class Kinked(nn.Module):
    def forward(self, x):
        return NumpyReLU.apply(x)  # here


class Shrinking(nn.Module):
    def forward(self, x):
        y = torch.tanh(x)
        y = NumpyShrink.apply(y, 0.3)  # here
        return y * 2


class Parts(nn.Module):
    def forward(self, x):
        positive, negative = TwoOutputs.apply(x)  # here
        return positive + 0.1 * negative


class Sorting(nn.Module):
    def forward(self, x):
        return NumpySort.apply(x)  # here


class Extension(nn.Module):
    def forward(self, x):
        return torch.ops.strangers.hinge(x)  # here


class Lookup(nn.Module):
    """Rows of a table by cells that numpy has computed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(64))

    def forward(self, x):
        cells = torch.from_numpy((np.floor(numpy_of(x) * 1e3) % 64).astype(np.int64))
        return torch.tanh(x) + self.table[cells]  # here


class Mask(nn.Module):
    def forward(self, x):
        keep = torch.from_numpy((numpy_of(x) > 0.1).astype(np.float32)).to(x.device)
        return torch.sin(x) * keep  # here


class Bucketized(nn.Module):
    def forward(self, x):
        bounds = np.linspace(-3, 3, 4)
        level = torch.from_numpy(np.digitize(numpy_of(x), bounds)).to(x) / 4
        return torch.tanh(x).addcmul(x, level)  # here


class OwnAttention(nn.Module):
    """Keeps each row's largest scores, chosen by numpy."""

    def forward(self, x):
        scores = x.view(len(x), 10, -1)
        values = numpy_of(scores)
        least = torch.from_numpy(values < np.quantile(values, 0.8, axis=-1, keepdims=True))
        kept = scores.masked_fill(least.to(x.device), 0)  # here
        return torch.tanh(kept).flatten(1)


class Twice(nn.Module):
    """The same function at two places, of which one is used."""

    def __init__(self):
        super().__init__()
        self.smooth, self.kinked = nn.Tanh(), Kinked()

    def forward(self, x):
        return self.kinked(self.smooth(x))


MODULES = {
    "NumpyReLU": (Kinked, "NumpyReLU", Kinked.forward, "middle (Kinked)"),
    "NumpyShrink": (Shrinking, "NumpyShrink", Shrinking.forward, "middle (Shrinking)"),
    "TwoOutputs": (Parts, "TwoOutputs", Parts.forward, "middle (Parts)"),
    "NumpySort": (Sorting, "NumpySort", Sorting.forward, "middle (Sorting)"),
    "an operator of torch.library": (Extension, "hinge", Extension.forward, "middle (Extension)"),
    "table": (Lookup, "getitem", Lookup.forward, "middle (Lookup)"),
    "mask": (Mask, "mul", Mask.forward, "middle (Mask)"),
    "buckets": (Bucketized, "addcmul", Bucketized.forward, "middle (Bucketized)"),
    "top scores": (OwnAttention, "masked_fill", OwnAttention.forward, "middle (OwnAttention)"),
    "within a module": (Twice, "NumpyReLU", Kinked.forward, "middle.kinked (Kinked)"),
    "within a sequence": (
        lambda: nn.Sequential(nn.Tanh(), nn.Dropout(), nn.LayerNorm(200), Kinked(), nn.GELU()),
        "NumpyReLU", Kinked.forward, "middle.3 (Kinked)",
    ),
    "behind batch normalization": (
        lambda: nn.Sequential(nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 200), Kinked()),
        "NumpyReLU", Kinked.forward, "middle.3 (Kinked)",
    ),
    "below the gates": (
        lambda: nn.Sequential(nn.Softsign(), nn.Hardsigmoid(), nn.BatchNorm1d(200), Kinked()),
        "NumpyReLU", Kinked.forward, "middle.3 (Kinked)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_kink_is_named_with_line_and_module(name):
    make, operation, function, module = MODULES[name]
    x, y = batch(torch.float32)
    model = Net(make(), torch.float32)
    found = failed_check(model.parameters(), lambda: F.cross_entropy(model(x), y))
    likely = found.partition("Likely: ")[2]
    assert likely.startswith(operation), found
    assert f"{FILE}:{marked_line(function)}, module {module})" in likely, found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kink_at_the_parameters_themselves_is_named(dtype):
    p = torch.zeros(50, dtype=dtype, requires_grad=True)

    def loss():
        smooth = (p**2).sum() + (p**3).sum()  # near zero, nothing is larger than its own change
        return smooth + NumpyReLU.apply(p).sum()  # here

    found = failed_check([p], loss)
    assert "Likely: NumpyReLU (" in found and f"{FILE}:{marked_line(loss)})" in found


def test_a_branch_by_a_number_of_numpy_is_named():
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float64).requires_grad_()
    border = numpy_of(p)[0]

    def loss():
        y = torch.tanh(p) * 2
        if numpy_of(p)[0] > border:
            return y.exp().sum()
        return y.cosh().sum()

    found = failed_check([p], loss)
    assert "another path at" in found and ("exp (" in found or "cosh (" in found), found


def test_a_kink_in_several_backward_passes_and_checkpoints_is_named():
    x, y = batch(torch.float32)
    again = torch.utils.checkpoint.checkpoint
    kinked = Kinked()
    model = Net(Of(lambda h: again(kinked, h, use_reentrant=False)), torch.float32)

    def loss():
        parts = [
            F.cross_entropy(model(a), b) for a, b in zip(x.split(50), y.split(50), strict=True)
        ]
        for part in parts[:-1]:
            part.backward()
        return parts[-1]

    found = failed_check(model.parameters(), loss)
    assert "Likely: NumpyReLU (" in found and f"{FILE}:{marked_line(Kinked.forward)}" in found


# --- derivatives that are not the loss's ----------------------------------------------------------


class Quantized(Function):
    """Rounds to eighths and passes the gradient."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy((numpy_of(x) * 8).round() / 8).to(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


class Forgetful(Function):
    """x², whose author has forgotten the 2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.saved_tensors[0]


class Reversed(Function):
    """Domain-adversarial training's reversal of the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return -grads[0]


class Through(nn.Module):
    def forward(self, x):
        return Quantized.apply(torch.tanh(x))  # here


class Squared(nn.Module):
    def forward(self, x):
        return torch.tanh(Forgetful.apply(x))  # here


class Domain(nn.Module):
    def forward(self, x):
        return Reversed.apply(torch.tanh(x))  # here


class Hooked(nn.Module):
    """Makes the gradient smaller on its way."""

    def forward(self, x):
        y = torch.tanh(x)  # here
        y.register_hook(lambda grad: grad * 0.1)
        return y


SLOPES = {
    "straight-through": (Through, "Quantized", "middle (Through)"),
    "a wrong derivative": (Squared, "Forgetful", "middle (Squared)"),
    "reversed gradients": (Domain, "Reversed", "middle (Domain)"),
    "a hook": (Hooked, "a hook on the gradient of tanh", "middle (Hooked)"),
    "a hook in a sequence": (
        lambda: nn.Sequential(nn.GELU(), nn.LayerNorm(200), Hooked(), nn.BatchNorm1d(200)),
        "a hook on the gradient of tanh", "middle.2 (Hooked)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOPES)
def test_what_is_no_derivative_is_named_with_line_and_module(name):
    make, operation, module = SLOPES[name]
    x, y = batch(torch.float64)
    model = Net(make(), torch.float64)
    found = failed_check(model.parameters(), lambda: F.cross_entropy(model(x), y))
    likely = found.partition("Likely: ")[2]
    assert likely.startswith(operation), found
    kind = type(list(model.middle)[2] if isinstance(model.middle, nn.Sequential) else model.middle)
    assert f"{FILE}:{marked_line(kind.forward)}, module {module})" in likely, found


def scaled_by_a_number(p):
    size = float(numpy_of(p).std())
    return torch.tanh(p / size).square().sum()  # here


def without_a_mean(p):
    mean = torch.from_numpy(numpy_of(p).mean(0, keepdims=True)).to(p.device)
    y = torch.sub(p, mean)  # here
    return torch.exp(y).sum()


def to_a_target(p):
    """Of the network itself, which torch does not see."""
    y = torch.sin(p)
    target = torch.from_numpy(numpy_of(y) * 0.5).to(p.device)
    error = torch.sub(y, target)  # here
    return error.square().mean()


@pytest.mark.parametrize(
    ("loss", "operation"),
    [(scaled_by_a_number, "div"), (without_a_mean, "sub"), (to_a_target, "sub")],
)
def test_where_a_moving_constant_meets_the_graph_is_named(loss, operation):
    torch.manual_seed(0)
    p = (torch.rand(5, 3, dtype=torch.float64) + 0.5).requires_grad_()
    found = failed_check([p], lambda: loss(p))
    assert f"Likely: {operation} (" in found and f"{FILE}:{marked_line(loss)})" in found, found


# --- sound models ---------------------------------------------------------------------------------


class NumpySine(Function):
    """As the tutorials write it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().cpu().numpy())).to(x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return grads[0] * torch.from_numpy(np.cos(x.detach().cpu().numpy())).to(x)


class OwnLeaky(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grads[0], 0.1 * grads[0])


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class LowRank(nn.Module):
    """LoRA at its beginning: zero."""

    def __init__(self):
        super().__init__()
        self.down = nn.Parameter(torch.randn(200, 4))
        self.up = nn.Parameter(torch.zeros(4, 200))

    def forward(self, x):
        return torch.tanh(x) + x @ self.down @ self.up


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(20, 2, batch_first=True)

    def forward(self, x):
        x = x.view(len(x), 10, 20)
        mask = torch.full((10, 10), -torch.inf, dtype=x.dtype).triu(1)
        return self.attention(x, x, x, attn_mask=mask)[0].flatten(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(20, 20, batch_first=True)

    def forward(self, x):
        return self.lstm(x.view(len(x), 10, 20))[0].flatten(1)


class Cells(nn.Module):
    """A lookup by cells that torch computes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8))

    def forward(self, x):
        cells = (x * 2).floor().long() % 8
        level = torch.bucketize(x, torch.linspace(-2, 2, 9, dtype=x.dtype))
        return torch.tanh(x) + self.table[cells] + 0.1 * level


def straight_through_by_detach(x):
    return x + (x.round() - x).detach()


def halves(x):
    a, b = x.chunk(2, -1)
    y = torch.cat([a.clone().mul_(2).relu_(), b.sort(-1).values], -1)
    y[:, 0] = b[:, 0].sigmoid()
    return y


def again_in_backward(x):
    return torch.utils.checkpoint.checkpoint(F.elu, x, use_reentrant=False)


SOUND = {
    "ReLU": nn.ReLU,
    "batch normalization, dropout": lambda: nn.Sequential(nn.BatchNorm1d(200), nn.Dropout()),
    "numpy with its derivative": lambda: Of(NumpySine.apply),
    "a Function with where": lambda: Of(OwnLeaky.apply),
    "LoRA": LowRank,
    "attention": Attention,
    "LSTM": Recurrent,
    "cells": Cells,
    "detached rounding": lambda: Of(straight_through_by_detach),
    "in place, sorted": lambda: Of(halves),
    "checkpointed": lambda: Of(again_in_backward),
    "scaled by its own norm": lambda: Of(lambda x: x / x.norm().item()),
    "pools": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 10, 10)), nn.MaxPool2d(3, 1, 1), nn.Hardswish(), nn.Flatten()
    ),
    "below the gates": lambda: nn.Sequential(nn.Softsign(), nn.LayerNorm(200)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in SOUND]
    + [(name, torch.float64) for name in ("LoRA", "batch normalization, dropout", "cells")],
)
def test_what_is_sound_gets_no_word(name, dtype, monkeypatch):
    """No kink is seen, and no operation found where all of the loss's change is looked for."""
    x, y = batch(dtype)
    model = Net(SOUND[name](), dtype)
    all_of_it = torch.ones(()), torch.zeros(())
    monkeypatch.setattr(finite_difference, "unexplained", lambda *_: all_of_it)
    (found,) = first_step(model.parameters(), lambda: F.cross_entropy(model(x), y))
    assert "along the probe 100%" in found and "Likely" not in found


# --- what it leaves behind ------------------------------------------------------------------------


def after_a_failed_check(find_cause, monkeypatch):
    """Return the state of everything after a first step, and what the check says."""
    monkeypatch.setattr(finite_difference, "likely_cause", find_cause)

    def steps():  # along some probes all looks well
        for seed in range(16):
            x, y = batch(torch.float32)
            middle = nn.Sequential(nn.BatchNorm1d(200), nn.Dropout(), Kinked())
            model = Net(middle, torch.float32)
            loss = functools.partial(lambda model, x, y: F.cross_entropy(model(x), y), model, x, y)
            yield model, first_step(model.parameters(), loss, seed)

    model, (found,) = next((model, found) for model, found in steps() if found)
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    return [*tensors, random_state()], found


def test_a_diagnosis_leaves_no_trace(monkeypatch):
    find = finite_difference.likely_cause
    plain, _ = after_a_failed_check(lambda *_, **__: "", monkeypatch)
    diagnosed, found = after_a_failed_check(find, monkeypatch)
    assert "Likely: NumpyReLU" in found
    assert all(torch.equal(a, b) for a, b in zip(plain, diagnosed, strict=True))
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.is_anomaly_enabled()


def test_a_diagnosis_that_fails_is_none(monkeypatch):
    def fail(*_):
        raise ValueError("of somebody's code")

    plain, said = after_a_failed_check(lambda *_, **__: "", monkeypatch)
    monkeypatch.undo()
    find = finite_difference.likely_cause
    monkeypatch.setattr(diagnosis._Jumps, "read_gradients", fail)
    failed, found = after_a_failed_check(find, monkeypatch)
    assert found == said and "Likely" not in found
    assert all(torch.equal(a, b) for a, b in zip(plain, failed, strict=True))
