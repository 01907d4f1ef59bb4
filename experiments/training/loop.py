"""The training loop: one for every task and every optimizer, in execution order."""

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

from experiments.config.experiment import Config
from experiments.runs import checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.provenance import session
from experiments.runtime import distributed, stopping
from experiments.runtime.device import build_device
from experiments.runtime.progress import Progress
from experiments.tasks import Task
from experiments.tasks.registry import build_task
from experiments.tracking.tracker import Tracker
from experiments.training import curvature, optimizers
from experiments.training.monitor import CurvatureMonitor
from experiments.training.schedule import build_plateau, group_values


class NonFiniteLoss(Exception):
    """A training that cannot go on: its loss or weights are infinite or not a number."""


@dataclass
class Position:
    """How far a training is: `epoch` whole epochs and `step` steps of the next one.

    `totals` and `seconds` are those of the unfinished epoch.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


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


def train(config: Config, directory: RunDirectory, data_root: Path) -> None:
    """Train a run to its end, from its checkpoint where it has one.

    Interrupted at any moment and called again, it leaves, on a CPU, bitwise the metrics (but for
    `time/`) and weights of an uninterrupted run: the order of the data does not depend on
    history, and everything that does is in the checkpoint.

    Args:
        config: the resolved configuration.
        directory: where the run is recorded; the caller holds its lock.
        data_root: where data sets are.

    Raises:
        NonFiniteLoss: with step and learning rate; the last good checkpoint stays.
        Stopped: a signal asked for it, and the step that it came in is saved.
        StorageError: a file cannot be written; the last good checkpoint stays.
        LeaseLost: another process has taken over.
    """
    device = build_device(config)
    task = build_task(config, device, data_root)
    torch.manual_seed(_model_seed(config.seed))
    model = task.build_model()
    optimizer = optimizers.build_optimizer(config, model.parameters())
    model = distributed.prepare_model(model, getattr(optimizer, "needs_graph", False))
    plateau = build_plateau(config, optimizer, task.metrics)
    training = Training(config, directory, task, model, optimizer, plateau=plateau)
    if config.curvature_statistics:
        training.monitor = CurvatureMonitor(model, optimizer)
    parameters = sum(p.numel() for p in model.parameters())
    directory.describe(session(device), dict(task.metrics), task.headline, parameters)
    position = restore(training)
    if position == Position():
        curvature.record_spectrum(config, directory.path, task, model, epoch=0)

    steps = config.epochs * task.steps_per_epoch
    mode = None if distributed.is_main() else "disabled"
    with Tracker(directory.path, mode) as tracker, Progress(directory.title, steps) as progress:
        while position.epoch < config.epochs:
            values = group_values(config, position.epoch)
            for group in optimizer.param_groups:
                group.update(values)
            learning_rate = optimizer.param_groups[0]["lr"]
            times = train_epoch(training, position, learning_rate, progress)

            metrics = {"train": task.summarize(position.totals)}
            metrics |= {split: evaluate(task, model, split) for split in task.evaluation_splits}
            position = Position(epoch=position.epoch + 1)
            row = {
                "step": position.epoch * task.steps_per_epoch,
                "epoch": position.epoch,
                "learning_rate": learning_rate,
                **{f"{split}/{key}": v for split, all in metrics.items() for key, v in all.items()},
                **measure_curvature(training, position.epoch),
                **times,
            }
            if plateau:
                plateau.step(row[config.learning_rate_schedule.plateau.metric])
            directory.append(row)
            tracker.log(row)
            last = position.epoch == config.epochs
            if last or position.epoch % config.checkpoint_every_epochs == 0:
                save(training, position)
            progress.note(_note(row, task.headline, config.epochs), last)
        # Before the tracker finishes: nobody waits for wandb to have a result.
        directory.finish(task.headline, task.metrics[task.headline])


def train_epoch(
    training: Training, position: Position, learning_rate: float, progress: Progress
) -> dict[str, float]:
    """Train from `position`, which moves along, to the end of its epoch.

    Returns:
        `time/epoch_seconds`, interrupted sessions included, and `time/step_seconds`, the median
        time of an optimizer step without the making of its batch.
    """
    config, task = training.config, training.task
    done = position.epoch * task.steps_per_epoch
    earlier, start, step_seconds = position.seconds, time.perf_counter(), []
    training.model.train()
    for batch in task.training_batches(position.epoch, position.step):
        step_start = time.perf_counter()
        sums = optimizer_step(task, training.model, training.optimizer, batch)
        step_seconds.append(time.perf_counter() - step_start)
        position.step += 1
        position.seconds = earlier + time.perf_counter() - start
        _add(position.totals, sums)
        if not math.isfinite(sums["loss"]):
            raise NonFiniteLoss(
                f"the loss is {sums['loss'] / sums['weight']} at step {done + position.step} "
                f"(epoch {position.epoch + 1}, learning rate {learning_rate:g}); "
                f"the last good checkpoint stays in {training.directory.path}"
            )
        progress.step(done + position.step)
        every = config.checkpoint_every_steps
        inside = position.step < task.steps_per_epoch  # at the end, evaluation comes first
        stop = distributed.agree(stopping.requested())
        if stop or (every and (done + position.step) % every == 0 and inside):
            save(training, position)
        if stop:
            distributed.agree("saved")  # nobody leaves before the one that writes
            raise stopping.Stopped(stop)
    times = {"time/epoch_seconds": position.seconds}
    if step_seconds:
        times["time/step_seconds"] = statistics.median(step_seconds)
    return times


def optimizer_step(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any
) -> dict[str, float]:
    """One step, the same for every optimizer, and the batch's sums before it.

    The optimizer decides how often it evaluates the closure; the sums are those of the first
    evaluation, at the weights that the step starts from.
    """
    evaluations: list[dict[str, Tensor]] = []
    optimizer.step(make_closure(task, model, optimizer, batch, evaluations))
    return distributed.total({key: value.item() for key, value in evaluations[0].items()})


def make_closure(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    evaluations: list[dict[str, Tensor]],
) -> Callable[[], Tensor]:
    """The closure that every optimizer gets; each evaluation leaves its sums in `evaluations`."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        whole: Tensor | None = None
        for part, share in task.micro_batches(batch):
            loss, sums = task.loss(model, part)
            _add(totals, {**sums, "loss": loss.detach() * sums["weight"]})
            loss = distributed.weighted(loss, sums["weight"], share)
            loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
            with torch.no_grad():
                whole = loss if whole is None else whole + loss
        evaluations.append(totals)
        distributed.average_gradients(optimizer)
        return whole

    return closure


