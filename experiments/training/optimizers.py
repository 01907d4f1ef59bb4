"""The configured optimizer, and what it offers and asks for beyond `torch.optim.Optimizer`."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.config import constructors
from experiments.config.experiment import Config
from experiments.errors import UserError, nearest
from experiments.runtime import distributed
from experiments.runtime.device import build_device
from experiments.tasks import registry
from experiments.training import groups


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
        clips_gradients: its constructor takes `max_grad_norm`.
        has_modes: `train` and `eval` change between the weights that are trained and those that
            are evaluated, as of schedule-free optimizers.
    """

    takes_seed: bool
    averages_over_processes: bool
    asks_for_graph: bool
    has_curvature_hooks: bool
    compares_curvature: bool
    takes_part_of_batch: bool
    clips_gradients: bool
    has_modes: bool

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
            clips_gradients="max_grad_norm" in arguments,
            has_modes=all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval")),
        )


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over the parameters of `model` that are trained.

    One that takes a seed gets the run's. Its parameter groups are those of `groups.split`.

    Raises:
        UserError: the constructor refuses a value, or `after_epochs` or `groups` name something
            that is not an option of its parameter groups.
    """
    _check_names(config)
    parts = groups.split(config, model)
    if len(parts) == 1 and not parts[0].matches:
        return _construct(config, parts[0].params, {}, "")
    lr = config.optimizer.lr
    return _construct(config, [
        {"params": part.params, **part.options, **({} if lr is None else part.values({"lr": lr}))}
        for part in parts
    ], {}, ".groups")  # fmt: skip


def _check_names(config: Config) -> None:
    """Refuse what `after_epochs` and `groups` set and no parameter group holds."""
    spec, where = config.optimizer, f"optimizers.{config.optimizer_name}"
    optimizer = _construct(config, [nn.Parameter(torch.zeros(1, 1))], {}, "")
    # Groups also hold counters, such as `step`: an option is an argument as well.
    options = set(optimizer.param_groups[0]) & spec.argument_names() - {"lr"}
    named = [(f"{where}.after_epochs.{epoch}", key)
             for epoch, values in spec.after_epochs.items() for key in values]  # fmt: skip
    named += [(f"{where}.groups, {group.match}", key)
              for group in spec.groups for key in group.model_extra or {}]  # fmt: skip
    for place, key in named:
        if key not in options:
            raise UserError(f"{place}: unknown key '{key}'; {nearest(key, sorted(options))}")
    capabilities = Capabilities.of(optimizer)
    if spec.max_grad_norm and not capabilities.clips_gradients and (
        capabilities.asks_for_graph or capabilities.averages_over_processes
    ):  # fmt: skip
        raise UserError(
            f"{where}.max_grad_norm: {spec.constructor} differentiates or averages gradients "
            "itself and has no such argument: clipping them before would change its curvature"
        )


def _construct(config: Config, params: Any, changed: dict[str, Any], where: str) -> Any:
    """The optimizer with some arguments changed; `where` ends the path of the key that does so."""
    spec = config.optimizer
    constructor, arguments = spec.load_constructor(), spec.arguments() | changed
    _check_class(
        constructor, f"optimizers.{config.optimizer_name}.constructor '{spec.constructor}'"
    )
    capabilities = Capabilities.of(constructor)
    if capabilities.takes_seed:
        arguments.setdefault("seed", config.seed)
    if distributed.world_size() > 1 and capabilities.averages_over_processes:
        arguments.setdefault("process_group", distributed.world_group())
    try:
        return constructor(params, **arguments)
    except constructors.REFUSALS as error:
        said = str(error)
        if not isinstance(error, TypeError | ValueError):  # it was not meant for the user
            said = constructors.refusal(spec.constructor, arguments, error)
        raise UserError(f"optimizers.{config.optimizer_name}{where}: {said}") from None


def _check_class(constructor: Any, what: str) -> None:
    """Refuse what makes no optimizer that a closure can be given."""
    step = getattr(constructor, "step", None)
    if not isinstance(constructor, type) or not callable(step):
        raise UserError(f"{what} is no class of optimizers: it has no step")
    try:
        inspect.signature(step).bind(None, None)
    except TypeError:
        raise UserError(
            f"{what}: its step takes no closure; write step(self, closure=None)"
        ) from None


def check(config: Config) -> None:
    """Refuse now what would fail only when the run starts.

    Raises:
        UserError: as `build_device` and `build_optimizer`.
    """
    build_device(config)
    check_optimizer(config)


def check_optimizer(config: Config) -> None:
    """As `check`, where another machine trains: the device is not looked for."""
    registry.check(config)
    _check_names(config)
    spec, params = config.optimizer, [nn.Parameter(torch.zeros(1, 1))]
    for epoch in sorted(spec.after_epochs):  # a value may be refused then, too
        _construct(config, params, spec.changed_options(epoch), f".after_epochs.{epoch}")
    for group in spec.groups:
        options, where = spec.group_options([group]), f".groups, {group.match}"
        _construct(config, params, options, where)  # torch's own check values there only
        alone = {"params": [nn.Parameter(torch.zeros(1, 1))], **options}
        _construct(config, [{"params": params}, alone], {}, where)
