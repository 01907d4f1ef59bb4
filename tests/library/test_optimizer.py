"""The optimizer against the dense float64 oracle, exact limits, and when the graph is needed.

"Regression:" names a published implementation that fails the test (repositories as in
docs/implementations.md).
"""

import gc
import math
import weakref

import pytest
import torch
from support.device import on_gpu
from support.problems import conv_problem, quadratic
from support.reference import ReferenceAdaHessian
from support.rules import RULES
from support.stepping import assert_unchanged, leaves, snapshot, take_step
from torch import nn

from adahessian import AdaHessian, Adahessian
from adahessian.options import SECOND_MOMENTS


def assert_same_run(optimizer, params, reference, loss_function, num_steps, tolerance=1e-10):
    """Step both and compare parameters and state after every step."""
    for _ in range(num_steps):
        take_step(optimizer, params, loss_function)
        reference.step(loss_function)
        curvatures = reference.exp_hessian_diag_sq
        for i, p in enumerate(params):
            for name, ours, expected in (
                ("parameter", p, reference.params[i]),
                ("exp_avg", optimizer.state[p]["exp_avg"], reference.exp_avg[i]),
                ("curvature's average", curvature_average(optimizer, p), curvatures[i]),
            ):
                torch.testing.assert_close(
                    ours.detach(), expected, rtol=tolerance, atol=tolerance,
                    msg=lambda m, n=name, i=i: f"{n} of parameter {i}: {m}",
                )  # fmt: skip


def curvature_average(optimizer, p):
    """Under whatever name."""
    (name,) = optimizer.state[p].keys() & set(SECOND_MOMENTS.values())
    return optimizer.state[p][name]


OPTIONS = {
    "defaults": {},
    "lr": {"lr": 0.01},
    "lr 0": {"lr": 0.0},
    "betas": {"betas": (0.5, 0.7)},
    "betas 0": {"betas": (0.0, 0.0)},
    "eps": {"eps": 0.3},
    "weight_decay": {"weight_decay": 0.1},
    "hessian_power 0.5": {"hessian_power": 0.5},
    "hessian_power 0": {"hessian_power": 0.0},
    "row": {"block_size": "row"},
    "element by element": {"block_size": None},
    "block of 3": {"block_size": 3},
    "signed": {"averaging": "signed"},
    "signed row": {"averaging": "signed", "block_size": "row"},
    "interval": {"update_interval": 3},
    "samples": {"num_samples": 3},
    "signed samples": {"num_samples": 3, "averaging": "signed", "block_size": 4},
    "seed": {"seed": 2**62 + 1},
    "maximize": {"maximize": True, "lr": 0.01},
    "language model": {"betas": (0.9, 0.98), "hessian_power": 0.5, "block_size": 4, "lr": 1.0},
    "everything": {
        "lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.02, "hessian_power": 0.7,
        "block_size": 2, "averaging": "signed", "update_interval": 2, "num_samples": 2, "seed": 3,
    },
    **RULES,
}  # fmt: skip


