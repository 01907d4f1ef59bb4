"""What a training had cost, in steps, seconds and gradient equivalents.

**Gradient equivalents** count evaluations of the gradient of the whole batch, by the configuration:
one a step; and for each refresh of the curvature, the first step's and every `update_interval`-th
after it, and each of its samples, two more by double backward, which goes forward and backward
through the gradient's graph, or one by finite differences. From a part f of the batch a refresh
costs f times that, and f for the part's own gradient. An optimizer that cannot be counted this way
states `gradients_per_step` in its row. Checks of the finite difference, one evaluation in some
hundred refreshes, are left out.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from adahessian import AdaHessian
from experiments.config.optimizers import Optimizer
from experiments.runs.reading import Run

MEASURES = ("gradients", "steps", "seconds")  # the first is what decides who wins


def costs_until(
    run: Run, optimizer: Optimizer, epoch: float, price: float | None = None
) -> dict[str, float]:
    """What a run had cost at the end of an epoch, by measure.

    Args:
        optimizer: its section of the configuration.
        epoch: counted from 1.
        price: gradients of a mean step; None: counted.
    """
    until = [one for one in run.rows if 0 < one["epoch"] <= epoch and "step" in one]
    ends = [int(one["step"]) for one in until]
    seconds = math.fsum(one.get("time/epoch_seconds", math.nan) for one in until)
    counted = gradients(optimizer, ends) if price is None else price * (ends[-1] if ends else 0)
    return {"gradients": counted, "steps": float(ends[-1] if ends else 0), "seconds": seconds}


def gradients(optimizer: Optimizer, ends: Sequence[int]) -> float:
    """Gradient equivalents of a training.

    Args:
        optimizer: its section of the configuration.
        ends: the steps done at the end of each epoch.
    """
    total, begin = float(ends[-1] if ends else 0), 0
    last: dict[int, int] = {}  # by parameter group: the step of its last refresh
    for epoch, end in enumerate(ends):
        if (refresh := _refresh(optimizer, epoch)) is None:
            return total
        price, intervals = refresh
        step = begin
        while step < end:
            due = {g: max(begin, last[g] + k) if g in last else begin
                   for g, k in enumerate(intervals)}  # fmt: skip
            if (step := min(due.values())) < end:
                total += price
                last |= {g: step for g, one in due.items() if one <= step}
        begin = end
    return total


def _refresh(optimizer: Optimizer, epoch: int) -> tuple[float, list[int]] | None:
    """A refresh's price, and the interval of each parameter group; None for other optimizers.

    A refresh of one group costs as much as that of all.
    """
    constructor = optimizer.load_constructor()
    if not issubclass(constructor, AdaHessian):
        return None
    defaults = inspect.signature(constructor).parameters
    given: dict[str, Any] = {**optimizer.arguments(), **optimizer.changed_options(epoch)}
    curvature, fraction, samples, interval = (
        given.get(key, defaults[key].default)
        for key in ("curvature", "curvature_fraction", "num_samples", "update_interval")
    )
    price = samples * (2 if curvature == "double_backward" else 1)
    if fraction < 1:
        price = fraction * (1 + price)
    own = [(group.model_extra or {}).get("update_interval") for group in optimizer.groups]
    return price, [interval, *(one for one in own if one)]
