"""Upload to wandb what it does not have yet: `python -m experiments.upload` (`make wandb-sync`).

Goes over the runs below `RUNS_ROOT` (default `runs`), finished or not, and sends what each one's
files hold beyond what the server has; see `experiments.tracking.tracker`.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments import cli
from experiments.runtime.paths import runs_root
from experiments.tracking.upload import check_server, find_runs, is_uploaded, upload


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 where a run could not be uploaded."""
    parser = argparse.ArgumentParser(prog="python -m experiments.upload", description=__doc__)
    return cli.execute(parser, _upload, arguments)


def _upload(parsed: argparse.Namespace) -> int:
    root = runs_root()
    check_server(root)
    waiting = [run for run in find_runs(root) if not is_uploaded(run)]
    results = [upload(run) for run in waiting]
    print(f"{sum(results)} of {len(waiting)} runs uploaded" if waiting else "nothing to upload")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