@pytest.mark.parametrize("foreach", [False, True], ids=["per tensor", "foreach"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_is_the_dense_reference(options, foreach):
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, **options, foreach=foreach)
    reference = ReferenceAdaHessian(initial, [options] * len(initial))
    # Of the samples' mean little is left, and a GPU sums in another order than the reference.
    tolerance = 1e-8 if on_gpu() and options.get("averaging") == "signed" else 1e-10
    assert_same_run(optimizer, params, reference, loss, num_steps=7, tolerance=tolerance)


def test_groups_with_options_of_their_own():
    """Regression: REF instruction restarts the gradients' index in every group; LES, FS know only
    the first group."""
    initial, loss = conv_problem()
    params = leaves(initial)
    first = {"lr": 0.1, "weight_decay": 0.1, "block_size": 3}
    second = {"lr": 0.03, "hessian_power": 0.5, "averaging": "signed"}
    optimizer = AdaHessian([{"params": params[:2], **first}, {"params": params[2:], **second}])
    reference = ReferenceAdaHessian(initial, [first] * 2 + [second] * (len(initial) - 2))
    assert_same_run(optimizer, params, reference, loss, num_steps=5)


def test_float32_follows_the_float64_reference():
    initial, loss64 = conv_problem()
    params = [p.float().requires_grad_() for p in initial]

    def loss(*params):
        return loss64(*(p.double() for p in params))

    optimizer = AdaHessian(params, lr=0.05)
    reference = ReferenceAdaHessian([p.detach() for p in params], [{"lr": 0.05}] * len(params))
    for _ in range(5):
        take_step(optimizer, params, loss)
        reference.step(loss64)
    for p, expected in zip(params, reference.params, strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_two_line_protocol_equals_closure():
    initial, loss = conv_problem()
    with_closure, without = leaves(initial), leaves(initial)
    a, b = AdaHessian(with_closure), AdaHessian(without)
    for _ in range(3):
        take_step(a, with_closure, loss)
        b.zero_grad()
        loss(*without).backward(create_graph=True)
        assert b.step() is None
    for p, q in zip(with_closure, without, strict=True):
        assert torch.equal(p, q)


def test_step_returns_the_detached_loss():
    """Regression: DAV, TIMM run the closure without gradients, and fail."""
    initial, loss = conv_problem()
    params = leaves(initial)
    expected = loss(*params).item()
    result = take_step(AdaHessian(params), params, loss)
    assert result.item() == expected and not result.requires_grad


# --- exact limits ---------------------------------------------------------------------------------


def test_diagonal_quadratic_is_exact_with_one_probe():
    h = torch.tensor([0.5, 1.0, 4.0, 10.0], dtype=torch.float64)
    x = torch.full((4,), 8.0, dtype=torch.float64, requires_grad=True)
    optimizer = AdaHessian([x], lr=1.0, eps=0.0, block_size=None)
    take_step(optimizer, [x], quadratic(h))
    torch.testing.assert_close(
        optimizer.state[x]["exp_hessian_diag_sq"], 0.001 * h * h, rtol=1e-12, atol=0
    )
    # A Newton step: exactly to the minimum.
    torch.testing.assert_close(x.detach(), torch.zeros_like(x), rtol=0, atol=1e-12)


def test_power_zero_is_momentum_sgd():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, lr=0.1, eps=0.0, hessian_power=0.0, betas=(0.9, 0.999))
    expected = [p.clone() for p in initial]
    momentum = [torch.zeros_like(p) for p in initial]
    for t in range(1, 6):
        take_step(optimizer, params, loss)
        current = leaves(expected)
        loss(*current).backward()
        for i, p in enumerate(current):
            momentum[i] = 0.9 * momentum[i] + 0.1 * p.grad
            expected[i] = expected[i] - 0.1 * momentum[i] / (1 - 0.9**t)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interval", [2, 3, 7])
def test_any_interval_is_the_same_on_a_constant_hessian(interval):
    """The bias correction counts refreshes. Regression: KOZ, SASSHA count steps and are off by a
    factor of 6.6 at step 1,000 with an interval of 10."""
    h = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    x, y = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    every = AdaHessian([x], lr=0.01)
    delayed = AdaHessian([y], lr=0.01, update_interval=interval)
    for _ in range(40):
        take_step(every, [x], quadratic(h))
        take_step(delayed, [y], quadratic(h))
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
        state = delayed.state[y]
        corrected = state["exp_hessian_diag_sq"] / (1 - 0.999 ** state["num_refreshes"].item())
        torch.testing.assert_close(corrected, h * h, rtol=1e-9, atol=0)


# --- when the graph is needed ---------------------------------------------------------------------


def test_needs_graph_follows_the_interval():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, update_interval=3)
    needed = []
    for _ in range(7):
        needed.append(optimizer.needs_graph)
        take_step(optimizer, params, loss)
    assert needed == [True, False, False, True, False, False, True]
    assert optimizer.is_second_order
    assert optimizer.state[params[0]]["num_refreshes"] == 3


