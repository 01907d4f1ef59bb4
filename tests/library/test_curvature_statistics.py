"""Statistics from the optimizer's own products, beside dense truth."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from support.device import device
from support.problems import conv_problem, coupled_quadratic
from support.reference import blocks, dense_hessian
from support.rules import RULES
from torch import nn

from adahessian import AdaHessian, CurvatureStatistics
from adahessian.curvature_statistics import DiagonalRecorder, denominators
from adahessian.spectrum import layers


def make_step(params, loss, **options):
    """An optimizer that stays where it is, and one step of it: the Hessian is constant."""
    optimizer = AdaHessian(params, lr=0.0, **options)

    def closure():
        optimizer.zero_grad()
        value = loss(*params)
        value.backward(create_graph=optimizer.needs_graph)
        return value

    return optimizer, lambda: optimizer.step(closure)


def quadratic(seed=0, shift=0.0, **options):
    """Two tensors of six elements with a dense, possibly indefinite Hessian."""
    hessian, _ = coupled_quadratic(seed=seed)
    hessian = hessian - shift * torch.eye(12, dtype=torch.float64)
    params = [torch.zeros(6, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(a, b):
        x = torch.cat([a, b])
        return 0.5 * x @ hessian @ x

    return hessian, params, *make_step(params, loss, **options)


def all_probes_samples(hessian):
    """z · Hz for each of the 2ⁿ probes there are, (2ⁿ, n): expectations are exact means."""
    z = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(hessian))), dtype=torch.float64)
    return z * (z @ hessian)


def watch_products(statistics, num_refreshes, hessian, optimizer, params, seed=0):
    """The samples of many refreshes, without the steps around them."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(2, (num_refreshes, len(hessian)), generator=g).double() * 2 - 1
    for u in z * (z @ hessian):
        statistics(optimizer, params, u.split([p.numel() for p in params]))
    return statistics.summary()


def collect(optimizer, step, num_refreshes, statistics):
    handle = optimizer.register_curvature_hook(statistics)
    for _ in range(num_refreshes):
        step()
    handle.remove()
    return statistics.summary()


def test_traces_of_a_network_agree_with_the_dense_hessian():
    params, loss = conv_problem()
    truth = dense_hessian(loss, params).diagonal().split([p.numel() for p in params])
    for p in params:
        p.requires_grad_()
    named = {f"layer{i}": [p] for i, p in enumerate(params[:-1])}  # the last is in no layer
    summary = collect(*make_step(params, loss), 100, CurvatureStatistics(named))
    found = [summary.trace, *summary.layer_traces.values()]
    true_traces = [sum(float(t.sum()) for t in truth), *(float(t.sum()) for t in truth[:-1])]
    for estimate, value in zip(found, true_traces, strict=True):
        assert abs(estimate.value - value) < 4 * estimate.standard_error
        assert estimate.num_matvecs == 100
    assert list(summary.layer_traces) == list(named)
    assert summary.trace.standard_error < 0.5 * abs(summary.trace.value)


def test_the_traces_standard_error_covers():
    """95 % intervals of Student's t from 20 refreshes hold the truth in 95 % of 200 windows."""
    hessian, params, optimizer, _ = quadratic()
    statistics = CurvatureStatistics(largest_block=1)
    truth, hits = float(hessian.trace()), 0
    for seed in range(200):
        trace = watch_products(statistics, 20, hessian, optimizer, params, seed).trace
        hits += abs(trace.value - truth) < 2.09 * trace.standard_error
        statistics.reset()
    assert 0.88 <= hits / 200 <= 0.99


def test_drift_is_not_counted_as_chance():
    hessian, params, optimizer, _ = quadratic()
    statistics = CurvatureStatistics(largest_block=1)
    scales = [1 + i / 40 for i in range(400)]
    for seed, scale in enumerate(scales):
        watch_products(statistics, 1, scale * hessian, optimizer, params, seed)
    error = statistics.summary().trace.standard_error
    single = float(all_probes_samples(hessian).sum(1).std())
    assert error == pytest.approx(single * math.hypot(*scales) / 400, rel=0.15)
    drift = float(hessian.trace() * torch.tensor(scales).std()) / 400**0.5
    assert drift > error  # what the samples' plain standard deviation would count too


