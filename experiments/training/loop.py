"""The training loop, the same for every task and every optimizer."""

import hashlib
import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adahessian import AdaHessian
from experiments.config import metrics
from experiments.config.experiment import Config
from experiments.config.metrics import LOSS
from experiments.errors import UserError
from experiments.runs import checkpoint, data, own_code
from experiments.runs.directory import RunDirectory
from experiments.runs.provenance import session
from experiments.runtime import distributed, stopping
from experiments.runtime.device import build_device
from experiments.runtime.progress import Progress
from experiments.tasks.registry import build_task
from experiments.tracking.tracker import Tracker
from experiments.training import curvature, groups, measures, optimizers, weights
from experiments.training.evaluation import (
    build_average,
    evaluate,
    evaluated_state,
    evaluated_weights,
    update_average,
)
from experiments.training.monitor import CurvatureMonitor
from experiments.training.position import Position, Steps, first_bad
from experiments.training.schedule import build_plateau
from experiments.training.step import Training, make_closure, optimizer_step
from experiments.training.step_log import StepLog


class NonFiniteLoss(Exception):
    """A training that cannot go on: its loss or a weight is infinite or not a number."""


def train(
    config: Config, directory: RunDirectory, data_root: Path, until: int | None = None
) -> None:
    """Train a run to its end, or until an epoch, from its checkpoint where it has one.

    Interrupted at any moment and called again, on a CPU, it leaves bitwise the metrics (except
    `time/`) and weights of an uninterrupted run: the order of the data does not depend on
    history, and everything that does is in the checkpoint.

    Args:
        config: the resolved configuration.
        directory: where the run is recorded; the caller holds its lock.
        data_root: where data sets are.
        until: epochs after which to pause; the run must not have come so far.

    Raises:
        Paused: after `until`, where that is not the end; called again, it goes on from there.
        NonFiniteLoss: with step and learning rate; the last good checkpoint stays.
        Stopped: a signal asked for it; the step during which it came is saved.
        StorageError: a file cannot be written; the last good checkpoint stays.
        LeaseLost: another process has taken over.
    """
    training = build(config, directory, data_root)
    training.until = min(until or config.epochs, config.epochs)
    task, model = training.task, training.model
    parameters = sum(p.numel() for p in model.parameters())
    declared = metrics.dump(task.metrics)
    known = distributed.broadcast((directory.meta() or {}).get(data.KEY))
    data.refuse_other(directory.path, known, training.data)
    own = {own_code.KEY: marks} if (marks := own_code.marks(config)) else {}
    directory.describe(
        session(task.device) | own | task.provenance(), declared, task.headline.name, parameters,
        training.data,
    )  # fmt: skip
    position = restore(training)
    if position == Position():
        curvature.record_spectrum(config, directory.path, task, model, epoch=0)

    steps = config.epochs * task.steps_per_epoch
    mode = None if distributed.is_main() else "disabled"
    with Tracker(directory.path, mode) as tracker, Progress(directory.title, steps) as progress:
        while position.epoch < training.until:
            times = train_epoch(training, position, progress, tracker)

            totals, needed = position.totals, [LOSS.name]
            measured = {"train": measures.metrics(task, "train", totals, needed, exactly=False)}
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
            progress.note(_note(row, config), last=position.epoch == training.until)
        if training.until < config.epochs:
            raise stopping.Paused(training.until)
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
    if directory.writes and distributed.world_size() == 1:
        _warn_of_doubts(config)
    checkpoint.seed_generators(_model_seed(config.seed))
    model = task.build_model()
    initial = weights.initialize(config, model)
    weights.check_data(config, task, data_root)
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
    if config.log_every_steps and directory.writes:
        training.log = StepLog(training.model, optimizer, config.log_layers)
    return training


def _warn_of_doubts(config: Config) -> None:
    for said in optimizers.doubts(config):
        warnings.warn(f"optimizers.{config.optimizer_name}: {said}", stacklevel=2)


def train_epoch(
    training: Training, position: Position, progress: Progress, tracker: Tracker | None = None
) -> dict[str, float]:
    """Train from `position`, which is moved along, to the end of its epoch, and save that.

    What was trained is saved before it is evaluated: an evaluation that fails costs no training.
    No step waits for the device but those that are logged or saved.

    Returns:
        `time/epoch_seconds`, interrupted sessions included, `time/step_seconds`, the median time
        of an optimizer step without the making of its batch, and `time/waited_share`, the share of
        the steps' time in which the process had no processor: on a CPU, what other load took.
        And `train/gradients`, evaluations of the gradient, if there was more than one a step: LBFGS
        and SAM ask for several. AdaHessian's are known from its options (`results.prices`).
    """
    task, config = training.task, training.config
    steps = task.steps_per_epoch
    done = position.epoch * steps
    unread = Steps(position, task.device)
    training.model.train()
    if training.capabilities.has_modes:
        training.optimizer.train()
    for batch in task.training_batches(position.epoch, position.step):
        if position.step == steps:
            raise _other_steps(training, f"more than {steps}")
        training.set_options(done + position.step)
        number = done + position.step + 1
        is_logged = _log_is_due(training, number)
        log = training.log if is_logged else None  # rank 0 has it, the others only read
        if log:
            log.begin()
        unread.begin()
        earlier = training.gradients
        sums = optimizer_step(training, batch)
        position.gradients += training.gradients - earlier
        unread.end(sums, training.learning_rate, number)
        position.step += 1
        measured = log.end() if log else []
        update_average(training.average, training.model, config, number, steps)
        progress.step(number)
        if number == 1:  # an optimizer makes its state in its first step
            checkpoint.check(_state(training, position))
        stop = distributed.broadcast(stopping.requested())
        is_saved = stop or _save_is_due(training, position)
        if is_logged or is_saved or position.step == steps or unread.must_be_read:
            _read(training, position, unread, measured, tracker)
        if is_saved:
            save(training, position)
        if stop:
            distributed.broadcast("saved")  # no rank leaves before rank 0 has written
            raise stopping.Stopped(stop)
    if position.step < steps:
        raise _other_steps(training, str(position.step))
    times = {"time/epoch_seconds": position.seconds}
    if position.step_seconds:
        times["time/step_seconds"] = statistics.median(position.step_seconds)
        times["time/waited_share"] = position.waited / math.fsum(position.step_seconds)
    if position.gradients > steps and not isinstance(training.optimizer, AdaHessian):
        times["train/gradients"] = position.gradients
    return times


