"""What sets runs apart from each other, in as few words as it takes.

From configurations alone: status, job names and reports give the same run the same words.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.config.experiment import WITHOUT_EFFECT, Config
from experiments.config.flat import MISSING, flatten, schema_defaults, shown
from experiments.config.optimizers import Optimizer
from experiments.tasks.registry import protocol_defaults

_FIRST, _LAST = "optimizer", "seed"
_MODEL = "name of the model"  # no key of a configuration has blanks


def settings_apart(
    configs: Sequence[Mapping[str, Any]], models: Sequence[str]
) -> list[dict[str, Any]]:
    """For each run, its settings that not all runs of the same data set and model share.

    Args:
        configs: resolved configurations as plain mappings: what a `config.yaml` holds, or
            `Config.model_dump()`.
        models: what each one's model is called: the second folder of its path. Ours have their
            size in it; of a network of others, its arguments tell runs apart.

    Returns:
        One mapping per configuration, in their order: `optimizer`, then keys by their dotted path,
        `optimizer.lr` for a key of the run's own optimizer, then `seed`. Keys of optimizers are
        compared among runs of one optimizer. A key that a configuration does not have, because an
        older version wrote it, counts as its default.
    """
    flat = [_flat(config) | {_MODEL: m} for config, m in zip(configs, models, strict=True)]
    known = [_defaults(config) | one for config, one in zip(configs, flat, strict=True)]
    found: list[dict[str, Any]] = [{} for _ in flat]
    for group in _groups(flat, range(len(flat)), "dataset.name", _MODEL):
        keys = dict.fromkeys(key for place in group for key in flat[place])
        for key in keys:
            own = key.startswith("optimizer.")
            for part in _groups(flat, group, "optimizer") if own else [group]:
                values = {place: known[place].get(key, MISSING) for place in part}
                if len({_canonical(value) for value in values.values()}) > 1:
                    for place, value in values.items():
                        found[place][key] = value
    order = [*dict.fromkeys(key for one in flat for key in one if key != _LAST), _LAST]
    return [
        {key: one[key] for key in order if key in one and one[key] is not MISSING} for one in found
    ]


def words(settings: Mapping[str, Any]) -> str:
    """Settings as one writes them, optimizer and seed apart: `lr=0.1 epochs=30`."""
    return " ".join(
        f"{key.removeprefix('optimizer.')}={_text(value)}"
        for key, value in settings.items()
        if key not in (_FIRST, _LAST)
    )


def titles(configs: Sequence[Config]) -> list[str]:
    """A title per run: `digits resnet8 sgd lr=0.1 seed 3`, with its `settings_apart`."""
    models = [config.model.label for config in configs]
    found = settings_apart([config.model_dump() for config in configs], models)
    titles = []
    for config, settings in zip(configs, found, strict=True):
        parts = (config.dataset.name, config.model.label, config.optimizer_name, words(settings))
        titles.append(" ".join([*filter(None, parts), f"seed {config.seed}"]))
    return titles


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    ((name, optimizer),) = config["optimizers"].items()
    own = WITHOUT_EFFECT | {"optimizers", "seed"}
    shared = {key: value for key, value in config.items() if key not in own}
    return {
        _FIRST: name,
        **flatten(optimizer, "optimizer."),
        **flatten(shared),
        _LAST: config.get("seed", 1),
    }


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a configuration's keys, by the paths of `_flat`.

    Those of the schema: the optimizer's own are in its constructor, whose import takes seconds.
    """
    own = schema_defaults(Optimizer)
    return protocol_defaults(config) | {f"optimizer.{key}": value for key, value in own.items()}


def _groups(
    flat: Sequence[Mapping[str, Any]], places: Iterable[int], *keys: str
) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for place in places:
        mark = _canonical([flat[place].get(key) for key in keys])
        groups.setdefault(mark, []).append(place)
    return list(groups.values())


def _canonical(value: Any) -> str:
    if value is MISSING:
        return "absent"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def _text(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value, default=str))
