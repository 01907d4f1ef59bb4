"""What a logged step costs: `python -m experiments.benchmarks.step_log`.

ResNet-20, batch 128, on random images. What is measured is the process's own time, so that other
load on the machine counts little. Steps with and without a row take turns; the cost is what a row
takes, in steps, divided by the interval.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from experiments.benchmarks.cifar_files import cifar10
from experiments.plans.load import load, resolve
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid
from experiments.runs.directory import RunDirectory
from experiments.runtime.paths import data_root, runs_root
from experiments.tasks.registry import build_task
from experiments.training import optimizers
from experiments.training.position import Position, Steps
from experiments.training.step import Training, optimizer_step
from experiments.training.step_log import StepLog

METHODS: dict[str, tuple[str, list[str]]] = {
    "SGD": ("sgd", []),
    "AdamW": ("adamw", []),
    "AdaHessian, exact": ("adahessian", []),
    "AdaHessian, finite difference": (
        "adahessian", ["optimizers.adahessian.curvature=finite_difference"],
    ),
}  # fmt: skip
FILE = "configs/cifar10/resnet20.yaml"
EVERY = 50  # steps, the default of `log_every_steps`


class Stepper:
    """One method, whose steps are logged or not.

    Args:
        config: its resolved configuration.
        task: data and model.
        by_layer: log the norms of each layer, too.
    """

    def __init__(self, config: Any, task: Any, by_layer: bool) -> None:
        torch.manual_seed(0)
        model = task.build_model()
        optimizer = optimizers.build_optimizer(config, model)
        directory = RunDirectory(runs_root(), config, writes=False)
        self.training = Training(config, directory, task, model.train(), optimizer)
        self.log = StepLog(model, optimizer, by_layer)
        self.batch = next(iter(task.training_batches(0, 0)))
        self.unread = Steps(Position(), task.device)

    def step(self, logged: bool) -> tuple[float, float]:
        """Take one; returns the process's seconds in all of it, and in what its row adds."""
        start = time.process_time()
        if logged:
            self.log.begin()
        begun = time.process_time()
        self.unread.begin()
        self.unread.end(optimizer_step(self.training, self.batch), 0.1, 1)
        ended = time.process_time()
        if logged:
            _, numbers = self.unread.read(self.log.end())
            self.log.row(numbers)
        end = time.process_time()
        return end - start, (begun - start) + (end - ended)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.step_log", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--layers", action="store_true", help="log the norms by layer, too")
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    options = parser.parse_args(arguments)
    overrides = ["device=cpu", *(["model.depth=8", "batch_size=4"] if options.quick else [])]
    with cifar10(data_root(), images=640) as (_, root):
        base = load(FILE, overrides)
        task = build_task(resolve(base, "sgd", 1), torch.device("cpu"), root)
        steppers = {}
        for label, (name, more) in METHODS.items():
            config = resolve(load(FILE, [*overrides, *more]), name, 1)
            steppers[label] = Stepper(config, task, options.layers)
        found = measure(steppers, options.repetitions)
    note = (
        f"n = {options.repetitions} steps of each kind, taken in turns, medians of the process's "
        f"time; the cost is that of a row, divided by {EVERY} steps."
    )
    table = Grid("What a logged step costs", COLUMNS, rows(found), note)
    publish("step-log", [table], provenance("cpu"), found, None)
    return 0


COLUMNS = ("optimizer", "step, ms", "with a row, ms", "ratio", "row, ms", f"cost at {EVERY}, %")


def measure(steppers: dict[str, Stepper], repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of steps without and with a row, and of a row, after two that do not count."""
    found = {label: {"plain": [], "logged": [], "row": []} for label in steppers}
    for repetition in range(repetitions + 1):
        for label, stepper in steppers.items():
            plain, _ = stepper.step(logged=False)
            logged, row = stepper.step(logged=True)
            if repetition:
                for key, value in (("plain", plain), ("logged", logged), ("row", row)):
                    found[label][key].append(value)
        print(f"repetition {repetition} of {repetitions}", file=sys.stderr)
    return found


def rows(found: dict[str, dict[str, list[float]]]) -> list[tuple[str, ...]]:
    """The table's rows."""
    lines: list[tuple[str, ...]] = []
    for label, times in found.items():
        plain, logged, row = (median(times[key]) for key in ("plain", "logged", "row"))
        ratio = median(b / a for a, b in zip(times["plain"], times["logged"], strict=True))
        cost = 100 * row / plain / EVERY
        lines.append((label, f"{1000 * plain:.1f}", f"{1000 * logged:.1f}", f"{ratio:.3f}",
                      f"{1000 * row:.2f}", f"{cost:.3f}"))  # fmt: skip
    return lines


if __name__ == "__main__":
    sys.exit(main())
