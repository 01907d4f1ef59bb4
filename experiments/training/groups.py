"""Which parameters are trained, and with which options: `freeze` and `groups`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from experiments.config.experiment import Config
from experiments.errors import UserError, nearest


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share their options.

    Attributes:
        matches: the patterns that chose them; empty for the others.
        params: the parameters.
        options: what the patterns set of the constructor's arguments.
        lr_factor: the learning rate is multiplied by it.
    """

    matches: tuple[str, ...]
    params: list[nn.Parameter]
    options: dict[str, Any]
    lr_factor: float = 1.0

    def values(self, shared: dict[str, Any]) -> dict[str, Any]:
        """The options to set before a step, from those that the schedule has for all groups."""
        found = {key: value for key, value in shared.items() if key not in self.options}
        if "lr" in found:
            found["lr"] *= self.lr_factor
        return found


def split(config: Config, model: nn.Module) -> list[ParameterGroup]:
    """The model's parameters that are trained; those that no pattern of `groups` chose come first.

    Raises:
        UserError: a pattern matches none of them.
    """
    spec = config.optimizer
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen: dict[tuple[int, ...], list[nn.Parameter]] = {(): []}
    for name, p in trained.items():
        places = tuple(i for i, one in enumerate(spec.groups) if matches(one.match, name, p))
        chosen.setdefault(places, []).append(p)
    for place, one in enumerate(spec.groups):
        if not any(place in places for places in chosen):
            _refuse(f"optimizers.{config.optimizer_name}.groups", one.match, trained)
    found = []
    for places in sorted(chosen):
        entries = [spec.groups[place] for place in places]
        factors = [entry.lr_factor for entry in entries if "lr_factor" in entry.model_fields_set]
        patterns = tuple(entry.match for entry in entries)
        if params := chosen[places]:
            found.append(
                ParameterGroup(patterns, params, spec.group_options(entries), [1.0, *factors][-1])
            )
    return found


def freeze(config: Config, model: nn.Module) -> None:
    """Stop the gradient of the parameters that `freeze` names.

    Raises:
        UserError: a pattern matches none, or they match all.
    """
    named = dict(model.named_parameters())
    for pattern in config.freeze:
        found = [p for name, p in named.items() if matches(pattern, name, p)]
        if not found:
            _refuse("freeze", pattern, named)
        for p in found:
            p.requires_grad_(False)
    if config.freeze and not any(p.requires_grad for p in named.values()):
        raise UserError(f"freeze = {config.freeze}: no parameter would be left to train")


def matches(pattern: str, name: str, p: nn.Parameter) -> bool:
    """Whether a pattern, of a name or of a number of dimensions, is that of a parameter."""
    if dimensions := re.fullmatch(r"(\d+)-D", pattern):
        return p.ndim == int(dimensions[1])
    return fnmatchcase(name, pattern)


def _refuse(where: str, pattern: str, names: Iterable[str]) -> None:
    names = list(names)
    hint = nearest(pattern, names) if len(names) <= 12 else _some(pattern, names)
    raise UserError(f"{where}: '{pattern}' matches no parameter; {hint}")


def _some(pattern: str, names: Sequence[str]) -> str:
    hint = nearest(pattern, names)
    return hint if hint.startswith("did") else f"names are like {', '.join(names[:3])}, {names[-1]}"
