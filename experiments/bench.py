"""What a step of AdaHessian costs in steps of SGD: `python -m experiments.bench`.

Times SGD, AdamW, AdaHessian through both doors and at several intervals, and the AdaHessian of
three public packages, on one network and one batch. All take turns within each repetition, so that
load on the machine falls on all of them; what is shown are medians over the repetitions, of the
times and of their ratios to SGD in the same repetition. Peak memory is counted in the bytes of
tensors.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adahessian import AdaHessian
from experiments import zoo
from experiments.tables import Table, provenance, publish

INTERVALS = (1, 2, 3, 4, 5, 10)
ALL_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
PACKAGES = ("torch_optimizer", "pytorch_optimizer", "timm")
INSTALL = "pip install 'adahessian[bench]'"


@dataclass(frozen=True)
class Method:
    """A way to take a step.

    Attributes:
        label: its row.
        build: the optimizer of some parameters; ImportError where its package is missing.
        cycle: steps after which the work repeats: one repetition times a whole cycle.
        closure: whether it steps with a closure, and says by `needs_graph` what it needs; else it
            steps behind backward(create_graph=True), as the public packages document it.
        math: whether attention must avoid the fused kernels, which have no second derivative.
    """

    label: str
    build: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    cycle: int = 1
    closure: bool = True
    math: bool = False


def public(module: str, name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    """A constructor that imports its package when it is called."""

    def build(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        with warnings.catch_warnings():  # their imports warn of what they deprecate
            warnings.simplefilter("ignore")
            return getattr(import_module(module), name)(params, **options)

    return build


def ours(door: str, interval: int) -> Callable[..., torch.optim.Optimizer]:
    return lambda p: AdaHessian(p, lr=0.01, curvature=door, update_interval=interval)


def methods(quick: bool) -> list[Method]:
    """All rows of the table, SGD first: it is the unit."""
    found = [
        Method("SGD", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        Method("AdamW", lambda p: torch.optim.AdamW(p, lr=1e-3)),
    ]
    for door, label in (("double_backward", "exact"), ("finite_difference", "finite difference")):
        for k in (1, 2) if quick else INTERVALS:
            name = f"{label}, every {k}" if k > 1 else label
            found.append(Method(name, ours(door, k), k, math=door == "double_backward"))
    for label, module, name in (
        ("torch_optimizer", "torch_optimizer", "Adahessian"),
        ("pytorch_optimizer", "pytorch_optimizer", "AdaHessian"),
        ("timm", "timm.optim.adahessian", "Adahessian"),
    ):
        found.append(Method(label, public(module, name, lr=0.01), closure=False, math=True))
    return found


def problem(network: str, quick: bool, device: str) -> zoo.Problem:
    """The network and one batch, on the device."""
    torch.manual_seed(0)
    if network == "resnet20":
        batch, size = (16, 16) if quick else (128, 32)
        made = zoo.random_problem(zoo.resnet20(), (batch, 1, size, size))
    else:
        width, layers = (32, 1) if quick else (128, 4)
        made = zoo.token_problem(zoo.Transformer(width, 4, layers), 4 if quick else 16, 64)
    made.model.to(device)
    made.batches = [(x.to(device), y.to(device)) for x, y in made.batches]
    return made


NETWORKS = {
    "resnet20": "ResNet-20, batch 128, 32 x 32",
    "transformer": "Pre-norm transformer, 4 layers of width 128, 16 sequences of 64",
}


class Stepper:
    """Takes steps of one method on a network of its own.

    Raises:
        ImportError: the method's package is not installed.
    """

    def __init__(self, method: Method, problem: zoo.Problem, device: str) -> None:
        self.method, self.problem, self.device = method, problem, device
        self.optimizer = method.build(list(self.problem.model.parameters()))

    def step(self) -> None:
        kernels = [SDPBackend.MATH] if self.method.math else ALL_KERNELS
        with sdpa_kernel(kernels), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph")
            if self.method.closure:
                graph = getattr(self.optimizer, "needs_graph", False)
                self.optimizer.step(lambda: self._backward(graph))
            else:
                self._backward(True)
                self.optimizer.step()

    def _backward(self, create_graph: bool) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.problem.model, self.problem.batches[0])
        loss.backward(create_graph=create_graph)
        return loss

    def seconds(self, steps: int | None = None) -> float:
        """Mean seconds per step; default: over whole cycles of at least two steps."""
        steps = steps or self.method.cycle * -(-2 // self.method.cycle)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._synchronize()
        elapsed = time.perf_counter() - start
        # The public packages leave the graph to the gradients: the next method needs the memory.
        self.optimizer.zero_grad(set_to_none=True)
        return elapsed / steps

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def median_ratio(mine: Sequence[float], unit: Sequence[float]) -> float:
    """How many of the unit one takes: the median of the ratios within each repetition."""
    return median(a / b for a, b in zip(mine, unit, strict=True))


def times(
    steppers: Sequence[Stepper], repetitions: int, progress: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds per step of each method in each repetition, after a step that does not count."""
    seconds: dict[str, list[float]] = {stepper.method.label: [] for stepper in steppers}
    for repetition in range(repetitions + 1):
        for stepper in steppers:
            if repetition == 0:
                stepper.seconds(1)
            else:
                seconds[stepper.method.label].append(stepper.seconds())
        progress(repetition)
    return seconds


