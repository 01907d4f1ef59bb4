"""The section of an optimizer: a row of an experiment."""

import inspect
import re
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from experiments.config import constructors
from experiments.config.schedules import AnySchedule
from experiments.config.sections import NotNegative, Section, refuse
from experiments.errors import nearest


class Group(Section):
    """Parameters with options of their own: any argument of the constructor but `lr`."""

    model_config = ConfigDict(extra="allow")

    match: str
    """Which: a pattern of their names (`*` is anything), or `1-D`, `2-D`, ... by their dimensions.

    Biases and the weights of norms are 1-D.
    """
    lr_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """`lr` is multiplied by it."""


class Optimizer(Section):
    """One optimizer: `constructor(params, lr=, weight_decay=, **every other key)`."""

    model_config = ConfigDict(extra="allow")

    constructor: str
    """Dotted path of a `torch.optim.Optimizer`, such as `torch.optim.SGD`."""
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The learning rate that the schedule multiplies; needed where the constructor takes one."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The constructor's argument, needed where it takes one; see also the next key."""
    weight_decay_divided_by_lr: bool | None = None
    """Whether `weight_decay` is divided by `lr` first; needed where there is a `weight_decay`.

    The released code does so for optimizers with decoupled weight decay: one number then shrinks
    the weights equally under every optimizer.
    """
    after_epochs: dict[NotNegative, dict[str, Any]] = {}
    """Options that change: `{5: {update_interval: 4}}` sets it to 4 after 5 epochs."""
    schedule: AnySchedule | None = None
    """The schedule of this optimizer, in place of the experiment's."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The gradient's norm over all parameters is clipped to it; null: not, or the constructor's."""
    groups: list[Group] = []
    """Options of some parameters: `[{match: 1-D, weight_decay: 0}, {match: head.*, lr_factor: 9}]`.

    Where two entries match and set the same option, the later one counts. `after_epochs` leaves
    alone what an entry sets.
    """

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        known = self.argument_names()
        for key in ("lr", "weight_decay"):
            given = getattr(self, key) is not None
            if given and key not in known:
                refuse(f"{self.constructor} takes no {key}: leave it out")
            if not given and key in known:
                refuse(f"{key} is missing: {self.constructor} takes one")
        self._check_division()
        if self.schedule and self.lr is None:
            refuse("a schedule needs an lr")
        choices = sorted(known | set(Optimizer.model_fields))
        for key in self.model_extra or {}:
            if key not in known:
                refuse(f"unknown key '{key}', no argument of {self.constructor}; "
                       + nearest(key, choices))  # fmt: skip
        self._check_types(self.model_extra or {})
        for values in self.after_epochs.values():
            self._check_types(values)
            if "lr" in values:
                refuse("after_epochs: lr belongs to the schedule, it cannot be set here")
        for group in self.groups:
            self._check_group(group, known)
        return self

    def _check_division(self) -> None:
        if self.weight_decay is not None and self.weight_decay_divided_by_lr is None:
            refuse("weight_decay_divided_by_lr is missing: true or false")
        if self.weight_decay_divided_by_lr and self.weight_decay is None:
            refuse(f"{self.constructor} takes no weight_decay that could be divided by lr")
        if self.weight_decay_divided_by_lr and not self.lr:
            refuse("weight_decay_divided_by_lr needs lr > 0")

    def _check_types(self, values: dict[str, Any]) -> None:
        """Refuse what would fail in the first step only: `betas: 0.9`, `momentum: hello`."""
        parameters = inspect.signature(self.load_constructor()).parameters
        for key, value in values.items():
            if said := constructors.meant_otherwise(self.constructor, key, value):
                refuse(f"{key} is {value!r}: {said}")
            default = parameters[key].default if key in parameters else None
            told = str(parameters[key].annotation) if key in parameters else ""
            kind = _kind(default)
            if value is None and kind in _TYPES and _takes_no_none(told):
                refuse(f"{key} is null: {self.constructor} takes a {kind} here, as its default "
                       f"{default!r}")  # fmt: skip
            if (
                kind in _TYPES
                and value is not None
                and not _is_like(value, default)
                and _TYPES[kind] not in told
            ):
                refuse(f"{key} is {value!r}: {self.constructor} takes a {kind} here, as its "
                       f"default {default!r}")  # fmt: skip

    def _check_group(self, group: Group, known: set[str]) -> None:
        self._check_types(group.model_extra or {})
        for key in group.model_extra or {}:
            if key == "lr":
                refuse(f"groups, {group.match}: lr belongs to the schedule; write lr_factor")
            if key not in known:
                choices = sorted(known - {"lr"} | {"lr_factor"})
                refuse(f"groups, {group.match}: unknown key '{key}'; {nearest(key, choices)}")

    def load_constructor(self) -> type:
        """Import the class that `constructor` names."""
        try:
            found = constructors.find(self.constructor)
        except ImportError as error:
            refuse(f"constructor '{self.constructor}' cannot be imported: {error}")
        if not isinstance(found, type):
            refuse(f"constructor '{self.constructor}' is no class")
        return found

    def argument_names(self) -> set[str]:
        """The arguments that the constructor names, but for the parameters."""
        arguments = inspect.signature(self.load_constructor()).parameters.values()
        open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return {a.name for a in arguments if a.kind not in open_ended} - {"self", "params"}

    def changed_options(self, epoch: int) -> dict[str, Any]:
        """The options that `after_epochs` has changed once so many epochs are done."""
        changed: dict[str, Any] = {}
        for start in sorted(self.after_epochs):
            if epoch >= start:
                changed.update(self.after_epochs[start])
        return {key: tuples(value) for key, value in changed.items()}

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments except the parameters."""
        found = {"lr": self.lr, "weight_decay": self.weight_decay}
        if "max_grad_norm" in self.argument_names():
            found["max_grad_norm"] = self.max_grad_norm
        found = {key: value for key, value in found.items() if value is not None}
        return self.divided(found) | {k: tuples(v) for k, v in (self.model_extra or {}).items()}

    def divided(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with their `weight_decay` as the constructor takes it."""
        if "weight_decay" not in options or not self.weight_decay_divided_by_lr:
            return options
        return {**options, "weight_decay": options["weight_decay"] / self.lr}

    def group_options(self, groups: list[Group]) -> dict[str, Any]:
        """What these entries of `groups` set together, as the constructor takes it."""
        found: dict[str, Any] = {}
        for group in groups:
            found |= {key: tuples(value) for key, value in (group.model_extra or {}).items()}
        return self.divided(found)


# By the kind of a default: what the annotation names where another kind of value is meant, too.
_TYPES = {"list": r"^(typing\.)?(Union\[)?float", "number": "str", "truth value": "str"}


def _takes_no_none(told: str) -> bool:
    """Whether an annotation says so; without one, None may switch something off."""
    return not re.search(r"None|Optional|Any|_empty", told)


def _kind(value: Any) -> str:
    """What an argument is, where that tells something; a text or an object may be anything."""
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, tuple | list) else "other"


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of a default's kind; a list has as many items, each of its kind.

    torch's own optimizers take the first two of three `betas` without a word.
    """
    if _kind(value) != _kind(default):
        return False
    if _kind(default) != "list" or not default:
        return True
    pairs = zip(value, default, strict=False)
    return len(value) == len(default) and all(
        one is None or _kind(other) not in _TYPES or _is_like(one, other) for one, other in pairs
    )


def tuples(value: Any) -> Any:
    """Lists as tuples: YAML has lists only, and optimizers expect `betas` as a tuple."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
