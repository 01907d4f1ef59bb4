"""Logs: `python -m slurm.logs PATTERN [--lines N] [--follow]`. What the runs' jobs wrote.

PATTERN is as for `slurm.status`. A job's log holds all its attempts, one below the other.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from experiments import cli
from experiments.errors import UserError
from experiments.runtime.paths import runs_root
from slurm import jobs
from slurm.status import find


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.logs", description=__doc__)
    parser.add_argument("pattern", help="a part of the runs' directories")
    parser.add_argument("--lines", type=int, default=20, help="from the end (default: 20)")
    parser.add_argument("--follow", action="store_true", help="go on as they are written")
    return cli.execute(parser, _logs, arguments)


def _logs(parsed: argparse.Namespace) -> int:
    sent, problems = jobs.submissions(find(runs_root(), parsed.pattern))
    for path, problem in problems.items():
        print(f"left out, unreadable: {path} ({problem})", file=sys.stderr)
    logs = dict.fromkeys(str(path) for job in sent.values() for path in job.logs if path.exists())
    if not logs:
        raise UserError(f"no log yet of runs like {parsed.pattern}")
    follow = ["--follow=name", "--retry"] if parsed.follow else []
    with suppress(KeyboardInterrupt):  # how one stops following
        return subprocess.run(["tail", f"--lines={parsed.lines}", *follow, *logs]).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
