"""The training loop, the same for every task and every optimizer."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from experiments.config import metrics
from experiments.config.experiment import Config
from experiments.runs import checkpoint, data
from experiments.runs.directory import RunDirectory
from experiments.runs.provenance import session
from experiments.runtime import distributed, stopping
from experiments.runtime.device import build_device
from experiments.runtime.progress import Progress
from experiments.tasks.registry import build_task
from experiments.tasks.task import Task
from experiments.tracking.tracker import Tracker
from experiments.training import curvature, groups, optimizers, weights
from experiments.training.evaluation import (
    build_average,
    evaluate,
    evaluated_state,
    evaluated_weights,
    update_average,
)
from experiments.training.monitor import CurvatureMonitor
from experiments.training.schedule import GroupSchedule, build_plateau


class NonFiniteLoss(Exception):
    """A training that cannot go on: its loss or a weight is infinite or not a number."""


@dataclass
class Position:
    """How far a training has come.

    Attributes:
        epoch: whole epochs, evaluated.
        step: steps of the next one; all of them where only its evaluation is missing.
        totals, seconds: sums and time of these steps.
        step_seconds: the time of each of these steps that was measured.
        waited: seconds of these times in which the process had no processor (autograd may have a
            thread of its own).
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    waited: float = 0.0


@dataclass
class Training:
    """What the loop works on."""

    config: Config
    directory: RunDirectory
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    monitor: CurvatureMonitor | None = None
    plateau: ReduceLROnPlateau | None = None
    data: dict[str, Any] | None = None
    average: AveragedModel | None = None

    def __post_init__(self) -> None:
        self.capabilities = optimizers.Capabilities.of(self.optimizer)
        self.schedule = GroupSchedule(self.config, self.task.steps_per_epoch)
        self.groups = groups.split(self.config, self.model)

    @property
    def learning_rate(self) -> float | None:
        """Of the last step, where no group multiplies it; None where the optimizer has none."""
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


def train(config: Config, directory: RunDirectory, data_root: Path) -> None:
    """Train a run to its end, from its checkpoint where it has one.

    Interrupted at any moment and called again, on a CPU, it leaves bitwise the metrics (except
    `time/`) and weights of an uninterrupted run: the order of the data does not depend on
    history, and everything that does is in the checkpoint.

    Args:
        config: the resolved configuration.
        directory: where the run is recorded; the caller holds its lock.
        data_root: where data sets are.

    Raises:
        NonFiniteLoss: with step and learning rate; the last good checkpoint stays.
        Stopped: a signal asked for it; the step during which it came is saved.
        StorageError: a file cannot be written; the last good checkpoint stays.
        LeaseLost: another process has taken over.
    """
    training = build(config, directory, data_root)
    task, model = training.task, training.model
    parameters = sum(p.numel() for p in model.parameters())
    declared = metrics.dump(task.metrics)
    known = distributed.broadcast((directory.meta() or {}).get(data.KEY))
    data.refuse_other(directory.path, known, training.data)
    directory.describe(
        session(task.device) | task.provenance(), declared, task.headline.name, parameters,
        training.data,
    )  # fmt: skip
    position = restore(training)
    if position == Position():
        curvature.record_spectrum(config, directory.path, task, model, epoch=0)

    steps = config.epochs * task.steps_per_epoch
    mode = None if distributed.is_main() else "disabled"
    with Tracker(directory.path, mode) as tracker, Progress(directory.title, steps) as progress:
        while position.epoch < config.epochs:
            times = train_epoch(training, position, progress)

            measured = {"train": task.summarize(position.totals)}
            with evaluated_weights(model, training.optimizer, training.average):
                for split in task.evaluation_splits:
                    final = task.final_is_due(position.epoch + 1)
                    measured[split] = evaluate(task, model, split, final)
            position = Position(epoch=position.epoch + 1)
            rate = training.learning_rate
            row = {
                "step": position.epoch * task.steps_per_epoch,
                "epoch": position.epoch,
                **({} if rate is None else {"learning_rate": rate}),
                **{f"{split}/{k}": v for split, all in measured.items() for k, v in all.items()},
                **measure_curvature(training, position.epoch),
                **times,
            }
            if training.plateau:
                training.plateau.step(row[config.learning_rate_schedule.waits_for.metric])
            directory.append(row)
            tracker.log(row)
            progress.note(_note(row, config), last=position.epoch == config.epochs)
        with evaluated_weights(model, training.optimizer, training.average):
            samples = task.samples(model.eval()) if distributed.is_main() else []
        # Before the tracker finishes: a result does not wait for wandb.
        directory.finish(task.headline.name, task.headline.direction, samples)


