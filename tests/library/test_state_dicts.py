"""Saving, loading and copying an optimizer: its own states, and those of others.

"Regression:" names a published implementation that fails the test (repositories as in
docs/implementations.md).
"""

import copy
import pickle

import pytest
import torch
from support.problems import conv_problem
from support.stepping import assert_unchanged, leaves, save_and_load, snapshot, take_step
from torch import nn

from adahessian import AdaHessian


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


def test_a_pickle_of_an_earlier_version_is_readable():
    """Its defaults hold the counters too."""
    x = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([x], update_interval=3)
    take_step(optimizer, [x], lambda x: (x**4).sum())
    optimizer.defaults |= {"step": 0, "last_refresh": None}
    del optimizer.defaults["curvature_fraction"]  # it knew none
    twin = pickle.loads(pickle.dumps(optimizer))
    assert not set(AdaHessian.COUNTERS) & set(twin.defaults)
    assert [twin.param_groups[0][key] for key in AdaHessian.COUNTERS] == [1, 0, (), 1.0]
    twin.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert [twin.param_groups[1][key] for key in AdaHessian.COUNTERS] == [1, 0, (), 1.0]


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


def with_state(**options):
    x = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([x], **options)
    take_step(optimizer, [x], lambda x: (x**4).sum())
    return optimizer, x


@pytest.mark.parametrize("options", [{}, {"lr": torch.tensor(0.1)}])
def test_two_living_optimizers_share_nothing(options):
    """Regression: torch's own load aliases every tensor of the state."""
    optimizer, x = with_state(**options)
    y = x.detach().clone().requires_grad_()
    other = AdaHessian([y])
    given = optimizer.state_dict()
    other.load_state_dict(given)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(2):
        take_step(other, [y], lambda x: (x**4).sum())
    other.param_groups[0]["lr"] *= 2
    torch.testing.assert_close(optimizer.state_dict()["state"], before, rtol=0, atol=0)
    torch.testing.assert_close(given["state"], before, rtol=0, atol=0)
    assert optimizer.param_groups[0]["lr"] == options.get("lr", 0.15)


def test_copies_and_loads_grow_no_option():
    optimizer, _ = with_state()
    optimizer.zero_grad()
    options = set(optimizer.defaults)
    groups = set(optimizer.param_groups[0])
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin.load_state_dict(optimizer.state_dict())
        assert set(twin.defaults) == options and set(twin.param_groups[0]) == groups


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.Adam(p), "another optimizer: the state of parameter 0 .*exp_avg_sq"),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "another optimizer: .* momentum_buffer"),
        (lambda p: torch.optim.RMSprop(p), "another optimizer: .* square_avg"),
        (lambda p: torch.optim.Adagrad(p), "another optimizer: .* sum"),
    ],
)
def test_a_state_of_another_optimizer_is_refused_and_nothing_changes(make, message):
    x = torch.ones(3, requires_grad=True)
    foreign = make([x])
    (x**2).sum().backward()
    foreign.step()
    optimizer, y = with_state()
    before = snapshot(optimizer, [y])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(foreign.state_dict())
    assert_unchanged(optimizer, [y], before)
    assert set(optimizer.param_groups[0]) == set(AdaHessian([y]).param_groups[0])


def spoil_shape(state_dict):
    state_dict["state"][0]["exp_avg"] = torch.ones(4)


def spoil_option(state_dict):
    state_dict["param_groups"][0]["betas"] = (0.9, 1.0)


def spoil_way(state_dict):
    state_dict["param_groups"][0]["curvature"] = "exact"


def spoil_decay(state_dict):
    state_dict["param_groups"][0] |= {"weight_decay": 0.1, "fixed_decay": True}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shape, r"of other parameters: .* shape \(3,\).*exp_avg of shape \(4,\)"),
        (spoil_option, "betas must be"),
        (spoil_way, "curvature must be one of"),
        (spoil_decay, "fixed_decay=True, which AdaHessian has not"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(spoil, message):
    optimizer, x = with_state()
    spoiled = copy.deepcopy(optimizer.state_dict())
    spoil(spoiled)
    before = snapshot(optimizer, [x])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(spoiled)
    assert_unchanged(optimizer, [x], before)
    take_step(optimizer, [x], lambda x: (x**4).sum())


def test_counts_in_the_group_are_taken_over():
    """pytorch_optimizer's are there."""
    x = torch.full((3,), 0.5, requires_grad=True)
    averages = {"exp_avg": torch.ones(3), "exp_hessian_diag_sq": torch.full((3,), 4.0)}
    published = {
        "state": {0: {**averages, "hessian": torch.ones(3)}},
        "param_groups": [{"lr": 0.05, "step": 40, "weight_decouple": True, "params": [0]}],
    }
    optimizer = AdaHessian([x])
    optimizer.load_state_dict(published)
    assert optimizer.needs_graph and "hessian" not in optimizer.state[x]
    take_step(optimizer, [x], lambda x: (x**2).sum())
    assert optimizer.state[x]["step"] == optimizer.state[x]["num_refreshes"] == 41
    assert optimizer.param_groups[0]["step"] == 41


def test_a_state_dict_from_between_two_refreshes_of_an_earlier_version():
    """It knows neither when a parameter was refreshed last nor which one waits."""
    optimizer, x = with_state(update_interval=3)
    earlier = copy.deepcopy(optimizer.state_dict())
    del earlier["state"][0]["last_refresh"], earlier["param_groups"][0]["missed"]
    y = x.detach().clone().requires_grad_()
    other = AdaHessian([y], update_interval=3)
    other.load_state_dict(earlier)
    for _ in range(5):
        assert optimizer.needs_graph == other.needs_graph
        for o, p in ((optimizer, x), (other, y)):
            take_step(o, [p], lambda x: (x**4).sum())
    assert torch.equal(x, y)
