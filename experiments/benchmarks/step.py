"""What a step of AdaHessian costs in steps of SGD: `python -m experiments.benchmarks.step`.

Times SGD, AdamW, AdaHessian by both ways to H·z and at several intervals, and the AdaHessian of
three public packages, on one network and one batch. All take turns within each repetition, so that
load on the machine falls on all of them; what is shown are medians over the repetitions, of the
times and of their ratios to SGD in the same repetition. Peak memory is counted in the bytes of
tensors, launches in operations that torch dispatches (on a GPU: in kernels).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from adahessian.part_correction import HALVES_EVERY, HALVES_FIRST
from experiments.benchmarks import zoo
from experiments.benchmarks.harness import (
    INSTALL,
    Method,
    Stepper,
    median_ratio,
    ours,
    public,
    times,
)
from experiments.benchmarks.launches import launches
from experiments.models.transformer import Transformer
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

INTERVALS = (1, 2, 3, 4, 5, 10)
PARTS = (2, 4, 8)  # one such part of the batch


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        title: of its table.
        intervals: at which the curvature is refreshed, of the whole batch.
        least: steps of a repetition on a GPU, at least.
        default: whether it is trained where no network is named.
    """

    title: str
    intervals: tuple[int, ...] = INTERVALS
    least: int = 10
    default: bool = True