def test_interval_may_change_during_training():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params)
    needed = []
    for step in range(8):
        if step == 3:  # warm-up over, as in the paper's Table 8
            optimizer.param_groups[0]["update_interval"] = 2
        needed.append(optimizer.needs_graph)
        take_step(optimizer, params, loss)
    assert needed == [True, True, True, False, True, False, True, False]


def test_unneeded_graph_is_accepted_and_dropped():
    initial, loss = conv_problem()
    lean, rich = leaves(initial), leaves(initial)
    a, b = AdaHessian(lean, update_interval=2), AdaHessian(rich, update_interval=2)
    for _ in range(4):
        take_step(a, lean, loss)

        def closure():
            b.zero_grad()
            value = loss(*rich)
            value.backward(create_graph=True)
            return value

        b.step(closure)
        assert not any(p.grad.requires_grad for p in rich)
    for p, q in zip(lean, rich, strict=True):
        assert torch.equal(p, q)


def test_missing_graph_is_named_and_changes_nothing():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params)
    take_step(optimizer, params, loss)
    before = snapshot(optimizer, params)
    optimizer.zero_grad()
    loss(*params).backward()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        optimizer.step()
    assert_unchanged(optimizer, params, before)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_step_within_a_backward_pass_is_refused():
    """As of optimizers in hooks: torch said that a graph was gone."""
    initial, loss = conv_problem()
    params = leaves(initial)
    params[0].register_post_accumulate_grad_hook(lambda p: AdaHessian([p]).step())
    with pytest.raises(RuntimeError, match="within a backward pass"):
        loss(*params).backward(create_graph=True)


class Token:
    """Lives as long as the graph node that holds it."""

    alive = weakref.WeakSet()


class Hold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.token = Token()
        Token.alive.add(ctx.token)
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return Hold.apply(grad)  # a token in the graph of the gradient too


@pytest.mark.parametrize("options", [{}, {"check_interval": 1}], ids=str)
def test_no_record_survives_a_step(options):
    """Of a finite difference, nor the graph of its loss: they have the size of the activations."""
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, curvature="finite_difference", **options)

    def held_loss(*params):
        return loss(*(Hold.apply(p).relu() for p in params))

    for _ in range(2):
        take_step(optimizer, params, held_loss)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        take_step(optimizer, params, held_loss)
        assert not Token.alive
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("interval", [1, 4])
def test_no_graph_survives_a_step(interval):
    """Regression: INS, DAV, TIMM, LES, ZIJ, KOZ keep the gradients' graph, which refers back to
    the parameters: memory grows until the garbage collector happens to run."""
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, update_interval=interval)

    def held_loss(*params):
        return loss(*(Hold.apply(p) for p in params))

    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(1000 if interval == 1 else 20):
            take_step(optimizer, params, held_loss)
            assert not Token.alive
            counts.append(len(gc.get_objects()) if len(counts) % 100 == 99 else None)
        tracked = [c for c in counts if c is not None]
        assert not tracked or tracked[-1] <= tracked[0] + 100
    finally:
        gc.enable()


def test_published_spelling():
    assert Adahessian is AdaHessian


def test_a_loss_without_curvature():
    """Its gradient needs no graph, though one was asked for."""
    p = nn.Parameter(torch.ones(3))
    optimizer = AdaHessian([p], lr=0.1, eps=1.0)
    take_step(optimizer, [p], lambda p: p.sum())
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.9))

    def closure():
        optimizer.zero_grad()
        loss = p.sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    error = optimizer.curvature_error(closure)
    assert math.isnan(error.mean_ratio) and math.isnan(error.median) and error.flat.keys() == {0}
    p.grad = None
    p.sum().backward()  # nobody has asked for a graph here
    with pytest.raises(RuntimeError, match="create_graph"):
        optimizer.step()
