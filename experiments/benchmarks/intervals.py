"""What delayed curvature costs on the paper's networks.

`python -m experiments.benchmarks.intervals`.

The measured cost in the paper's Table 8: steps of AdaHessian with the curvature at every k-th step,
k = 1 to 5, in steps of SGD and of Adam, for ResNet-20 and ResNet-32 at batch 256 of 32 x 32 x 3.
Step and data alone as in `experiments.benchmarks.step`, whose way to measure this is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks import zoo
from experiments.benchmarks.harness import Method, Stepper, median_ratio, ours, times
from experiments.models.resnet_cifar import ResNetCifar
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

INTERVALS = (1, 2, 3, 4, 5)
WAYS = {"exact": "double_backward", "finite difference": "finite_difference"}
UNITS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=5e-4),
}


def methods(ways: Sequence[str]) -> list[Method]:
    """The units, then each way at each interval."""
    found = [Method(label, build) for label, build in UNITS.items()]
    for way in ways:
        found += [Method(f"{way}, every {k}", ours(WAYS[way], k), k) for k in INTERVALS]
    return found


def problem(depth: int, options: argparse.Namespace) -> zoo.Problem:
    """The network and one batch of random images, on the device."""
    torch.manual_seed(0)
    batch, size = (8, 16) if options.quick else (256, 32)
    made = zoo.random_problem(ResNetCifar(depth, 10), (batch, 3, size, size))
    made.model.to(options.device)
    made.batches = [(x.to(options.device), y.to(options.device)) for x, y in made.batches]
    return made


def table(results: dict[str, dict[str, list[float]]], repetitions: int, title: str) -> Grid:
    """For each network, way and unit a row with a column for each interval."""
    rows: list[Sequence[str]] = []
    for network, seconds in results.items():
        for way in (way for way in WAYS if f"{way}, every 1" in seconds):
            for unit in UNITS:
                ratios = [
                    median_ratio(seconds[f"{way}, every {k}"], seconds[unit]) for k in INTERVALS
                ]
                rows.append((network, way, unit, *(f"{ratio:.2f}" for ratio in ratios)))
    note = (
        f"Cost of a step in steps of the unit: n = {repetitions} interleaved repetitions, median "
        "of the ratios within a repetition."
    )
    columns = ("network", "curvature", "unit", *(f"k = {k}" for k in INTERVALS))
    return Grid(title, columns, rows, note)


def measure(depth: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step of each method in each repetition."""
    steppers = [
        Stepper(method, problem(depth, options), options.device)
        for method in methods(options.curvature)
    ]

    def say(repetition: int) -> None:
        print(f"ResNet-{depth}: {repetition} of {options.repetitions}", file=sys.stderr, flush=True)

    return times(steppers, options.repetitions, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.intervals", description=__doc__.splitlines()[0]
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--depth", type=int, nargs="+", default=[20, 32])
    parser.add_argument("--curvature", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose table to replace")
    options = parser.parse_args(arguments)
    depths = (8,) if options.quick else options.depth
    results: dict[str, Any] = {f"ResNet-{depth}": measure(depth, options) for depth in depths}
    title = "Curvature at every k-th step, batch 256, 32 x 32 x 3"
    if options.quick:
        title += ", small"
    tables = [table(results, options.repetitions, title)]
    publish("bench-intervals", tables, provenance(options.device), results, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
