"""Everything that wants a GPU, in nine minutes: `python -m experiments.benchmarks.gpu`.

Runs the parts one after the other, each as a process of its own with a limit, so that one that
hangs or crashes costs the others nothing. Each writes one file, `<machine>.<part>.json` below
`results/gpu/`; a part whose file is there, of the same commit and torch, is not run again. So what
the budget does not reach is done by the same command, called again.

`python -m experiments.benchmarks.gpu_report` puts the files' tables into `docs/gpu.md`.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.reports.publish import provenance

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results" / "gpu"
BUDGET = 540.0  # seconds
DRY_RUN = 10  # times a part's limit: a CPU that others use, too
LEAST = 15.0  # with less left no part is started
MAX_DATA = 200_000  # characters of the numbers behind the tables; above, only the tables are kept


@dataclass(frozen=True)
class Part:
    """A benchmark that runs on a device.

    Attributes:
        name: of its file, and of its place in docs/gpu.md.
        module: in this package; its `main` takes `--device` and `--quick`, and publishes.
        arguments: of the real run.
        quick: of the dry run on a CPU, instead.
        limit: seconds after which it is stopped.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    limit: float = 60.0


_OURS = ("--only", "adamw", "exact", "difference")
_ONCE = ("--quick", "--repetitions", "1")
# What matters most comes first. To add a method is to add a row in step.py: the parts follow.
PARTS = (
    Part("tests", "gpu_tests", limit=300),
    Part("step-resnet20", "step", ("--network", "resnet20", "--repetitions", "3"),
         ("--network", "resnet20", "--only", "finite difference, every 10", *_ONCE), 160),
    Part("step-transformer", "step", ("--network", "transformer", "--repetitions", "3"),
         ("--network", "transformer", "--only", "exact, 1/8", *_ONCE), 140),
    Part("step-resnet50", "step", ("--network", "resnet50", "--repetitions", "2", *_OURS),
         ("--network", "resnet50", "--only", "adamw", *_ONCE), 200),
    Part("step-gpt2", "step", ("--network", "gpt2", "--repetitions", "2", *_OURS),
         ("--network", "gpt2", "--only", "finite difference, 1/2", *_ONCE), 200),
    Part("accuracy", "curvature_accuracy", ("--images", "digits", "--at", "0", "20"),
         ("--quick", "--images", "digits", "--only", "tanh"), 90),
    Part("compiled", "compiled", (), ("--network", "transformer", *_ONCE), 110),
    Part("epochs", "training", ("--repetitions", "2", "--steps", "40"),
         ("--steps", "1", "--workers", "1", *_ONCE), 90),
    Part("one-rank", "one_rank", limit=45),
    Part("spectrum", "spectrum", ("--repetitions", "3"),
         ("--batch", "4", "--size", "8", "--repetitions", "1", "--products", "3",
          "--part", "products"), 60),
    Part("step-resnet20-tuned", "step",
         ("--network", "resnet20", "--repetitions", "2", "--cudnn-benchmark"),
         ("--network", "resnet20", "--cudnn-benchmark", "--only", "adamw", *_ONCE), 160),
    Part("loader", "loader", ("--repetitions", "3"), (*_ONCE, "--images", "40"), 60),
)  # fmt: skip


def machine(device: str) -> str:
    """The first half of the files' names, from the device's."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def is_done(file: Path, origin: dict[str, Any]) -> bool:
    """Whether a part's file holds its result, from this commit and this torch."""
    if not file.exists():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    same = all(found["provenance"].get(key) == origin[key] for key in ("commit", "torch"))
    return found["failure"] is None and same and not origin["dirty"]


def run(part: Part, device: str, quick: bool, limit: float, origin: dict[str, Any]) -> dict:
    """Run a part in a process of its own; return what its file shall hold."""
    arguments = ["--device", device, *(part.quick if quick else part.arguments)]
    line = ["-m", f"experiments.benchmarks.{part.module}", *arguments]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, *line],
            cwd=REPOSITORY,
            env={**os.environ, "RUNS_ROOT": folder, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            start_new_session=True,  # so that its own processes end with it
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
            failure = None if process.returncode == 0 else last_line(output)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            failure = f"stopped after {limit:.0f} s"
        print(output, flush=True)
        files = sorted(Path(folder, "benchmarks").glob("*.json"))
        published = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not published and failure is None:
        failure = "published nothing"
    data = [content["data"] for content in published]
    return {
        "part": part.name,
        "command": " ".join(["python", *line]),
        "seconds": round(time.monotonic() - start, 1),
        "failure": failure,
        "provenance": published[0]["provenance"] if published else origin,
        "tables": [table for content in published for table in content["tables"]],
        "data": data if len(json.dumps(data)) < MAX_DATA else None,
    }


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "failed without a word"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    names = [part.name for part in PARTS]
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--part", nargs="+", choices=names, default=names)
    parser.add_argument("--again", action="store_true", help="also parts whose file is there")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds; default: 540")
    parser.add_argument("--quick", action="store_true", help="small and short: a dry run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: results/gpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.quick:
        parser.error("no GPU is available here; --device cpu --quick is a dry run")
    start = time.monotonic()
    options.results.mkdir(parents=True, exist_ok=True)
    origin = provenance(options.device)
    failed = []
    for part in PARTS:
        file = options.results / f"{machine(options.device)}.{part.name}.json"
        if part.name not in options.part:
            continue
        if not options.again and is_done(file, origin):
            print(f"{part.name}: {file} is there")
            continue
        left = options.budget - (time.monotonic() - start)
        if left < LEAST:
            failed.append(part.name)
            print(f"{part.name}: not started, the budget is spent: the same command goes on")
            continue
        limit = min(part.limit * (DRY_RUN if options.quick else 1), left)
        result = run(part, options.device, options.quick, limit, origin)
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        say = result["failure"] or "done"
        print(f"{part.name}: {say}, {result['seconds']:.0f} s, {file}", flush=True)
        if result["failure"]:
            failed.append(part.name)
    if failed:
        print(f"incomplete: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