def test_frobenius_norm():
    hessian, params, optimizer, _ = quadratic()
    summary = watch_products(CurvatureStatistics(), 1000, hessian, optimizer, params)
    squares = all_probes_samples(hessian).square().sum(1)
    error = float(squares.std()) / 1000**0.5
    assert abs(summary.frobenius_norm**2 - float((hessian**2).sum())) < 4 * error


@pytest.mark.parametrize("shift", [0.0, 2.0, 10.0])
def test_negative_share(shift):
    hessian, params, optimizer, _ = quadratic(shift=shift)
    statistics = CurvatureStatistics(largest_block=1)
    share = watch_products(statistics, 2000, hessian, optimizer, params).negative_share
    diagonal = hessian.diagonal()
    truth = float(diagonal.clamp(max=0).abs().sum() / diagonal.abs().sum())
    assert share == pytest.approx(truth, abs=0.03)
    assert (truth == 0, truth == 1) == (shift == 0, shift == 10)


def test_finite_differences_know_no_negative_share():
    params, loss = conv_problem()
    params = [p.requires_grad_() for p in params]
    summary = collect(*make_step(params, loss, curvature="finite_difference"), 2,
                      CurvatureStatistics())  # fmt: skip
    assert summary.negative_share is None and summary.frobenius_norm > 0


def test_signal_to_noise_is_that_of_the_block_average():
    """Against the expectation over all 4,096 probes; tensors of 6: a run of 4 leaves one of 2."""
    hessian, params, optimizer, _ = quadratic()
    statistics = CurvatureStatistics(largest_block=8)
    found = watch_products(statistics, 4000, hessian, optimizer, params).signal_to_noise
    samples, diagonal = all_probes_samples(hessian), hessian.diagonal()
    assert list(found) == [1, 2, 4, 8]
    for size, ratio in found.items():
        averages = samples.clone()
        for block in blocks((6,), size):
            for start in (0, 6):
                members = [start + i for i in block]
                averages[:, members] = samples[:, members].mean(1, keepdim=True)
        error = (averages - diagonal).square().sum(1).mean()
        assert ratio == pytest.approx(float(diagonal.square().sum() / error), rel=0.1), size


