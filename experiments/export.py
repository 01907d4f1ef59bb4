"""Results as data: `python -m experiments.export [--to FOLDER]`.

Writes the finished runs below `RUNS_ROOT`, and those that diverged, as small JSON files below
`results/`, which is committed: `<dataset>/<model>/<optimizer>-<signature>.json`, one for all seeds.
What is in a file already stays, unless the same run lies below `RUNS_ROOT`. Tables and reports read
these files beside the runs. They hold no host name and no path:

- `config`: the resolved configuration, without the seed and what cannot change a result.
- `meta`: as in `meta.json`, the data's identity included.
- `runs`, by seed: `state` ("done" or "diverged"), `sessions` (start, commit, versions, device,
  threads), `last` and `best` (epoch and test metric), `training_seconds`, `step_seconds` (median),
  `steps` of the whole training, and the `curves`, a value per epoch in five significant digits.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.results import committed
from experiments.results.tables import Results
from experiments.runs.layout import TRACES, find
from experiments.runtime.paths import runs_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.export", description=__doc__)
    parser.add_argument("--to", type=Path, default=committed.FOLDER, help="in place of results/")
    return cli.execute(parser, lambda parsed: _export(parsed.to), arguments)


def _export(folder: Path) -> None:
    results = Results(root := runs_root())
    for directory in find(root, holding=TRACES):
        results.add(directory)
    written = committed.export(results.runs, folder, lambda line: print(line, file=sys.stderr))
    runs = sum(written.values())
    print(f"{runs} runs below {root} are in {len(written)} files below {folder}")
    for run in results.having("moved"):
        print(f"left out, {run.problem}: {run.directory}", file=sys.stderr)
    for directory, problem in results.unreadable.items():
        print(f"left out, unreadable: {directory} ({problem})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
