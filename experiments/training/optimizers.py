"""From a resolved configuration to the objects that train."""

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from experiments.config.experiment import Config
from experiments.errors import UserError, nearest
from experiments.runtime import distributed
from experiments.runtime.device import build_device


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
