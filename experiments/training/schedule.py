"""The learning rate, and other options of the parameter groups, over a training."""

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from experiments.config.experiment import Config
from experiments.config.schedules import Drops


class GroupSchedule:
    """What the configuration sets in every parameter group, step by step.

    Args:
        config: the resolved configuration.
        steps_per_epoch: in one pass over the training set.
    """

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch

    def values(self, step: int) -> dict[str, Any]:
        """The options to set before a step, counted from 0 over the whole training.

        A pure function of the step. It leaves out a learning rate that waits for a plateau,
        `build_plateau` lowers that, and one that the optimizer does not take.
        """
        schedule, spec = self.config.learning_rate_schedule, self.config.optimizer
        values: dict[str, Any] = {}
        if schedule.waits_for is None and spec.lr is not None:
            relative = schedule.relative_rate(step, self.steps_per_epoch, self.config.epochs)
            values["lr"] = spec.lr * relative
        return values | spec.changed_options(step // self.steps_per_epoch)


def build_plateau(config: Config, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau | None:
    """torch's scheduler if the learning rate waits for a plateau; it is told of each epoch.

    Args:
        config: the resolved configuration.
        optimizer: whose learning rate it lowers.
    """
    schedule = config.learning_rate_schedule
    if not isinstance(schedule, Drops) or schedule.plateau is None or config.optimizer.lr is None:
        return None
    metric = {metric.name: metric for metric in config.metrics}[
        schedule.plateau.metric.partition("/")[2]
    ]
    return ReduceLROnPlateau(
        optimizer,
        mode=metric.direction,
        factor=schedule.factor,
        patience=schedule.plateau.patience,
        threshold=schedule.plateau.threshold,
    )