def build(config: Config, directory: RunDirectory, data_root: Path) -> Training:
    """The objects of a training at its start; the arguments are those of `train`.

    Raises:
        UserError: the configuration does not fit the data, the optimizer or the processes.
    """
    task = build_task(config, build_device(config), data_root)
    torch.manual_seed(_model_seed(config.seed))
    model = task.build_model()
    initial = weights.initialize(config, model)
    groups.freeze(config, model)
    optimizer = optimizers.build_optimizer(config, model)
    training = Training(config, directory, task, model, optimizer)
    training.data = task.describe_data(config, data_root)
    if initial:
        training.data = {**(training.data or {}), weights.DIGEST: initial}
    training.model = distributed.prepare_model(model, training.differentiates_twice)
    training.plateau = build_plateau(config, optimizer)
    training.average = build_average(config, training.model, optimizer)
    if config.curvature_statistics and training.capabilities.has_curvature_hooks:
        training.monitor = CurvatureMonitor(training.model, optimizer)
    return training


def train_epoch(training: Training, position: Position, progress: Progress) -> dict[str, float]:
    """Train from `position`, which is moved along, to the end of its epoch, and save that.

    What was trained is saved before it is evaluated: an evaluation that fails costs no training.

    Returns:
        `time/epoch_seconds`, interrupted sessions included, `time/step_seconds`, the median time
        of an optimizer step without the making of its batch, and `time/waited_share`, the share of
        the steps' time in which the process had no processor: on a CPU, what other load took.
    """
    task, config = training.task, training.config
    steps = task.steps_per_epoch
    done = position.epoch * steps
    earlier, start = position.seconds, time.perf_counter()
    training.model.train()
    if training.capabilities.has_modes:
        training.optimizer.train()
    for batch in task.training_batches(position.epoch, position.step):
        training.set_options(done + position.step)
        step_start, processor_start = time.perf_counter(), time.process_time()
        sums = optimizer_step(training, batch)
        position.step_seconds.append(time.perf_counter() - step_start)
        processor_seconds = time.process_time() - processor_start
        position.waited += max(0.0, position.step_seconds[-1] - processor_seconds)
        position.step += 1
        update_average(training.average, training.model, config, done + position.step, steps)
        position.seconds = earlier + time.perf_counter() - start
        _add(position.totals, sums)
        if not math.isfinite(sums["loss"]):
            raise NonFiniteLoss(
                f"the loss is {sums['loss'] / sums['weight']} at step {done + position.step} "
                f"(epoch {position.epoch + 1}, learning rate {_rate(training)}); "
                f"{_what_stays(training)}"
            )
        progress.step(done + position.step)
        if done + position.step == 1:  # an optimizer makes its state in its first step
            checkpoint.check(_state(training, position))
        stop = distributed.broadcast(stopping.requested())
        if stop or _save_is_due(training, position):
            save(training, position)
        if stop:
            distributed.broadcast("saved")  # no rank leaves before rank 0 has written
            raise stopping.Stopped(stop)
    times = {"time/epoch_seconds": position.seconds}
    if position.step_seconds:
        times["time/step_seconds"] = statistics.median(position.step_seconds)
        times["time/waited_share"] = position.waited / math.fsum(position.step_seconds)
    return times


def _save_is_due(training: Training, position: Position) -> bool:
    """Whether the configuration asks for a checkpoint after this step."""
    config, steps = training.config, training.task.steps_per_epoch
    done, every = position.epoch * steps + position.step, config.checkpoint_every_steps
    if every and done % every == 0:
        return True
    epochs, inside = divmod(done, steps)
    last = epochs == config.epochs
    return not inside and (last or epochs % config.checkpoint_every_epochs == 0)


def optimizer_step(training: Training, batch: Any) -> dict[str, float]:
    """One step, the same for every optimizer, and the batch's sums before it.

    The optimizer decides how often it evaluates the closure; the sums are those of the first
    evaluation, at the weights from which the step starts.
    """
    evaluations: list[dict[str, Tensor]] = []
    closure = make_closure(training, batch, evaluations)
    if training.takes_part_of_batch:
        part = make_curvature_closure(training, batch)
        training.optimizer.step(closure, curvature_closure=part)
    else:
        training.optimizer.step(closure)
    return distributed.sum_over_ranks({k: value.item() for k, value in evaluations[0].items()})


