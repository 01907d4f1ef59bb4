"""Find the settings behind the pictures: `python -m experiments.landscapes.search`.

For Rosenbrock's and Rastrigin's function every optimizer has the same budget: `BUDGET`
candidates, half of them points of a scrambled Sobol sequence in its whole space, half of one in
the part of it within a factor of `ZOOM` of the best so far. Each is run from the same `STARTS`
starts (the collections' start, and others scattered around it) for `STEPS` steps; the best has the
least mean log distance to the minimum, the largest of the last tenth of the steps: a descent that
bounces about must not win by where it happens to be in the end. What is found is then run from as
many fresh starts.

Writes `found.json` beside this file, so that the pictures need no search. Repeats the fits of
Fig. 3 as well.
"""

import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.quasirandom import SobolEngine

from adahessian import AdaHessian
from experiments.errors import UserError
from experiments.landscapes.descent import descend
from experiments.landscapes.functions import LANDSCAPES, Landscape
from experiments.landscapes.illustrations import fit_with_average, fit_without_average

FOUND = Path(__file__).with_name("found.json")
BUDGET, STARTS, STEPS, SEED = 512, 16, 500, 0
ZOOM = 3.0
SCATTER = 0.1  # standard deviation of the starts in each variable
NEAR = 0.01  # a descent has arrived when it is, in the end, within this distance of the minimum


@dataclass(frozen=True)
class Space:
    """An optimizer and the settings to try: each is drawn log-uniformly between two bounds.

    Attributes:
        bounds: of each quantity that is drawn.
        arguments: from what was drawn to arguments of the constructor.
    """

    constructor: Callable[..., Optimizer]
    bounds: tuple[tuple[float, float], ...]
    arguments: Callable[..., dict[str, Any]]


# One minus a beta is what has a scale: 0.1, 0.01, 0.001.
_LR, _FORGET_GRADIENT, _FORGET_SECOND = (1e-5, 100.0), (0.01, 1.0), (1e-3, 1.0)


def _with_two_averages(lr: float, first: float, second: float) -> dict[str, Any]:
    return {"lr": lr, "betas": (_minus(first), _minus(second))}


def _minus(value: float) -> float:
    return round(1 - value, 6)


SPACES = {
    "SGD": Space(
        torch.optim.SGD,
        (_LR, _FORGET_GRADIENT),
        lambda lr, first: {"lr": lr, "momentum": _minus(first)},
    ),
    "Adam": Space(
        torch.optim.Adam, (_LR, _FORGET_GRADIENT, _FORGET_SECOND), _with_two_averages
    ),
    "AdaHessian": Space(
        AdaHessian, (_LR, _FORGET_GRADIENT, _FORGET_SECOND), _with_two_averages
    ),
}  # fmt: skip


def candidates(space: Space, number: int, seed: int) -> list[tuple[float, ...]]:
    """The points to try, three digits each, so that what is written down is what was run."""
    unit = SobolEngine(len(space.bounds), scramble=True, seed=seed).draw(number)
    return [
        tuple(
            float(f"{low * (high / low) ** u:.3g}")
            for u, (low, high) in zip(row, space.bounds, strict=True)
        )
        for row in unit.tolist()
    ]


def around(space: Space, point: tuple[float, ...]) -> Space:
    """The part of a space within a factor of `ZOOM` of a point."""
    bounds = tuple(
        (max(low, value / ZOOM), min(high, value * ZOOM))
        for value, (low, high) in zip(point, space.bounds, strict=True)
    )
    return replace(space, bounds=bounds)


def starts(landscape: Landscape, number: int, seed: int) -> Tensor:
    """The landscape's start and others around it: (number, 2)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(number, 2, generator=generator, dtype=torch.float64)
    noise[0] = 0
    return torch.tensor(landscape.start, dtype=torch.float64) + SCATTER * noise


def final_distances(
    landscape: Landscape, space: Space, settings: list[dict[str, Any]], start: Tensor, steps: int
) -> Tensor:
    """Largest distances to the minimum in the last tenth of the steps: (settings, starts)."""
    points = descend(landscape.function, start, space.constructor, settings)
    largest = start.new_zeros(len(settings), len(start))
    for now in itertools.islice(points, steps - steps // 10, steps + 1):
        distances = (now - now.new_tensor(landscape.minimum)).norm(dim=-1)
        largest = torch.maximum(largest, distances.nan_to_num(nan=math.inf))
    return largest


def search(
    landscape: Landscape,
    space: Space,
    budget: int = BUDGET,
    number: int = STARTS,
    steps: int = STEPS,
    seed: int = SEED,
) -> dict[str, Any]:
    """The best of `budget` candidates, and how it does from fresh starts.

    Returns:
        `setting`: arguments of the optimizer; `score`: mean log10 distance, of distances between
        1e-6 and 100; `arrived` and `fresh`: how many of the fresh starts ended near the minimum;
        `median_distance` over the fresh starts.
    """
    start = starts(landscape, number, seed)
    points, scores = [], torch.empty(0, dtype=torch.float64)
    for region in (space, None):
        region = region or around(space, points[int(scores.argmin())])
        drawn = candidates(region, budget // 2, seed)
        settings = [space.arguments(*point) for point in drawn]
        distances = final_distances(landscape, space, settings, start, steps)
        points += drawn
        scores = torch.cat([scores, distances.clamp(1e-6, 100).log10().mean(1)])
    best = int(scores.argmin())
    setting = space.arguments(*points[best])
    fresh = starts(landscape, number + 1, seed + 1)[1:]
    (again,) = final_distances(landscape, space, [setting], fresh, steps)
    return {
        "setting": setting,
        "score": round(float(scores[best]), 3),
        "arrived": int((again < NEAR).sum()),
        "fresh": number,
        "median_distance": float(f"{again.median():.2g}"),
    }


def found() -> dict[str, Any]:
    """What the last search found.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        document = json.loads(FOUND.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{FOUND}: {error}; make it again with python -m experiments.landscapes.search"
        ) from None
    return document


def main() -> int:
    """Search everything and write `found.json`."""
    document: dict[str, Any] = {
        "budget": {"candidates": BUDGET, "starts": STARTS, "steps": STEPS, "seed": SEED},
        "ripples": {"with": fit_with_average(), "without": fit_without_average()},
    }
    print(json.dumps(document["ripples"]))
    for landscape in LANDSCAPES:
        document[landscape.name] = {}
        for name, space in SPACES.items():
            result = search(landscape, space)
            document[landscape.name][name] = result
            print(landscape.name, name, json.dumps(result), flush=True)
    FOUND.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written: {FOUND}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
