"""A curvature that is not finite, though its gradient is, never reaches the parameters."""

import math
import pickle
import warnings

import pytest
import torch
from support.device import device, on_gpu
from support.rules import RULES
from support.spoiled import Spoiled
from support.stepping import assert_unchanged, hear, snapshot, take_step
from torch import nn
from torch.amp import GradScaler
from torch.overrides import TorchFunctionMode

from adahessian import AdaHessian, update, value_grad_and_hessian
from adahessian.options import SECOND_MOMENTS

EVERY_WAY = {
    "exact": {},
    "single": {"foreach": False},
    "samples": {"num_samples": 3},
    "signed rows": {"averaging": "signed", "block_size": "row"},
    "runs": {"block_size": 2},
    "finite difference": {"curvature": "finite_difference"},
    "part": {"curvature_fraction": 0.5},
    "part by finite differences": {"curvature_fraction": 0.5, "curvature": "finite_difference"},
    "no memory": {"betas": (0.0, 0.0)},
    "sophia": {**RULES["sophia"], "update_interval": 1},
    "sassha": {**RULES["sassha"], "update_interval": 1},
    "clipped": RULES["clipped"],
}


def train(options, spoiled_steps, steps=6, **more):
    """Return the optimizer and its two tensors; one of them has no second derivative at times."""
    a, b = (
        (torch.arange(1, 7, dtype=torch.float64).reshape(2, 3) / 3).requires_grad_()
        for _ in range(2)
    )
    optimizer = AdaHessian([("a", a), ("b", b)], **{**options, **more, "lr": 0.05})

    def loss(a, b):
        return Spoiled.apply(a).sum() + (b**3).sum()

    def part(start, stop):
        return loss(a, b)

    for step in range(steps):
        Spoiled.spoil, Spoiled.at = step in spoiled_steps, a.detach().clone()
        try:
            if "curvature_fraction" in options:
                optimizer.curvature_closure = part
            take_step(optimizer, [a, b], loss)
        finally:
            Spoiled.spoil = False
    hear(optimizer)
    return optimizer, a, b


def corrected(state, group):
    average = state[SECOND_MOMENTS[group["second_moment"]]]
    if group["bias_correction"] is None:
        return average
    return average / (1 - group["betas"][1] ** state["num_refreshes"].item())


@pytest.mark.parametrize("options", EVERY_WAY.values(), ids=EVERY_WAY.keys())
def test_it_is_left_out_and_the_average_stays(options):
    clean, *_ = train(options, (), steps=3)
    with pytest.warns(UserWarning, match=r"parameter 0 .*\(a\).*not finite"):
        optimizer, a, b = train(options, (3,), steps=4)
    group = optimizer.param_groups[0]
    before, after = list(clean.state.values())[0], optimizer.state[a]
    torch.testing.assert_close(
        corrected(after, group), corrected(before, group), rtol=1e-12, atol=0
    )
    assert after["step"] == after["num_refreshes"] == 4
    undisturbed, _, other = train(options, (), steps=4)
    assert torch.equal(b, other)  # whoever shares a step with it is not concerned
    assert torch.equal(
        corrected(optimizer.state[b], group), corrected(undisturbed.state[other], group)
    )


@pytest.mark.parametrize("options", EVERY_WAY.values(), ids=EVERY_WAY.keys())
def test_the_step_is_the_formula_with_the_average_in_its_place(options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, a0, _ = train(options, (2,), steps=4)
        after, a, _ = train(options, (2, 4), steps=5)
    group, state = after.param_groups[0], after.state[a]
    beta1 = group["betas"][0]
    v_hat = corrected(before.state[a0], group)
    m = beta1 * before.state[a0]["exp_avg"] + (1 - beta1) * 3 * a0.detach() ** 2
    m_hat = m / (1 if group["bias_correction"] is None else 1 - beta1**5)
    if group["second_moment"] == "signed":
        update = m_hat / v_hat.clamp(min=group["eps"])
    else:  # Sassha's power is 1/2
        update = m_hat / (v_hat.sqrt() + group["eps"])
    clip = group["update_clip"] or math.inf
    expected = a0 - 0.05 * update.clamp(-clip, clip)
    torch.testing.assert_close(a, expected, rtol=1e-10, atol=1e-12)
    assert state["num_refreshes"] == 5


@pytest.mark.parametrize("options", EVERY_WAY.values(), ids=EVERY_WAY.keys())
def test_a_tensor_begins_with_its_first_finite_curvature(options):
    with pytest.warns(UserWarning, match="not finite"):
        optimizer, a, b = train(options, (0, 1), steps=2)
    assert torch.equal(a.detach().flatten() * 3, torch.arange(1.0, 7.0, dtype=torch.float64))
    assert not optimizer.state[a].get("num_refreshes", 0)
    assert optimizer.state[b]["num_refreshes"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer, a, b = train(options, (0, 1), steps=3)
    once, other, _ = train(options, (), steps=1)
    assert optimizer.state[a]["num_refreshes"] == optimizer.state[a]["step"] == 1
    if "num_samples" not in options and options.get("averaging") != "signed":
        torch.testing.assert_close(a, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("interval", [1, 3])
def test_never_finite_is_an_error_that_names_it(interval):
    p, q = (torch.zeros(3, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([p, q], update_interval=interval)
    steps = 0
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=r"parameter 1 .*of 10 ref"):
        for steps in range(100):  # noqa: B007
            before = snapshot(optimizer, [p, q])
            take_step(optimizer, [p, q], lambda p, q: ((p - 1) ** 4).sum() + q.norm())
    # One that waits is tried again at every step, from the second on in which it has a gradient.
    assert steps == (9 if interval == 1 else 10)
    assert_unchanged(optimizer, [p, q], before)
    assert torch.equal(q, torch.zeros(3)) and (p != 0).all()


def test_warnings_grow_rare():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train({}, range(1, 41), steps=41)
    assert [str(w.message).split("time ")[1].split(".")[0] for w in caught] == ["1", "10"]


def test_a_gradient_that_is_not_finite_is_no_business_of_ours():
    """It is seen in loss and parameters, as with every optimizer."""
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p])
    for factor in (1.0, math.nan):
        take_step(optimizer, [p], lambda p: factor * (p**4).sum())  # noqa: B023
    assert p.isnan().all()
    q = torch.ones(3, requires_grad=True)
    take_step(AdaHessian([q]), [q], lambda q: math.nan * (q**4).sum())
    assert q.isnan().all()


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_a_square_that_overflows_counts(size):
    """v would be infinite for ever, and the tensor frozen without a word."""
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p])
    take_step(optimizer, [p], lambda p: (p**2).sum())
    with pytest.warns(UserWarning, match="not finite"):
        take_step(optimizer, [p], lambda p: size * ((p - p.detach()) ** 2).sum())
        hear(optimizer)
    assert optimizer.state[p]["exp_hessian_diag_sq"].isfinite().all()


