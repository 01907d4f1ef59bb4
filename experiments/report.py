"""Tables, pictures and a page from the files of finished runs: `python -m experiments.report`.

Prints one table per protocol (see `experiments.results.tables`), writes them as `report/report.md`
with a picture each below `RUNS_ROOT`, and everything as one page, `RUNS_ROOT/report.html`. Of a
sweep it says which combination is best, and the state of every run, those never begun included.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments import cli
from experiments.errors import UserError
from experiments.plans import sweeps
from experiments.plots.canvas import as_vectors
from experiments.reports.summary import write_report, write_sweep_report
from experiments.results import committed
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results
from experiments.runtime.paths import runs_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (or its file)")
    parser.add_argument("--committed", action="store_true", help="also the runs in results/")
    parser.add_argument("--vector", action="store_true", help="pictures also as PDF and SVG")
    return cli.execute(parser, _report, arguments)


@as_vectors
def _report(parsed: argparse.Namespace) -> None:
    root = runs_root()
    if parsed.sweep and (parsed.dataset or parsed.model or parsed.committed):
        raise UserError(
            "--sweep names its runs itself: leave out --dataset, --model and --committed"
        )
    if parsed.sweep:
        write_sweep_report(read_sweep(sweeps.find(parsed.sweep), root), root / "report")
    else:
        more = committed.read(committed.FOLDER, root).values() if parsed.committed else ()
        results = read_results(root, parsed.dataset, parsed.model, more)
        write_report(results, root / "report")


if __name__ == "__main__":
    sys.exit(main())
