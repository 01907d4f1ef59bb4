"""The learning rate, and other entries of parameter groups, over a training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from experiments.config.experiment import Config


def build_plateau(
    config: Config, optimizer: torch.optim.Optimizer, metrics: Mapping[str, str]
) -> ReduceLROnPlateau | None:
    """torch's scheduler if the learning rate waits for a plateau, to be told of each epoch.

    Args:
        config: the resolved configuration.
        optimizer: whose learning rate it lowers.
        metrics: the task's, with their directions.
    """
    schedule = config.learning_rate_schedule
    if schedule.plateau is None:
        return None
    metric = schedule.plateau.metric.partition("/")[2]
    return ReduceLROnPlateau(
        optimizer,
        mode=metrics[metric],
        factor=schedule.factor,
        patience=schedule.plateau.patience,
        threshold=schedule.plateau.threshold,
    )


def group_values(config: Config, epoch: int) -> dict[str, Any]:
    """The entries of every parameter group that the configuration sets for an epoch (from 0).

    A pure function of the epoch, so that a schedule has no state to save or to lose. Only a
    learning rate that waits for a plateau is not among them: `build_plateau` sets that.
    """
    schedule, spec = config.learning_rate_schedule, config.optimizer
    early = 1 if schedule.stepped_at_epoch_start else 0
    # The first epoch always has the full rate, however short the training.
    starts = [max(1, round(drop * config.epochs) - early) for drop in schedule.drops]
    values: dict[str, Any] = {}
    if schedule.plateau is None:
        values["lr"] = spec.lr * schedule.factor ** sum(epoch >= s for s in starts)
    for start in sorted(spec.after_epochs):
        if epoch >= start:
            values.update(spec.after_epochs[start])
    return values
