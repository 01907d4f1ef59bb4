"""Submit: `python -m slurm.submit FILE... [key=value ...] [--profile NAME] [--dry-run]`.

FILE is an experiment, a sweep, a benchmark or a table of the paper; `experiments.plans.select` has
the settings. Sends the runs that are neither done nor queued nor running, more than one of them as
a job array, and returns at once: one line per run, with its job and its directory. Jobs run the
code as it is now, from a copy: what is edited while they wait or are requeued does not reach them.
"""

import argparse
import os
import platform
import re
import secrets
import shutil
import signal
import sys
import time
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import cli
from experiments.config.experiment import write_yaml
from experiments.errors import UserError
from experiments.plans.select import runs_of, select_brackets
from experiments.plans.settings import split_words
from experiments.results.halving import Limit, limits
from experiments.results.paper_tables import have_result
from experiments.runs.directory import RunDirectory
from experiments.runs.labels import titles
from experiments.runs.states import read_state
from experiments.runs.storage import write_whole, writing
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root, runs_root
from experiments.runtime.threads import cores, threads_per_run
from experiments.training import optimizers as build
from slurm import jobs, snapshot
from slurm.job import Job
from slurm.profile import Profile, load_profile

LARGEST_ARRAY = 1000  # Slurm's default limit is 1001
WITHOUT_END = 10**6  # requeues after the time limit: a job goes on while it gets further
LONGEST_NAME = 100  # characters of a job's name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.submit", description=__doc__)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FILE | key=value",
        help="YAML files below configs/; optimizer=NAME[,NAME], seed=1-5 or seed=1,2,7, for a "
        "table dataset=NAME, and any key.path=value of the configuration",
    )
    parser.add_argument("--profile", default="slurm", help="name or YAML file (default: slurm)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent")
    for option, now in {
        "--optimizers": "optimizer=A,B",
        "--seeds": "seed=1-5",
        "--dataset": "dataset=NAME",
        "--set": "key=value, without --set",
    }.items():
        parser.add_argument(option, action=cli.Renamed, const=now)
    return cli.execute(parser, _submit, arguments)


def _submit(parsed: argparse.Namespace) -> None:
    profile = load_profile(parsed.profile)
    brackets = select_brackets(*split_words(parsed.words))
    planned = runs_of(brackets)
    runs = [RunDirectory(runs_root(), run.config) for run in planned]
    known, far = have_result(planned, runs_root()), limits(brackets, runs_root())
    submit(runs, profile, parsed.dry_run, known, far)
    if not all(limit.is_final for limit in far.values()):
        print("trials are compared when these have ended: the same command then sends what goes on")


def submit(
    runs: Sequence[RunDirectory],
    profile: Profile,
    dry_run: bool,
    elsewhere: Collection[Path] = (),
    far: Mapping[Path, Limit] = MappingProxyType({}),
) -> None:
    """Send the runs that need it, and say so of each.

    Args:
        runs: each once.
        profile: where to.
        dry_run: show what would be sent instead.
        elsewhere: places of runs whose results are known without their directories.
        far: how far each run is to be trained, by its place; others to their end.

    Raises:
        UserError: a run cannot work, or the cluster does not answer or refuses.
    """
    check(runs, profile)
    last, problems = jobs.submissions(run.path for run in runs if not run.done)
    for path, problem in problems.items():
        print(f"taken for not submitted: {path} ({problem})", file=sys.stderr)
    known = jobs.slurm_jobs({one.job for one in last.values() if one.cluster == "slurm"})
    missing, until = [], {}
    for run in runs:
        reason = why_not(run, last.get(run.path), known)
        place = run.path.relative_to(runs_root())
        if reason is None and place in elsewhere:
            reason = "its result is known"
        if (limit := far.get(place)) and limit.epochs < run.config.epochs:
            until[run.path] = limit.epochs
            if reason is None and run.has_come(limit.epochs):
                others = "stopped by halving" if limit.is_final else "waits for other trials"
                reason = f"{others} after epoch {limit.epochs}"
        if reason:
            print(f"skipped, {reason}: {run.path}")
        else:
            missing.append(run)
    code: snapshot.Files = {}
    if missing and profile.cluster != "debug":  # which trains in this very process
        code = snapshot.files([run.config for run in missing])
    for start in range(0, len(missing), LARGEST_ARRAY):
        chunk = missing[start : start + LARGEST_ARRAY]
        if dry_run:
            show(chunk, profile)
        else:
            send(chunk, profile, code, until)
    if dry_run and (own := snapshot.packages(code)):
        print(f"copied for the jobs, beside this repository's code: {', '.join(own)}")


