"""The signature that names a run: a hash of everything that determines its result but the seed."""

import hashlib
import inspect
import json
from typing import Any

from experiments.config.experiment import WITHOUT_EFFECT, Config
from experiments.config.optimizers import Optimizer


def signature(config: Config) -> str:
    """Eight hex digits of a hash of the resolved configuration.

    The hash leaves out `WITHOUT_EFFECT`, keys that equal their default and constructor arguments
    that equal the constructor's default; `experiments.config.sections` says why. It is blind to
    spelling: 1 or 1.0, the order of keys, comments.
    """
    return _digest({**_effective(config), "optimizer": _effective_optimizer(config.optimizer)})


def protocol(config: Config) -> str:
    """The signature of what all optimizers of an experiment share: one table per protocol."""
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
    """JSON that is the same for equal values: keys sorted, 1.0 as 1, tuples as lists."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [plain(inner) for inner in item]
        if isinstance(item, float) and item.is_integer():
            return int(item)
        return item

    return json.dumps(plain(value), sort_keys=True, default=str)
