"""Download what corpora are made of: `python -m experiments.corpora [NAME ...]`.

Without NAME it takes all that can be downloaded. What is there already stays. Everything lies below
`DATA_ROOT`, as files: nothing is installed.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from experiments import cli
from experiments.errors import UserError, nearest
from experiments.runtime.paths import data_root
from experiments.tasks.text.prepared import SOURCES

FETCHED = ("catalogues", "debian", "austen")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.corpora", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FETCHED))
    said = "interrupted; what is complete stays"
    return cli.execute(parser, lambda parsed: _fetch(parsed.names), arguments, said)


def _fetch(names: Sequence[str]) -> None:
    for name in names:
        if name not in FETCHED:
            raise UserError(f"no corpus '{name}' to download; {nearest(name, FETCHED)}")
    for name in dict.fromkeys(names or FETCHED):
        print(f"{name}: {importlib.import_module(SOURCES[name]).fetch(data_root())}")


if __name__ == "__main__":
    sys.exit(main())
