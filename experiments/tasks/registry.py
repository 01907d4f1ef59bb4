"""The tasks by name: a line here and a folder beside this file make one.

The line holds the dotted paths of a task's configuration, which imports no torch, and of the task
itself. Either is imported when it is needed.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.experiment import Config
from experiments.config.flat import schema_defaults
from experiments.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

    from experiments.tasks.task import Task

_HERE = "experiments.tasks"
TASKS = {
    "image_classification": (
        f"{_HERE}.image_classification.config.ImageClassificationConfig",
        f"{_HERE}.image_classification.task.ImageClassification",
    ),
    "translation": (
        f"{_HERE}.translation.config.TranslationConfig",
        f"{_HERE}.translation.task.Translation",
    ),
    "language_modeling": (
        f"{_HERE}.language_modeling.config.LanguageModelingConfig",
        f"{_HERE}.language_modeling.task.LanguageModeling",
    ),
}


def config_class(name: Any) -> type[Config]:
    """The class of a task's configurations.

    Raises:
        UserError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"task = {name!r}: no such task; {nearest(str(name), TASKS)}")
    return _import(TASKS[name][0])


def protocol_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of what a configuration's optimizers share, flat: those of its task's keys.

    Of a task that is not there any more they are those that all tasks have.
    """
    try:
        return schema_defaults(config_class(config.get("task")))
    except UserError:
        return schema_defaults(Config)


def build_task(config: Config, device: "torch.device", data_root: Path) -> "Task":
    """The configured task with its data loaded.

    Raises:
        UserError: the data cannot be had, or the configuration does not fit it.
    """
    return _import(TASKS[config.task][1])(config, device, data_root)


def check(config: Config) -> None:
    """Refuse what a task could not train, see `Task.check`."""
    _import(TASKS[config.task][1]).check(config)


def describe_data(config: Config, data_root: Path) -> dict[str, Any] | None:
    """What the data of a configuration are, see `Task.describe_data`."""
    return _import(TASKS[config.task][1]).describe_data(config, data_root)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
