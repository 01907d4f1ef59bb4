"""The configured optimizer, and what it offers and asks for beyond `torch.optim.Optimizer`."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.config.experiment import Config
from experiments.errors import UserError, nearest
from experiments.runtime import distributed
from experiments.runtime.device import build_device


@dataclass(frozen=True)
class Capabilities:
    """What an optimizer has beyond `torch.optim.Optimizer`; nothing else looks for it.

    Attributes:
        takes_seed: its constructor takes `seed`, because it draws random numbers of its own.
        averages_over_processes: its constructor takes `process_group`, over which it averages
            gradients and whatever else it needs.
        asks_for_graph: its attribute `needs_graph` says before each backward pass whether to
            keep the graph (`create_graph`).
        has_curvature_hooks: `register_curvature_hook` shows its Hessian-vector products.
        compares_curvature: `curvature_error` compares them with exact ones.
        takes_part_of_batch: `step` takes `curvature_closure`, the loss of a part of the batch,
            which the option `curvature_fraction` below 1 asks for.
    """

    takes_seed: bool
    averages_over_processes: bool
    asks_for_graph: bool
    has_curvature_hooks: bool
    compares_curvature: bool
    takes_part_of_batch: bool

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer | type) -> "Capabilities":
        """Those of an optimizer, or of all that a constructor makes."""
        constructor = optimizer if isinstance(optimizer, type) else type(optimizer)
        arguments = inspect.signature(constructor).parameters
        return cls(
            takes_seed="seed" in arguments,
            averages_over_processes="process_group" in arguments,
            asks_for_graph=hasattr(optimizer, "needs_graph"),
            has_curvature_hooks=hasattr(optimizer, "register_curvature_hook"),
            compares_curvature=hasattr(optimizer, "curvature_error"),
            takes_part_of_batch="curvature_closure"
            in inspect.signature(constructor.step).parameters,
        )


def build_optimizer(config: Config, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer over `params`.

    One that takes a seed gets the run's.

    Raises:
        UserError: the constructor refuses a value, or `after_epochs` names something that is not
            an option of its parameter groups.
    """
    optimizer, spec = _construct(config, params, {}, ""), config.optimizer
    arguments = inspect.signature(type(optimizer)).parameters
    # Groups also hold counters, such as `step`: an option is an argument as well.
    options = (set(optimizer.param_groups[0]) & set(arguments)) - {"params", "lr"}
    for epoch, values in spec.after_epochs.items():
        for key in values:
            if key not in options:
                where = f"optimizers.{config.optimizer_name}.after_epochs.{epoch}"
                raise UserError(f"{where}: unknown key '{key}'; {nearest(key, sorted(options))}")
    return optimizer


def _construct(
    config: Config, params: Iterable[nn.Parameter], changed: dict[str, Any], where: str
) -> torch.optim.Optimizer:
    """The optimizer with some arguments changed; `where` ends the path of the key that does so."""
    spec = config.optimizer
    constructor, arguments = spec.load_constructor(), spec.arguments() | changed
    capabilities = Capabilities.of(constructor)
    if capabilities.takes_seed:
        arguments.setdefault("seed", config.seed)
    if distributed.world_size() > 1 and capabilities.averages_over_processes:
        arguments.setdefault("process_group", distributed.world_group())
    try:
        return constructor(params, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizers.{config.optimizer_name}{where}: {error}") from None


def check(config: Config) -> None:
    """Refuse now what would fail only when the run starts.

    Raises:
        UserError: as `build_device` and `build_optimizer`.
    """
    build_device(config)
    check_optimizer(config)


def check_optimizer(config: Config) -> None:
    """As `check`, where another machine trains: the device is not looked for."""
    params = [nn.Parameter(torch.zeros(1, 1))]
    build_optimizer(config, params)
    for epoch in sorted(config.optimizer.after_epochs):  # a value may be refused then, too
        changed = config.optimizer.changed_options(epoch)
        _construct(config, params, changed, f".after_epochs.{epoch}")
