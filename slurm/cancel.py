"""Cancel: `python -m slurm.cancel PATTERN`. Ends the jobs of the runs that match.

A training that is running finishes its step and saves it; submitting the run again goes on there.
PATTERN is as for `slurm.status`; `*` is all.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from experiments.errors import USER_ERROR, UserError
from experiments.runtime.paths import runs_root
from slurm import jobs
from slurm.status import find


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.cancel", description=__doc__)
    parser.add_argument("pattern", help="a part of the runs' directories; `*` is all")
    try:
        cancel(parser.parse_args(arguments).pattern)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def cancel(pattern: str) -> None:
    """End the jobs of runs and say which."""
    root = runs_root()
    sent = {path: jobs.submitted(path) for path in find(root, pattern)
            if not (path / "DONE").exists()}  # fmt: skip
    known = jobs.slurm_jobs({one.job for one in sent.values() if one and one.cluster == "slurm"})
    ended = set()
    for path, job in sent.items():
        if job is None:
            continue
        if job.cluster == "slurm" and job.job in known and known[job.job].active:
            done = subprocess.run(["scancel", job.job], capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"scancel {job.job} failed: {done.stderr.strip()}")
        elif job.cluster == "local" and jobs.local_job_runs(job):
            if job.job not in ended:  # a local job has several runs
                os.kill(int(job.job), signal.SIGTERM)
        else:
            continue
        ended.add(job.job)
        print(f"cancelled job {job.job}: {path}")
    if not ended:
        print("nothing to cancel: none of these runs is queued or running")


if __name__ == "__main__":
    sys.exit(main())
