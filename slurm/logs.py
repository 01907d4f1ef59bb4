"""Logs: `python -m slurm.logs PATTERN [--lines N] [--follow]`. What the runs' jobs wrote.

PATTERN is as for `slurm.status`. A job's log holds all its attempts, one below the other.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from experiments.errors import USER_ERROR, UserError
from experiments.runtime.paths import runs_root
from slurm import jobs
from slurm.status import find


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.logs", description=__doc__)
    parser.add_argument("pattern", help="a part of the runs' directories")
    parser.add_argument("--lines", type=int, default=20, help="from the end (default: 20)")
    parser.add_argument("--follow", action="store_true", help="go on as they are written")
    parsed = parser.parse_args(arguments)
    try:
        sent = [jobs.submitted(path) for path in find(runs_root(), parsed.pattern)]
        logs = [str(path) for job in sent if job for path in job.logs if path.exists()]
        if not logs:
            raise UserError(f"no log yet of runs like {parsed.pattern}")
        follow = ["--follow=name", "--retry"] if parsed.follow else []
        return subprocess.run(["tail", f"--lines={parsed.lines}", *follow, *logs]).returncode
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
