"""Tables, pictures and a page from the files of finished runs: `python -m experiments.report`.

Prints one table per protocol (see `experiments.results.tables`), writes them as `report/report.md`
with a picture each below `RUNS_ROOT`, and everything as one page, `RUNS_ROOT/report.html`. Of a
sweep it says which combination is best, and the state of every run, those never begun included;
of a benchmark the scores.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments import cli
from experiments.errors import UserError
from experiments.plans import benchmarks, sweeps
from experiments.plots.canvas import as_vectors
from experiments.reports.summary import (
    write_benchmark_report,
    write_report,
    write_sweep_report,
)
from experiments.results import committed
from experiments.results.benchmarks import read_benchmark
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results
from experiments.runtime.paths import runs_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (or its file)")
    parser.add_argument("--benchmark", metavar="NAME", help="only this benchmark (or its file)")
    parser.add_argument("--committed", action="store_true", help="also the runs in results/")
    parser.add_argument("--vector", action="store_true", help="pictures also as PDF and SVG")
    return cli.execute(parser, _report, arguments)


@as_vectors
def _report(parsed: argparse.Namespace) -> None:
    root = runs_root()
    own = "--sweep" if parsed.sweep else "--benchmark" if parsed.benchmark else ""
    if own and (parsed.dataset or parsed.model or parsed.committed):
        raise UserError(
            f"{own} names its runs itself: leave out --dataset, --model and --committed"
        )
    if parsed.sweep and parsed.benchmark:
        raise UserError("--sweep and --benchmark are two reports: ask for one")
    if parsed.benchmark:
        results = read_benchmark(benchmarks.find(parsed.benchmark), root)
        write_benchmark_report(results, root / "report")
    elif parsed.sweep:
        write_sweep_report(read_sweep(sweeps.find(parsed.sweep), root), root / "report")
    else:
        more = committed.read(committed.FOLDER, root).values() if parsed.committed else ()
        results = read_results(root, parsed.dataset, parsed.model, more)
        write_report(results, root / "report")


if __name__ == "__main__":
    sys.exit(main())
