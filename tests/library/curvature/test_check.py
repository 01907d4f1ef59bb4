"""The check of the finite difference: what is wrong is seen without a list of operations."""

import copy
import warnings

import numpy as np
import pytest
import torch
from support.device import on_gpu
from support.reference import dense_hessian
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from adahessian import AdaHessian, CurvatureWarning
from adahessian.curvature.compare import compare_products
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.hutchinson import Probes
from adahessian.part_correction import SUMS


class Unseen(Function):
    """x ↦ f(x) with a given derivative, by numpy: no gate sees any of it."""

    @staticmethod
    def forward(ctx, x, value, slope):
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.from_numpy(value(x.detach().cpu().numpy())).to(x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        slopes = torch.from_numpy(ctx.slope(x.detach().cpu().numpy()))
        return grads[0] * slopes.to(x), None, None


def unseen(value, slope):
    return lambda x: Unseen.apply(x, value, slope)


hidden_relu = unseen(lambda x: x.clip(0), lambda x: (x > 0).astype(x.dtype))
hidden_abs = unseen(np.abs, np.sign)


def network(activation, dtype, width=200):
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(20, width), Wrapped(activation), nn.Linear(width, 5)).to(dtype),
        torch.randn(400, 20, dtype=dtype),
        torch.randint(5, (400,)),
    )


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def step(params, loss, backward=True, part=None, **options):
    """Take one step; return the optimizer and the warnings."""
    params = list(params)
    options = {"lr": 0.0, "curvature": "finite_difference", **options}
    optimizer = AdaHessian(params, **options)
    optimizer.curvature_closure = part

    def closure():
        optimizer.zero_grad()
        value = loss()
        if backward:
            value.backward()
        return value

    optimizer.closure = closure
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step(closure)
    return optimizer, [str(w.message) for w in found if w.category is CurvatureWarning]


def test_a_kink_that_nobody_freezes_is_found():
    model, x, y = network(hidden_relu, torch.float32)
    _, found = step(model.parameters(), lambda: F.cross_entropy(model(x), y))
    assert len(found) == 1 and "parameter 0 of the optimizer" in found[0]
    assert "jumps" in found[0] and "double_backward" in found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.relu])
def test_what_is_right_gives_no_alarm(activation, dtype):
    model, x, y = network(activation, dtype)
    for seed in range(3):
        assert not step(model.parameters(), lambda: F.cross_entropy(model(x), y), seed=seed)[1]


def test_a_kink_at_a_parameter_itself_is_found():
    """An L1 penalty of zeros: over steps of equal length both sides would agree."""
    p = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    _, found = step([p], lambda: hidden_abs(p).sum() + (p**2).sum())
    assert len(found) == 1 and "jumps" in found[0]


def test_it_is_an_error_for_those_who_want_it():
    model, x, y = network(hidden_relu, torch.float32)
    optimizer, _ = step(model.parameters(), lambda: F.cross_entropy(model(x), y), check_interval=0)
    twin = AdaHessian(model.parameters(), curvature="finite_difference")
    before = [p.detach().clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CurvatureWarning)
        with pytest.raises(CurvatureWarning):
            twin.step(optimizer.closure)
    assert not twin.state
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_no_checks_and_no_warnings_with_an_interval_of_zero():
    model, x, y = network(hidden_relu, torch.float32)
    calls = []

    def loss():
        calls.append(1)
        return F.cross_entropy(model(x), y)

    _, found = step(model.parameters(), loss, check_interval=0)
    assert not found and len(calls) == 3
    calls.clear()
    step(model.parameters(), loss)
    assert len(calls) >= 4


def test_checks_come_at_the_interval_and_leave_out_what_is_wrong():
    """A kink that appears in the middle of a training is found, and that refresh not used."""
    model, x, y = network(torch.tanh, torch.float32)
    calls = []

    def loss():
        calls.append(1)
        return F.cross_entropy(model(x), y)

    optimizer, found = step(model.parameters(), loss, check_interval=3, betas=(0.9, 0.5))
    assert not found
    seen = []
    for number in range(1, 7):
        model[1].function = torch.tanh if number < 6 else hidden_relu
        calls.clear()
        before = {p: v_hat(optimizer, p) for p in model.parameters()}
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            optimizer.step(optimizer.closure)
        seen.append((len(calls), len(found)))
        if number == 6:
            first = model[0].weight
            torch.testing.assert_close(v_hat(optimizer, first), before[first])
    assert [n for n, _ in seen[:5]] == [2, 2, 3, 2, 2] and not any(w for _, w in seen[:5])
    if on_gpu():  # its verdict comes two refreshes later
        model[1].function = torch.tanh
        with pytest.warns(CurvatureWarning):
            [optimizer.step(optimizer.closure) for _ in range(2)]
    else:
        assert seen[5][1] == 1


