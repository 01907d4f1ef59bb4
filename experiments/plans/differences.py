"""What sets runs apart, in words: `lr=0.075`, `epochs=30`.

Settings are flat: `{"schedule.factor": 0.1}`. A key that a configuration does not have, because it
is older than the key or leaves an argument of the optimizer out, has its default there: the value
is not named, and neither is the same value where it is written out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config.experiment import WITHOUT_EFFECT
from experiments.config.flat import MISSING, flatten, optimizer_defaults, shown
from experiments.plans import experiments
from experiments.tasks.registry import protocol_defaults


def protocol(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that its optimizers share, flat."""
    own = WITHOUT_EFFECT | {"optimizers"}
    return flatten({key: value for key, value in config.items() if key not in own})


def words_apart(
    settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> list[str]:
    """`key=value` for the settings in which this one and others differ, but for defaults."""
    return [
        setting(key, value)
        for key, value in settings.items()
        if value != defaults.get(key, MISSING)
        and any(other.get(key, defaults.get(key, MISSING)) != value for other in others)
    ]


def setting(key: str, value: Any) -> str:
    """A setting as a person says it: `lr=0.1`, `update_interval=2 after epoch 5`."""
    change = re.fullmatch(r"after_epochs\.(\d+)\.(.+)", key)
    if change:
        return f"{change[2]}={shown(value)} after epoch {change[1]}"
    return f"{key}={shown(value)}"


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
