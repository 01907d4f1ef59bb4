"""The update rules that others published on the same curvature (docs/rules.md).

The dense oracle has every option in tests/library/test_optimizer.py. Here the published algorithms
are written out, and each rule meets what the engine does besides: parts, delays, files, AMP.
"""

import copy
import inspect
import math
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support import published
from support.device import device
from support.problems import conv_problem
from support.rules import RULES, SASSHA, SOPHIA
from support.spoiled import Spoiled
from support.stepping import assert_unchanged, hear, leaves, save_and_load, snapshot, take_step
from torch import nn
from torch.amp import GradScaler

from adahessian import AdaHessian, SophiaH
from adahessian.conformance import cases, check
from adahessian.options import SECOND_MOMENTS
from adahessian.probes import rademacher_like

EVERY = pytest.mark.parametrize("options", RULES.values(), ids=RULES.keys())


# --- the published algorithms, in their own letters -----------------------------------------------


def given(params, loss_function, step, due):
    """The gradient, and z ∘ Hz where it is due, of the library's probe."""
    leaf = leaves(params)
    grads = torch.autograd.grad(loss_function(*leaf), leaf, create_graph=True)
    if not due:
        return [g.detach() for g in grads], None
    probe = rademacher_like(params, seed=0, step=step)
    products = torch.autograd.grad(grads, leaf, probe)
    return [g.detach() for g in grads], [z * hz for z, hz in zip(probe, products, strict=True)]


