"""What sets runs apart, in words: `lr=0.075`, `epochs=30`.

Settings are flat: `{"schedule.factor": 0.1}`. A key that a configuration does not have, because it
is older than the key or leaves an argument of the optimizer out, has its default there: the value
is not named, and neither is the same value where it is written out.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from experiments.config.experiment import WITHOUT_EFFECT, Config, Optimizer
from experiments.errors import UserError
from experiments.plans import experiments
from experiments.tasks.registry import config_class

MISSING = object()  # the value of a key that is neither set nor has a default


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def protocol(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that its optimizers share, flat."""
    own = WITHOUT_EFFECT | {"optimizers"}
    return flatten({key: value for key, value in config.items() if key not in own})


def differences(
    settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> list[str]:
    """`key=value` for the settings in which this one and others differ, but for defaults."""
    return [
        f"{key}={value}"
        for key, value in settings.items()
        if value != defaults.get(key, MISSING)
        and any(other.get(key, defaults.get(key, MISSING)) != value for other in others)
    ]


def changes(meta: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has otherwise than its experiment's file, by key; `lr` is the optimizer's.

    The file is `configs/<dataset>/<model>.yaml`, or else the nearest one that has the optimizer,
    without that other data set's or model's own settings. Runs of one experiment are compared with
    one file, so what differs between them differs here.

    Args:
        meta, config: the contents of a run's `meta.json` and `config.yaml`.
    """
    dataset, model, optimizer = (meta[key] for key in ("dataset", "model", "optimizer"))
    place, file = experiments.nearest_with(dataset, model, optimizer)
    if file is None:
        return {}
    mine, theirs = config["optimizers"][optimizer], file["optimizers"][optimizer]
    found = _changes(flatten(mine), flatten(theirs), optimizer_defaults(mine.get("constructor")))
    shared = _changes(protocol(config), protocol(file), protocol_defaults(config))
    others = tuple(["dataset."] * (place[0] != dataset) + ["model."] * (place[1] != model))
    return found | {key: value for key, value in shared.items() if not key.startswith(others)}


def _changes(
    mine: Mapping[str, Any], base: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    found = {}
    for key in dict.fromkeys([*mine, *base]):
        value = mine.get(key, defaults.get(key, MISSING))
        if value is not MISSING and value != base.get(key, defaults.get(key, MISSING)):
            found[key] = value
    return found


def protocol_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of what a configuration's optimizers share, flat: those of its task's keys.

    Of a task that is not there any more they are those that all tasks have.
    """
    try:
        return schema_defaults(config_class(config.get("task")))
    except UserError:
        return schema_defaults(Config)


@cache
def schema_defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a schema's keys and of the sections in it, flat."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            found |= flatten({name: value})
        elif inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            inner = schema_defaults(field.annotation)
            found |= {f"{name}.{key}": value for key, value in inner.items()}
    return found


@cache
def optimizer_defaults(constructor: str | None) -> dict[str, Any]:
    """The defaults of an optimizer's keys, flat; the schema's alone where it is not installed."""
    module, _, name = (constructor or "").rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except Exception:  # whatever importing others' code raises, a label is not worth an error
        parameters = {}
    arguments = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in parameters.items()
        if p.default is not inspect.Parameter.empty and name not in Optimizer.model_fields
    }
    return arguments | schema_defaults(Optimizer)