def make_closure(
    training: Training, batch: Any, evaluations: list[dict[str, Tensor]]
) -> Callable[[], Tensor]:
    """The closure that every optimizer gets; each evaluation appends its sums to `evaluations`."""
    task, model = training.task, training.model
    limit = training.config.optimizer.max_grad_norm

    def closure() -> Tensor:
        training.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        whole: Tensor | None = None
        for part, share in task.micro_batches(batch):
            loss, sums = task.loss(model, part)
            _add(totals, {**sums, "loss": loss.detach() * sums["weight"]})
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


def measure_curvature(training: Training, epoch: int) -> dict[str, float]:
    """The curvature as the configuration asks for it, after so many epochs: entries of the row."""
    config, task, model = training.config, training.task, training.model
    row = training.monitor.finish_epoch() if training.monitor else {}
    every = config.curvature_error_every_epochs
    if training.capabilities.compares_curvature and every and epoch % every == 0:
        model.train()
        batch = next(iter(task.training_batches(epoch - 1, 0)))
        closure = make_closure(training, batch, [])
        row |= curvature.curvature_error(training.optimizer, closure)
    with evaluated_weights(model, training.optimizer, training.average):
        return row | curvature.record_spectrum(config, training.directory.path, task, model, epoch)


def save(training: Training, position: Position) -> None:
    """Save everything that the rest of the training depends on.

    Raises:
        NonFiniteLoss: a weight is not finite; the last good checkpoint stays.
    """
    if not all(p.isfinite().all() for p in training.model.parameters()):
        raise NonFiniteLoss(
            f"weights are infinite or not a number after epoch {position.epoch}, step "
            f"{position.step} of the next (learning rate {_rate(training)}); "
            f"{_what_stays(training)}"
        )
    training.directory.save_checkpoint(_state(training, position))


def _state(training: Training, position: Position) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        "model": training.model.state_dict(),
        "evaluated": evaluated_state(training.model, training.optimizer, training.average),
        "averaged": int(training.average.n_averaged) if training.average else 0,
        "optimizer": training.optimizer.state_dict(),
        "random": checkpoint.random_state(),
        "position": asdict(position),
        "plateau": training.plateau.state_dict() if training.plateau else None,
        "monitor": training.monitor.state_dict() if training.monitor else None,
        "metrics_size": training.directory.metrics_size(),
        data.KEY: training.data,
    }


def restore(training: Training) -> Position:
    """Go back to the last checkpoint, metrics included, or to the start where there is none."""
    state = distributed.broadcast(training.directory.load_checkpoint())
    if state is None:
        training.directory.cut_metrics(0)
        return Position()
    data.refuse_other(training.directory.path, state.get(data.KEY), training.data)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if training.average and state.get("averaged"):
        training.average.module.load_state_dict(state["evaluated"])
        training.average.n_averaged.fill_(state["averaged"])
    checkpoint.restore_random_state(state["random"])
    if training.plateau:
        training.plateau.load_state_dict(state["plateau"])
    if training.monitor and state.get("monitor"):  # the session before may have had none
        training.monitor.load_state_dict(state["monitor"])
    training.directory.cut_metrics(state["metrics_size"])
    return Position(**state["position"])


def _add(totals: dict[str, Any], sums: dict[str, Any]) -> None:
    for key, value in sums.items():
        totals[key] = totals[key] + value if key in totals else value


def _model_seed(seed: int) -> int:
    """The seed of initialization and dropout, different from that of any other use of `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} model".encode()).digest()[:7], "little")


def _what_stays(training: Training) -> str:
    path = training.directory.path
    there = checkpoint.stamp(path) is not None
    return f"the last good checkpoint stays in {path}" if there else "nothing was saved before it"


def _rate(training: Training) -> str:
    rate = training.learning_rate
    return "none" if rate is None else f"{rate:g}"


def _note(row: dict[str, Any], config: Config) -> str:
    split = config.result_split
    metric = next(m for m in (config.headline, *config.metrics) if f"{split}/{m.name}" in row)
    value = f"{metric.text(row[f'{split}/{metric.name}'])} {metric.unit}".rstrip()
    return (
        f"epoch {row['epoch']}/{config.epochs}  train loss {row['train/loss']:.3f}  "
        f"{split} {metric.name} {value}"
    )
