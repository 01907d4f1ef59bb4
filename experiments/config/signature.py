"""What names a run: eight digits for all that it computes, apart from its seed."""

import hashlib
import inspect
import json
from typing import Any

from experiments.config.experiment import WITHOUT_EFFECT, Config, Optimizer


def signature(config: Config) -> str:
    """Eight hex digits that name what a run computes, apart from its seed.

    A hash of the resolved configuration without `WITHOUT_EFFECT`, without keys that equal their
    default (`experiments.config.sections` says why), without constructor arguments that equal the
    constructor's default, and blind to spelling: 1 or 1.0, key order, comments.
    """
    return _digest({**_effective(config), "optimizer": _effective_optimizer(config.optimizer)})


def protocol(config: Config) -> str:
    """The signature of what all optimizers of an experiment share: what may stand in one table."""
    return _digest(_effective(config))


def _effective(config: Config) -> dict:
    exclude = WITHOUT_EFFECT | {"optimizers"}
    return config.model_dump(mode="json", exclude_defaults=True, exclude=exclude)


def _effective_optimizer(optimizer: Optimizer) -> dict:
    parameters = inspect.signature(optimizer.load_constructor()).parameters
    return {
        key: value
        for key, value in optimizer.model_dump(mode="json", exclude_defaults=True).items()
        if key in Optimizer.model_fields or _canonical(value) != _canonical(parameters[key].default)
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:8]


def _canonical(value: Any) -> str:
    """One text per meaning: keys sorted, 1.0 as 1, tuples as lists."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [plain(inner) for inner in item]
        if isinstance(item, float) and item.is_integer():
            return int(item)
        return item

    return json.dumps(plain(value), sort_keys=True, default=str)
