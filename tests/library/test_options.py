"""Options: what is refused, learning rates and schedules, and what is no option."""

import inspect
import math

import numpy as np
import pytest
import torch
from support.problems import conv_problem
from support.stepping import leaves, save_and_load, take_step
from torch import nn

from adahessian import AdaHessian


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("lr", torch.ones(2)),
        ("lr", torch.tensor(0.1 + 0j)),
        ("lr", 1e308),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", (math.nan, 0.9)),
        ("betas", 0.9),
        ("betas", (torch.tensor(0.9), torch.tensor(0.999))),
        ("eps", -1e-8),
        ("eps", math.nan),
        ("eps", 1e39),
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


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_numbers_of_numpy_are_pythons(curvature):
    """Regression: some were refused, and a file that others were saved in was."""
    options = {
        "lr": 0.25, "eps": 0.125, "hessian_power": 0.5, "update_interval": 2, "num_samples": 2,
        "seed": 3, "check_interval": 2, "max_grad_norm": 0.5, "block_size": 4,
    }  # fmt: skip
    kinds = {float: np.float32, int: np.int64}
    given = {k: kinds[type(v)](v) for k, v in options.items()}
    options["betas"], given["betas"] = (0.5, 0.75), (np.float32(0.5), np.float64(0.75))
    initial, loss = conv_problem()
    params, others = leaves(initial), leaves(initial)
    a = AdaHessian(params, curvature=curvature, **options)
    b = AdaHessian(others, curvature=curvature, **given)
    b.param_groups[0] |= {"lr": np.float32(0.25), "update_interval": np.int32(2)}
    for _ in range(3):
        take_step(a, params, loss)
        take_step(b, others, loss)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    assert save_and_load(b.state_dict())["param_groups"] == a.state_dict()["param_groups"]
    with pytest.raises(ValueError, match="update_interval must be an int of at least 1"):
        AdaHessian(params, update_interval=np.int64(0))


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


def two_groups():
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    return params, AdaHessian([{"params": [p]} for p in params])


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize(
    "option",
    [
        {"curvature": "finite_difference"},
        {"curvature_fraction": 0.5},
        {"num_samples": 4},
        {"seed": 1},
        {"check_interval": 0},
        {"max_grad_norm": 1e-3},
    ],
)
def test_what_groups_share_cannot_be_set_in_one_of_them(option, group):
    """Regression: the first group's was taken, without a word."""
    name = next(iter(option))
    params, optimizer = two_groups()
    before = optimizer.state_dict()
    optimizer.param_groups[group] |= option
    with pytest.raises(ValueError, match=f"{name} is one for all parameter groups"):
        take_step(optimizer, params, lambda *p: sum((x**4).sum() for x in p))
    assert torch.equal(params[0], torch.ones(3))
    _, other = two_groups()
    with pytest.raises(ValueError, match=f"{name} is one for all parameter groups"):
        other.load_state_dict(optimizer.state_dict())
    assert other.state_dict() == before


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


def test_a_schedule_may_end_below_zero_by_rounding():
    """Regression: LinearLR from 0.1 to 0 ends at -4.8e-19."""
    p = nn.Parameter(torch.ones(3))
    optimizer = AdaHessian([p], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = -4.8e-19
    take_step(optimizer, [p], lambda p: (p**4).sum())
    assert torch.equal(p.detach(), torch.ones(3))
    optimizer.param_groups[0]["lr"] = -1e-3
    with pytest.raises(ValueError, match="lr must be at least 0 and at most 1e"):
        take_step(optimizer, [p], lambda p: (p**4).sum())


def test_counters_are_not_options():
    optimizer = AdaHessian([torch.ones(3, requires_grad=True)])
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    arguments = set(inspect.signature(AdaHessian).parameters) - {"params", "process_group"}
    assert set(optimizer.defaults) == arguments
    for group in optimizer.param_groups:
        assert set(group) == arguments | {*AdaHessian.COUNTERS, "params"}
    assert arguments.isdisjoint(AdaHessian.COUNTERS)


def test_one_list_of_groups_serves_several_optimizers():
    """Counters are the optimizer's, not in the dicts that its user keeps."""
    p = nn.Parameter(torch.ones(3))
    groups = [{"params": [p], "lr": 0.1}]
    for _ in range(2):
        optimizer = AdaHessian(groups)
        assert optimizer.param_groups[0]["step"] == 0
        take_step(optimizer, [p], lambda p: (p**4).sum())
    assert groups[0].keys() == {"params", "lr"}
