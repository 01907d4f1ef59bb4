"""Epochs per minute, and where a step's time goes: `python -m experiments.benchmarks.training`.

Trains ResNet-20 on CIFAR-10 by the paper's configuration for a few steps at a time, through the
harness's own loop (`experiments.training.loop.train_epoch`) and through a plain PyTorch loop with
torchvision's transforms and a DataLoader with workers. All take turns within each repetition, so
that load on the machine falls on all of them; shown are medians over the repetitions.

Every turn comes twice: untouched, which is what the totals are of, and with marks between the
phases of its steps, on the device's own clock, which the split is of:

- data: the wait for the next batch and, in the plain loop, its way to the device;
- forward, backward: the first evaluation of the loss and its gradient, with what the graph for a
  second derivative, or the record of the gates, adds to them;
- curvature: from there until H·z is there;
- update: all else in the optimizer's step;
- rest: what the loop does between the steps.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from experiments.benchmarks.cifar_files import cifar10
from experiments.benchmarks.harness import median_ratio
from experiments.benchmarks.watch import PHASES, Watch
from experiments.config.experiment import Config
from experiments.plans.load import load, resolve
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid
from experiments.runs.directory import RunDirectory
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root
from experiments.runtime.progress import Progress
from experiments.tasks.registry import build_task
from experiments.training import optimizers
from experiments.training.loop import Position, Training, train_epoch

CONFIG = Path(__file__).parents[2] / "configs" / "cifar10" / "resnet20.yaml"
PAPER_EPOCHS = 160
MAX_WORKERS = 8


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        label: its name.
        optimizer: its name in the configuration.
        arguments: what the optimizer gets beside the configuration's.
        cycle: steps after which the work repeats: whole cycles are timed.
        plain: whether the plain loop trains it.
    """

    label: str
    optimizer: str
    arguments: tuple[str, ...] = ()
    cycle: int = 1
    plain: bool = False

    def config(self, overrides: Sequence[str]) -> Config:
        own = [f"optimizers.{self.optimizer}.{argument}" for argument in self.arguments]
        return resolve(load(CONFIG, [*own, *overrides]), self.optimizer, seed=1)


DIFFERENCE = "curvature=finite_difference"
METHODS = (  # SGD first: it is the unit
    Method("SGD", "sgd"),
    Method("Adam", "adam"),
    Method("AdamW", "adamw"),
    Method("exact", "adahessian"),
    Method("exact, every 5", "adahessian", ("update_interval=5",), cycle=5),
    Method("finite difference", "adahessian", (DIFFERENCE,)),
    Method("finite difference, every 5", "adahessian", (DIFFERENCE, "update_interval=5"), cycle=5),
    Method("plain loop, SGD", "sgd", plain=True),
)


# ----------------------------------------------------------------------------------- the loops


class ShortEpoch:
    """A task whose training batches pass a watch, an epoch of so many; all else is as it was."""

    def __init__(self, task: Any, watch: Watch) -> None:
        self._task, self._watch = task, watch
        self.steps_per_epoch = watch.lead + watch.steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Any]:
        return self._watch.passing(self._task.training_batches(epoch, first_step))


def plain_loader(
    config: Config, dataset: type, root: Path, workers: int, pin_memory: bool
) -> DataLoader:
    """Data as torchvision's and PyTorch's documentation show it."""
    transform = Compose(
        [
            RandomCrop(32, padding=config.dataset.crop_padding),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(config.dataset.mean, config.dataset.std),
        ]
    )
    return DataLoader(
        dataset(root, train=True, transform=transform),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=pin_memory,
    )


def plain_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    device: torch.device,
) -> float:
    """Train for an epoch as PyTorch's tutorials do; return the sum of the batches' losses."""
    criterion = nn.CrossEntropyLoss()
    model.train()
    running_loss = 0.0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss


