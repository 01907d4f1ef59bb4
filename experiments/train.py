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

from experiments import build, checkpoint
from experiments.config import Config
from experiments.record import Progress, RunDirectory, session
from experiments.tasks import Task
from experiments.tracking import Tracker


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
    """
    device = build.build_device(config)
    task = build.build_task(config, device, data_root)
    torch.manual_seed(_model_seed(config.seed))
    model = task.build_model()
    optimizer = build.build_optimizer(config, model.parameters())
    training = Training(config, directory, task, model, optimizer)
    parameters = sum(p.numel() for p in model.parameters())
    directory.describe(session(device), dict(task.metrics), task.headline, parameters)
    position = restore(training)

    label = f"{config.dataset.name} {config.model.label} {config.optimizer_name} seed {config.seed}"
    steps = config.epochs * task.steps_per_epoch
    with Tracker(directory.path) as tracker, Progress(label, steps) as progress:
        while position.epoch < config.epochs:
            values = build.group_values(config, position.epoch)
            for group in optimizer.param_groups:
                group.update(values)
            times = train_epoch(training, position, values["lr"], progress)

            metrics = {"train": task.summarize(position.totals)}
            metrics |= {split: evaluate(task, model, split) for split in task.evaluation_splits}
            position = Position(epoch=position.epoch + 1)
            row = {
                "step": position.epoch * task.steps_per_epoch,
                "epoch": position.epoch,
                "learning_rate": values["lr"],
                **{f"{split}/{key}": v for split, all in metrics.items() for key, v in all.items()},
                **measure_curvature(training, position.epoch - 1),
                **times,
            }
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
        if every and (done + position.step) % every == 0 and inside:
            save(training, position)
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
    return {key: value.item() for key, value in evaluations[0].items()}


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
        loss, sums = task.loss(model, batch)
        loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
        evaluations.append({**sums, "loss": loss.detach() * sums["weight"]})
        return loss

    return closure


def measure_curvature(training: Training, epoch: int) -> dict[str, float]:
    """How well the optimizer's finite difference does, on the first batch of an epoch.

    Nothing if the optimizer cannot say, or the configuration does not ask.
    """
    every = training.config.curvature_error_every_epochs
    compare = getattr(training.optimizer, "curvature_error", None)
    if not every or (epoch + 1) % every or compare is None:
        return {}
    training.model.train()
    batch = next(iter(training.task.training_batches(epoch, 0)))
    error = compare(make_closure(training.task, training.model, training.optimizer, batch, []))
    return {
        "hessian/relative_error_median": error.median,
        "hessian/relative_error_largest": error.largest,
        "hessian/mean_ratio": error.mean_ratio,
    }


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, split: str) -> dict[str, float]:
    """The metrics of a whole split."""
    model.eval()
    totals: dict[str, float] = {}
    for batch in task.evaluation_batches(split):
        loss, sums = task.loss(model, batch)
        sums = {**sums, "loss": loss * sums["weight"]}
        _add(totals, {key: value.item() for key, value in sums.items()})
    return task.summarize(totals)


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
        "metrics_size": training.directory.metrics_size(),
    }
    checkpoint.save(training.directory.path, state)


def restore(training: Training) -> Position:
    """Go back to the last checkpoint, metrics included, or to the start where there is none."""
    state = checkpoint.load(training.directory.path)
    if state is None:
        training.directory.cut_metrics(0)
        return Position()
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    checkpoint.restore_random_state(state["random"])
    training.directory.cut_metrics(state["metrics_size"])
    return Position(**state["position"])


def _add(totals: dict[str, float], sums: dict[str, float]) -> None:
    for key, value in sums.items():
        totals[key] = totals.get(key, 0) + value


def _model_seed(seed: int) -> int:
    """The seed of initialization (and dropout), apart from that of any other use of `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} model".encode()).digest()[:7], "little")


def _note(row: dict[str, Any], headline: str, epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train/loss']:.3f}  "
        f"test {headline} {row[f'test/{headline}']:.4f}"
    )
