"""What a task measures, checked: sums over a batch, and the metrics that follow from them.

Anybody's task hands them over, so that every kind of number is taken, and what is none is refused
by name before anything of it is recorded.
"""

import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from experiments.errors import UserError
from experiments.tasks.task import Task


def sums(task: Task, split: str, given: Any) -> dict[str, Tensor]:
    """Sums over a batch as tensors of no dimension, where they are; it waits for no device.

    Raises:
        UserError: naming task, split and sum.
    """
    if not isinstance(given, Mapping):
        raise _refused(task, split, f"sums are {_kind(given)}, not a dict of numbers")
    found = {}
    for name, value in given.items():
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            found[name] = value if value.ndim == 0 else value.reshape(())
        elif (number := _number(value)) is not None:
            found[name] = torch.tensor(number, dtype=torch.float64)
        else:
            raise _refused(task, split, f"the sum '{name}' is {_kind(value)}, not a number")
    if "weight" not in found:
        raise _refused(task, split, f"the sums {_list(found)} lack 'weight'")
    return found


def metrics(
    task: Task, split: str, totals: Mapping[str, float], names: Collection[str], exactly: bool
) -> dict[str, float]:
    """The metrics of a split as plain numbers, from sums over it.

    Args:
        task, split: that are measured.
        totals: sums.
        names: of the metrics that must be there.
        exactly: whether there may be no others.

    Raises:
        UserError: naming task, split and metric.
    """
    try:
        given = task.summarize(totals)
    except KeyError as error:
        raise _refused(
            task, split, f"summarize misses {error}, the sums are {_list(totals)}"
        ) from (error)
    if not isinstance(given, Mapping):
        raise _refused(task, split, f"summarize returns {_kind(given)}, not a dict of numbers")
    if missing := [name for name in names if name not in given]:
        raise _refused(task, split, f"summarize lacks {_list(missing)}, a metric of the task")
    if exactly and (more := [name for name in given if name not in names]):
        raise _refused(task, split, f"summarize has {_list(more)}, no metric of the task")
    found = {}
    for name, value in given.items():
        number = _number(value)
        if number is None:
            raise _refused(task, split, f"the metric '{name}' is {_kind(value)}, not a number")
        found[name] = number
    return found


def _number(value: Any) -> float | None:
    """A real number of any kind as Python's own; None for what is none."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Real):  # also numpy's
        return float(value)
    if hasattr(value, "shape") and hasattr(value, "item") and math.prod(value.shape) == 1:
        return _number(value.item())
    return None


def _refused(task: Task, split: str, what: str) -> UserError:
    return UserError(f"task '{task.config.task}', split {split}: {what}")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    shape = tuple(value.shape) if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{f' of shape {shape}' if shape else ''}"


def _list(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
