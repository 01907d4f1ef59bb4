"""The functions: each takes points (..., dimension) and returns values (...)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Landscape:
    """A function of two variables with one global minimum, and where it is looked at.

    Attributes:
        start: where the public optimizer collections start.
        minimum: of the function, whose value there is 0.
        limits: of the picture: x from, x to, y from, y to.
    """

    name: str
    function: Function
    start: tuple[float, float]
    minimum: tuple[float, float]
    limits: tuple[float, float, float, float]


def rosenbrock(points: Tensor) -> Tensor:
    """A curved valley: (1 − x)² + 100 (y − x²)² (Rosenbrock, 1960)."""
    x, y = points.unbind(-1)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rastrigin(points: Tensor) -> Tensor:
    """A bowl with a local minimum near each pair of whole numbers (Rastrigin, 1974)."""
    return (10 + points**2 - 10 * torch.cos(2 * math.pi * points)).sum(-1)


def quadratic(hessian: Tensor) -> Function:
    """½ xᵀHx, for one H (..., d, d) or as many as there are points (..., d)."""

    def function(points: Tensor) -> Tensor:
        return 0.5 * torch.einsum("...i,...ij,...j->...", points, hessian, points)

    return function


def ripples(points: Tensor) -> Tensor:
    """The paper's Fig. 3: x² + 0.1 x sin(20πx), of one variable."""
    x = points.squeeze(-1)
    return x**2 + 0.1 * x * torch.sin(20 * math.pi * x)


LANDSCAPES = (
    Landscape("rosenbrock", rosenbrock, (-2.0, 2.0), (1.0, 1.0), (-2.2, 2.2, -1.0, 3.2)),
    Landscape("rastrigin", rastrigin, (-2.0, 3.5), (0.0, 0.0), (-4.5, 4.5, -4.5, 4.5)),
)