def peak_memory(method: Method, network: str, quick: bool, device: str) -> int:
    """Largest number of bytes in tensors that a step needs beyond model and data.

    Counted from before the first step, so with the optimizer's state. On a CPU by the allocations
    and releases that torch's profiler sees; the resident set of a process would add what malloc
    keeps for itself, about half as much again and more for some methods than for others.
    """
    stepper = Stepper(method, problem(network, quick, device), device)
    stepper._backward(create_graph=False)  # what is allocated once for all is not the method's
    stepper.optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            stepper.step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        for _ in range(2):
            stepper.step()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


# ------------------------------------------------------------------------------------- results


def measure(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of all methods whose packages are there, on one network."""

    def say(text: str) -> None:
        print(f"{network}: {text}", file=sys.stderr, flush=True)

    steppers, missing = [], []
    for method in methods(options.quick):
        try:
            made = problem(network, options.quick, options.device)
            steppers.append(Stepper(method, made, options.device))
        except ImportError:
            missing.append(method.label)
    if missing:
        say(f"not installed: {', '.join(missing)}; {INSTALL}")
    # Of the intervals only the first: the peak is that of a step that refreshes.
    memory = {
        s.method.label: peak_memory(s.method, network, options.quick, options.device)
        for s in steppers
        if s.method.cycle == 1
    }
    say("memory is done")
    seconds = times(
        steppers, options.repetitions, lambda n: say(f"repetition {n} of {options.repetitions}")
    )
    title = f"{network}, small" if options.quick else NETWORKS[network]
    return {
        "network": network,
        "title": title,
        "seconds": seconds,
        "memory": memory,
        "missing": missing,
    }


def cost_table(result: dict[str, Any], repetitions: int) -> Table:
    """A row for each method: times, ratios and memory."""
    seconds, memory = result["seconds"], result["memory"]
    rows = []
    for label, mine in seconds.items():
        ratio = median_ratio(mine, seconds["SGD"])
        megabytes = relative = ""
        if label in memory:
            megabytes = f"{memory[label] / 2**20:.0f}"
            relative = f"{memory[label] / memory['SGD']:.2f}"
        rows.append((label, f"{1000 * median(mine):.1f}", f"{ratio:.2f}", megabytes, relative))
    rows += [(label, "not installed", "", "", "") for label in result["missing"]]
    note = (
        f"n = {repetitions} interleaved repetitions: median time of a step, median of its ratio to "
        "SGD's in the same repetition; peak of the memory in tensors beyond model and data, in "
        "MiB, and relative to SGD's."
    )
    columns = ("optimizer", "ms", "x SGD", "MiB", "x SGD")
    return Table(result["title"], columns, rows, note)


def interval_table(results: Sequence[dict[str, Any]], repetitions: int) -> Table:
    """The cost of both doors at each interval, beside what 1 + c/k predicts from every step."""
    rows = []
    for result in results:
        seconds = result["seconds"]
        for door in ("exact", "finite difference"):
            ratios = {}
            for k in INTERVALS:
                label = f"{door}, every {k}" if k > 1 else door
                if label in seconds:
                    ratios[k] = median_ratio(seconds[label], seconds["SGD"])
            cells = [f"{ratios[k]:.2f}" if k in ratios else "" for k in INTERVALS]
            predicted = [f"{1 + (ratios[1] - 1) / k:.2f}" for k in INTERVALS]
            rows.append((result["network"], door, *cells))
            rows.append(("", "1 + c/k", *predicted))
    note = (
        f"Cost of a step in SGD steps, median of n = {repetitions} repetitions; below it 1 + c/k "
        "with c from k = 1, what refreshing the curvature at every k-th step should cost."
    )
    columns = ("network", "curvature", *(f"k = {k}" for k in INTERVALS))
    return Table("Curvature at every k-th step", columns, rows, note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--repetitions", type=int, help="default: 10")
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose table to replace")
    options = parser.parse_args(arguments)
    options.repetitions = options.repetitions or (2 if options.quick else 10)
    results = [measure(network, options) for network in options.network]
    tables = [cost_table(result, options.repetitions) for result in results]
    tables.append(interval_table(results, options.repetitions))
    missing = sorted({name for result in results for name in result["missing"]})
    if missing:
        tables[-1].note += f" Not installed: {', '.join(missing)} ({INSTALL})."
    versions = {name: version(name) for name in PACKAGES if name not in missing}
    publish("bench", tables, provenance(options.device, packages=versions), results, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
