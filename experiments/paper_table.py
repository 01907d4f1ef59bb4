"""A table of the paper: `python -m experiments.paper_table NAME [--dataset DATASET]`.

Prints the paper's figures, which runs there are and how to get the others, and then ours: mean and
spread, differences with intervals and verdicts, costs, and where the figures come from. Writes the
same as Markdown, LaTeX, a page and a picture below `RUNS_ROOT/report/`. Nothing is trained. With
`--docs PAGE.md`, ours also go between the marks of `NAME-DATASET` there (see
`experiments.reports.publish`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.plans.paper_tables import find, names
from experiments.reports.paper_table import document, write
from experiments.results.paper_tables import read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.paper_table", description=__doc__)
    parser.add_argument("name", help=f"{', '.join(names())}, or a YAML file")
    parser.add_argument("--dataset", help="default: the paper's, beside its figures")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="a page whose tables to replace")
    return cli.execute(parser, _paper_table, arguments)


def _paper_table(parsed: argparse.Namespace) -> None:
    results = read(find(parsed.name, parsed.dataset))
    picture = write(results, results.request.root / "report")
    if parsed.docs:
        document(results, picture, parsed.docs)


if __name__ == "__main__":
    sys.exit(main())
