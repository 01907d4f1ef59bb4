"""What torch's own test suite asks of every optimizer, and what else in torch takes one.

``torch.testing._internal.common_optimizers`` describes an optimizer and holds the inputs that all
must refuse; the checks that ``test/test_optim.py`` makes of the described ones are written anew
here, for an optimizer that needs a graph or a closure.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from support.device import on_gpu
from support.torch_test_suite import common_optimizers
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader, TensorDataset

from adahessian import AdaHessian

OptimizerErrorEnum = common_optimizers.OptimizerErrorEnum
OptimizerInfo, OptimizerInput = common_optimizers.OptimizerInfo, common_optimizers.OptimizerInput
get_error_inputs_for_all_optims = common_optimizers.get_error_inputs_for_all_optims


def inputs(device="cpu", dtype=None):
    configs = {
        "default": {},
        "lr": {"lr": 0.01},
        "tensor lr": {"lr": torch.tensor(0.01)},
        "weight decay": {"weight_decay": 0.1},
        "maximize": {"weight_decay": 0.1, "maximize": True},
        "power": {"hessian_power": 0.5},
        "row blocks": {"block_size": "row"},
        "interval": {"update_interval": 3},
        "samples": {"num_samples": 2},
        "clipped": {"max_grad_norm": 0.1},
        "finite difference": {"curvature": "finite_difference"},
        "finite difference, interval": {"curvature": "finite_difference", "update_interval": 3},
    }
    return [OptimizerInput(params=None, kwargs=k, desc=d) for d, k in configs.items()]


INFO = OptimizerInfo(
    AdaHessian,
    optim_inputs_func=inputs,
    optim_error_inputs_func=get_error_inputs_for_all_optims,
    supported_impls=("foreach",),
    supports_complex=False,
)
every_input = pytest.mark.parametrize("config", INFO.optim_inputs_func(), ids=lambda c: c.desc)


def regression(dtype=torch.float64, contiguous=True):
    """Return (params, loss) of a linear regression with an outlier, as torch's suite has it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, dtype=torch.float64, generator=generator).to(dtype)
    x = torch.randn(4, dtype=torch.float64, generator=generator).to(dtype)
    if not contiguous:
        weight = weight.t().contiguous().t()
    params = [nn.Parameter(weight), nn.Parameter(torch.zeros(5, dtype=dtype))]
    return params, lambda: ((params[0] @ x + params[1]) ** 2).sum()


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=optimizer.needs_graph)
        return value

    return closure


def run(config, steps=7, dtype=torch.float64, contiguous=True, **options):
    params, loss = regression(dtype, contiguous)
    optimizer = AdaHessian(params, **{**copy.deepcopy(config.kwargs), **options})
    losses = [optimizer.step(closure_of(optimizer, loss)).item() for _ in range(steps)]
    return params, optimizer, losses, loss


def assert_equal(first, second, tolerance=0):
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    INFO.optim_error_inputs_func("cpu", torch.float32),
    ids=lambda e: e.optimizer_error_input.desc,
)
def test_what_all_optimizers_must_refuse(error):
    given = error.optimizer_error_input
    params = [nn.Parameter(torch.zeros(1, 1))] if given.params is None else given.params
    # The words of ours name the value: only what torch itself raises has torch's words.
    message = "lr must be" if "lr" in given.kwargs else error.error_regex
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=message):
            AdaHessian(params, **given.kwargs)
    else:
        with pytest.raises(error.error_type, match=message):
            AdaHessian(params, **given.kwargs)


# --- stepping -------------------------------------------------------------------------------------


@every_input
@pytest.mark.parametrize("contiguous", [True, False])
def test_it_goes_in_the_right_direction(config, contiguous):
    _, _, losses, loss = run(config, steps=20, contiguous=contiguous)
    higher = config.kwargs.get("maximize", False)
    assert (loss().item() > losses[0]) == higher


@every_input
def test_foreach_is_the_for_loop(config):
    (p, a, *_), (q, b, *_) = run(config, foreach=True), run(config, foreach=False)
    # Fused multiplications and additions round once; the finite difference divides that by h.
    difference = config.kwargs.get("curvature") == "finite_difference"
    tolerance = (1e-6 if difference else 1e-12) if on_gpu() else 0
    assert_equal(p, q, tolerance)
    for s, t in zip(a.state.values(), b.state.values(), strict=True):
        assert s.keys() == t.keys()
        assert_equal(s.values(), t.values(), tolerance)


