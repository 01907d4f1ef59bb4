"""What a training would be: its network, its parameter groups, a picture of its schedule."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from experiments.config.experiment import Config
from experiments.plots import terminal
from experiments.tasks.registry import build_task
from experiments.training import groups, optimizers, weights
from experiments.training.schedule import GroupSchedule

MOST_SHOWN = 2000  # steps in a picture, evenly spaced


def preview(config: Config, data_root: Path) -> list[str]:
    """Lines of text, made by all that a training checks before its first step.

    Raises:
        UserError: as a training would.
    """
    task = build_task(config, torch.device("cpu"), data_root)
    model = task.build_model()
    weights.initialize(config, model)
    groups.freeze(config, model)
    optimizers.build_optimizer(config, model)
    steps = task.steps_per_epoch
    lines = [f"  {_count(model.parameters())}; {config.epochs} epochs of {steps} steps"]
    if frozen := [p for p in model.parameters() if not p.requires_grad]:
        lines.append(f"  frozen: {_count(frozen)}")
    for part in groups.split(config, model):
        options = dict(part.options)
        if part.lr_factor != 1:
            options["lr_factor"] = part.lr_factor
        if part.matches:
            told = ", ".join(f"{key}={value}" for key, value in options.items())
            lines.append(f"  {' and '.join(part.matches)}: {_count(part.params)}, {told}")
    return lines + [f"  {line}" for line in picture(config, steps)]


def picture(config: Config, steps_per_epoch: int) -> list[str]:
    """The learning rate over the training, in characters."""
    spec, schedule = config.optimizer, config.learning_rate_schedule
    if spec.lr is None:
        return [f"{spec.constructor} has no learning rate"]
    if plateau := schedule.waits_for:
        return [f"learning rate {spec.lr:g} until {plateau.metric} stops improving"]
    rates = GroupSchedule(config, steps_per_epoch)
    steps = steps_per_epoch * config.epochs
    shown = [*range(0, steps - 1, -(-steps // MOST_SHOWN)), steps - 1]
    values = [rates.values(step)["lr"] for step in shown]
    said = f"{schedule.name}, from {values[0]:.3g} to {values[-1]:.3g} in the last step"
    return [f"learning rate: {said}", *terminal.curve(values)]


def _count(params: Iterable[nn.Parameter]) -> str:
    params = list(params)
    tensors = f"{len(params)} tensor{'s' if len(params) > 1 else ''}"
    return f"{sum(p.numel() for p in params):,} parameters in {tensors}"