def v_hat(optimizer, p):
    state = optimizer.state[p]
    return state["exp_hessian_diag_sq"] / (1 - 0.5 ** float(state["num_refreshes"]))


# --- gradients that are not the loss's derivative -------------------------------------------------


class StraightThrough(Function):
    @staticmethod
    def forward(ctx, w):
        return torch.from_numpy((w.detach().cpu().numpy() * 8).round() / 8).to(w)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


def test_a_straight_through_estimator_is_found():
    model, x, y = network(torch.tanh, torch.float32)

    def loss():
        h = torch.tanh(x @ StraightThrough.apply(model[0].weight).t() + model[0].bias)
        return F.cross_entropy(model[2](h), y)

    _, found = step(model.parameters(), loss)
    assert len(found) == 1 and "straight-through" in found[0]


def test_a_gradient_written_by_hand_is_found():
    p = torch.ones(4, requires_grad=True)

    def loss():
        w = p.detach()
        p.grad = 4 * w**3
        return (w**4).sum()

    _, found = step([p], loss, backward=False)
    assert len(found) == 1 and "by hand" in found[0]


def test_a_loss_that_is_linear_in_a_parameter_is_nothing_to_warn_of():
    p, q = (torch.ones(4, requires_grad=True) for _ in range(2))
    _, found = step([p, q], lambda: (p * torch.arange(4)).sum() + (q**3).sum())
    assert not found


def test_closures_may_treat_gradients_as_they_like():
    """Scaled, masked, cleared in between, accumulated: the check looks at the backward passes."""
    model, x, y = network(torch.tanh, torch.float64)
    params = list(model.parameters())
    optimizer = AdaHessian(params, lr=0.0, curvature="finite_difference")

    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.zero_grad()
        for part in (slice(0, 100), slice(100, 400)):
            loss = F.cross_entropy(model(x[part]), y[part], reduction="sum")
            loss.backward()
        for p in params:
            p.grad.mul_(torch.arange(p.numel()).view_as(p) % 2 / 400)
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)


# --- the step size --------------------------------------------------------------------------------


def wide_features():
    """Logistic regression on raw features of size 10,000."""
    torch.manual_seed(0)
    x, y = 1e4 * torch.randn(200, 30), torch.randint(2, (200,)).float()
    weight = (1e-5 * torch.randn(30)).requires_grad_()
    return [weight], lambda w=weight: F.binary_cross_entropy_with_logits(x.to(w) @ w, y.to(w))


