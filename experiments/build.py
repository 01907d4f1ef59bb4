"""From a resolved configuration to the objects that train."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from experiments import distributed
from experiments.config import Config, UserError, nearest
from experiments.tasks import Task
from experiments.tasks.image_classification import ImageClassification

TASKS = {"image_classification": ImageClassification}


def build_device(config: Config) -> torch.device:
    """The configured device; `auto` is the GPU where there is one."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("device = 'cuda': no GPU is available here")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def build_task(config: Config, device: torch.device, data_root: Path) -> Task:
    """The configured task with its data loaded."""
    return TASKS[config.task](config, device, data_root)


def build_optimizer(config: Config, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer over `params`.

    One that draws random numbers of its own says so by an argument `seed`, and gets the run's.

    Raises:
        UserError: the constructor refuses a value, or `after_epochs` names something that is not
            in its parameter groups.
    """
    spec = config.optimizer
    constructor, arguments = spec.load_constructor(), spec.arguments()
    if "seed" in inspect.signature(constructor).parameters:
        arguments.setdefault("seed", config.seed)
    if distributed.world_size() > 1 and distributed.averages_itself(constructor):
        arguments.setdefault("process_group", distributed.everybody())
    try:
        optimizer = constructor(params, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizers.{config.optimizer_name}: {error}") from None
    known = set(optimizer.param_groups[0]) - {"params", "lr"}
    for epoch, values in spec.after_epochs.items():
        for key in values:
            if key not in known:
                where = f"optimizers.{config.optimizer_name}.after_epochs.{epoch}"
                raise UserError(f"{where}: unknown key '{key}'; {nearest(key, sorted(known))}")
    return optimizer


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


def check(config: Config) -> None:
    """Refuse at once what would fail only when the run's turn comes.

    Raises:
        UserError: as `build_device` and `build_optimizer`.
    """
    build_device(config)
    check_optimizer(config)


def check_optimizer(config: Config) -> None:
    """As `check`, for whoever does not train on this machine."""
    build_optimizer(config, [nn.Parameter(torch.zeros(1, 1))])


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
