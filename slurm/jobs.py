"""What is known of jobs: from the file that a submission leaves with each run, and from Slurm.

Slurm is asked with one `squeue` for all jobs, and with one `sacct` for those that squeue has
forgotten. Without accounting the run's own files say how it ended.
"""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.errors import UserError
from experiments.runs.storage import write_whole

NAME = "submitted.json"
# No banner or warning of a site looks like these; a reason may hold anything.
SQUEUE_FORMAT = "job=%i|%T|%r|%L"
SQUEUE_ROW = re.compile(r"job=(\d+(?:_\d+)?)\|([A-Z_]+)\|(.*)\|([^|]*)")
SACCT_ROW = re.compile(r"(\d+(?:_\d+)?)\|([A-Z_]+(?: by \d+)?)\s*")
EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Interrupt|Exit)(: |$)")
LOG_BYTES = 20_000  # of a log's end
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL")


@dataclass(frozen=True)
class Submitted:
    """The last submission of a run.

    Attributes:
        job: Slurm's id (`12`, or `12_3` in an array), or the process id of a local job.
        cluster: `slurm` or `local`.
        folder: where submitit keeps the job's files, logs among them.
        host: from where.
    """

    job: str
    cluster: str
    folder: str
    host: str

    @property
    def logs(self) -> list[Path]:
        """What submitit and the first process of the job write, over all attempts."""
        return [Path(self.folder) / f"{self.job}_0_log.{end}" for end in ("out", "err")]

    def write(self, directory: Path) -> None:
        write_whole(directory / NAME, json.dumps(asdict(self)) + "\n")


def submitted(directory: Path) -> Submitted | None:
    """The last submission of a run, if there was one.

    Raises:
        OSError, ValueError, TypeError: what there is of it cannot be read.
    """
    try:
        text = (directory / NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    fields = json.loads(text)
    job = Submitted(**fields)
    if not all(isinstance(value, str) for value in fields.values()):
        raise TypeError(f"not all texts: {fields}")
    return job


def submissions(directories: Iterable[Path]) -> tuple[dict[Path, Submitted], dict[Path, str]]:
    """The last submissions of runs that had one, and why others' cannot be read."""
    found, problems = {}, {}
    for path in directories:
        try:
            if job := submitted(path):
                found[path] = job
        except OSError as error:
            problems[path] = f"{NAME}: {error.strerror or error}"
        except (ValueError, TypeError) as error:
            problems[path] = f"{NAME}: {type(error).__name__}: {error}"
    return found, problems


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job: its state, why it waits, and the time it has left."""

    state: str
    reason: str = ""
    left: str = ""

    @property
    def active(self) -> bool:
        """Whether it runs or will run, if need be again.

        NODE_FAIL and PREEMPTED are what a requeued job is for a moment; it is pending next.
        """
        return not self.state.startswith(ENDED)


def slurm_jobs(wanted: set[str]) -> dict[str, JobState]:
    """The states of those of the wanted Slurm jobs that Slurm remembers.

    Raises:
        UserError: Slurm does not answer, which says nothing of any job.
    """
    if not wanted:
        return {}
    if not shutil.which("squeue"):
        raise UserError("no squeue here: jobs were sent to Slurm, look from where it is")
    found = {}
    for line in run("squeue", "--me", "-h", "-r", "-t", "all", "-o", SQUEUE_FORMAT).splitlines():
        if row := SQUEUE_ROW.search(line):
            job, state, reason, left = row.groups()
            found[job] = JobState(state, "" if reason == "None" else reason, left)
    if forgotten := wanted - found.keys():
        found |= _from_accounting(forgotten)
    return {job: found[job] for job in wanted if job in found}


def _from_accounting(jobs: set[str]) -> dict[str, JobState]:
    try:
        text = run("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(sorted(jobs)))
    except UserError:
        return {}  # accounting is switched off in many places
    rows = filter(None, map(SACCT_ROW.fullmatch, text.splitlines()))
    states = {row[1]: JobState(row[2]) for row in rows}
    # squeue shows whatever may still run; what only the records call active is lost.
    return {job: state for job, state in states.items() if not state.active}


def last_words(job: Submitted) -> str:
    """Why a job ended, from the end of its log; empty where that says nothing.

    An `error:` of ours is preferred to an exception, and that to any other line. What srun says of
    the end of its tasks, and submitit of itself, is no reason.
    """
    try:
        text = job.logs[1].read_bytes()[-LOG_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("srun: ", "submitit "))]
    for kind in (re.compile("error: "), EXCEPTION, re.compile("")):
        if found := [line for line in lines if kind.match(line)]:
            return found[-1].strip().removeprefix("error: ")
    return ""


def is_over(job: Submitted, known: dict[str, JobState]) -> bool:
    """Whether a job has ended for good, by what Slurm has said of all that it remembers."""
    if job.cluster == "slurm":
        return job.job not in known or not known[job.job].active
    return job.host == platform.node() and not local_job_runs(job)


def local_job_runs(job: Submitted) -> bool:
    """Whether the process of a local job is alive; unknown from other machines, so False."""
    if job.host != platform.node():
        return False
    try:
        command = Path(f"/proc/{job.job}/cmdline").read_bytes()
    except OSError:
        return False
    return b"submitit" in command and os.fsencode(job.folder) in command


def run(*command: str) -> str:
    """What a command of Slurm's prints, whatever bytes are in it.

    Raises:
        UserError: it fails, does not answer or is not there.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} failed: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"{' '.join(command[:2])} failed: {said[-1] if said else done.returncode}")
    return done.stdout
