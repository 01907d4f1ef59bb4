"""What a step needs of a machine's memory: `python -m experiments.benchmarks.resident` (Linux).

The peak of a process's resident set, in a process of its own for each method, above what it held
after one step on two examples: model, data, libraries. That is more than the tensors' peak
(`experiments.benchmarks.step`), because glibc's malloc does not always find room for a tensor
between those that live on; so it is measured once more with every larger tensor a mapping of its
own, which is slow and leaves no such gaps.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.benchmarks.harness import Stepper
from experiments.benchmarks.step import NETWORKS, methods, problem
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

ROWS = (
    "SGD",
    "exact, 1/4 of the batch",
    "finite difference",
    "finite difference, 1/4 of the batch",
)
QUICK = ("SGD", "finite difference", "finite difference, 1/2 of the batch")
MALLOC = {"default": {}, "a mapping each": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


def peak_mib() -> float:
    """Return the peak of this process's resident memory (Linux)."""
    # Not getrusage: its peak includes that of the parent from before exec.
    return _of_status("VmHWM")


def _of_status(key: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def peaks(label: str, options: argparse.Namespace) -> list[float]:
    """What each step adds to this process at its peak, in MiB."""
    (method,) = (method for method in methods(options.quick) if method.label == label)
    made = problem(options.network, options.quick, "cpu")
    whole = made.batches
    stepper = Stepper(method, made, "cpu")
    made.batches = [(x[:2], y[:2]) for x, y in whole]
    for group in stepper.optimizer.param_groups:
        group["curvature_fraction"] = 1.0  # a part of two examples is none
    stepper.step()
    made.batches = whole
    # The optimizer that took that step is of other shapes, and has checked itself.
    stepper = Stepper(method, made, "cpu")
    before, found = _of_status("VmRSS"), []
    for _ in range(options.steps):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        stepper.step()
        found.append(peak_mib() - before)
    return found


def measure(label: str, malloc: str, arguments: Sequence[str]) -> list[float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.resident", "--of", label, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **MALLOC[malloc]}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, list[list[float]]]], options: argparse.Namespace) -> Grid:
    """A row for each way to allocate and each method."""
    rows = []
    for malloc, rows_of in found.items():
        unit = [max(peaks[1:]) for peaks in rows_of["SGD"]]
        for label, processes in rows_of.items():
            first = [peaks[0] for peaks in processes]
            later = [peak for peaks in processes for peak in peaks[1:]]
            most = [max(peaks[1:]) for peaks in processes]
            ratio = sorted(mine / sgd for mine, sgd in zip(most, unit, strict=True))
            rows.append((malloc, label, spread(first), spread(later), spread(ratio, 2)))
    note = (
        f"Peak of the resident memory above model and data, in MiB, over {options.processes} "
        f"processes with {options.steps} steps each; the ratio is of the largest later steps."
    )
    columns = ("malloc", "optimizer", "first step", "later steps", "x SGD")
    network = "small" if options.quick else NETWORKS[options.network].title
    return Grid(f"Resident memory, {network}", columns, rows, note)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The least and the largest."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.resident", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--steps", type=int, default=8, help="of a process; default: 8")
    parser.add_argument("--processes", type=int, default=3, help="default: 3")
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose table to replace")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not Path("/proc/self/clear_refs").exists():
        parser.error("the peak of resident memory is read from /proc, which Linux alone has")
    if options.steps < 2:
        parser.error("--steps: at least 2, the first one and a later one")
    if options.of is not None:
        torch.set_num_threads(1)
        print(json.dumps(peaks(options.of, options)))
        return 0
    found = {
        malloc: {
            label: [measure(label, malloc, words) for _ in range(options.processes)]
            for label in (QUICK if options.quick else ROWS)
        }
        for malloc in MALLOC
    }
    publish("resident", [table(found, options)], provenance("cpu", threads=1), found, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
