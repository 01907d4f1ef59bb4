"""What a training had cost, in steps, seconds and gradient equivalents.

**Gradient equivalents** count evaluations of the gradient of the whole batch. AdaHessian's, and
those of its other rules, are known from the configuration: one a step; and for each refresh of the
curvature, the first step's and every `update_interval`-th after it, and each of its samples, two
more by double backward, which goes forward and backward through the gradient's graph, or one by
finite differences. From a part f of the batch a refresh costs f times that, and f for the part's
own gradient. Checks of the finite difference, one evaluation in some hundred refreshes, are left
out. Other optimizers' are those that the training has counted (`train/gradients`), where they were
not one a step; a benchmark's row can state `gradients_per_step` instead.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

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
    steps = float(until[-1]["step"]) if until else 0.0
    seconds = math.fsum(one.get("time/epoch_seconds", math.nan) for one in until)
    counted = price * steps if price is not None else _last(gradients_spent(optimizer, until))
    return {"gradients": counted, "steps": steps, "seconds": seconds}


def gradients_spent(optimizer: Optimizer, rows: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Yield the gradient equivalents of a training up to the end of each of its epochs.

    Args:
        optimizer: its section of the configuration.
        rows: of `metrics.jsonl`, one for each epoch.
    """
    ends = [int(row["step"]) for row in rows]
    if issubclass(optimizer.load_constructor(), AdaHessian):
        yield from gradients(optimizer, ends)
        return
    steps = (end - begin for begin, end in zip([0, *ends], ends, strict=False))
    yield from accumulate(
        float(row.get("train/gradients", n)) for row, n in zip(rows, steps, strict=True)
    )


def gradients_by_epoch(run: Run) -> dict[int, float]:
    """Return a run's gradient equivalents up to the end of each epoch.

    Empty where its optimizer is not to be had here.
    """
    rows = [row for row in run.rows if "step" in row]
    try:
        optimizer = Optimizer.model_validate(run.optimizer)
        spent = list(gradients_spent(optimizer, rows))
        return {row["epoch"]: value for row, value in zip(rows, spent, strict=True)}
    except Exception:  # of whatever kind: it may be another one's code, or file
        return {}


def gradients(optimizer: Optimizer, ends: Sequence[int]) -> Iterator[float]:
    """Yield AdaHessian's gradient equivalents up to the end of each epoch.

    Args:
        optimizer: its section of the configuration.
        ends: the steps done at the end of each epoch.
    """
    extra, begin = 0.0, 0
    last: dict[int, int] = {}  # by parameter group: the step of its last refresh
    # Built, because a class of one's own can fix options that its constructor does not name.
    param = torch.nn.Parameter(torch.zeros(1, 1))
    (options,) = optimizer.load_constructor()([param], **optimizer.arguments()).param_groups
    for epoch, end in enumerate(ends):
        price, intervals = _refresh(optimizer, {**options, **optimizer.changed_options(epoch)})
        step = begin
        while step < end:
            due = {g: max(begin, last[g] + k) if g in last else begin
                   for g, k in enumerate(intervals)}  # fmt: skip
            if (step := min(due.values())) < end:
                extra += price
                last |= {g: step for g, one in due.items() if one <= step}
        begin = end
        yield end + extra


def _last(values: Iterable[float]) -> float:
    return [0.0, *values][-1]


def _refresh(optimizer: Optimizer, options: Mapping[str, Any]) -> tuple[float, list[int]]:
    """A refresh's price, and the interval of each parameter group.

    A refresh of one group costs as much as that of all.
    """
    curvature, fraction, samples, interval = (
        options[key]
        for key in ("curvature", "curvature_fraction", "num_samples", "update_interval")
    )
    price = samples * (2 if curvature == "double_backward" else 1)
    if fraction < 1:
        price = fraction * (1 + price)
    own = [(group.model_extra or {}).get("update_interval") for group in optimizer.groups]
    return price, [interval, *(one for one in own if one)]
