"""The optimizer against the dense float64 oracle, its edge cases, and its peers' known failures.

"Regression:" names a published implementation that fails the test (repositories as in
docs/implementations.md).
"""

import copy
import gc
import inspect
import io
import math
import pickle
import weakref

import pytest
import torch
from support.device import on_gpu
from support.problems import conv_problem, quadratic
from support.reference import ReferenceAdaHessian
from torch import nn

from adahessian import AdaHessian, Adahessian


def leaves(params):
    return [p.detach().clone().requires_grad_() for p in params]


def take_step(optimizer, params, loss_function):
    def closure():
        optimizer.zero_grad()
        loss = loss_function(*params)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return optimizer.step(closure)


def assert_same_run(optimizer, params, reference, loss_function, num_steps, tolerance=1e-10):
    """Step both and compare parameters and state after every step."""
    for _ in range(num_steps):
        take_step(optimizer, params, loss_function)
        reference.step(loss_function)
        for i, p in enumerate(params):
            for name, ours, expected in (
                ("parameter", p, reference.params[i]),
                ("exp_avg", optimizer.state[p]["exp_avg"], reference.exp_avg[i]),
                (
                    "exp_hessian_diag_sq",
                    optimizer.state[p]["exp_hessian_diag_sq"],
                    reference.exp_hessian_diag_sq[i],
                ),
            ):
                torch.testing.assert_close(
                    ours.detach(), expected, rtol=tolerance, atol=tolerance,
                    msg=lambda m, n=name, i=i: f"{n} of parameter {i}: {m}",
                )  # fmt: skip


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


def snapshot(optimizer, params):
    return copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))


def assert_unchanged(optimizer, params, before):
    state, values = before
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    for key, expected in state["state"].items():
        for name, value in expected.items():
            assert torch.equal(optimizer.state_dict()["state"][key][name], value)
    assert len(optimizer.state_dict()["state"]) == len(state["state"])
    for p, value in zip(params, values, strict=True):
        assert torch.equal(p, value)


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


# --- odd parameters -------------------------------------------------------------------------------


def test_frozen_unused_and_linear_parameters():
    """Regression: REF and JET raise a misleading error on zero curvature; REF instruction shifts
    the gradients' index when one is None."""
    used, frozen, unused, linear = (
        torch.full((3,), 2.0, dtype=torch.float64, requires_grad=r)
        for r in (True, False, True, True)
    )
    optimizer = AdaHessian([frozen, unused, linear, used], lr=0.1, eps=0.5)
    take_step(
        optimizer, [frozen, unused, linear, used], lambda _f, _u, b, x: (x**4).sum() + b.sum()
    )
    assert torch.equal(frozen, torch.full_like(frozen, 2.0))
    assert torch.equal(unused, torch.full_like(unused, 2.0))
    # 4x³ / (12x² + eps) and 1 / (0 + eps)
    torch.testing.assert_close(used.detach(), torch.full_like(used, 2.0 - 0.1 * 32 / 48.5))
    torch.testing.assert_close(linear.detach(), torch.full_like(linear, 2.0 - 0.1 / 0.5))


def test_unfrozen_parameter_waits_for_the_next_refresh():
    """Regression: DAV and TIMM raise AttributeError on `hess`."""
    initial, loss = conv_problem()
    params = leaves(initial)
    params[1].requires_grad_(False)
    optimizer = AdaHessian(params, update_interval=3)
    take_step(optimizer, params, loss)
    params[1].requires_grad_(True)
    for step in (1, 2, 3):
        take_step(optimizer, params, loss)
        waited = torch.equal(params[1], initial[1])
        assert waited == (step < 3)
    assert optimizer.state[params[1]]["step"] == 1
    assert optimizer.state[params[0]]["step"] == 4


