"""Download what corpora are made of: `python -m experiments.corpora [NAME ...]`.

Without NAME it takes all that can be downloaded. What is there already stays. Everything lies below
`DATA_ROOT`, as files: nothing is installed.

`python -m experiments.corpora NAME --from FILE ...` prepares a corpus of the paper (iwslt14, wmt14,
ptb, wikitext103) from the archives in which it is published, or from folders with their files.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.errors import UserError, nearest
from experiments.runtime.paths import data_root
from experiments.tasks.text.prepared import SOURCES
from experiments.tasks.text.sources import paper
from experiments.tasks.text.sources.paper_preparation import prepare_paper

FETCHED = ("catalogues", "debian", "austen")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.corpora", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(FETCHED)}")
    parser.add_argument(
        "--from",
        nargs="+",
        metavar="FILE",
        type=Path,
        default=(),
        dest="archives",
        help="the archives of a corpus of the paper, or folders with their files",
    )
    said = "interrupted; what is complete stays"
    return cli.execute(parser, _make, arguments, said)


def _make(parsed: argparse.Namespace) -> None:
    names, known = parsed.names, list(paper.CORPORA)
    if parsed.archives:
        if len(names) != 1 or names[0] not in known:
            said = f"{' '.join(names)} --from: name one of {', '.join(known)}"
            raise UserError(said)
        print(f"{names[0]}: {prepare_paper(names[0], parsed.archives, data_root())}")
    elif own := [name for name in names if name in known]:
        raise UserError(
            f"{own[0]} cannot be downloaded here; `{paper.CORPORA[own[0]].command(own[0])}` "
            "prepares it from its archives"
        )
    else:
        _fetch(names)


def _fetch(names: Sequence[str]) -> None:
    for name in names:
        if name not in FETCHED:
            raise UserError(f"no corpus '{name}' to download; {nearest(name, FETCHED)}")
    for name in dict.fromkeys(names or FETCHED):
        print(f"{name}: {importlib.import_module(SOURCES[name]).fetch(data_root())}")


if __name__ == "__main__":
    sys.exit(main())
