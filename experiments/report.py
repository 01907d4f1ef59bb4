"""Tables, pictures and a page from the files of runs: `python -m experiments.report`.

Prints one table per protocol (see `experiments.results.tables`), writes them as `report/report.md`
with a picture each below `RUNS_ROOT`, and everything as one page, `RUNS_ROOT/report.html`. Of a
sweep it says which combination is best, and the state of every run, those never begun included.
`--watch` writes nothing: it serves the page on this machine, and makes it anew as runs go on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.errors import UserError
from experiments.plans import sweeps
from experiments.reports import live, page
from experiments.reports.sections import Section
from experiments.reports.summary import write_report, write_sweep_report
from experiments.results import committed
from experiments.results.sweeps import read_sweep
from experiments.results.tables import Results, read_results
from experiments.runtime.paths import runs_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (or its file)")
    parser.add_argument("--committed", action="store_true", help="also the runs in results/")
    parser.add_argument("--watch", action="store_true", help="serve the page while runs go on")
    parser.add_argument("--port", type=int, help=f"of --watch, by default {live.PORT}")
    return cli.execute(parser, _report, arguments)


def _report(parsed: argparse.Namespace) -> None:
    root = runs_root()
    if parsed.port is not None and not (parsed.watch and 0 <= parsed.port < 2**16):
        raise UserError(f"--port {parsed.port}: a number up to 65535, beside --watch")
    if parsed.sweep and (parsed.dataset or parsed.model or parsed.committed):
        raise UserError(
            "--sweep names its runs itself: leave out --dataset, --model and --committed"
        )
    path = sweeps.find(parsed.sweep) if parsed.sweep else None
    if parsed.watch:
        port = live.PORT if parsed.port is None else parsed.port
        live.Live(root, lambda: _sections(parsed, root, path), port).run()
    elif path:
        write_sweep_report(read_sweep(path, root), root / "report")
    else:
        write_report(_read(parsed, root), root / "report")


def _read(parsed: argparse.Namespace, root: Path) -> Results:
    more = committed.read(committed.FOLDER, root).values() if parsed.committed else ()
    return read_results(root, parsed.dataset, parsed.model, more)


def _sections(parsed: argparse.Namespace, root: Path, path: Path | None) -> list[Section]:
    if path:
        return page.make(read_sweep(path, root), page.SECTIONS_OF_A_SWEEP)
    return page.make(_read(parsed, root))


if __name__ == "__main__":
    sys.exit(main())