# The large ones are for a GPU that they keep busy: there kernels decide, and not their launches.
NETWORKS = {
    "resnet20": Network("ResNet-20, batch 128, 32 x 32"),
    "transformer": Network("Pre-norm transformer, 4 layers of width 128, 16 sequences of 64"),
    "resnet50": Network("ResNet-50, batch 128, 224 x 224", (1,), 4, default=False),
    "gpt2": Network(
        "Pre-norm transformer of GPT-2 small's size, 16 sequences of 1024, bfloat16 autocast",
        (1,), 4, default=False,
    ),
}  # fmt: skip
USUAL = [name for name, network in NETWORKS.items() if network.default]
PACKAGES = ("torch_optimizer", "pytorch_optimizer", "timm")
Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def methods(quick: bool, intervals: Sequence[int] = INTERVALS) -> list[Method]:
    """All rows of the table, SGD first: it is the unit."""
    found = [
        Method("SGD", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        Method("AdamW", lambda p: torch.optim.AdamW(p, lr=1e-3)),
    ]
    for way, label in (("double_backward", "exact"), ("finite_difference", "finite difference")):
        for k in intervals[:2] if quick else intervals:
            name = f"{label}, every {k}" if k > 1 else label
            found.append(Method(name, ours(way, k), k, math=way == "double_backward"))
        for n in PARTS[:1] if quick else PARTS:
            found.append(
                Method(
                    f"{label}, 1/{n} of the batch",
                    ours(way, fraction=1 / n),
                    cycle=HALVES_EVERY,
                    math=way == "double_backward",
                    settle=HALVES_FIRST,
                )
            )
    for label, module, name in (
        ("torch_optimizer", "torch_optimizer", "Adahessian"),
        ("pytorch_optimizer", "pytorch_optimizer", "AdaHessian"),
        ("timm", "timm.optim.adahessian", "Adahessian"),
    ):
        found.append(Method(label, public(module, name, lr=0.01), closure=False, math=True))
    return found


def chosen(network: str, options: argparse.Namespace) -> list[Method]:
    """The rows that were asked for, and SGD, which is the unit."""
    rows = methods(options.quick, NETWORKS[network].intervals)

    def asked(method: Method) -> bool:
        return any(part.lower() in method.label.lower() for part in options.only)

    return [m for m in rows if m.label == "SGD" or asked(m)]


def problem(network: str, quick: bool, device: str) -> zoo.Problem:
    """The network and one batch, on the device."""
    torch.manual_seed(0)
    if network == "resnet20":
        batch, size = (32, 16) if quick else (128, 32)
        made = zoo.random_problem(zoo.resnet20(), (batch, 1, size, size))
    elif network == "resnet50":
        model = resnet18 if quick else resnet50
        shape = (32, 3, 32, 32) if quick else (128, 3, 224, 224)
        made = zoo.random_problem(model(num_classes=1000), shape, num_classes=1000)
    elif network == "gpt2":
        sizes = (32, 4, 1, 512, 64) if quick else (768, 12, 12, 50257, 1024)
        made = zoo.token_problem(Transformer(*sizes), 4 if quick else 16, sizes[-1])
        made.loss = in_bfloat16(made.loss, device)
    else:
        width, layers = (32, 1) if quick else (128, 4)
        made = zoo.token_problem(Transformer(width, 4, layers), 4 if quick else 16, 64)
    made.model.to(device)
    made.batches = [(x.to(device), y.to(device)) for x, y in made.batches]
    return made


def in_bfloat16(loss: Loss, device: str) -> Loss:
    def computed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return loss(model, batch)

    return computed


def peak_memory(stepper: Stepper) -> int:
    """Largest number of bytes in tensors that a step needs beyond model and data.

    Counted from before the first step, so with the optimizer's state. On a CPU by the allocations
    and releases that torch's profiler sees; the resident set of a process would add what malloc
    keeps for itself, about half as much again and more for some methods than for others.
    """
    stepper._backward(create_graph=False)  # what is allocated once for all is not the method's
    stepper.optimizer.zero_grad(set_to_none=True)
    if stepper.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        stepper.settle()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        stepper.settle()
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

    steppers, missing, too_large, memory, launch = [], [], [], {}, {}
    for method in chosen(network, options):
        made = problem(network, options.quick, options.device)
        try:
            stepper = Stepper(method, made, options.device, NETWORKS[network].least)
            # Of the intervals only the first: the peak is that of a step that refreshes.
            if method.cycle == 1 or method.settle:
                memory[method.label] = peak_memory(stepper)
                launch[method.label] = launches(stepper.step, options.device)
                stepper.release()
        except ImportError:
            missing.append(method.label)
        except torch.OutOfMemoryError:
            too_large.append(method.label)
        else:
            steppers.append(stepper)
    if missing:
        say(f"not installed: {', '.join(missing)}; {INSTALL}")
    say("memory and launches are done")
    seconds = times(
        steppers, options.repetitions, lambda n: say(f"repetition {n} of {options.repetitions}")
    )
    title = f"{network}, small" if options.quick else NETWORKS[network].title
    title += ", cudnn.benchmark" if options.cudnn_benchmark else ""
    return {
        "network": network,
        "title": title,
        "seconds": seconds,
        "memory": memory,
        "launches": launch,
        "missing": missing,
        "too_large": too_large,
    }


def cost_table(result: dict[str, Any], repetitions: int) -> Grid:
    """A row for each method: times, ratios, memory and launches."""
    seconds, memory, launched = result["seconds"], result["memory"], result["launches"]
    gpu = "kernels" in launched["SGD"]
    rows = []
    for label, mine in seconds.items():
        ratio = median_ratio(mine, seconds["SGD"])
        megabytes = relative = ""
        if label in memory:
            megabytes = f"{memory[label] / 2**20:.0f}"
            relative = f"{memory[label] / memory['SGD']:.2f}"
        row = (label, f"{1000 * median(mine):.1f}", f"{ratio:.2f}", megabytes, relative)
        rows.append((*row, *launch_cells(launched.get(label), gpu)))
    more = 3 if gpu else 1
    for key, said in (("missing", "not installed"), ("too_large", "out of memory")):
        rows += [(label, said, *[""] * (3 + more)) for label in result[key]]
    note = (
        f"n = {repetitions} interleaved repetitions: median time of a step, median of its ratio to "
        "SGD's in the same repetition; peak of the memory in tensors beyond model and data, in "
        "MiB, and relative to SGD's. "
    )
    columns = ("optimizer", "ms", "x SGD", "MiB", "x SGD")
    if gpu:
        columns += ("kernels", "copies", "kernel ms")
        note += (
            "A step's kernels, its copies and fills of memory, and the time in kernels alone, "
            "what would be left if launching them took none (n = 1)."
        )
    else:
        columns += ("launches",)
        note += "Operations that torch dispatches in a step."
    return Grid(result["title"], columns, rows, note)


def launch_cells(found: dict[str, Any] | None, gpu: bool) -> tuple[str, ...]:
    if found is None:
        return ("", "", "") if gpu else ("",)
    if not gpu:
        return (str(found["operations"]),)
    return str(found["kernels"]), str(found["copies"]), f"{found['kernel_ms']:.1f}"


def largest_table(result: dict[str, Any]) -> Grid:
    """Where a GPU's time goes: the largest kernels of SGD and of both ways to H·z."""
    rows = []
    for label in ("SGD", "exact", "finite difference"):
        for name, calls, milliseconds in result["launches"].get(label, {}).get("largest", ()):
            rows.append((label, name[:60], str(calls), f"{milliseconds:.2f}"))
            label = ""
    columns = ("optimizer", "kernel", "calls", "ms")
    return Grid(f"The largest kernels of a step: {result['network']}", columns, rows, "n = 1.")


def interval_table(results: Sequence[dict[str, Any]], repetitions: int) -> Grid:
    """The cost of both ways to H·z at each interval, beside what 1 + c/k predicts."""
    rows = []
    for result in results:
        seconds = result["seconds"]
        for way in ("exact", "finite difference"):
            if way not in seconds:  # it was not asked for
                continue
            ratios = {}
            for k in INTERVALS:
                label = f"{way}, every {k}" if k > 1 else way
                if label in seconds:
                    ratios[k] = median_ratio(seconds[label], seconds["SGD"])
            cells = [f"{ratios[k]:.2f}" if k in ratios else "" for k in INTERVALS]
            predicted = [f"{1 + (ratios[1] - 1) / k:.2f}" for k in INTERVALS]
            rows.append((result["network"], way, *cells))
            rows.append(("", "1 + c/k", *predicted))
    note = (
        f"Cost of a step in SGD steps, median of n = {repetitions} repetitions; below it 1 + c/k "
        "with c from k = 1, what refreshing the curvature at every k-th step should cost."
    )
    columns = ("network", "curvature", *(f"k = {k}" for k in INTERVALS))
    return Grid("Curvature at every k-th step", columns, rows, note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=USUAL)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--repetitions", type=int, help="default: 10")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="only rows with one of these in their name"
    )
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="let cuDNN try its kernels (GPU)"
    )
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose table to replace")
    options = parser.parse_args(arguments)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    options.repetitions = options.repetitions or (2 if options.quick else 10)
    results = [measure(network, options) for network in options.network]
    tables = [cost_table(result, options.repetitions) for result in results]
    several = [result for result in results if len(NETWORKS[result["network"]].intervals) > 1]
    if several:
        tables.append(interval_table(several, options.repetitions))
    missing = sorted({name for result in results for name in result["missing"]})
    if missing:
        tables[-1].note += f" Not installed: {', '.join(missing)} ({INSTALL})."
    if options.device == "cuda":
        tables += [largest_table(result) for result in results]
    shown = {label for result in results for label in result["seconds"]}
    versions = {name: version(name) for name in PACKAGES if name in shown}
    publish("bench", tables, provenance(options.device, packages=versions), results, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