def sophia(params, loss_function, steps, *, eta, beta1, beta2, gamma, eps, lam, k):
    """Algorithm 3 of arXiv:2305.14342, with Hutchinson's estimator."""
    theta = [p.clone() for p in params]
    m, h = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for t in range(1, steps + 1):
        g, estimate = given(theta, loss_function, t - 1, due=t % k == 1 or k == 1)
        for i in range(len(theta)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            if estimate is not None:
                h[i] = beta2 * h[i] + (1 - beta2) * estimate[i]
            theta[i] = theta[i] - eta * lam * theta[i]
            ratio = m[i] / torch.maximum(gamma * h[i], torch.tensor(eps))
            theta[i] = theta[i] - eta * ratio.clip(-1, 1)
    return theta


def sassha(params, loss_function, steps, *, eta, beta1, beta2, eps, lam, k):
    """Algorithm 1 of arXiv:2502.18153 without its perturbation (ρ = 0); ε as in its code."""
    x = [p.clone() for p in params]
    m, h, h_hat = ([torch.zeros_like(p) for p in params] for _ in range(3))
    for t in range(1, steps + 1):
        g, estimate = given(x, loss_function, t - 1, due=t % k == 1 or k == 1)
        for i in range(len(x)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            if estimate is not None:
                h[i] = beta2 * h[i] + (1 - beta2) * estimate[i].abs()
                h_hat[i] = (h[i] / (1 - beta2**t)) ** 0.5
            decayed = x[i] - eta * lam * x[i]
            x[i] = decayed - eta * m[i] / (1 - beta1**t) / (h_hat[i] + eps)
    return x


def run(optimizer, params, loss_function, steps):
    for _ in range(steps):
        take_step(optimizer, params, loss_function)
    return [p.detach() for p in params]


@pytest.mark.parametrize("k", [1, 3])
def test_sophia_h_is_its_papers_algorithm(k):
    initial, loss = conv_problem()
    eta, gamma, lam = 0.02, 0.3, 0.05
    expected = sophia(
        initial, loss, 10, eta=eta, beta1=0.96, beta2=0.99, gamma=gamma, eps=1e-12, lam=lam, k=k
    )
    params = leaves(initial)
    optimizer = SophiaH(
        params, eta / gamma, eps=1e-12 / gamma, weight_decay=lam * gamma, update_clip=gamma,
        update_interval=k,
    )  # fmt: skip
    found = run(optimizer, params, loss, 10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    moved = torch.cat([(a - b).flatten().abs() for a, b in zip(found, initial, strict=True)])
    assert len(moved.unique()) > 40  # not all are clipped


@pytest.mark.parametrize("k", [1, 3])
def test_sassha_without_its_perturbation_is_its_papers_algorithm(k):
    initial, loss = conv_problem()
    expected = sassha(initial, loss, 10, eta=0.05, beta1=0.9, beta2=0.999, eps=1e-4, lam=0.1, k=k)
    params = leaves(initial)
    options = {**SASSHA, "lr": 0.05, "weight_decay": 0.1, "update_interval": k}
    found = run(AdaHessian(params, **options), params, loss, 10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_how_many_refreshes_are_counted_matters_where_they_are_rare():
    """What Sassha's own correction makes of its learning rate: why it is an option."""
    h = torch.tensor([2.0], dtype=torch.float64)
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    options = {**SASSHA, "update_interval": 10, "lr": 0.0}
    optimizer = AdaHessian([x], **options)
    run(optimizer, [x], lambda x: 0.5 * (h * x * x).sum(), 991)
    state = optimizer.state[x]
    seen = state["exp_hessian_diag_abs"] / h
    assert state["num_refreshes"] == 100 and state["last_refresh"] == 991
    torch.testing.assert_close(seen.item(), 1 - 0.999**100, rtol=1e-9, atol=0)
    assert 0.15 < seen.item() / (1 - 0.999**991) < 0.153


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_installed_sophia_h_follows_the_same_vectors():
    pytest.importorskip("pytorch_optimizer")
    outcomes = [check(published.pytorch_optimizer, case) for case in cases("sophia*")]
    assert len(outcomes) == 3 and {o.verdict for o in outcomes} == {"passes"}, outcomes


def test_a_power_that_changes_in_training():
    """Sassha's code has schedules of the power; here it is set like a learning rate."""
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, **{**SASSHA, "update_interval": 1})
    expected = [p.clone() for p in initial]
    m, h = ([torch.zeros_like(p) for p in initial] for _ in range(2))
    for t in range(1, 7):
        power = 0.5 + 0.05 * t
        optimizer.param_groups[0]["hessian_power"] = power
        g, estimate = given(expected, loss, t - 1, due=True)
        take_step(optimizer, params, loss)
        for i in range(len(m)):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            h[i] = 0.999 * h[i] + 0.001 * estimate[i].abs()
            denominator = (h[i] / (1 - 0.999**t)) ** power + 1e-4
            expected[i] = expected[i] - 0.15 * m[i] / (1 - 0.9**t) / denominator
    torch.testing.assert_close([p.detach() for p in params], expected, rtol=1e-10, atol=1e-10)


# --- with what the engine does --------------------------------------------------------------------


def test_no_element_moves_further_than_the_clip_allows():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, lr=0.5, update_clip=0.02, eps=1e-8)
    before = [p.clone() for p in initial]
    for _ in range(4):
        take_step(optimizer, params, loss)
        moved = [(p.detach() - b).abs().max().item() for p, b in zip(params, before, strict=True)]
        assert max(moved) <= 0.5 * 0.02 + 1e-15 and max(moved) > 0.0099
        before = [p.detach().clone() for p in params]


def test_negative_curvature_is_bounded_below_by_eps():
    """m / max(h, eps), not m / |h|: on a concave loss each element moves by the clip, downhill."""
    x = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = SophiaH([x], lr=1.0, update_clip=0.1, update_interval=1)
    take_step(optimizer, [x], lambda x: -(x**2).sum())
    torch.testing.assert_close(x.detach(), torch.tensor([0.6, -2.1], dtype=torch.float64))
    assert (optimizer.state[x]["exp_hessian_diag"] < 0).all()


@EVERY
@pytest.mark.parametrize("foreach", [True, False])
def test_ascent_is_descent_on_the_negative_loss(options, foreach):
    """Regression: a signed average was that of the loss itself, and every element clipped."""
    initial, loss = conv_problem()
    down, up = leaves(initial), leaves(initial)
    options = {**options, "foreach": foreach}
    run(AdaHessian(down, **{**options, "maximize": False}), down, loss, 4)
    run(AdaHessian(up, **{**options, "maximize": True}), up, lambda *p: -loss(*p), 4)
    for p, q in zip(down, up, strict=True):
        assert torch.equal(p, q)


@EVERY
def test_finite_differences_follow_double_backward(options):
    initial, loss = conv_problem()
    exact, close = leaves(initial), leaves(initial)
    options = {**options, "lr": options.get("lr", 0.15) / 3}
    run(AdaHessian(exact, **options), exact, loss, 4)
    run(AdaHessian(close, curvature="finite_difference", **options), close, loss, 4)
    torch.testing.assert_close(close, exact, rtol=1e-4, atol=1e-4)


@EVERY
def test_a_part_that_is_the_whole_batch_changes_nothing(options):
    """Its halves are alike, so there is no noise, and no factor."""
    initial, loss = conv_problem()
    whole, part = leaves(initial), leaves(initial)
    run(AdaHessian(whole, **options), whole, loss, 5)
    optimizer = AdaHessian(part, curvature_fraction=0.5, **options)
    optimizer.curvature_closure = lambda start, stop: loss(*part)
    run(optimizer, part, loss, 5)
    torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("moment", SECOND_MOMENTS)
def test_the_factor_of_a_part_is_for_magnitudes_only(moment):
    """A signed average of parts is unbiased: it is not made smaller, and takes no halves."""
    examples = torch.tensor([1.0, 9.0], dtype=torch.float64)  # diag H of each half of the batch
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    averaging = {"averaging": "signed"} if moment == "signed" else {}
    optimizer = AdaHessian(
        [x], lr=0.0, second_moment=moment, curvature_fraction=0.5, block_size=None, **averaging
    )
    asked = []

    def part(start, stop):
        asked.append((start, stop))
        at = 0 if stop <= 0.25 or (start, stop) == (0.0, 0.5) else 1
        return 0.5 * examples[at] * (x**2).sum()

    optimizer.curvature_closure = part
    take_step(optimizer, [x], lambda x: 2.5 * (x**2).sum())
    found = optimizer.state[x][SECOND_MOMENTS[moment]].item() / (1 - 0.999)
    if moment == "signed":
        assert asked == [(0, 0.5)] and found == pytest.approx(1.0)
        assert "exp_signal_sq" not in optimizer.state[x]
    else:
        # s = (1 + 9) / 2, noise (1 - 9) / 2: signal² = 25 - 8, noise² = 8, share 17 / 25.
        d = 5 * math.sqrt(17 / 25)
        assert asked == [(0, 0.25), (0.25, 0.5)]
        assert found == pytest.approx(d**2 if moment == "rms" else d)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("moment", SECOND_MOMENTS)
def test_elements_without_curvature_wait_for_a_part_that_shows_it(moment, foreach):
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    averaging = {"averaging": "signed"} if moment == "signed" else {}
    optimizer = AdaHessian(
        [x], second_moment=moment, curvature_fraction=0.5, foreach=foreach, update_clip=0.1,
        block_size=None, **averaging,
    )  # fmt: skip
    sign = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    optimizer.curvature_closure = lambda start, stop: (sign * x**2).sum()
    take_step(optimizer, [x], lambda x: x.sum())
    assert (x.detach() < 1).tolist() == [True, True, False]


@EVERY
@pytest.mark.parametrize("stop_at", [1, 2])
def test_resume_is_bitwise_the_uninterrupted_run(options, stop_at):
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, **options)
    run(optimizer, params, loss, stop_at)
    others = leaves(params)
    resumed = AdaHessian(others)  # the options are in the file, too
    resumed.load_state_dict(save_and_load(optimizer.state_dict()))
    twins = [resumed, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    run(optimizer, params, loss, 4)
    for twin in twins:
        others = twin.param_groups[0]["params"]
        run(twin, others, loss, 4)
        for p, q in zip(params, others, strict=True):
            assert torch.equal(p, q)


def test_a_file_without_the_rule_is_of_adahessian():
    """One of an earlier version: its average is not taken for that of another rule."""
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p], averaging="signed")
    run(optimizer, [p], lambda p: (p**4).sum(), 2)
    earlier = optimizer.state_dict()
    for name in ("second_moment", "bias_correction", "update_clip"):
        del earlier["param_groups"][0][name]
    other = SophiaH([torch.ones(3, requires_grad=True)])
    with pytest.raises(ValueError, match="exp_hessian_diag_sq, but no exp_hessian_diag$"):
        other.load_state_dict(earlier)
    assert not other.state
    again = AdaHessian([torch.ones(3, requires_grad=True)])
    again.load_state_dict(earlier)
    assert again.param_groups[0]["second_moment"] == "rms"


