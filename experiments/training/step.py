"""One step of a training, the same for every task and every optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

import adahessian
from adahessian.curvature.beside import NoPart
from experiments.config import constructors
from experiments.config.experiment import Config
from experiments.errors import UserError
from experiments.runs.directory import RunDirectory
from experiments.runtime import distributed
from experiments.tasks.task import Task
from experiments.training import groups, measures, optimizers
from experiments.training.monitor import CurvatureMonitor
from experiments.training.position import add
from experiments.training.schedule import GroupSchedule
from experiments.training.step_log import StepLog


@dataclass
class Training:
    """What the loop works on.

    Attributes:
        gradients: how often the optimizers' closures have evaluated the whole batch's gradient. One
            that keeps its graph counts as three: the pass through it costs two.
    """

    config: Config
    directory: RunDirectory
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    monitor: CurvatureMonitor | None = None
    log: StepLog | None = None
    plateau: ReduceLROnPlateau | None = None
    data: dict[str, Any] | None = None
    average: AveragedModel | None = None
    until: int = 0  # epochs after which to end or pause; 0: all
    gradients: int = 0

    def __post_init__(self) -> None:
        self.until = self.until or self.config.epochs
        self.capabilities = optimizers.Capabilities.of(self.optimizer)
        self.schedule = GroupSchedule(self.config, self.task.steps_per_epoch)
        self.groups = groups.split(self.config, self.model)

    @property
    def learning_rate(self) -> float | None:
        """The last step's, without the groups' factors; None where the optimizer has none."""
        rate = self.optimizer.param_groups[0].get("lr")
        return rate if rate is None else rate / self.groups[0].lr_factor

    def set_options(self, step: int) -> None:
        """Give the parameter groups what the schedule has for a step."""
        values = self.schedule.values(step)
        for group, part in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(part.values(values))

    @property
    def takes_part_of_batch(self) -> bool:
        """Whether the optimizer takes the curvature from a part of the batch."""
        return (
            self.capabilities.takes_part_of_batch
            and self.optimizer.param_groups[0]["curvature_fraction"] < 1
        )

    @property
    def differentiates_twice(self) -> bool:
        """Whether the optimizer takes second derivatives, of the loss or of that of a part."""
        way = self.optimizer.param_groups[0].get("curvature")
        return self.needs_graph or (self.takes_part_of_batch and way == "double_backward")

    @property
    def needs_graph(self) -> bool:
        """Whether the coming backward pass must keep the graph (`create_graph`)."""
        return self.capabilities.asks_for_graph and self.optimizer.needs_graph


def optimizer_step(training: Training, batch: Any) -> dict[str, Tensor]:
    """One step, the same for every optimizer, and the batch's sums before it, on the device.

    The optimizer decides how often it evaluates the closure; the sums are those of the first
    evaluation, at the weights from which the step starts.
    """
    evaluations: list[dict[str, Tensor]] = []
    closure = make_closure(training, batch, evaluations)
    place = f"optimizers.{training.config.optimizer_name}"
    more = {}
    if training.takes_part_of_batch:
        more["curvature_closure"] = make_curvature_closure(training, batch)
    try:
        training.optimizer.step(closure, **more)
    except NoPart as error:
        raise UserError(f"{place}.curvature_fraction: {error}") from None
    except (RuntimeError, ValueError) as error:
        if not constructors.is_said_by(adahessian, error):
            raise
        raise UserError(f"{place}: {error}") from error
    if not evaluations:
        raise UserError(
            f"{place}: step has not called its closure, which computes the loss and its gradient: "
            "call it first"
        )
    return distributed.add_over_ranks(evaluations[0])


def make_closure(
    training: Training, batch: Any, evaluations: list[dict[str, Tensor]]
) -> Callable[[], Tensor]:
    """The closure that every optimizer gets; each evaluation appends its sums to `evaluations`.

    It needs gradients also within a `step` under `torch.no_grad()` that does not say so.
    """
    task, model = training.task, training.model
    limit = training.config.optimizer.max_grad_norm

    @torch.enable_grad()
    def closure() -> Tensor:
        training.optimizer.zero_grad()
        training.gradients += 3 if training.needs_graph else 1
        totals: dict[str, Tensor] = {}
        whole: Tensor | None = None
        for part, share in task.micro_batches(batch):
            loss, sums = task.loss(model, part)
            if not loss.requires_grad:
                raise UserError(
                    f"task '{training.config.task}': the loss depends on no parameter that is "
                    "trained; is the model within torch.no_grad() or behind detach()?"
                )
            sums = measures.sums(task, "train", sums)
            add(totals, {**sums, "loss": loss.detach() * sums["weight"]})
            loss = distributed.weighted(loss, sums["weight"], share)
            loss.backward(create_graph=training.needs_graph)
            with torch.no_grad():
                whole = loss if whole is None else whole + loss
        evaluations.append(totals)
        if not training.capabilities.averages_over_processes:
            distributed.average_gradients(model.parameters())
        if limit and not training.capabilities.clips_gradients:
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        return whole

    return closure


def make_curvature_closure(
    training: Training, batch: Any
) -> Callable[[float, float], Tensor | None]:
    """The loss of a part of this rank's shard, without a backward pass, as AdaHessian takes it."""
    task = training.task

    def curvature_closure(start: float, stop: float) -> Tensor | None:
        part = task.part(batch, start, stop)
        if not distributed.everywhere(part is not None):
            return None
        return distributed.weighted(*task.loss_alone(training.model, part))

    return curvature_closure