def test_a_parameter_without_elements():
    p, empty = torch.ones(3, requires_grad=True), torch.ones(0, 4, requires_grad=True)
    optimizer = AdaHessian([p, empty])
    for _ in range(2):
        take_step(optimizer, [p, empty], lambda p, e: (p**4).sum() + (e**4).sum())
    assert optimizer.state[empty]["num_refreshes"] == 2


def test_at_a_loss_scale_that_overflows_the_others_go_on():
    """x's gradient is finite at this scale, its second derivative is not; y's are."""
    x, y = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([x, y])
    scaler = GradScaler(device(), init_scale=2.0**100)
    for _ in range(9):
        optimizer.zero_grad()
        loss = x.sum() - 1e-10 * torch.cos(1e10 * (x - 1)).sum() + (y**2).sum()
        scaler.scale(loss).backward(create_graph=True)
        assert x.grad.isfinite().all()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaler.step(optimizer)
        scaler.update()
    assert torch.equal(x, torch.ones(3)) and not (y == 1).any()
    scaler.scale(x.sum() - 1e-10 * torch.cos(1e10 * (x - 1)).sum()).backward(create_graph=True)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="init_scale"):
        scaler.step(optimizer)


def test_counts_are_not_part_of_a_copy():
    with pytest.warns(UserWarning):
        optimizer, *_ = train({}, (0, 1, 2), steps=3)
    optimizer.zero_grad()
    pickle.loads(pickle.dumps(optimizer))


class Reads(TorchFunctionMode):
    """Notes what the host reads of tensors that are no counters."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero", "equal"):
            x = args[0]
            if x.dtype != torch.float32:  # that of counters: parameters and losses are float64
                self.tensors.append(x)
        return func(*args, **(kwargs or {}))


@pytest.mark.cpu_only(reason="flags from a GPU arrive when they do")
@pytest.mark.parametrize("options", [{}, {"num_samples": 2}, {"block_size": 2}, {"foreach": False}])
def test_the_device_decides(options, monkeypatch):
    """The host reads nothing but the flags of the refreshes before, as they arrive."""
    monkeypatch.setattr(update, "_can_be_read", lambda flags: False)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = AdaHessian(model.parameters(), update_interval=2, **options)
    x = torch.ones(2, 3, dtype=torch.float64)
    counts = []
    for _ in range(6):
        with Reads() as reads:
            take_step(optimizer, [model], lambda m: m(x).square().mean())
        assert all(t.dtype == torch.bool and t.shape == (4,) for t in reads.tensors)
        counts.append(len(reads.tensors))
    assert counts == [1, 0, 1, 0, 1, 0]


@pytest.mark.skipif(not on_gpu(), reason="on a GPU: pytest --device cuda")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_but_the_first_waits_for_the_device():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = AdaHessian(model.parameters())
    x = torch.ones(2, 3)
    take_step(optimizer, [model], lambda m: m(x).square().mean())
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(4):
            take_step(optimizer, [model], lambda m: m(x).square().mean())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_function_without_an_optimizer_hands_out_what_there_is():
    """There is no average to go by: the caller decides."""
    _, grad, diagonal = value_grad_and_hessian(
        lambda p: p["a"].norm() + (p["b"] ** 2).sum(), ({"a": torch.zeros(2), "b": torch.ones(2)},)
    )
    assert grad["a"].isfinite().all() and not diagonal["a"].isfinite().any()
    torch.testing.assert_close(diagonal["b"], torch.full((2,), 2.0))
