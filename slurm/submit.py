"""Submit: `python -m slurm.submit FILE.yaml ... [--optimizers A,B] [--seeds 1-5] [--profile NAME]`.

A FILE is an experiment, a sweep or a table of the paper. Sends the runs that are neither done nor
queued nor running, more than one of them as a job array, and returns at once: one line per run,
with its job and its directory. Jobs run the code as it is now, from a copy: what is edited while
they wait or are requeued does not reach them.
"""

import argparse
import hashlib
import json
import os
import platform
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config, write_yaml
from experiments.errors import USER_ERROR, UserError
from experiments.plans.load import load, resolve
from experiments.plans.paper_tables import find, is_table
from experiments.plans.sweeps import expand, is_sweep, parse_seeds
from experiments.results.paper_tables import read
from experiments.runs.checkpoint import writing
from experiments.runs.directory import RunDirectory
from experiments.runs.provenance import git_state
from experiments.runs.states import read_state
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root, runs_root
from experiments.training import optimizers as build
from slurm import jobs
from slurm.job import Job
from slurm.profile import Profile, load_profile

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("adahessian", "experiments", "slurm")
LARGEST_ARRAY = 1000  # Slurm's default limit is 1001
WITHOUT_END = 10**6  # requeues after the time limit: a job goes on while it gets further


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.submit", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="experiments, sweeps, tables")
    parser.add_argument("--optimizers", metavar="A,B", help="of an experiment; default: all")
    parser.add_argument("--seeds", metavar="1-5", help="of an experiment; default: its own")
    parser.add_argument("--dataset", help="of a table; default: the paper's")
    parser.add_argument("--profile", default="slurm", help="name or YAML file (default: slurm)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", nargs="+",
                        help="overrides of an experiment")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent")
    parsed = parser.parse_args(arguments)
    overrides = [item for group in parsed.set for item in group]
    try:
        profile = load_profile(parsed.profile)
        runs = []
        for path in parsed.files:
            runs += select(path, parsed.optimizers, parsed.seeds, overrides, parsed.dataset)
        submit(runs, profile, parsed.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def select(
    path: str,
    optimizers: str | None,
    seeds: str | None,
    overrides: Sequence[str],
    dataset: str | None = None,
) -> list[RunDirectory]:
    """The runs that a file and its options ask for; of a table, those that it misses.

    Raises:
        UserError: something in them is wrong, or a file is given options of another kind.
    """
    if is_table(path):
        if optimizers or seeds or overrides:
            raise UserError(f"{path} is a table: optimizers, seeds and settings belong into it")
        return missing_of_table(path, dataset)
    if dataset:
        raise UserError(f"--dataset {dataset}: {path} is no table")
    if is_sweep(path):
        if optimizers or seeds or overrides:
            raise UserError(f"{path} is a sweep: optimizers, seeds and settings belong into it")
        return [run.directory for run in expand(path)]
    experiment = load(path, overrides)
    names = optimizers.split(",") if optimizers else list(experiment.optimizers)
    numbers = parse_seeds(seeds) if seeds else [experiment.seed]
    configs = [resolve(experiment, name.strip(), seed) for name in names for seed in numbers]
    return [RunDirectory(runs_root(), config) for config in configs]


def missing_of_table(path: str, dataset: str | None) -> list[RunDirectory]:
    """The runs of a table that are neither there, committed, nor known to diverge."""
    results = read(find(path, dataset))
    for block, config in results.request.absent.items():
        print(f"skipped, {config} is not there: {block}")
    if not results.missing:
        print(f"no run of {results.request.name} on {results.request.dataset} is missing")
    return results.missing


def submit(runs: Sequence[RunDirectory], profile: Profile, dry_run: bool) -> None:
    """Send the runs that need it, and say so of each.

    Raises:
        UserError: a run cannot work, or the cluster does not answer or refuses.
    """
    runs = list({run.path: run for run in runs}.values())  # two files may ask for the same one
    for run in runs:
        if profile.cluster != "slurm":  # elsewhere the machine that trains is another one
            build_device(run.config)
        build.check_optimizer(run.config)
    known = jobs_of(runs)
    missing = []
    for run in runs:
        if reason := why_not(run, known):
            print(f"skipped, {reason}: {run.path}")
        else:
            missing.append(run)
    for start in range(0, len(missing), LARGEST_ARRAY):
        chunk = missing[start : start + LARGEST_ARRAY]
        if dry_run:
            show(chunk, profile)
        else:
            send(chunk, profile)


def jobs_of(runs: Sequence[RunDirectory]) -> dict[str, jobs.JobState]:
    """What Slurm says of the jobs that these runs were last submitted as."""
    last = [jobs.submitted(run.path) for run in runs if not run.done]
    return jobs.slurm_jobs({one.job for one in last if one and one.cluster == "slurm"})


def why_not(run: RunDirectory, known: dict[str, jobs.JobState]) -> str | None:
    """Why a run must not be submitted now; None if it may."""
    now, reason = read_state(run.path)
    if run.done or now == "running":
        return f"{now} ({reason})" if reason else now
    last = jobs.submitted(run.path)
    if last and last.cluster == "local" and jobs.local_job_runs(last):
        return f"queued as local job {last.job}"
    if last and last.job in known and known[last.job].active:
        return f"{known[last.job].state.lower()} as job {last.job}"
    return None


def send(runs: Sequence[RunDirectory], profile: Profile) -> None:
    """Submit runs, all of them at once."""
    root = runs_root().absolute()
    folder = root / ".slurm" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{secrets.token_hex(2)}"
    executor = None
    if profile.cluster != "debug":
        executor = make_executor(profile, folder, name_of(runs))
    for run in runs:
        with writing(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            (run.path / "config.yaml").write_text(write_yaml(run.config))
    parts = spread(runs, profile)
    calls = [
        Job([str((run.path / "config.yaml").absolute()) for run in part], str(root),
            str(data_root().absolute()))
        for part in parts
    ]  # fmt: skip
    if executor is None:
        return calls[0]()
    with chdir(snapshot(root)), _outside_of_jobs(), _detached():
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
    count = min(profile.array_parallelism if profile.cluster == "local" else 1, len(runs))
    return [list(runs[start::count]) for start in range(count)]


def show(runs: Sequence[RunDirectory], profile: Profile) -> None:
    """Print what `send` would do."""
    for run in runs:
        print(f"would send: {run.path}")
    if profile.cluster != "slurm":
        print(f"to this machine, {profile.array_parallelism} at a time")
        return
    folder = runs_root().absolute() / ".slurm" / "TIME"
    executor = make_executor(profile, folder, name_of(runs))._executor
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


def name_of(runs: Sequence[RunDirectory]) -> str:
    """The job's name in Slurm's lists."""
    config: Config = runs[0].config
    return f"{config.dataset.name}-{config.model.label}"


def snapshot(root: Path) -> Path:
    """A copy of the code, shared by all submissions of the same code; jobs run there."""
    files = sorted(path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py"))
    content = [(path.relative_to(REPOSITORY), path.read_bytes()) for path in files]
    digest = hashlib.sha256()
    for name, text in content:
        digest.update(f"{name} {len(text)} ".encode() + text)
    commit = json.dumps(git_state())
    digest.update(commit.encode())
    folder = root / ".slurm" / f"code-{digest.hexdigest()[:12]}"
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
        for name, text in content:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(text)
        (temporary / "commit.json").write_text(commit + "\n")
        try:
            temporary.rename(folder)
        except OSError:  # somebody else was faster
            shutil.rmtree(temporary)
    return folder


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
    with open(os.devnull, "r+") as nothing:
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
