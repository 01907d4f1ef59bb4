"""The paper's Fig. 1 and Fig. 3, with the real optimizer.

Fig. 1: f = x² + 10 y² from (8, 8). The caption says 10 x² + y²; the path that is drawn is that of
the axes swapped. Gradient descent takes 60 steps of learning rate 1/30 (the factors per step are
0.9333 and 1/3) and ends at (0.127, 0); AdaHessian is in the minimum after one step of rate 1.

Fig. 3: f = x² + 0.1 x sin(20πx) from 2.9, without and with the running average of the curvature.
The paper states neither learning rates nor betas. The first steps drawn are 0.45 and 0.30 of the
Newton step. Averages that start at zero with bias correction cannot give the second step drawn,
whatever the betas: the gradient there is −7.6 after 24.0 and the curvature 401 after 14.6, so m̂
falls below a half and v̂ grows, while the step drawn is 0.81 of the first. Averages that start at
the first gradient and curvature can; the betas are then found by `fit_with_average` and
`fit_without_average`.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from adahessian import AdaHessian
from experiments.landscapes.descent import descend
from experiments.landscapes.functions import quadratic, ripples

BOWL = torch.tensor([[2.0, 0.0], [0.0, 20.0]], dtype=torch.float64)  # the Hessian of x² + 10 y²
GRADIENT_DESCENT_STEPS = 60

RIPPLES_START = torch.tensor([2.9], dtype=torch.float64)
# Fig. 3, the points drawn, as digitised: with the average; and where it rests without.
PUBLISHED = (2.9, 2.158, 1.557, 1.060, 0.654, 0.300, -0.025)
PUBLISHED_REST = 1.57
LR_WITH_AVERAGE, LR_WITHOUT_AVERAGE = 0.45, 0.30


def bowl_paths() -> dict[str, Tensor]:
    """Fig. 1: the points (steps + 1, 2) of gradient descent and AdaHessian."""
    start = torch.tensor([8.0, 8.0], dtype=torch.float64)
    function = quadratic(BOWL)
    first = descend(function, start, SGD, [{"lr": 1 / 30}])
    second = descend(function, start, AdaHessian, [{"lr": 1.0, "eps": 0.0}])
    return {
        "gradient descent": _path(first, GRADIENT_DESCENT_STEPS),
        "AdaHessian": _path(second, 1),
    }


def ripple_paths(settings: Sequence[dict[str, Any]], steps: int, seeded: bool = True) -> Tensor:
    """Fig. 3: the points (steps + 1, number of settings) of AdaHessian.

    Args:
        settings: arguments of AdaHessian, one dictionary for each descent.
        seeded: start the averages at the first gradient and curvature, as after a long rest at
            the start; otherwise as AdaHessian does, at zero with bias correction.
    """
    prepare = _seed_averages if seeded else lambda optimizer: None
    points = descend(ripples, RIPPLES_START, AdaHessian, settings, prepare)
    return torch.stack(list(itertools.islice(points, steps + 1))).squeeze(-1)


def fit_with_average() -> dict[str, Any]:
    """The betas on a grid whose path comes closest to the points drawn (largest distance)."""
    grid = itertools.product(range(800, 951, 2), torch.logspace(-5, -2, 61).tolist())
    settings = [
        {"lr": LR_WITH_AVERAGE, "betas": (b / 1000, 1 - float(f"{c:.2g}")), "eps": 0.0}
        for b, c in grid
    ]
    paths = ripple_paths(settings, len(PUBLISHED) - 1)
    errors = (paths - paths.new_tensor(PUBLISHED)[:, None]).abs().amax(0)
    best = int(errors.argmin())
    return {"setting": settings[best], "largest_distance": round(float(errors[best]), 4)}


def fit_without_average() -> dict[str, Any]:
    """The beta of the gradient's average whose descent rests closest to where the paper's does."""
    settings = [{"lr": LR_WITHOUT_AVERAGE, "betas": (b / 100, 0.0), "eps": 0.0} for b in range(100)]
    rest = ripple_paths(settings, 1000)[-1]
    distances = (rest - PUBLISHED_REST).abs()
    best = int(distances.argmin())
    close = int((distances < 0.02).sum())
    return {"setting": settings[best], "rest": round(float(rest[best]), 4),
            "settings_that_rest_there": close, "settings": len(settings)}  # fmt: skip


def _seed_averages(optimizer: Optimizer) -> None:
    x = RIPPLES_START.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ripples(x), x, create_graph=True)
    (hessian,) = torch.autograd.grad(grad, x)
    document = optimizer.state_dict()
    document["state"] = {
        index: {
            "step": torch.tensor(1e9),  # so many that there is no bias left to correct
            "num_refreshes": torch.tensor(1e9),
            "exp_avg": grad.detach().clone()[None],
            "exp_hessian_diag_sq": (hessian**2)[None],
        }
        for index in range(len(optimizer.param_groups))
    }
    optimizer.load_state_dict(document)


def _path(points: Iterator[Tensor], steps: int) -> Tensor:
    return torch.cat(list(itertools.islice(points, steps + 1)))