def check(runs: Sequence[RunDirectory], profile: Profile) -> None:
    """Refuse at once what would fail only when a job begins.

    Raises:
        UserError: naming what an optimizer does not take, or the device that is not here.
    """
    if profile.cluster != "slurm":  # elsewhere the machine that trains is another one
        for run in runs:
            build_device(run.config)
    try:
        with _without_compiler():
            for run in runs:
                build.check_optimizer(run.config)
    except Exception:  # a mistake, or what somebody imports needs it (torchvision does)
        for run in runs:
            build.check_optimizer(run.config)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Spare the import of torch's compiler, which takes as long as that of torch.

    The first optimizer of a process imports it to have its own methods left uncompiled; nothing is
    compiled here.
    """
    stand_in: Any = types.ModuleType("torch._dynamo")
    stand_in.disable = lambda function, *options, **named: function
    added = sys.modules.setdefault("torch._dynamo", stand_in) is stand_in
    try:
        yield
    finally:
        if added:
            del sys.modules["torch._dynamo"]


def why_not(
    run: RunDirectory, last: jobs.Submitted | None, known: dict[str, jobs.JobState]
) -> str | None:
    """Why a run must not be submitted now; None if it may."""
    state, reason = read_state(run.path)
    if run.done or state == "running":
        return f"{state} ({reason})" if reason else state
    if last and last.cluster == "local" and jobs.local_job_runs(last):
        return f"queued as local job {last.job}"
    if last and last.job in known and known[last.job].active:
        return f"{known[last.job].state.lower()} as job {last.job}"
    return None


def send(
    runs: Sequence[RunDirectory],
    profile: Profile,
    code: snapshot.Files,
    until: Mapping[Path, int] = MappingProxyType({}),
) -> None:
    """Submit runs, all of them at once, to run a copy of this code.

    Args:
        runs, profile: which, and where to.
        code: the copy.
        until: epochs after which a run is to pause, by its directory.
    """
    root = runs_root().absolute()
    folder = root / ".slurm" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{secrets.token_hex(2)}"
    executor = None
    if profile.cluster != "debug":
        executor = make_executor(profile, folder, common_name(runs))
    for run in runs:
        with writing(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            write_whole(run.path / "config.yaml", write_yaml(run.config))
    names = dict(zip(runs, names_of(runs), strict=True))
    parts = spread(runs, profile)
    calls = [
        Job([str((run.path / "config.yaml").absolute()) for run in part], str(root),
            str(data_root().absolute()), names[part[0]] if len(part) == 1 else "", os.getcwd(),
            tuple(until.get(run.path) for run in part))
        for part in parts
    ]  # fmt: skip
    if executor is None:
        return calls[0]()
    with chdir(snapshot.write(code, root)), _outside_of_jobs(), _detached():
        try:
            sent = executor.submit_array(calls) if len(calls) > 1 else [executor.submit(calls[0])]
        except Exception as error:  # submitit wraps what sbatch says into several types
            raise UserError(f"nothing was submitted: {error}") from error
    for job, part in zip(sent, parts, strict=True):
        for run in part:
            record = jobs.Submitted(job.job_id, profile.cluster, str(folder), platform.node())
            record.write(run.path)
            print(f"job {job.job_id}: {run.path}", flush=True)


def spread(runs: Sequence[RunDirectory], profile: Profile) -> list[list[RunDirectory]]:
    """Which runs share a job: none on Slurm; on one machine as many jobs as may run at once."""
    if profile.cluster == "slurm":
        return [[run] for run in runs]
    count = min(at_a_time(profile) if profile.cluster == "local" else 1, len(runs))
    return [list(runs[start::count]) for start in range(count)]


def show(runs: Sequence[RunDirectory], profile: Profile) -> None:
    """Print what `send` would do."""
    for run in runs:
        print(f"would send: {run.path}")
    if profile.cluster != "slurm":
        print(f"to this machine, {at_a_time(profile)} at a time")
        return
    folder = runs_root().absolute() / ".slurm" / "TIME"
    executor = make_executor(profile, folder, common_name(runs))._executor
    if len(runs) > 1:
        executor.parameters["map_count"] = len(runs)
    print(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def make_executor(profile: Profile, folder: Path, name: str) -> Any:
    """Submitit's executor for a profile."""
    import submitit

    if profile.cluster == "slurm" and not shutil.which("srun"):
        raise UserError("no Slurm here (no srun on the PATH); --profile local needs none")
    # Submissions to this machine have no shell that outlives the terminal.
    if profile.cluster == "local":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    limit = {f"{profile.cluster}_max_num_timeout": WITHOUT_END}
    executor = submitit.AutoExecutor(folder=folder, cluster=profile.cluster, **limit)
    executor.update_parameters(**profile.parameters(name))
    return executor


def at_a_time(profile: Profile) -> int:
    """Runs of a submission to this machine at the same time: as many as there are cores for.

    On GPUs one, because submitit gives all of its local jobs the same.
    """
    import torch

    default = 1 if torch.cuda.is_available() else max(cores() // threads_per_run(), 1)
    return profile.array_parallelism or default


def names_of(runs: Sequence[RunDirectory]) -> list[str]:
    """The jobs' names in Slurm's lists: `digits-resnet20-adahessian-lr=0.1-s3`."""
    return [_name(title.replace("seed ", "s")) for title in titles([run.config for run in runs])]


def common_name(runs: Sequence[RunDirectory]) -> str:
    """The name that jobs of an array share until they begin: what all of theirs have in it."""
    first, *others = [title.split() for title in titles([run.config for run in runs])]
    if not others:
        return names_of(runs)[0]
    return _name(" ".join(w for w in first if w != "seed" and all(w in words for words in others)))


def _name(title: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "-", title)[:LONGEST_NAME].strip("-")


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job that this very process may be part of: its variables would leak into the new.

    SLURM_CONF says where the cluster is, and stays.
    """
    kept = dict(os.environ)
    for key in kept:
        if key.startswith(("SLURM_", "SLURMD_", "SUBMITIT_")) and key != "SLURM_CONF":
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def _detached() -> Iterator[None]:
    """What is started here keeps neither the terminal nor a pipe: `submit | tee` must end."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    with open(os.devnull, "r+", encoding="utf-8") as nothing:
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    try:
        yield
    finally:
        for number, old in enumerate(kept):
            os.dup2(old, number)
            os.close(old)


if __name__ == "__main__":
    sys.exit(main())