def test_added_group_falls_in_with_the_interval():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params[:3], update_interval=3)
    needed = []
    for step in range(7):
        if step == 1:
            optimizer.add_param_group({"params": params[3:], "lr": 0.01})
        needed.append(optimizer.needs_graph)
        take_step(optimizer, params, loss)
        assert torch.equal(params[3], initial[3]) == (step < 3)
    assert needed == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_a_parameter_frozen_with_a_gradient_left_stays_where_it_is(curvature):
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([p, q], curvature=curvature, lr=0.1)

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = (p**4 + q.detach() ** 2).sum() if not q.requires_grad else (p * q**2 + p**4).sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    optimizer.step(closure)
    q.requires_grad_(False)
    frozen, moving = q.clone(), p.detach().clone()
    optimizer.step(closure)
    assert q.grad is not None
    assert torch.equal(q, frozen) and not torch.equal(p, moving)


def test_wholly_frozen_group_never_asks_for_a_graph():
    initial, loss = conv_problem()
    params = leaves(initial)
    for p in params[:2]:
        p.requires_grad_(False)
    optimizer = AdaHessian([{"params": params[:2]}, {"params": params[2:]}], update_interval=2)
    needed = []
    for _ in range(4):
        needed.append(optimizer.needs_graph)
        take_step(optimizer, params, loss)
    assert needed == [True, False, True, False]


def test_gradients_that_are_views():
    """Regression: REF's detach_() raises on them (DistributedDataParallel's buckets)."""
    initial, loss = conv_problem()
    params, views = leaves(initial), leaves(initial)
    a, b = AdaHessian(params), AdaHessian(views)
    take_step(a, params, loss)
    grads = torch.autograd.grad(loss(*views), views, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    for p, part in zip(views, flat.split([p.numel() for p in views]), strict=True):
        p.grad = part.view_as(p)
    b.step()
    for p, q in zip(params, views, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        assert not q.grad.requires_grad


@pytest.mark.parametrize("foreach", [False, True])
def test_storage_never_moves(foreach):
    """Regression: REF rebinds p.data at every step, which breaks flat buffers and CUDA graphs."""
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, foreach=foreach, weight_decay=0.1)
    take_step(optimizer, params, loss)
    tensors = params + [
        s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_hessian_diag_sq")
    ]
    before = [t.data_ptr() for t in tensors]
    take_step(optimizer, params, loss)
    assert [t.data_ptr() for t in tensors] == before


def test_channels_last_network_trains_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten()).double()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    for m, images in ((model, x), (other, x.to(memory_format=torch.channels_last))):
        optimizer = AdaHessian(m.parameters())
        for _ in range(3):
            take_step(optimizer, list(m.parameters()), lambda *_: (m(images) ** 2).mean())  # noqa: B023
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


# --- bad input ------------------------------------------------------------------------------------


def make_sparse(p):
    with torch.sparse.check_sparse_tensor_invariants():  # torch warns where it is left open
        p.grad = torch.sparse_coo_tensor([[0]], [1.0], (4,))


def make_complex(p):
    p.data = p.data.to(torch.complex64)
    p.grad = torch.ones(4, dtype=torch.complex64)


def make_half(p):
    p.data = p.data.to(torch.bfloat16)
    p.grad = torch.ones(4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(make_sparse, "sparse"), (make_complex, "complex"), (make_half, "bfloat16.*autocast")],
)
def test_unfit_parameter_is_named_and_nothing_changes(spoil, message):
    good = torch.ones(3, requires_grad=True)
    bad = torch.ones(4, requires_grad=True)
    optimizer = AdaHessian([good, bad])
    take_step(optimizer, [good], lambda x: (x**4).sum())
    before = snapshot(optimizer, [good])
    spoil(bad)
    with pytest.raises(ValueError, match=message) as error:
        optimizer.step()
    assert "parameter 1 " in str(error.value)
    assert_unchanged(optimizer, [good], before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("lr", torch.ones(2)),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", (math.nan, 0.9)),
        ("betas", 0.9),
        ("eps", -1e-8),
        ("eps", math.nan),
        ("weight_decay", -1.0),
        ("weight_decay", math.inf),
        ("hessian_power", 1.1),
        ("hessian_power", -0.1),
        ("hessian_power", math.nan),
        ("block_size", "kernels"),
        ("averaging", "mean"),
        ("update_interval", 0),
        ("update_interval", 1.5),
        ("num_samples", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_bad_option_is_named_when_it_is_given_and_when_it_is_set(name, value):
    p = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=name):
        AdaHessian([p], **{name: value})
    optimizer = AdaHessian([p])
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=name):
        take_step(optimizer, [p], lambda x: (x**4).sum())
    assert torch.equal(p, torch.ones(3))


