"""All runs side by side: `python -m experiments.dashboard` (`make dashboard`).

With a key and a server that answers: writes the project's workspace on the server, one panel for
each metric that the runs below `RUNS_ROOT` (default `runs`) have, seeds grouped, and prints its
address. Without: wandb's terminal view of the same runs where there is a terminal, else the path
of the HTML report.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments import cli
from experiments.errors import UserError
from experiments.runtime.paths import runs_root
from experiments.tracking.upload import check_server, find_runs
from experiments.tracking.workspace import show_locally, write_workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard", description=__doc__)
    return cli.execute(parser, _dashboard, arguments)


def _dashboard(parsed: argparse.Namespace) -> int:
    root = runs_root()
    runs = list(find_runs(root))
    try:
        check_server(root)
    except UserError as reason:
        print(f"no dashboard on a server: {reason}", file=sys.stderr)
        return show_locally(root, runs)
    print(write_workspace(root, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
