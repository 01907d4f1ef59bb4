"""The evaluation of a split, at the weights that are to be evaluated: not always those trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.config.experiment import Config
from experiments.errors import UserError
from experiments.runtime import distributed
from experiments.tasks.task import Task
from experiments.training import measures
from experiments.training.optimizers import Capabilities
from experiments.training.position import add, read
from experiments.training.weights import tensors

NO_GRAPH = "does not require grad"  # torch's words


def build_average(
    config: Config, model: nn.Module, optimizer: torch.optim.Optimizer
) -> AveragedModel | None:
    """The average that the configuration asks for, buffers included; None where it asks for none.

    Raises:
        UserError: the optimizer averages already.
    """
    if config.average is None:
        return None
    if Capabilities.of(optimizer).has_modes:
        raise UserError(f"average: {config.optimizer_name} has an average of its own, set null")
    decay = config.average.decay
    function = None if decay is None else get_ema_multi_avg_fn(decay)
    return AveragedModel(model, multi_avg_fn=function, use_buffers=True)


def update_average(
    average: AveragedModel | None, model: nn.Module, config: Config, step: int, steps: int
) -> None:
    """Take the weights after so many steps into the average, where they belong there.

    Args:
        average, model, config: of the training.
        step: steps done.
        steps: in an epoch.
    """
    if average is None or config.average is None:
        return
    if last := config.average.last_epochs:
        epoch, inside = divmod(step, steps)
        if inside or epoch <= config.epochs - last:
            return
    decay = config.average.decay
    if decay is None or average.n_averaged == 0:
        average.update_parameters(model)
    else:
        _move(average, model, decay)


def _move(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """`AveragedModel.update_parameters`, which would copy its counter to the device, and wait."""
    move = get_ema_multi_avg_fn(decay)
    tensors: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for averaged, trained in zip(_tensors(average.module), _tensors(model), strict=True):
        tensors.setdefault(averaged.dtype, []).append((averaged, trained))
    for pairs in tensors.values():
        averaged, trained = map(list, zip(*pairs, strict=True))
        move(averaged, trained, average.n_averaged)
    average.n_averaged += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return (tensor.detach() for tensor in chain(model.parameters(), model.buffers()))


@contextmanager
def evaluated_weights(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None = None
) -> Iterator[None]:
    """Inside, the model holds the weights that are evaluated; afterwards everything is as before.

    They are others than those trained where there is an average, and for optimizers with modes,
    the schedule-free ones.
    """
    with_modes: Any = optimizer if Capabilities.of(optimizer).has_modes else None
    averaged = average is not None and bool(average.n_averaged > 0)
    if not with_modes and not averaged:
        yield
        return
    with unchanged(model):
        if with_modes:
            with_modes.eval()
        if averaged:
            _copy(average.module.state_dict(), model)
        try:
            yield
        finally:
            if with_modes:
                with_modes.train()  # comes back up to rounding


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards the model holds the tensors that it holds now."""
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    try:
        yield
    finally:
        _copy(before, model)


def _copy(state: dict[str, Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            tensor.copy_(state[name])


def evaluated_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> dict[str, Any] | None:
    """The model's state with these weights; None where they are those that are trained."""
    if not Capabilities.of(optimizer).has_modes:
        has_average = average is not None and bool(average.n_averaged > 0)
        return average.module.state_dict() if has_average else None
    with evaluated_weights(model, optimizer):
        copies = {key: value.clone() for key, value in tensors(model).items()}
        return {**model.state_dict(), **copies}


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, split: str, final: bool = False) -> dict[str, float]:
    """The task's metrics on a whole split; `final`: also its `final_metrics`.

    Raises:
        UserError: the task measures something else than the numbers that it declares, or takes
            gradients.
    """
    model.eval()
    totals: dict[str, Any] = {}
    for batch in task.evaluation_batches(split):
        try:
            sums = measures.sums(task, split, task.evaluate(model, batch))
            more = task.measure_final(model, batch) if final else {}
        except RuntimeError as error:
            if NO_GRAPH not in str(error):
                raise
            raise UserError(
                f"task '{task.config.task}', split {split}: evaluations are under torch.no_grad(), "
                "and what is measured here differentiates: do so within `with torch.enable_grad():`"
            ) from error
        if final:
            sums = sums | measures.sums(task, split, {**sums, **more})
        add(totals, {key: value.double() for key, value in sums.items()})
    totals = dict(zip(totals, read(list(totals.values())), strict=True))
    declared = [metric.name for metric in task.metrics]
    if not final:
        declared = [name for name in declared if name not in task.final_metrics]
    return measures.metrics(task, split, distributed.sum_over_ranks(totals), declared, exactly=True)