def test_a_bad_option_is_refused_before_the_closure_is_evaluated():
    optimizer = AdaHessian([torch.ones(3, requires_grad=True)])
    optimizer.param_groups[0]["curvature"] = "exact"
    with pytest.raises(ValueError, match="curvature must be one of .*'exact'"):
        optimizer.step(lambda: pytest.fail("evaluated"))


def test_rejected_group_is_not_added():
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([p])
    for bad in ({"lr": -1.0}, {"seed": 1}, {"num_samples": 2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optimizer.add_param_group({"params": [q], **bad})
    assert len(optimizer.param_groups) == 1


# --- learning rates and schedules -----------------------------------------------------------------


def test_tensor_learning_rate():
    initial, loss = conv_problem()
    params, others = leaves(initial), leaves(initial)
    a, b = AdaHessian(params, lr=0.25), AdaHessian(others, lr=torch.tensor(0.25))
    for _ in range(2):
        take_step(a, params, loss)
        take_step(b, others, loss)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


SCHEDULERS = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3]),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    lambda o: torch.optim.lr_scheduler.LinearLR(o),
    lambda o: torch.optim.lr_scheduler.ConstantLR(o),
    lambda o: torch.optim.lr_scheduler.PolynomialLR(o),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=True),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
]


@pytest.mark.parametrize("make", SCHEDULERS)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_every_scheduler(make, lr):
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = AdaHessian([x], lr=lr if isinstance(lr, float) else lr.clone())
    scheduler = make(optimizer)
    rates = []
    for _ in range(6):
        loss = take_step(optimizer, [x], lambda x: (x**4).sum())
        is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        scheduler.step(torch.ones(())) if is_plateau else scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    assert len(set(rates)) > 1 and (x.abs() < 1).all() and loss < 3


# --- saving and loading ---------------------------------------------------------------------------