class Trainee:
    """One method with a network and an optimizer of its own.

    Args:
        method: the row.
        config: its resolved configuration.
        task: data and model, shared by all.
        loader: the plain loop's data.
        steps: how many to time at least, at a time.
    """

    def __init__(
        self, method: Method, config: Config, task: Any, loader: DataLoader, steps: int
    ) -> None:
        self.method, self.config, self.task, self.loader = method, config, task, loader
        self.steps = method.cycle * -(-steps // method.cycle)
        torch.manual_seed(0)
        self.model = task.build_model()
        self.optimizer = optimizers.build_optimizer(config, self.model)
        # The workers begin with a full store of batches: it is used up before time is taken.
        self.lead = loader.num_workers * (loader.prefetch_factor or 0) if method.plain else 0

    def turn(self, split: bool, steps: int | None = None) -> Watch:
        """Train for a few steps, untouched or with the phases marked."""
        watch = Watch(self.task.device, self.lead, steps or self.steps)
        with ExitStack() as stack:
            if split:
                watch.split(self.model, self.optimizer, stack)
            if self.method.plain:
                batches = watch.passing(self.loader)
                plain_epoch(self.model, self.optimizer, batches, self.task.device)
            else:
                # Nothing is recorded: what saving costs is no part of a step.
                training = Training(
                    self.config,
                    RunDirectory(Path(tempfile.gettempdir()), self.config, writes=False),
                    ShortEpoch(self.task, watch),
                    self.model,
                    self.optimizer,
                )
                progress = Progress(self.method.label, self.steps, io.StringIO())
                train_epoch(training, Position(), progress)
        # Graphs and gradients go: the next method needs the memory.
        self.optimizer.zero_grad(set_to_none=True)
        return watch


# ------------------------------------------------------------------------------------- results


def measure(
    trainees: Sequence[Trainee], repetitions: int, progress: Callable[[int], None]
) -> dict[str, dict[str, list[Any]]]:
    """Of each method and repetition, after a step that does not count: seconds.

    `step` is what a step of a whole epoch takes, `phases` its parts; both hold their share of
    `start`, what the first batch of an epoch takes longer than the others.
    """
    found = {t.method.label: {"step": [], "phases": [], "start": []} for t in trainees}
    for repetition in range(repetitions + 1):
        for trainee in trainees:
            row = found[trainee.method.label]
            if repetition == 0:
                trainee.turn(split=False, steps=1)
                continue
            untouched, split = trainee.turn(split=False), trainee.turn(split=True)
            phases = split.phases()
            start = max(0.0, untouched.first_batch - phases["data"])
            share = start * trainee.config.batch_size / len(trainee.loader.dataset)
            row["start"].append(start)
            row["step"].append(untouched.total / trainee.steps + share)
            row["phases"].append({**phases, "data": phases["data"] + share})
        progress(repetition)
    return found


def speed_table(
    found: dict[str, dict[str, list[Any]]], steps_per_epoch: float, title: str, note: str
) -> Grid:
    """A row for each method: time of a step and what follows from it for epochs."""
    rows, unit = [], found["SGD"]["step"]
    for label, row in found.items():
        step = median(row["step"])
        ratio = median_ratio(row["step"], unit)
        epoch = step * steps_per_epoch
        rows.append(
            (label, f"{1000 * step:.1f}", f"{ratio:.2f}", f"{60 / epoch:.3g}",
             f"{PAPER_EPOCHS * epoch / 60:.1f}")
        )  # fmt: skip
    columns = ("loop", "ms/step", "x SGD", "epochs/min", f"{PAPER_EPOCHS} epochs, min")
    return Grid(title, columns, rows, note)


def split_table(found: dict[str, dict[str, list[Any]]], shares: bool, note: str) -> Grid:
    """A row for each method: the phases of a step, in milliseconds or as shares of their sum."""
    rows = []
    for label, row in found.items():
        cells = []
        for phase in PHASES:
            if shares:
                cell = median(100 * p[phase] / sum(p.values()) for p in row["phases"])
            else:
                cell = median(1000 * p[phase] for p in row["phases"])
            cells.append(f"{cell:.1f}" if cell else "")
        rows.append((label, *cells))
    title = "Where a step goes, " + ("% of the step" if shares else "milliseconds")
    return Grid(title, ("loop", *PHASES), rows, note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, help="to time at least at a time; default: 2, on a GPU 100"
    )
    default = min(MAX_WORKERS, os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=default, help=f"of the DataLoader; default: {default}"
    )
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose tables to replace")
    options = parser.parse_args(arguments)
    overrides = [f"device={options.device}"]
    if options.quick:
        overrides += ["model.depth=8", "batch_size=4"]
    configs = [method.config(overrides) for method in METHODS]
    device = build_device(configs[0])
    steps = options.steps or (2 if device.type == "cpu" else 100)
    with cifar10(data_root(), images=640 if options.quick else 50_000) as (dataset, root):
        task = build_task(configs[0], device, root)
        loader = plain_loader(configs[0], dataset, root, options.workers, device.type == "cuda")
        trainees = [
            Trainee(method, config, task, loader, steps)
            for method, config in zip(METHODS, configs, strict=True)
        ]
        found = measure(
            trainees,
            options.repetitions,
            lambda n: print(f"repetition {n} of {options.repetitions}", file=sys.stderr),
        )
    steps_per_epoch = len(loader.dataset) / configs[0].batch_size
    images = "CIFAR-10" if dataset is CIFAR10 else "random images in CIFAR-10's files"
    tables = make_tables(found, configs[0], steps_per_epoch, images, options)
    origin = provenance(device.type)
    publish("bench-train", tables, origin, found, options.docs)
    return 0


def make_tables(
    found: dict[str, dict[str, list[Any]]],
    config: Config,
    steps_per_epoch: float,
    images: str,
    options: argparse.Namespace,
) -> list[Grid]:
    """What is published."""
    title = f"ResNet-{config.model.depth}, {images}, batch {config.batch_size}, 32 x 32 x 3"
    n = f"n = {options.repetitions} interleaved repetitions"
    start = 1000 * median(found["SGD"]["start"])
    theirs = 1000 * median(found["plain loop, SGD"]["start"])
    note = (
        f"{n}: median time of a step with its data, median of its ratio to SGD's in the same "
        f"repetition; an epoch has {steps_per_epoch:.1f} steps, evaluation comes on top. "
        f"The plain loop has {options.workers} workers and random crop, flip, ToTensor and "
        "Normalize for each image. The start of an epoch (order and draws "
        f"{start:.0f} ms; workers {theirs:.0f} ms) is spread over its steps."
    )
    cost = median(
        sum(p.values()) / step
        for row in found.values()
        for p, step in zip(row["phases"], row["step"], strict=True)
    )
    split = (
        f"{n}, medians, of turns with marks between the phases; they took {cost:.3f} times the "
        "untouched ones (median)."
    )
    return [
        speed_table(found, steps_per_epoch, title, note),
        split_table(found, shares=False, note=split),
        split_table(found, shares=True, note="Of the same turns; medians of the shares."),
    ]


if __name__ == "__main__":
    sys.exit(main())
