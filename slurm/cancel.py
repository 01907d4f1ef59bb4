"""Cancel: `python -m slurm.cancel PATTERN`. Ends the jobs of the runs that match.

A training that is running finishes its step and saves it; submitting the run again goes on there.
PATTERN is as for `slurm.status`; `*` is all.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments import cli
from experiments.errors import UserError
from experiments.runs import layout
from experiments.runtime.paths import runs_root
from slurm import jobs
from slurm.status import find


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.cancel", description=__doc__)
    parser.add_argument("pattern", help="a part of the runs' directories; `*` is all")
    return cli.execute(parser, lambda parsed: cancel(parsed.pattern), arguments)


def cancel(pattern: str) -> None:
    """End the jobs of runs and say which.

    Raises:
        UserError: no run matches, or Slurm refuses.
    """
    root = runs_root()
    sent, problems = jobs.submissions(find(root, pattern))
    for path, problem in problems.items():
        print(f"left alone, unreadable: {path} ({problem})", file=sys.stderr)
    sent = {path: job for path, job in sent.items() if not layout.holds(path, "DONE")}
    known = jobs.slurm_jobs({one.job for one in sent.values() if one.cluster == "slurm"})
    ended: dict[jobs.Submitted, list[Path]] = {}
    refused: list[str] = []
    for path, job in sent.items():
        if job.cluster == "slurm" and job.job in known and known[job.job].active:
            try:
                jobs.run("scancel", job.job)
            except UserError as error:  # the others can be ended all the same
                refused.append(str(error))
                continue
        elif job.cluster == "local" and jobs.local_job_runs(job):
            if job not in ended:  # a local job has several runs
                with suppress(ProcessLookupError):  # it has ended by itself since
                    os.kill(int(job.job), signal.SIGTERM)
        else:
            continue
        ended.setdefault(job, []).append(path)
        print(f"cancelled job {job.job}: {path}")
    if not ended and not refused:
        print("nothing to cancel: none of these runs is queued or running")
    _say_what_else_ends(root, ended)
    if refused:
        raise UserError("; ".join(refused))


def _say_what_else_ends(root: Path, ended: dict[jobs.Submitted, list[Path]]) -> None:
    """A local job trains several runs: name those that the pattern did not."""
    local = {job for job in ended if job.cluster == "local"}
    others, _ = jobs.submissions(layout.find(root)) if local else ({}, {})
    for path, job in others.items():
        if job in local and path not in ended[job] and not layout.holds(path, "DONE"):
            print(f"cancelled with it, in the same job {job.job}: {path}")


if __name__ == "__main__":
    sys.exit(main())
