"""The configured optimizer, and what it offers and asks for beyond `torch.optim.Optimizer`."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config import constructors
from experiments.config.experiment import Config
from experiments.errors import UserError, nearest
from experiments.runs import checkpoint
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
    _check_instance(optimizer, f"{where}: {spec.constructor}")
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
        if not constructors.is_said(error):
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


def _check_instance(optimizer: torch.optim.Optimizer, what: str) -> None:
    """Refuse an optimizer of one parameter that the loop could not set, or not save."""
    try:
        optimizer.state_dict()
        groups = len(optimizer.param_groups)
    except Exception as error:  # whatever a class does that is none of torch's
        said = " ".join(str(error).split()) or "no reason given"
        raise UserError(
            f"{what} has no state_dict and param_groups ({type(error).__name__}: {said}): does it "
            "call super().__init__(params, defaults)?"
        ) from error
    if groups != 1:
        raise UserError(
            f"{what} makes {groups} parameter groups of one, and the schedule would not know their "
            "learning rates: keep the groups that are given, and tell parameters apart in `step`, "
            "or by the key `groups`"
        )


def doubts(config: Config) -> list[str]:
    """What a training would not tell of its optimizer, in words: it is tried on four numbers.

    A second instance that gets the state of the first must make the same steps, and the learning
    rate that the schedule writes into the groups must count. An optimizer that this problem does
    not suit is not judged.
    """
    spec = config.optimizer
    if spec.constructor.startswith(("torch.optim.", "adahessian.")):
        return []
    found = []
    if lost := _forgets(config):
        found.append(
            f"{lost}: a run that is interrupted will not end as one that is not. State belongs "
            "into `state` and `param_groups`"
        )
    if spec.lr and config.learning_rate_schedule.changes and _ignores_rate(config):
        found.append(
            f"the first steps of {spec.constructor} are the same whatever `lr` is in its "
            "`param_groups`, into which the schedule writes it: they do not follow that"
        )
    return found


def _forgets(config: Config) -> str:
    try:
        one, first = _small_training(config, torch.eye(2) + 1)
        _take_steps(one, first)
        other, second = _small_training(config, first.detach())
        state, mine = copy.deepcopy(one.state_dict()), _numbers(one)
        _scale_rate(one)
        _take_steps(one, first)
    except Exception:  # of whatever kind: the training will say what is wrong, if anything is
        return ""
    constructor = config.optimizer.constructor
    try:
        other.load_state_dict(state)
        theirs = _numbers(other)
        _scale_rate(other)
        _take_steps(other, second)
    except Exception as error:
        said = constructors.raised(error)
        return f"{constructor} does not go on from what its state_dict has ({said})"
    if first.equal(second) or not (first.isfinite().all() and second.isfinite().all()):
        return ""
    names = [name for name, value in mine.items() if value != theirs.get(name)]
    what = ", ".join(names) or "something (are `param_groups` those in use after load_state_dict?)"
    return f"the steps of {constructor} depend on {what}, which its state_dict does not have"


def _ignores_rate(config: Config) -> bool:
    start, ends = torch.eye(2, dtype=torch.float64) + 1, []
    try:
        for factor in (1.0, 0.5):
            optimizer, param = _small_training(config, start)
            _scale_rate(optimizer, factor)
            _take_steps(optimizer, param)
            ends.append(param.detach())
    except Exception:  # as above
        return False
    return ends[0].equal(ends[1]) and not ends[0].equal(start)


def _scale_rate(optimizer: torch.optim.Optimizer, factor: float = 0.5) -> None:
    """As the schedule does."""
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), float):
            group["lr"] *= factor


def _small_training(config: Config, values: Tensor) -> tuple[Any, nn.Parameter]:
    param = nn.Parameter(values.clone())
    return _construct(config, [param], {}, ""), param


def _take_steps(optimizer: Any, param: nn.Parameter) -> None:
    """Some steps, which draw from generators the same each time."""
    checkpoint.seed_generators(0)

    @torch.enable_grad()
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
        return loss

    for _ in range(3):
        optimizer.step(closure)


def _numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's attributes but those of its state_dict, as far as they consist of numbers."""
    kept = ("state", "param_groups", "defaults")
    return {name: _plain(value) for name, value in vars(optimizer).items() if name not in kept}


def _plain(value: Any) -> Any:
    """The numbers in an attribute, as far as it consists of any."""
    if isinstance(value, torch.optim.Optimizer):
        return _plain(value.state_dict())
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, int | float | str) else None


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