def test_signal_to_noise_finds_the_block_size_of_the_truth():
    """A diagonal that is constant on runs of 4, with noise: averages of 4 are the best."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 64, generator=g, dtype=torch.float64)
    hessian = 0.3 * (noise + noise.T)
    levels = torch.randn(16, generator=g, dtype=torch.float64).repeat_interleave(4)
    hessian.diagonal().copy_(3 * levels)
    x = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    optimizer, _ = make_step([x], lambda x: 0.5 * x @ hessian @ x)
    statistics = CurvatureStatistics(largest_block=16)
    found = watch_products(statistics, 300, hessian, optimizer, [x]).signal_to_noise
    assert max(found, key=found.get) == 4


def test_no_noise_at_all():
    x = torch.zeros(3, requires_grad=True)
    diagonal = torch.tensor([1.0, -2.0, 5.0])
    optimizer, step = make_step([x], lambda x: 0.5 * (diagonal * x * x).sum())
    summary = collect(optimizer, step, 3, CurvatureStatistics(largest_block=1))
    assert summary.trace.value == 4 and summary.trace.standard_error == 0
    assert summary.frobenius_norm == pytest.approx(30**0.5)
    assert summary.negative_share == 0.25
    assert summary.signal_to_noise == {1: math.inf}


def test_no_curvature_at_all():
    x = torch.ones(3, requires_grad=True)
    optimizer, step = make_step([x], lambda x: 0 * (x * x).sum())
    summary = collect(optimizer, step, 2, CurvatureStatistics(largest_block=2))
    assert (summary.trace.value, summary.frobenius_norm, summary.negative_share) == (0, 0, 0)
    assert summary.signal_to_noise == {1: 0, 2: 0}


def test_a_single_refresh_has_no_error_and_none_says_nothing():
    _, _, optimizer, step = quadratic()
    statistics = CurvatureStatistics()
    assert statistics.summary() is None
    summary = collect(optimizer, step, 1, statistics)
    assert summary.trace.standard_error == math.inf and summary.signal_to_noise == {}


def test_several_samples_of_a_refresh_are_one():
    hessian, _, optimizer, step = quadratic(num_samples=4)
    summary = collect(optimizer, step, 300, CurvatureStatistics())
    single = all_probes_samples(hessian)
    assert summary.trace.num_matvecs == 1200
    error = float(single.sum(1).std()) / 1200**0.5
    assert summary.trace.standard_error == pytest.approx(error, rel=0.2)
    assert summary.frobenius_norm == pytest.approx(float(hessian.norm()), rel=0.05)
    noise = float((single - hessian.diagonal()).square().sum(1).mean()) / 4
    signal = float(hessian.diagonal().square().sum())
    assert summary.signal_to_noise[1] == pytest.approx(signal / noise, rel=0.15)


def test_partial_refreshes_are_left_out_and_new_parameters_begin_anew():
    params = [torch.ones(2, requires_grad=True) for _ in range(3)]

    def loss(a, b, c):
        return sum((p**2).sum() for p in (a, b, c) if p.requires_grad)

    params[2].requires_grad_(False)
    groups = [{"params": params[:1]}, {"params": params[1:], "update_interval": 2}]
    optimizer = AdaHessian(groups, lr=0.0)

    def closure():
        optimizer.zero_grad()
        loss(*params).backward(create_graph=optimizer.needs_graph)

    statistics = CurvatureStatistics(dict(zip("abc", [[p] for p in params], strict=True)))
    optimizer.register_curvature_hook(statistics)
    for _ in range(4):
        optimizer.step(closure)
    summary = statistics.summary()
    assert (summary.trace.value, summary.trace.num_matvecs) == (8, 2)
    assert [e.value for e in summary.layer_traces.values()] == [4, 4, 0]
    params[2].requires_grad_()
    optimizer.step(closure)
    summary = statistics.summary()
    assert (summary.trace.value, summary.trace.num_matvecs) == (12, 1)


def test_what_is_not_finite_does_not_count():
    _, params, optimizer, step = quadratic()
    clean, dirty = CurvatureStatistics(), CurvatureStatistics()
    optimizer.register_curvature_hook(clean)
    optimizer.register_curvature_hook(dirty)
    for spoiled in (False, True, False, False):
        if spoiled:
            dirty(optimizer, params, [torch.full((6,), math.inf), torch.zeros(6)])
        else:
            step()
    assert clean.summary().trace.value == dirty.summary().trace.value
    assert clean.summary().frobenius_norm == dirty.summary().frobenius_norm
    # The pair that the bad one stood between is no pair.
    assert dirty.state_dict()["sums"]["pairs"] == 1 and clean.state_dict()["sums"]["pairs"] == 2


def test_a_scaled_loss_shows_unscaled_curvature():
    def traces(scaler):
        x = torch.ones(3, requires_grad=True)
        optimizer = AdaHessian([x])
        found = []
        optimizer.register_curvature_hook(lambda _, params, u: found.append(u[0].clone()))
        scaler.scale((x**3).sum()).backward(create_graph=True)
        scaler.step(optimizer)
        return found

    enabled = torch.amp.GradScaler(device(), init_scale=1024.0)
    disabled = torch.amp.GradScaler(device(), enabled=False)
    assert torch.equal(traces(enabled)[0], traces(disabled)[0])


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(48, 4))  # fmt: skip
    return model.to(memory_format=torch.channels_last)


def train(model, optimizer, num_steps, first=0):
    for i in range(first, first + num_steps):
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(8, 1, 6, 6, generator=g), torch.randint(4, (8,), generator=g)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        optimizer.step(closure)


def test_watching_changes_nothing_and_a_window_survives_a_checkpoint(tmp_path):
    plain = network()
    train(plain, AdaHessian(plain.parameters()), 6)

    model = network()
    optimizer, whole = AdaHessian(model.parameters()), CurvatureStatistics(layers(model))
    optimizer.register_curvature_hook(whole)
    train(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "statistics": whole.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, 3, first=3)
    assert all(map(torch.equal, plain.state_dict().values(), model.state_dict().values()))

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = network()
    optimizer, resumed = AdaHessian(again.parameters()), CurvatureStatistics(layers(again))
    optimizer.register_curvature_hook(resumed)
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["statistics"])
    train(again, optimizer, 3, first=3)
    assert resumed.summary() == whole.summary()
    assert set(whole.summary().layer_traces) == {"0", "1", "4"}


def test_copies_and_pickles_of_the_optimizer_have_no_hooks():
    _, _, optimizer, step = quadratic()
    calls = []
    handle = optimizer.register_curvature_hook(lambda *_: calls.append(1))
    step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        x = twin.param_groups[0]["params"][0]
        twin.step(lambda x=x: (x**2).sum().backward(create_graph=True))
        twin.register_curvature_hook(lambda *_: calls.append(2))
    assert calls == [1]
    step()
    handle.remove()
    step()
    assert calls == [1, 1]


def test_the_largest_block_is_a_power_of_two():
    with pytest.raises(ValueError, match="largest_block must be a power of two, got 48"):
        CurvatureStatistics(largest_block=48)


# ---------------------------------------------------------------------------------- a single step


VARIANTS = [
    {},
    {"averaging": "signed", "block_size": 2},
    {"num_samples": 3, "block_size": "row"},
    {"curvature": "finite_difference", "block_size": None},
    {"hessian_power": 0.5, "eps": 0.01},
    {"process_group": None, "foreach": False},
]


@pytest.mark.parametrize("options", [*VARIANTS, *RULES.values()], ids=repr)
def test_what_a_step_was_divided_by(options):
    """Without momentum and weight decay a step is −lr g / denominator."""
    params, loss = conv_problem()
    params = [p.requires_grad_() for p in params]
    plain = {"lr": 0.01, "betas": (0.0, 0.9), "weight_decay": 0, "update_clip": None,
             "maximize": False, "update_interval": 2}  # fmt: skip
    optimizer = AdaHessian(params, **{**options, **plain})

    def closure():
        optimizer.zero_grad()
        value = loss(*params)
        value.backward(create_graph=optimizer.needs_graph)
        return value

    assert denominators(optimizer) == {}
    for _ in range(3):
        before = [p.detach().clone() for p in params]
        optimizer.step(closure)
        found = denominators(optimizer)
        for p, old in zip(params, before, strict=True):
            torch.testing.assert_close(old - 0.01 * p.grad / found[p], p.detach())


@pytest.mark.parametrize("options", VARIANTS)
def test_the_d_of_a_refresh(options):
    """The first one leaves v = (1 − β₂) d²; nothing is kept that nobody asked for."""
    params, loss = conv_problem()
    params = [p.requires_grad_() for p in params]
    optimizer = AdaHessian(params, betas=(0.9, 0.9), update_interval=2, **options)
    recorder = DiagonalRecorder()
    optimizer.register_curvature_hook(recorder)

    def closure():
        optimizer.zero_grad()
        value = loss(*params)
        value.backward(create_graph=optimizer.needs_graph)
        return value

    recorder.start()
    optimizer.step(closure)
    found = recorder.stop()
    for p in params:
        expected = (optimizer.state[p]["exp_hessian_diag_sq"] / 0.1).sqrt()
        torch.testing.assert_close(found[p].abs(), expected)
    recorder.start()
    optimizer.step(closure)  # refreshes nothing
    assert recorder.stop() == {}
    optimizer.step(closure)  # is not asked for
    assert recorder.stop() == {}