@pytest.mark.parametrize("correction", ["refreshes", "steps", None])
@pytest.mark.parametrize("moment", SECOND_MOMENTS)
def test_a_curvature_that_is_not_finite_leaves_the_corrected_average(moment, correction):
    """Also where refreshes are rare, and steps are counted."""
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    averaging = {"averaging": "signed"} if moment == "signed" else {}
    optimizer = AdaHessian(
        [x], lr=0.05, second_moment=moment, bias_correction=correction, update_interval=3,
        betas=(0.9, 0.99), **averaging,
    )  # fmt: skip

    def average():
        state = optimizer.state[x]
        count = {"refreshes": "num_refreshes", "steps": "last_refresh"}.get(correction)
        return state[SECOND_MOMENTS[moment]] / (1 - 0.99 ** state[count].item() if count else 1)

    for step in range(8):
        before = average() if step else None
        Spoiled.spoil, Spoiled.at = step == 6, x.detach().clone()
        try:
            with pytest.warns(UserWarning, match="not finite") if step == 6 else nullcontext():
                take_step(optimizer, [x], lambda x: Spoiled.apply(x).sum())
                hear(optimizer)
        finally:
            Spoiled.spoil = False
        if step in (3, 6):
            changed = not torch.allclose(average(), before, rtol=1e-12, atol=0)
            assert changed == (step == 3)
    assert optimizer.state[x]["num_refreshes"] == 3 and x.isfinite().all()