def save_and_load(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop_at", range(6))
def test_resume_anywhere_is_bitwise_the_uninterrupted_run(stop_at):
    """Regression: DAV, TIMM, SAS-AdaH raise when resumed between refreshes, and draw other probes
    afterwards."""
    initial, loss = conv_problem()
    options = {"update_interval": 3, "num_samples": 2, "seed": 4}
    params = leaves(initial)
    optimizer = AdaHessian(params, **options)
    for _ in range(stop_at):
        take_step(optimizer, params, loss)
    resumed_params = leaves(params)
    resumed = AdaHessian(resumed_params, **options)
    resumed.load_state_dict(save_and_load(optimizer.state_dict()))
    assert resumed.needs_graph == optimizer.needs_graph
    for _ in range(7):
        take_step(optimizer, params, loss)
        take_step(resumed, resumed_params, loss)
        for p, q in zip(params, resumed_params, strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_deepcopy_and_pickle_keep_everything(duplicate):
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, update_interval=3)
    for _ in range(2):
        take_step(optimizer, params, loss)
    optimizer.zero_grad()
    twin = duplicate(optimizer)
    twin_params = [p for group in twin.param_groups for p in group["params"]]
    for _ in range(3):
        take_step(optimizer, params, loss)
        take_step(twin, twin_params, loss)
    for p, q in zip(params, twin_params, strict=True):
        assert p is not q and torch.equal(p, q)


def test_counters_are_not_options():
    optimizer = AdaHessian([torch.ones(3, requires_grad=True)])
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    arguments = set(inspect.signature(AdaHessian).parameters) - {"params", "process_group"}
    assert set(optimizer.defaults) == arguments
    for group in optimizer.param_groups:
        assert set(group) == arguments | {*AdaHessian.COUNTERS, "params"}
    assert arguments.isdisjoint(AdaHessian.COUNTERS)


def test_a_pickle_of_an_earlier_version_is_readable():
    """Its defaults hold the counters too."""
    x = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([x], update_interval=3)
    take_step(optimizer, [x], lambda x: (x**4).sum())
    optimizer.defaults |= {"step": 0, "last_refresh": None}
    twin = pickle.loads(pickle.dumps(optimizer))
    assert not set(AdaHessian.COUNTERS) & set(twin.defaults)
    assert [twin.param_groups[0][key] for key in AdaHessian.COUNTERS] == [1, 0]
    twin.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert [twin.param_groups[1][key] for key in AdaHessian.COUNTERS] == [1, 0]


def test_named_parameters():
    def train(params_of):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = AdaHessian(params_of(model))
        for _ in range(3):
            loss = take_step(optimizer, [model], lambda m: m(torch.ones(2, 3)).square().mean())
        return loss, optimizer

    loss, optimizer = train(lambda model: model.named_parameters())
    assert torch.equal(loss, train(lambda model: model.parameters())[0])
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert optimizer.param_groups[0]["param_names"] == names
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    in_groups, optimizer = train(
        lambda model: [{"params": layer.named_parameters()} for layer in (model[0], model[2])]
    )
    assert torch.equal(loss, in_groups)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight", "bias"]] * 2


def test_state_is_cast_with_the_parameters_but_counters_are_not():
    x = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([x])
    take_step(optimizer, [x], lambda x: (x**4).sum())
    y = torch.ones(3, dtype=torch.float64, requires_grad=True)
    other = AdaHessian([y])
    other.load_state_dict(optimizer.state_dict())
    state = other.state[y]
    assert state["exp_hessian_diag_sq"].dtype == torch.float64
    assert state["num_refreshes"].dtype == state["step"].dtype == torch.float32


def test_checkpoint_of_a_published_adahessian_is_readable():
    """They keep `step` as an int in the state, and no refresh counter."""
    x = torch.full((3,), 0.5, requires_grad=True)
    published = {
        "state": {
            0: {"step": 40, "exp_avg": torch.ones(3), "exp_hessian_diag_sq": torch.full((3,), 4.0)}
        },
        "param_groups": [
            {"lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-4, "weight_decay": 0.0,
             "hessian_power": 1, "params": [0]}
        ],
    }  # fmt: skip
    optimizer = AdaHessian([x])
    optimizer.load_state_dict(published)
    take_step(optimizer, [x], lambda x: (x**2).sum())  # g = 1, H = 2
    state = optimizer.state[x]
    assert state["step"] == state["num_refreshes"] == 41
    torch.testing.assert_close(state["exp_hessian_diag_sq"], torch.full((3,), 4.0))
    v_hat = 4.0 / (1 - 0.999**41)
    expected = 0.5 - 0.05 * 1.0 / (1 - 0.9**41) / (v_hat**0.5 + 1e-4)
    torch.testing.assert_close(x.detach(), torch.full((3,), expected))


def test_published_spelling():
    assert Adahessian is AdaHessian


# --- the finite difference ------------------------------------------------------------------------


class Stateful(nn.Module):
    """Keeps a running mean that the output depends on, replaced rather than changed in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running", torch.zeros(()))

    def forward(self, x):
        self.running = 0.9 * self.running + 0.1 * x.detach().mean()
        return x - self.running


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        Stateful(),
        nn.Flatten(),
        nn.Linear(36, 10),
    ).double()


def images():
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 1, 8, 8, dtype=torch.float64, generator=g), torch.arange(32) % 10


def closure_of(model, optimizer, set_to_none=True):
    x, y = images()

    def closure():
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return closure


def run(curvature, num_steps=6, set_to_none=True, **options):
    model = network()
    optimizer = AdaHessian(model.parameters(), lr=0.05, curvature=curvature, **options)
    closure = closure_of(model, optimizer, set_to_none)
    torch.manual_seed(7)
    losses = [optimizer.step(closure).item() for _ in range(num_steps)]
    return model, optimizer, losses, torch.get_rng_state()


@pytest.mark.parametrize("options", [{}, {"num_samples": 2}, {"update_interval": 3}])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_finite_difference_trains_as_double_backward_does(options, set_to_none):
    """Parameters, buffers, losses and random state, on a network with every kind of state.

    Regression: EIG redraws dropout between its two evaluations (384 times the norm), and moves
    the running statistics.
    """
    exact, _, exact_losses, exact_random = run("double_backward", **options)
    model, optimizer, losses, random = run("finite_difference", set_to_none=set_to_none, **options)
    assert losses == pytest.approx(exact_losses, rel=1e-5)
    assert torch.equal(random, exact_random)
    for (name, value), expected in zip(
        model.state_dict().items(), exact.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert not optimizer.needs_graph and not optimizer.is_second_order


def test_after_a_step_all_is_as_after_one_pass():
    """Gradients, buffers and random state are bit for bit those of an ordinary evaluation."""
    model, plain = network(), network()
    optimizer = AdaHessian(model.parameters(), lr=0.0, curvature="finite_difference")
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3)
    loss = optimizer.step(closure_of(model, optimizer))
    random = torch.get_rng_state()
    torch.manual_seed(3)
    x, y = images()
    expected_loss = nn.functional.cross_entropy(plain(x), y)
    expected_loss.backward()
    assert loss == expected_loss and torch.equal(random, torch.get_rng_state())
    for p, q, value in zip(model.parameters(), plain.parameters(), before, strict=True):
        assert torch.equal(p.grad, q.grad)
        assert torch.equal(p, value)  # lr is 0: restored bit for bit
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_failing_second_pass_leaves_what_the_first_one_left():
    model, plain = network(), network()
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    closure = closure_of(model, optimizer)
    optimizer.step(closure)
    plain.load_state_dict(model.state_dict())
    before = snapshot(optimizer, list(model.parameters()))
    calls = []

    def failing():
        calls.append(1)
        loss = closure()
        if len(calls) == 2:
            raise MemoryError("in the second pass")
        return loss

    torch.manual_seed(3)
    with pytest.raises(MemoryError):
        optimizer.step(failing)
    random = torch.get_rng_state()
    torch.manual_seed(3)
    closure_of(plain, AdaHessian(plain.parameters(), curvature="finite_difference"))()
    assert_unchanged(optimizer, list(model.parameters()), before)
    assert torch.equal(random, torch.get_rng_state())
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_other_peoples_gradients_are_restored():
    """A second optimizer's parameters get the first pass's gradients too."""
    model = network()
    half = list(model[-1].parameters())
    rest = [p for p in model.parameters() if not any(p is q for q in half)]
    optimizer = AdaHessian(half, lr=0.0, curvature="finite_difference")
    x, y = images()

    def closure():
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    torch.manual_seed(1)
    optimizer.step(closure)
    grads = [p.grad for p in rest]
    model.load_state_dict(network().state_dict())
    torch.manual_seed(1)
    closure()
    for p, grad in zip(rest, grads, strict=True):
        assert torch.equal(p.grad, grad)


def new_batch(model, optimizer):
    batches = iter(torch.randn(9, 32, 1, 8, 8, dtype=torch.float64))

    def closure():
        optimizer.zero_grad()
        loss = (model(next(batches)) ** 2).mean()
        loss.backward()
        return loss

    return closure


def no_zeroing(model, optimizer):
    x, y = images()

    def closure():
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def other_branch(model, optimizer):
    calls = []
    closure = closure_of(model, optimizer)

    def alternating():
        calls.append(1)
        return closure() if len(calls) % 2 else closure() + closure()

    return alternating


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (new_batch, "the loss is .* one fixed batch"),
        (no_zeroing, "clear the gradients itself"),
        (other_branch, "not the first one's computation"),
    ],
)
def test_a_closure_that_is_not_repeatable_is_found_at_the_first_step(make, message):
    model = network()
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    before = snapshot(optimizer, list(model.parameters()))
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(make(model, optimizer))
    assert_unchanged(optimizer, list(model.parameters()), before)


def test_a_step_lost_in_rounding_is_an_error():
    """θ + h·z = θ would be zero curvature, and a division by eps."""
    small = torch.ones(3, requires_grad=True)
    large = torch.full((4,), 1e6, requires_grad=True)
    optimizer = AdaHessian([small, large], curvature="finite_difference")
    with pytest.raises(RuntimeError, match=r"lost in the rounding.*shape \(4,\).*1e\+06"):
        take_step(optimizer, [small, large], lambda a, b: (a**2).sum() + (b**2 / 1e12).sum())
    assert torch.equal(large, torch.full((4,), 1e6))


def test_finite_difference_needs_a_closure():
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p], curvature="finite_difference")
    (p**2).sum().backward()
    with pytest.raises(RuntimeError, match="optimizer.step\\(closure\\)"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.skipif(not on_gpu(), reason="on a GPU: pytest --device cuda")
def test_a_step_is_not_captured():
    """Each replay would repeat one probe and one bias correction."""
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p])
    take_step(optimizer, [p], lambda p: (p**2).sum())
    with pytest.raises(RuntimeError, match="cannot be captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            take_step(optimizer, [p], lambda p: (p**2).sum())


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_clipping_acts_on_the_gradient_alone(curvature):
    _, free, _, _ = run(curvature, num_steps=1)
    model, clipped, _, _ = run(curvature, num_steps=1, max_grad_norm=0.01)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)
    for a, b in zip(free.state.values(), clipped.state.values(), strict=True):
        assert torch.equal(a["exp_hessian_diag_sq"], b["exp_hessian_diag_sq"])


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_curvature_error_changes_nothing(curvature):
    model, optimizer, _, _ = run(curvature, num_steps=3)
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    before = snapshot(optimizer, list(model.parameters()))
    random = torch.get_rng_state()
    error = optimizer.curvature_error(closure_of(model, optimizer))
    assert 0 < error.median < 1e-6 and error.largest < 1e-5
    assert error.mean_ratio == pytest.approx(1, abs=1e-6)
    assert list(error.flat) == [1]  # the bias before batch normalization
    assert_unchanged(optimizer, list(model.parameters()), before)
    assert torch.equal(random, torch.get_rng_state())
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)
    for b, value in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(b, value)


def test_resume_with_finite_differences_is_bitwise():
    model, optimizer, _, _ = run("finite_difference", num_steps=4, update_interval=3)
    twin = network()
    twin.load_state_dict(save_and_load(model.state_dict()))
    other = AdaHessian(twin.parameters(), curvature="finite_difference", update_interval=3)
    other.load_state_dict(save_and_load(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, other)):
        torch.manual_seed(1)
        for _ in range(4):
            o.step(closure_of(m, o))
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_kernels_without_a_second_derivative():
    """torch's fast attention has none: double backward says what to do, differences just work."""
    torch.manual_seed(0)
    q = torch.randn(2, 2, 16, 8, requires_grad=True)

    def loss(q):
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    with pytest.raises(RuntimeError, match="finite_difference.*SDPBackend.MATH"):
        take_step(AdaHessian([q]), [q], loss)
    optimizer = AdaHessian([q], curvature="finite_difference", lr=0.01)
    losses = [take_step(optimizer, [q], loss).item() for _ in range(5)]
    assert losses[-1] < losses[0]


def test_a_schedule_may_end_below_zero_by_rounding():
    """Regression: LinearLR from 0.1 to 0 ends at -4.8e-19."""
    p = nn.Parameter(torch.ones(3))
    optimizer = AdaHessian([p], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = -4.8e-19
    take_step(optimizer, [p], lambda p: (p**4).sum())
    assert torch.equal(p.detach(), torch.ones(3))
    optimizer.param_groups[0]["lr"] = -1e-3
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        take_step(optimizer, [p], lambda p: (p**4).sum())


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


def test_one_list_of_groups_serves_several_optimizers():
    """Counters are the optimizer's, not in the dicts that its user keeps."""
    p = nn.Parameter(torch.ones(3))
    groups = [{"params": [p], "lr": 0.1}]
    for _ in range(2):
        optimizer = AdaHessian(groups)
        assert optimizer.param_groups[0]["step"] == 0
        take_step(optimizer, [p], lambda p: (p**4).sum())
    assert groups[0].keys() == {"params", "lr"}
