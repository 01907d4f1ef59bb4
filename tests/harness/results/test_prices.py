"""What trainings cost: gradient equivalents, counted from the configuration."""

import pytest
import torch
from support.harness import DIGITS

from adahessian import AdaHessian
from experiments.plans.load import load
from experiments.results import prices


def gradients(optimizer, ends):
    """At the end."""
    return [0, *prices.gradients_spent(optimizer, [{"step": end} for end in ends])][-1]


def row(**options):
    return load(DIGITS, {f"optimizers.adahessian.{k}": v for k, v in options.items()}).optimizers[
        "adahessian"
    ]


@pytest.mark.parametrize(
    ("options", "price"),
    [
        ({}, 3),
        ({"curvature": "finite_difference"}, 2),
        ({"update_interval": 5}, 1 + 2 / 5),
        ({"curvature": "finite_difference", "update_interval": 5}, 1.2),
        ({"num_samples": 2}, 5),
        ({"curvature_fraction": 0.25}, 1 + 0.25 * 3),
        ({"curvature_fraction": 0.25, "curvature": "finite_difference"}, 1 + 2 * 0.25),
        ({"curvature_fraction": 0.5, "update_interval": 2}, 1 + 0.5 * 3 / 2),
    ],
)
def test_a_mean_step_of_whole_intervals(options, price):
    assert gradients(row(**options), [10, 20]) == pytest.approx(20 * price)


class Fixed(AdaHessian):
    """One's own, whose constructor does not name what it fixes."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(
            params, lr, weight_decay=weight_decay, curvature="finite_difference", update_interval=4
        )


def test_a_class_of_ones_own_is_priced_by_the_options_that_it_has():
    own = {
        "constructor": f"{__name__}.Fixed", "lr": 0.1,
        "weight_decay": 0.0, "weight_decay_divided_by_lr": False,
    }  # fmt: skip
    own = {"optimizers.adahessian": own}
    assert gradients(load(DIGITS, own).optimizers["adahessian"], [8, 16]) == 16 + 4


def test_the_first_step_always_refreshes():
    assert gradients(row(update_interval=10), [1]) == 3
    assert gradients(row(update_interval=10), [10]) == 12
    assert gradients(row(update_interval=10), [11]) == 15
    assert gradients(row(update_interval=10), [7, 14, 21]) == 21 + 3 * 2  # at 0, 10, 20
    assert gradients(row(update_interval=10), []) == 0


def test_other_optimizers_evaluate_one_gradient_a_step():
    assert gradients(load(DIGITS).optimizers["sgd"], [50, 100]) == 100


def test_what_another_optimizer_has_evaluated_counts():
    """LBFGS and SAM ask for several gradients a step; an epoch without a count had one a step."""
    rows = [{"step": 10, "train/gradients": 25}, {"step": 20}, {"step": 30, "train/gradients": 11}]
    assert list(prices.gradients_spent(load(DIGITS).optimizers["sgd"], rows)) == [25, 35, 46]


class Counted(torch.autograd.Function):
    """Counts how often a node of the graph is passed backward."""

    count = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Counted.count += 1
        return Counted.apply(grad)


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
@pytest.mark.parametrize(
    ("first", "changes", "own"),
    [(1, {}, None), (3, {}, None), (3, {1: 5, 2: 2}, None), (4, {2: 1}, None), (5, {1: 4}, 3)],
)
def test_the_price_is_that_of_the_evaluations_that_are_made(way, first, changes, own):
    """Passes of the optimizer itself, its interval changed between epochs as `after_epochs` does.

    `own`: the interval of a second parameter group.
    """
    ends, refresh = [7, 12, 20], 2 if way == "double_backward" else 1
    params = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    if own:
        groups[1]["update_interval"] = own
    else:
        groups = params
    optimizer = AdaHessian(groups, 0.01, curvature=way, check_interval=0, update_interval=first)

    def closure():
        optimizer.zero_grad()
        loss = (Counted.apply(params[0] + 3 * params[1]) ** 4).sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    refreshes, step = 0, 0
    for epoch, end in enumerate(ends):
        if epoch in changes:
            optimizer.param_groups[0]["update_interval"] = changes[epoch]
        while step < end:
            before = Counted.count
            optimizer.step(closure)
            extra = Counted.count - before - 1
            if step > 1:  # the first refreshes look for pieces, too
                assert extra in (0, refresh), (step, extra)
            refreshes += extra > 0
            step += 1
    options = {"curvature": way, "update_interval": first}
    if changes:
        options["after_epochs"] = {e: {"update_interval": k} for e, k in changes.items()}
    if own:
        options["groups"] = [{"match": "1-D", "update_interval": own}]
    assert gradients(row(**options), ends) == ends[-1] + refresh * refreshes
