"""The tasks by name: any package can be one, and a line here gives one of ours a short name.

`task: mylab.regression` is a package with two modules: `config`, with its class of configurations,
which imports no torch, and `task`, with its `Task`. Either is imported when it is needed.
"""

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import constructors
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
    "text_classification": (
        f"{_HERE}.text_classification.config.TextClassificationConfig",
        f"{_HERE}.text_classification.task.TextClassification",
    ),
}


def config_class(name: Any) -> type[Config]:
    """The class of a task's configurations.

    Raises:
        UserError: there is no such task.
    """
    if not isinstance(name, str) or not (name in TASKS or "." in name):
        known = nearest(str(name), TASKS)
        raise UserError(f"task = {name!r}: no such task; {known}, or a package of your own")
    return (
        constructors.find(TASKS[name][0]) if name in TASKS else _own(f"{name}.config", Config, name)
    )


def _task_class(name: str) -> type["Task"]:
    from experiments.tasks.task import Task

    return constructors.find(TASKS[name][1]) if name in TASKS else _own(f"{name}.task", Task, name)


def _own(path: str, kind: type, name: str) -> Any:
    """The one class of a kind that a module of a task's folder defines."""
    try:
        module = constructors.module(path)
    except ImportError as error:
        raise UserError(f"task '{name}' cannot be imported: {error}") from error
    found = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, kind) and one.__module__ == path
    ]
    found = [one for one in found if not any(one in other.__bases__ for other in found)]
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise UserError(
            f"task '{name}': {path} must define one class of {kind.__module__}.{kind.__name__}; "
            f"there: {names}"
        )
    return found[0]


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
        UserError: the data cannot be had, or the configuration does not fit it; the task does not
            say how many steps an epoch has.
    """
    task = _task_class(config.task)(config, device, data_root)
    steps = getattr(task, "steps_per_epoch", None)
    if not isinstance(steps, Integral) or steps < 1:
        raise UserError(
            f"task '{config.task}': steps_per_epoch is {steps!r}; set a whole number, 1 or more, "
            "when it is constructed (`count_steps` counts)"
        )
    if type(steps) is not int:  # numpy's, which JSON does not know
        task.steps_per_epoch = int(steps)
    return task


def check(config: Config) -> None:
    """Refuse what a task could not train, see `Task.check`."""
    _task_class(config.task).check(config)


def describe_data(config: Config, data_root: Path) -> dict[str, Any] | None:
    """What the data of a configuration are, see `Task.describe_data`."""
    return _task_class(config.task).describe_data(config, data_root)