def test_what_is_averaged_cannot_change_in_training():
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([("w", p)], averaging="signed")
    run(optimizer, [p], lambda p: (p**4).sum(), 2)
    for other in ("signed", "mean_abs"):
        before = snapshot(optimizer, [p])
        optimizer.param_groups[0]["second_moment"] = other
        with pytest.raises(ValueError, match=rf"\(w\).* began with .*'rms'.*{other}"):
            take_step(optimizer, [p], lambda p: (p**4).sum())
        optimizer.param_groups[0]["second_moment"] = "rms"
        assert_unchanged(optimizer, [p], before)


def test_groups_may_follow_rules_of_their_own():
    initial, loss = conv_problem()
    together, apart = leaves(initial), [leaves(initial) for _ in range(2)]
    halves = slice(0, 3), slice(3, None)
    rules = {**SOPHIA, "update_interval": 1}, {**SASSHA, "update_interval": 1}
    groups = [{"params": together[h], **r} for h, r in zip(halves, rules, strict=True)]
    take_step(AdaHessian(groups), together, loss)
    for params, half, rule in zip(apart, halves, rules, strict=True):
        take_step(AdaHessian(params, **rule), params, loss)
        for p, q in zip(params[half], together[half], strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("rule", ["sophia", "sassha"])
def test_the_loss_scale_is_taken_out(rule):
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(device())
        x, y = torch.randn(16, 4, device=device()), torch.randint(3, (16,), device=device())
        optimizer = AdaHessian(model.parameters(), **{**RULES[rule], "lr": 0.05})
        scaler = GradScaler(device(), init_scale=65536.0, enabled=enabled)
        for _ in range(6):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward(create_graph=optimizer.needs_graph)
            scaler.step(optimizer)
            scaler.update()
        results.append(list(model.parameters()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second_moment": "ema"}, "second_moment must be one of .*'ema'"),
        ({"second_moment": ["rms"]}, "second_moment must be one of"),
        ({"bias_correction": "step"}, "bias_correction must be one of .*'step'"),
        ({"bias_correction": False}, "bias_correction must be one of .*False"),
        ({"update_clip": 0.0}, "update_clip must be None or finite and above 0, got 0.0"),
        ({"update_clip": math.inf}, "update_clip must be None or finite"),
        ({"update_clip": True}, "update_clip must be None or finite"),
        ({"second_moment": "signed"}, "averaging must be 'signed' with second_moment='signed'"),
        (
            {"second_moment": "signed", "averaging": "signed", "eps": 0.0},
            "eps must be above 0 with second_moment='signed'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        AdaHessian([torch.ones(3, requires_grad=True)], **options)
    assert "\n" not in str(caught.value)


def test_sophia_h_is_adahessian_with_its_options():
    initial, loss = conv_problem()
    named, spelled = leaves(initial), leaves(initial)
    optimizer = SophiaH(named)
    options = {**SOPHIA, "lr": 0.06, "update_interval": 10}
    other = AdaHessian(spelled, **options)
    assert optimizer.defaults == other.defaults
    assert set(optimizer.defaults) == set(AdaHessian([torch.ones(1)]).defaults)
    for _ in range(11):
        take_step(optimizer, named, loss)
        take_step(other, spelled, loss)
    for p, q in zip(named, spelled, strict=True):
        assert torch.equal(p, q)
    arguments = inspect.signature(SophiaH).parameters
    fixed = {"averaging", "second_moment", "bias_correction", "hessian_power"}
    assert set(inspect.signature(AdaHessian).parameters) == set(arguments) | fixed


def test_the_names_in_the_docs_are_these():
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    for name in ("second_moment", "bias_correction", "update_clip", *SECOND_MOMENTS.values()):
        assert name in page