def small_weights():
    """Weights of std 1e-4 before a normalization."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 10), torch.randint(4, (64,))
    first = (1e-4 * torch.randn(10, 20)).requires_grad_()
    last = torch.randn(20, 4).requires_grad_()

    def loss(first=first, last=last):
        h = F.batch_norm(x.to(first) @ first, None, None, training=True, eps=1e-12)
        return F.cross_entropy(torch.tanh(h) @ last, y)

    return [first, last], loss


def large_parameters():
    """Of size 300 to 700, where h·z is lost in rounding in part."""
    torch.manual_seed(0)
    p = (300 + 400 * torch.rand(60)).requires_grad_()
    q = torch.rand(60).requires_grad_()
    return [p, q], lambda p=p, q=q: ((p / 500) ** 4).sum() + q.exp().sum()


def error(params, loss, hz):
    """Return the largest relative error of products over the tensors."""
    doubles = [p.detach().double().requires_grad_() for p in params]
    hessian = dense_hessian(lambda *ps: loss(*ps), doubles)
    (z,) = Probes(params, seed=0, step=0).keep()
    flat = torch.cat([z[p].double().flatten() for p in params])
    exact = (hessian @ flat).split([p.numel() for p in params])
    pairs = zip(exact, hz, strict=True)
    return max(float((b.flatten() - a).norm() / a.norm()) for a, b in pairs)


@pytest.mark.parametrize("make", [wide_features, small_weights, large_parameters])
def test_a_step_that_does_not_suit_is_changed(make):
    errors = []
    for interval in (0, 500):
        params, loss = make()
        samples = []
        options = {"curvature": "finite_difference", "check_interval": interval}
        optimizer = AdaHessian(params, lr=0.0, **options)

        def hook(_, __, found, samples=samples):
            samples.extend(s.clone() for s in found)

        optimizer.register_curvature_hook(hook)

        def closure(optimizer=optimizer, loss=loss):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(closure)
        (z,) = Probes(params, seed=0, step=0).keep()
        errors.append(error(params, loss, [s * z[p] for p, s in zip(params, samples, strict=True)]))
        scale = optimizer.param_groups[0]["difference_scale"]
        assert (scale == 1) == (interval == 0)
    assert errors[0] > 0.1 and errors[1] < 0.05, errors


def test_the_chosen_step_is_kept_and_resumes_bitwise():
    runs = []
    for resumes in (False, True):
        params, loss = wide_features()
        options = {"lr": 0.01, "curvature": "finite_difference", "check_interval": 3}
        optimizer = AdaHessian(params, **options)

        def closure(params=params, loss=loss):
            params[0].grad = None
            value = loss()
            value.backward()
            return value

        for number in range(8):
            if resumes and number == 4:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = AdaHessian(params, **options)
                optimizer.load_state_dict(saved)
                assert optimizer.param_groups[0]["difference_scale"] != 1
            optimizer.step(closure)
        runs.append(params[0].detach().clone())
    assert torch.equal(*runs)


def test_where_the_usual_step_suits_nothing_changes():
    """A check changes no bit of a training."""
    runs = []
    for interval in (0, 2):
        model, x, y = network(F.relu, torch.float32)
        optimizer = AdaHessian(
            model.parameters(), curvature="finite_difference", check_interval=interval
        )

        def closure(model=model, x=x, y=y, optimizer=optimizer):
            optimizer.zero_grad()
            value = F.cross_entropy(model(x), y)
            value.backward()
            return value

        for _ in range(5):
            optimizer.step(closure)
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*runs)


# --- repeatability --------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 0.9998])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_state_that_moves_slowly_is_found(decay, fraction):
    """One that no module holds, which moves the gradient little, which is divided by h."""
    model, x, y = network(torch.tanh, torch.float32)
    labels = F.one_hot(y, 5).float()

    def loss(*_):
        labels.lerp_(torch.full_like(labels, 0.2), 1 - decay)
        return F.cross_entropy(model(x), labels)

    optimizer = AdaHessian(
        model.parameters(), curvature="finite_difference", curvature_fraction=fraction
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(closure, curvature_closure=loss if fraction < 1 else None)
    found = [w for w in caught if "evaluated twice at the same parameters" in str(w.message)]
    assert len(found) == (decay < 1)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_noise_that_comes_later_is_found_and_left_out(fraction):
    """By a generator that nobody rewinds, in a refresh that is not checked."""
    model, x, y = network(torch.tanh, torch.float32)
    generator, noisy = np.random.default_rng(0), []

    def loss():
        h = model(x)
        if noisy:
            h = h * generator.uniform(0.5, 1.5)
        return F.cross_entropy(h, y)

    part = (lambda start, stop: loss()) if fraction < 1 else None
    options = {"betas": (0.9, 0.5), "curvature_fraction": fraction}
    optimizer, found = step(model.parameters(), loss, part=part, **options)
    assert not found
    before = {p: v_hat(optimizer, p) for p in model.parameters()}
    sums = remembered(optimizer)
    noisy.append(1)
    with pytest.warns(CurvatureWarning, match="left out"):
        optimizer.step(optimizer.closure)
        for p, v in before.items():
            torch.testing.assert_close(v_hat(optimizer, p), v)
        assert remembered(optimizer) == sums
        noisy.clear()
        for _ in range(2):  # a device's verdict comes later
            optimizer.step(optimizer.closure)


def remembered(optimizer):
    return [[float(s[name]) for name in SUMS if name in s] for s in optimizer.state.values()]


def test_a_loss_that_is_no_number_is_called_that():
    p = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="the loss of the first step is nan"):
        step([p], lambda: (p * torch.nan).sum())


def cast_norm(x):
    """RMSNorm in float32 within a float64 model."""
    y = x.float()
    return (y * y.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).to(x.dtype)


def test_a_part_in_lower_precision_decides_the_step():
    """The step of float64 would be lost in float32's rounding."""
    model, x, y = network(cast_norm, torch.float64)
    params = list(model.parameters())

    def closure():
        for p in params:
            p.grad = None
        value = F.cross_entropy(model(x), y)
        value.backward(create_graph=True)
        return value

    assert compare_products(closure, params, Probes(params, seed=0, step=0)).largest < 0.02
    way = FiniteDifference(closure, params)
    way.evaluate()
    assert way.replay.precision(params) == torch.float32


def test_explicit_casts_to_bfloat16_have_its_resolution():
    model, x, y = network(lambda h: torch.tanh(h.bfloat16()).float(), torch.float32)
    params = list(model.parameters())

    def closure():
        for p in params:
            p.grad = None
        value = F.cross_entropy(model(x), y)
        value.backward()
        return value

    way = FiniteDifference(closure, params)
    way.evaluate()
    assert way.replay.precision(params) == torch.bfloat16 and way.resolution() > 0
