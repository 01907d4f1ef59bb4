"""The library's fast tests on a GPU, as a table: `python -m experiments.benchmarks.gpu_tests`.

pytest with `--device` (tests/conftest.py), without JAX's tests and without those that have no
meaning there. What a bare machine has not, a file of tests that needs it says.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

REPOSITORY = Path(__file__).parents[2]
TESTS = "tests/library"
MAX_PROCESSES = 14  # each holds half a gigabyte of the GPU's memory
OUTCOMES = ("passed", "failed", "skipped", "not collected")


def command(device: str, quick: bool, report: Path) -> list[str]:
    """pytest's command line."""
    found = [
        sys.executable, "-m", "pytest", f"{TESTS}/test_probes.py" if quick else TESTS,
        "--ignore", f"{TESTS}/jax", "--device", device, "-m", "not slow", "-q", "--tb", "short",
        "--continue-on-collection-errors", "-p", "no:cacheprovider",
        f"--junitxml={report}", "--durations", "15",
        # The machine's own packages may warn of each other when they are imported.
        "-W", "ignore::DeprecationWarning",
    ]  # fmt: skip
    if find_spec("pytest_benchmark"):
        found += ["-p", "no:benchmark"]  # its warning about processes is an error here
    if find_spec("pytest_timeout"):
        found += ["--timeout", "60"]
    if find_spec("xdist") and not quick:
        found += ["-n", str(min(MAX_PROCESSES, os.cpu_count() or 1))]
    return found


def outcomes(report: Path) -> list[tuple[str, str, str, str]]:
    """File, test, outcome and message of everything in a report of pytest."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = {"failure": "failed", "error": "failed"}.get(child.tag, child.tag)
                message = (child.get("message") or child.text or "").strip().split("\n")[0]
                if message == "collection failure":
                    outcome = "not collected"
                    last = [t for t in (child.text or "").splitlines() if t.startswith("E ")]
                    message = last[-1].removeprefix("E ").strip() if last else message
        # A file that is not collected has no class and its dotted path for a name.
        place = case.get("classname") or case.get("name") or ""
        file = place.replace(".", "/").removeprefix(TESTS + "/")
        found.append((file, case.get("name") or "", outcome, message))
    return found


def tables(found: list[tuple[str, str, str, str]], device: str) -> list[Grid]:
    """How many of each file, and what did not pass."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for file, _, outcome, _ in found:
        counts[file][outcome] += 1
    rows = [
        (file, *(str(count[o]) if count[o] else "" for o in OUTCOMES))
        for file, count in sorted(counts.items())
    ]
    total = Counter(outcome for _, _, outcome, _ in found)
    rows.append(("all", *(str(total[outcome]) for outcome in OUTCOMES)))
    note = "Skipped is also what is the processor's own matter; the tests' marks say why."
    result = [Grid(f"Tests of the library, on {device}", ("file", *OUTCOMES), rows, note)]
    failures = [
        (file, name, outcome, message[:100])
        for file, name, outcome, message in found
        if outcome in ("failed", "not collected")
    ]
    if failures:
        columns = ("file", "test", "outcome", "message")
        result.append(Grid("What did not pass", columns, failures, ""))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu_tests", description=__doc__.splitlines()[0]
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--quick", action="store_true", help="one file, for a test")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        line = command(options.device, options.quick, report)
        subprocess.run(line, cwd=REPOSITORY, env=environment, check=False)
        found = outcomes(report)
    data: dict[str, Any] = Counter(outcome for _, _, outcome, _ in found)
    grids = tables(found, options.device)
    publish("gpu-tests", grids, provenance(options.device), data, None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