@every_input
def test_the_default_dtype_does_not_matter(config):
    expected, *_ = run(config, dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        params, optimizer, *_ = run(config, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(params, expected)
    assert all(s["exp_hessian_diag_sq"].dtype == torch.float32 for s in optimizer.state.values())


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("foreach", [True, False])
def test_parameters_of_several_dtypes(curvature, foreach):
    double, loss = regression()
    single, loss32 = regression(torch.float32)
    optimizer = AdaHessian([*double, *single], curvature=curvature, foreach=foreach, lr=0.05)
    both = closure_of(optimizer, lambda: loss() + loss32())
    first = optimizer.step(both).item()
    for _ in range(10):
        last = optimizer.step(both).item()
    assert last < first
    for p in (*double, *single):
        assert optimizer.state[p]["exp_avg"].dtype == p.dtype


def test_a_group_with_its_own_learning_rate_and_weight_decay():
    params, loss = regression()
    start = [p.detach().clone() for p in params]
    groups = [
        {"params": params[:1], "lr": 0.0},
        {"params": params[1:], "lr": 0.1, "weight_decay": 0.5},
    ]
    optimizer = AdaHessian(groups)
    optimizer.step(closure_of(optimizer, loss))
    assert torch.equal(params[0], start[0]) and not torch.equal(params[1], start[1])
    optimizer.param_groups[1]["lr"] = 0.0
    after = params[1].detach().clone()
    optimizer.step(closure_of(optimizer, loss))
    assert torch.equal(params[1], after)  # decoupled: the decay is lr · weight_decay


@every_input
def test_a_step_without_gradients_does_nothing(config):
    params, loss = regression()
    optimizer = AdaHessian(params, **config.kwargs)
    start = [p.detach().clone() for p in params]
    optimizer.step(None if optimizer.is_second_order else lambda: None)
    assert_equal(params, start)
    assert len(optimizer.state) == 0


@every_input
def test_a_step_with_zero_gradients_does_nothing_but_decay(config):
    params, loss = regression()
    optimizer = AdaHessian(params, **{**config.kwargs, "weight_decay": 0.0})
    start = [p.detach().clone() for p in params]
    optimizer.step(closure_of(optimizer, lambda: 0 * loss()))
    assert_equal(params, start)


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_gradients_that_are_zeroed_in_place(curvature):
    first, loss = regression()
    second, other_loss = regression()
    a, b = (AdaHessian(p, curvature=curvature) for p in (first, second))

    def in_place():
        b.zero_grad(set_to_none=False)
        value = other_loss()
        value.backward(create_graph=b.needs_graph)
        return value

    for _ in range(4):
        a.step(closure_of(a, loss))
        b.step(in_place)
    assert_equal(first, second)


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_gradients_of_parameters_that_are_not_ours_add_up(curvature):
    """A head is trained; what is below it, or belongs to another optimizer, gathers gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    optimizer = AdaHessian(model[2].parameters(), curvature=curvature)
    total = torch.zeros_like(model[0].weight)
    for _ in range(3):
        loss = model(x).square().mean()
        total += torch.autograd.grad(loss, model[0].weight)[0]
        optimizer.step(closure_of(optimizer, lambda: model(x).square().mean()))
        torch.testing.assert_close(model[0].weight.grad.detach(), total)


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_clipping_between_backward_and_step_leaves_the_curvature_alone(clip):
    states = []
    for limit in (1e-3, 1e9):
        params, loss = regression()
        optimizer = AdaHessian(params)
        loss().backward(create_graph=True)
        clip(params, limit)
        optimizer.step()
        states.append(optimizer.state_dict()["state"])
    for clipped, free in zip(states[0].values(), states[1].values(), strict=True):
        assert torch.equal(clipped["exp_hessian_diag_sq"], free["exp_hessian_diag_sq"])
        assert clipped["exp_avg"].norm() < 0.01 * free["exp_avg"].norm()


# --- hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_step_hooks_run_once_a_step(curvature):
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, a, k: calls.append("global before")),
        register_optimizer_step_post_hook(lambda o, a, k: calls.append("global after")),
    ]
    try:
        params, loss = regression()
        optimizer = AdaHessian(params, curvature=curvature)
        optimizer.register_step_pre_hook(lambda o, a, k: calls.append("before"))
        optimizer.register_step_post_hook(lambda o, a, k: calls.append("after"))
        for _ in range(2):
            optimizer.step(closure_of(optimizer, loss))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global before", "before", "after", "global after"] * 2


def test_state_dict_hooks():
    params, loss = regression()
    optimizer = AdaHessian(params)
    optimizer.step(closure_of(optimizer, loss))
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: calls.append(f"load {s['note']}"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "load 1", "loaded"]


# --- saving, copying, printing --------------------------------------------------------------------


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_input
def test_a_saved_state_dict_goes_on_as_if_nothing_was(config):
    params, optimizer, _, loss = run(config)
    twins, other_loss = regression()
    for p, q in zip(params, twins, strict=True):
        q.data.copy_(p)
    twin = AdaHessian(twins, **copy.deepcopy(config.kwargs))
    twin.load_state_dict(through_a_file(optimizer.state_dict()))
    for _ in range(5):
        assert twin.needs_graph == optimizer.needs_graph
        optimizer.step(closure_of(optimizer, loss))
        twin.step(closure_of(twin, other_loss))
    assert_equal(params, twins)


@every_input
def test_the_state_is_the_same_every_time(config):
    a, b = (run(config)[1].state_dict() for _ in range(2))
    assert a["param_groups"] == b["param_groups"]
    torch.testing.assert_close(a["state"], b["state"], rtol=0, atol=0)


@every_input
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_all_public_attributes(config, duplicate):
    _, optimizer, *_ = run(config)
    optimizer.zero_grad()
    twin = duplicate(optimizer)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public and public == {name for name in vars(twin) if not name.startswith("_")}
    assert repr(twin).startswith("AdaHessian (") and "update_interval" in repr(twin)
    assert twin.needs_graph == optimizer.needs_graph


def test_named_and_nameless_state_dicts_load_into_each_other():
    def build(named):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        params = model.named_parameters() if named else model.parameters()
        return model, AdaHessian(params)

    x = torch.ones(4, 3)
    for named in (True, False):
        model, optimizer = build(named)
        optimizer.step(closure_of(optimizer, lambda m=model: m(x).square().mean()))
        assert ("param_names" in optimizer.param_groups[0]) == named
        _, other = build(not named)
        other.load_state_dict(optimizer.state_dict())
        torch.testing.assert_close(other.state_dict()["state"], optimizer.state_dict()["state"])


# --- schedulers -----------------------------------------------------------------------------------

SCHEDULES = {
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "warm-up, then cosine": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 5)],
        milestones=[3],
    ),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, T_mult=2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "cycles": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "restarts in a sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.CosineAnnealingWarmRestarts(o, 3)],
        milestones=[2],
    ),
    "averaging": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3),
}


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_adamw(name, curvature):
    """A scheduler counts a step as one, however often the closure ran (it warns otherwise)."""
    params, loss = regression()
    others, other_loss = regression()
    ours = AdaHessian(params, lr=0.1, curvature=curvature)
    theirs = torch.optim.AdamW(others, lr=0.1)
    schedules = SCHEDULES[name](ours), SCHEDULES[name](theirs)
    for _ in range(8):
        ours.step(closure_of(ours, loss))
        other_loss().backward()
        theirs.step()
        for schedule in schedules:
            with warnings.catch_warnings():
                # SequentialLR passes an epoch to its schedulers, which torch deprecates.
                warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
                schedule.step()
        a, b = ours.param_groups[0], theirs.param_groups[0]
        assert a["lr"] == b["lr"] and a["betas"] == b["betas"]


# --- averaged models ------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_averaged_models(curvature):
    """Stochastic and exponential averages, and statistics measured again for the average."""
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = (x[:, 0] > x[:, 1] ** 2 - 1).long()
    loader = DataLoader(TensorDataset(x, y), 16)
    model = nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = AdaHessian(model.parameters(), lr=0.15, curvature=curvature)
    mean = swa_utils.AveragedModel(model)
    moving = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    scheduler = swa_utils.SWALR(optimizer, swa_lr=0.02, anneal_epochs=2)
    snapshots = []
    for _ in range(25):
        for xs, ys in loader:
            optimizer.step(
                closure_of(optimizer, lambda xs=xs, ys=ys: F.cross_entropy(model(xs), ys))
            )
        mean.update_parameters(model)
        moving.update_parameters(model)
        scheduler.step()
        snapshots.append(model[0].weight.detach().clone())
    torch.testing.assert_close(mean.module[0].weight, torch.stack(snapshots).mean(dim=0))
    assert scheduler.get_last_lr() == [0.02]
    for average in (mean, moving):
        swa_utils.update_bn(loader, average)
        average.eval()
        assert (average(x).argmax(dim=1) == y).float().mean() > 0.85