def measure_curvature(training: Training, epoch: int) -> dict[str, float]:
    """What the configuration asks to know of the curvature, after so many epochs."""
    config, task, model = training.config, training.task, training.model
    row = training.monitor.finish_epoch() if training.monitor else {}
    every = config.curvature_error_every_epochs
    if every and epoch % every == 0:
        model.train()
        batch = next(iter(task.training_batches(epoch - 1, 0)))
        closure = make_closure(task, model, training.optimizer, batch, [])
        row |= curvature.curvature_error(training.optimizer, closure)
    return row | curvature.record_spectrum(config, training.directory.path, task, model, epoch)


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, split: str) -> dict[str, float]:
    """The metrics of a whole split."""
    model.eval()
    totals: dict[str, float] = {}
    for batch in task.evaluation_batches(split):
        loss, sums = task.loss(model, batch)
        sums = {**sums, "loss": loss * sums["weight"]}
        _add(totals, {key: value.item() for key, value in sums.items()})
    return task.summarize(distributed.total(totals))


def save(training: Training, position: Position) -> None:
    """Save everything that the rest of the training depends on.

    Raises:
        NonFiniteLoss: a weight is not finite, so that this would be no good checkpoint.
    """
    if not all(p.isfinite().all() for p in training.model.parameters()):
        raise NonFiniteLoss(
            f"weights are infinite or not a number after epoch {position.epoch}, step "
            f"{position.step} of the next (learning rate "
            f"{training.optimizer.param_groups[0]['lr']:g}); "
            f"the last good checkpoint stays in {training.directory.path}"
        )
    state = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "random": checkpoint.random_state(),
        "position": asdict(position),
        "plateau": training.plateau.state_dict() if training.plateau else None,
        "monitor": training.monitor.state_dict() if training.monitor else None,
        "metrics_size": training.directory.metrics_size(),
    }
    training.directory.save_checkpoint(state)


def restore(training: Training) -> Position:
    """Go back to the last checkpoint, metrics included, or to the start where there is none."""
    path = training.directory.path
    state = distributed.agree(checkpoint.load(path) if distributed.is_main() else None)
    if state is None:
        training.directory.cut_metrics(0)
        return Position()
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    checkpoint.restore_random_state(state["random"])
    if training.plateau:
        training.plateau.load_state_dict(state["plateau"])
    if training.monitor and state.get("monitor"):  # neither has to have been asked for before
        training.monitor.load_state_dict(state["monitor"])
    training.directory.cut_metrics(state["metrics_size"])
    return Position(**state["position"])


def _add(totals: dict[str, Any], sums: dict[str, Any]) -> None:
    for key, value in sums.items():
        totals[key] = totals[key] + value if key in totals else value


def _model_seed(seed: int) -> int:
    """The seed of initialization (and dropout), apart from that of any other use of `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} model".encode()).digest()[:7], "little")


def _note(row: dict[str, Any], headline: str, epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train/loss']:.3f}  "
        f"test {headline} {row[f'test/{headline}']:.4f}"
    )