def _other_steps(training: Training, found: str) -> UserError:
    """Schedule, logs and checkpoints count by what the task says of its epochs."""
    return UserError(
        f"task '{training.config.task}': an epoch has {found} batches, and steps_per_epoch is "
        f"{training.task.steps_per_epoch}"
    )


def _log_is_due(training: Training, number: int) -> bool:
    """Whether the step of this number, from 1, is logged: the same on every rank."""
    every = training.config.log_every_steps
    return bool(every) and number % every == 0


def _read(
    training: Training,
    position: Position,
    unread: Steps,
    measured: Sequence[Tensor],
    tracker: Tracker | None,
) -> None:
    """Wait for the device, and log the last step where something was measured of it.

    Raises:
        NonFiniteLoss: at the first step whose loss is.
    """
    losses, numbers = unread.read(measured)
    if bad := first_bad(losses):
        raise NonFiniteLoss(
            f"the loss is {bad.value} at step {bad.step} (epoch {position.epoch + 1}, learning "
            f"rate {_rate(bad.rate)}); {_what_stays(training)}"
        )
    if not measured or training.log is None:
        return
    last = losses[-1]
    row = {
        "step": last.step,
        "epoch": last.step / training.task.steps_per_epoch,
        **({} if last.rate is None else {"learning_rate": last.rate}),
        "step/loss": last.value,
        **training.log.row(numbers),
    }
    training.directory.append_step(row)
    if tracker:
        tracker.log(row)


def _save_is_due(training: Training, position: Position) -> bool:
    """Whether the configuration asks for a checkpoint after this step."""
    config, steps = training.config, training.task.steps_per_epoch
    done, every = position.epoch * steps + position.step, config.checkpoint_every_steps
    if every and done % every == 0:
        return True
    epochs, inside = divmod(done, steps)
    last = epochs == training.until
    return not inside and (last or epochs % config.checkpoint_every_epochs == 0)


def measure_curvature(training: Training, epoch: int) -> dict[str, float]:
    """The curvature as the configuration asks for it, after so many epochs: entries of the row."""
    config, task, model = training.config, training.task, training.model
    row = training.monitor.finish_epoch() if training.monitor else {}
    every = config.curvature_error_every_epochs
    if training.capabilities.compares_curvature and every and epoch % every == 0:
        model.train()
        (batch,) = curvature.first_batches(task, model, epoch - 1, 1)
        closure = make_closure(training, batch, [])
        row |= curvature.curvature_error(training.optimizer, closure, epoch)
    with evaluated_weights(model, training.optimizer, training.average):
        return row | curvature.record_spectrum(config, training.directory.path, task, model, epoch)


def save(training: Training, position: Position) -> None:
    """Save everything that the rest of the training depends on.

    Raises:
        NonFiniteLoss: a weight is not finite; the last good checkpoint stays.
    """
    if not torch.stack([p.isfinite().all() for p in training.model.parameters()]).all():
        raise NonFiniteLoss(
            f"weights are infinite or not a number after epoch {position.epoch}, step "
            f"{position.step} of the next (learning rate {_rate(training.learning_rate)}); "
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
        "steps_size": training.directory.steps_size(),
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
    training.directory.cut_metrics(state["metrics_size"], state.get("steps_size", 0))
    return Position(**state["position"])


def _model_seed(seed: int) -> int:
    """The seed of initialization and dropout, different from that of any other use of `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} model".encode()).digest()[:7], "little")


def _what_stays(training: Training) -> str:
    path = training.directory.path
    there = checkpoint.stamp(path) is not None
    return f"the last good checkpoint stays in {path}" if there else "nothing was saved before it"


def _rate(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:g}"


def _note(row: dict[str, Any], config: Config) -> str:
    split = config.result_split
    metric = next(m for m in (config.headline, *config.metrics) if f"{split}/{m.name}" in row)
    value = f"{metric.text(row[f'{split}/{metric.name}'])} {metric.unit}".rstrip()
    return (
        f"epoch {row['epoch']}/{config.epochs}  train loss {row['train/loss']:.3f}  "
        f"{split} {metric.name} {value}"
    )
