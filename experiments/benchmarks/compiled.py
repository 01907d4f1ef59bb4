"""What torch.compile and CUDA graphs do to a step: `python -m experiments.benchmarks.compiled`.

A refresh of the curvature evaluates the model eagerly, because compiled code shows no gates and has
no second derivative; the steps between are compiled. So AdaHessian is measured at every tenth step.
All rows take turns within each repetition; the time of compiling is not counted.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.benchmarks import step
from experiments.benchmarks.harness import Method, Stepper, median_ratio, times
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

LABELS = ("SGD", "AdamW", "exact, every 10", "finite difference, every 10")
MODES = {"compiled": "default", "compiled, CUDA graphs": "reduce-overhead"}


class CapturedStepper(Stepper):
    """Replays a whole step as one CUDA graph: what its launches cost is gone.

    For optimizers whose step is the same each time, as SGD's.
    """

    graph: Any = None

    def step(self) -> None:
        if self.graph is None:
            self._capture()
        self.graph.replay()

    def _capture(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                super().step()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            super().step()

    def release(self) -> None:
        """Keep the gradients: their memory is the graph's."""


def steppers(network: str, quick: bool, device: str) -> tuple[list[Stepper], dict[str, str]]:
    """The rows that run here, warm, and the errors of those that do not."""
    found: list[Stepper] = []
    errors: dict[str, str] = {}
    known = {method.label: method for method in step.methods(False)}
    modes = {"compiled": None} if device == "cpu" else MODES
    for label in LABELS[::3] if quick else LABELS:
        for way, mode in {"": None, **modes}.items():
            method = replace(known[label], label=f"{label}, {way}" if way else label)
            problem = step.problem(network, quick, device)
            if way:
                # A CPU's compiler takes a minute; there only the way is tried.
                options = {"backend": "aot_eager"} if mode is None else {"mode": mode}
                problem.model.compile(**options)
            _add(Stepper(method, problem, device), found, errors)
    if device == "cuda":
        method = Method("SGD, whole step captured", known["SGD"].build)
        _add(CapturedStepper(method, step.problem(network, quick, device), device), found, errors)
    return found, errors


def _add(stepper: Stepper, found: list[Stepper], errors: dict[str, str]) -> None:
    """Add a row if its first steps succeed; another's compiler can fail in any way."""
    label, start = stepper.method.label, time.perf_counter()
    try:
        stepper.seconds(2 * stepper.method.cycle + 1)
    except Exception as error:
        errors[label] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        print(f"{label} fails: {errors[label]}", file=sys.stderr, flush=True)
        return
    print(f"{label}: ready in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    found.append(stepper)


def table(title: str, seconds: dict[str, list[float]], errors: dict[str, str], n: int) -> Grid:
    """A row for each way to run each optimizer."""
    rows = []
    for label, mine in seconds.items():
        eager = label.removesuffix(", whole step captured")
        for way in sorted(MODES, key=len, reverse=True):
            eager = eager.removesuffix(f", {way}")
        ratio, own = median_ratio(mine, seconds["SGD"]), median_ratio(seconds[eager], mine)
        rows.append((label, f"{1000 * median(mine):.2f}", f"{ratio:.2f}", f"{own:.2f}"))
    rows += [(label, "fails", "", "") for label in errors]
    note = (
        f"n = {n} interleaved repetitions: median time of a step, median of its ratio to SGD's "
        "eager step, and how many times as fast as the same optimizer's eager step it is."
    )
    if errors:
        note += " " + " ".join(f"{label}: {error}." for label, error in errors.items())
    return Grid(title, ("optimizer", "ms", "x SGD", "speed-up"), rows, note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.compiled", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--network", choices=step.NETWORKS, nargs="+", default=step.USUAL)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose tables to replace")
    options = parser.parse_args(arguments)
    tables, data = [], {}
    for network in options.network:
        torch.compiler.reset()
        found, errors = steppers(network, options.quick, options.device)
        seconds = times(found, options.repetitions, lambda _: None)
        title = f"{network}, small" if options.quick else step.NETWORKS[network].title
        tables.append(table(f"Compiled: {title}", seconds, errors, options.repetitions))
        data[network] = {"seconds": seconds, "errors": errors}
    publish("bench-compiled", tables, provenance(options.device), data, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
