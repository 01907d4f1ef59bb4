"""Tables, pictures and a page from the files of runs: `python -m experiments.report`.

Prints one table per protocol (see `experiments.results.tables`), writes them as `report/report.md`
with a picture each below `RUNS_ROOT`, and everything as one page, `RUNS_ROOT/report.html`. Of a
sweep it says which combination is best, and the state of every run, those never begun included;
of a benchmark the scores, and of several profiles over all of them. `--watch` writes nothing: it
serves the page on this machine, and makes it anew as runs go on.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.errors import UserError
from experiments.plans import benchmarks, sweeps
from experiments.plots.canvas import as_vectors
from experiments.reports import live, page
from experiments.reports.summary import (
    write_benchmark_report,
    write_profiles,
    write_report,
    write_sweep_report,
)
from experiments.results import committed
from experiments.results.benchmarks import read_benchmark
from experiments.results.sweeps import read_sweep
from experiments.results.tables import Results, read_results
from experiments.runtime.paths import runs_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (or its file)")
    parser.add_argument("--benchmark", metavar="NAME", help="only this benchmark (or its file)")
    parser.add_argument(
        "--profiles", metavar="TABLE", nargs="+", type=Path,
        help="performance profiles over several benchmarks' report/benchmark-NAME.csv, alone",
    )  # fmt: skip
    parser.add_argument("--committed", action="store_true", help="also the runs in results/")
    parser.add_argument("--vector", action="store_true", help="pictures also as PDF and SVG")
    parser.add_argument("--watch", action="store_true", help="serve the page while runs go on")
    parser.add_argument("--port", type=int, help=f"for --watch; default: {live.PORT}")
    return cli.execute(parser, _report, arguments)


@as_vectors
def _report(parsed: argparse.Namespace) -> None:
    root = runs_root()
    if parsed.port is not None and not (parsed.watch and 0 <= parsed.port < 2**16):
        raise UserError(f"--port {parsed.port}: a number up to 65535, beside --watch")
    if parsed.profiles:
        others = ("dataset", "model", "sweep", "benchmark", "committed", "watch")
        if given := [f"--{name}" for name in others if getattr(parsed, name)]:
            raise UserError(f"--profiles is a report of its own: leave out {', '.join(given)}")
        write_profiles(parsed.profiles, root / "report")
        return
    own = "--sweep" if parsed.sweep else "--benchmark" if parsed.benchmark else ""
    if own and (parsed.dataset or parsed.model or parsed.committed):
        raise UserError(
            f"{own} names its runs itself: leave out --dataset, --model and --committed"
        )
    if parsed.sweep and parsed.benchmark:
        raise UserError("--sweep and --benchmark are two reports: ask for one")
    read, makers, write = _kind(parsed, root)
    if parsed.watch:
        port = live.PORT if parsed.port is None else parsed.port
        live.Live(root, lambda: page.make(read(), makers), port).run()
    else:
        write(read(), root / "report")


def _kind(
    parsed: argparse.Namespace, root: Path
) -> tuple[Callable[[], Any], Sequence[page.Maker], Callable[[Any, Path], None]]:
    """What reads the results that are meant, the page's sections, and what writes the report."""
    if parsed.benchmark:
        path = benchmarks.find(parsed.benchmark)
        read = partial(read_benchmark, path, root)
        return read, page.SECTIONS_OF_A_BENCHMARK, write_benchmark_report
    if parsed.sweep:
        path = sweeps.find(parsed.sweep)
        return partial(read_sweep, path, root), page.SECTIONS_OF_A_SWEEP, write_sweep_report

    def read_all() -> Results:
        more = committed.read(committed.FOLDER, root).values() if parsed.committed else ()
        return read_results(root, parsed.dataset, parsed.model, more)

    return read_all, page.SECTIONS, write_report


if __name__ == "__main__":
    sys.exit(main())
