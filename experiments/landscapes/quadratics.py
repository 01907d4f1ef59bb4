"""Where a diagonal helps and where it cannot: 2-D quadratics, turned and stretched.

The Hessian has the eigenvalues 1 and κ, and its steep axis is turned by an angle against the second
coordinate. From anywhere on the unit circle, how many steps until the distance to the minimum stays
within `TOLERANCE`? Each cell has the best learning rate of one grid, the same for every method.

With one probe AdaHessian's denominator is the root mean square of h₁₁ ± h₁₂, which is
√(h₁₁² + h₁₂²), whether `averaging` is "abs" or "signed": they part with several probes or blocks.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from adahessian import AdaHessian
from experiments.landscapes.descent import descend
from experiments.landscapes.functions import quadratic

ANGLES = tuple(range(0, 50, 5))  # degrees; at 45 both coordinates see the same, beyond it mirrors
CONDITIONS = (1, 3, 10, 30, 100)
LEARNING_RATES = tuple(10 ** (e / 10) for e in range(-30, 11))  # 0.001 to 10, in steps of 26 %
NUM_STARTS = 8
TOLERANCE = 1e-3
MAX_STEPS = 500


@dataclass(frozen=True)
class Method:
    """An optimizer and its settings, all but the learning rate."""

    label: str
    constructor: Callable[..., Optimizer]
    settings: dict[str, Any]


# Without momentum, but for the last: with it no condition number below 1400 costs a step.
_SIGNED = {"averaging": "signed", "num_samples": 4}
METHODS = (
    Method("SGD", SGD, {}),
    Method("Adam, β₁ = 0", Adam, {"betas": (0.0, 0.999)}),
    Method("AdaHessian, β₁ = 0", AdaHessian, {"betas": (0.0, 0.999)}),
    Method("AdaHessian, signed, 4 probes", AdaHessian, {"betas": (0.0, 0.999), **_SIGNED}),
    Method("AdaHessian, one block of 2", AdaHessian, {"betas": (0.0, 0.999), "block_size": 2}),
    Method("SGD, momentum 0.9", SGD, {"momentum": 0.9}),
)


def hessians() -> Tensor:
    """The Hessians, (angles, conditions, 2, 2)."""
    angle = torch.tensor(ANGLES, dtype=torch.float64).deg2rad()[:, None]
    condition = torch.tensor(CONDITIONS, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    first, second = cos**2 + condition * sin**2, sin**2 + condition * cos**2
    mixed = (condition - 1) * sin * cos
    return torch.stack([first, mixed, mixed, second], -1).unflatten(-1, (2, 2))


def jacobi_conditions() -> Tensor:
    """Condition number of D⁻¹H with the exact diagonal D, (angles, conditions).

    (1 + ρ) / (1 − ρ) with ρ = h₁₂ / √(h₁₁ h₂₂).
    """
    h = hessians()
    rho = h[..., 0, 1] / (h[..., 0, 0] * h[..., 1, 1]).sqrt()
    return (1 + rho) / (1 - rho)


def steps_needed(method: Method) -> tuple[Tensor, Tensor]:
    """Steps until the distance stays within the tolerance, and the learning rate that does it.

    Returns:
        Both (angles, conditions): of the worst start, for the best learning rate; infinite where
        none gets there within `MAX_STEPS`. Not of the median start: at 45 degrees the first probe
        can hit an eigenvector, and half of the starts profit.
    """
    h = hessians()
    circle = torch.arange(NUM_STARTS, dtype=torch.float64) * (2 * math.pi / NUM_STARTS) + 0.1
    start = torch.stack([circle.cos(), circle.sin()], -1).expand(*h.shape[:2], -1, -1)
    settings = [{"lr": lr, **method.settings} for lr in LEARNING_RATES]
    points = descend(quadratic(h[:, :, None]), start, method.constructor, settings)
    last_outside = torch.full((len(settings), *start.shape[:-1]), -1)
    for step, now in enumerate(itertools.islice(points, MAX_STEPS + 1)):
        last_outside[~(now.norm(dim=-1) <= TOLERANCE)] = step
    needed = (last_outside + 1).double()
    needed[last_outside == MAX_STEPS] = math.inf
    best, index = needed.amax(-1).min(0)
    return best, torch.tensor(LEARNING_RATES, dtype=torch.float64)[index]
