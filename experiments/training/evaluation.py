"""The evaluation of a split, at the weights that an optimizer wants evaluated."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from experiments.runtime import distributed
from experiments.tasks.task import Task
from experiments.training.optimizers import Capabilities


@contextmanager
def evaluated_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model holds the weights that are evaluated; afterwards everything is as before.

    They are others than those trained for optimizers with modes, the schedule-free ones.
    """
    if not Capabilities.of(optimizer).has_modes:
        yield
        return
    trained = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()  # comes back up to rounding
        with torch.no_grad():
            for p, value in zip(model.parameters(), trained, strict=True):
                p.copy_(value)


def evaluated_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The model's state with these weights; None where they are those that are trained."""
    if not Capabilities.of(optimizer).has_modes:
        return None
    with evaluated_weights(model, optimizer):
        return {key: value.clone() for key, value in model.state_dict().items()}


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, split: str) -> dict[str, float]:
    """The task's metrics on a whole split."""
    model.eval()
    totals: dict[str, float] = {}
    for batch in task.evaluation_batches(split):
        for key, value in task.evaluate(model, batch).items():
            totals[key] = totals.get(key, 0) + value.item()
    measured = task.summarize(distributed.sum_over_ranks(totals))
    declared = {metric.name for metric in task.metrics}
    assert measured.keys() == declared, f"{split}: {sorted(measured)}, declared {sorted(declared)}"
    return measured
