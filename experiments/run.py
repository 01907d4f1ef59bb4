"""Train: `python -m experiments.run FILE... [key=value ...] [--jobs N] [--dry-run]`.

FILE is an experiment, a sweep, a benchmark or a table of the paper; `experiments.plans.select` has
the settings. Several runs are trained at a time, each in a process and a directory of its own below
`RUNS_ROOT` (default `runs`), with data from `DATA_ROOT` (default `data`). A run that is done is
skipped; one that was interrupted goes on from its checkpoint. Ctrl-C, SIGTERM, SIGUSR2, SIGHUP,
SIGUSR1 and SIGXCPU finish the steps, save them, and exit with 128 + the signal's number.
`--dry-run` shows instead what would be trained: each run's network, parameter groups and learning
rate.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments import cli
from experiments.config.experiment import Config
from experiments.errors import UserError
from experiments.plans.brackets import Bracket
from experiments.plans.select import runs_of, select_brackets
from experiments.plans.settings import split_words
from experiments.results.halving import limits
from experiments.results.paper_tables import have_result
from experiments.runs.directory import RunDirectory
from experiments.runs.labels import titles
from experiments.runtime import distributed
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root, runs_root
from experiments.runtime.processes import run_each
from experiments.runtime.progress import Progress, say
from experiments.runtime.stopping import Stopped
from experiments.runtime.threads import VARIABLE, cores, threads_per_run
from experiments.training import optimizers
from experiments.training.preview import preview
from experiments.training.session import say_if_done, train_unless_done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description="Train the runs of experiments, sweeps, benchmarks or tables, those that are "
        "not done yet.",
        epilog="example: python -m experiments.run configs/digits/resnet20.yaml "
        "optimizer=sgd,adahessian seed=1-3 epochs=30",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FILE | key=value",
        help="YAML files below configs/; optimizer=NAME[,NAME], seed=1-5 or seed=1,2,7, for a "
        "table dataset=NAME, and any key.path=value of the configuration",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time; default: one per GPU, or on a CPU one per core "
        f"({VARIABLE}=T trains each with T threads instead of one, and fewer at a time)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be trained, with a picture of the learning rate; record nothing",
    )
    said = "interrupted; the same command goes on from the last checkpoint"
    return cli.execute(parser, _run, arguments, said)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.jobs is not None and parsed.jobs < 1:
        raise UserError(f"--jobs {parsed.jobs}: must be 1 or more")
    brackets = select_brackets(*split_words(parsed.words))
    planned = runs_of(brackets)
    for run in planned:
        optimizers.check(run.config)
    known = have_result(planned, runs_root())
    if known:
        say(f"{len(known)} runs of tables have a result already")
    configs = [run.config for run in planned if run.place not in known]
    todo = [
        Todo(RunDirectory(runs_root(), config), title)
        for config, title in zip(configs, titles(configs), strict=True)
    ]
    todo = [one for one in todo if distributed.world_size() > 1 or not say_if_done(one.directory)]
    if parsed.dry_run:
        return _show(_due(todo, brackets, {}))
    code = _train_all(todo, brackets, parsed.jobs)
    if todo and code == 0 and distributed.is_main():
        say(f"done: results are below {runs_root()}; make report shows them, make evaluate one")
    return code


@dataclass(frozen=True)
class Todo:
    """A run that is not done.

    Attributes:
        directory: where it is recorded.
        title: among the runs of the command.
        until: epochs after which it is to pause; None: all of them.
    """

    directory: RunDirectory
    title: str
    until: int | None = None

    @property
    def config(self) -> Config:
        return self.directory.config


def _show(todo: Sequence[Todo]) -> int:
    """Print what a training of each run would be, what is said already only once."""
    said = None
    for one in todo:
        lines = preview(one.config, data_root())
        print(*([f"{one.title}: as above"] if lines == said else [one.title, *lines]), sep="\n")
        said = lines
    return 0


def _train_all(todo: Sequence[Todo], brackets: Sequence[Bracket], jobs: int | None) -> int:
    """Train until nothing is due any more, comparison by comparison where trials are halved."""
    code, tried = 0, {}
    while due := _due(todo, brackets, tried):
        tried |= {one.directory.path: one.until for one in due}
        if len(due) < 2 or distributed.world_size() > 1:
            _say_what_is_idle(due)
            for one in due:
                code = max(code, train_unless_done(one.config, title=one.title, until=one.until))
        else:
            code = max(code, _train_in_processes(due, jobs))
    return code


def _due(
    todo: Sequence[Todo], brackets: Sequence[Bracket], tried: Mapping[Path, int | None]
) -> list[Todo]:
    """The runs that can go on now, and how far; what was tried before is not tried again."""
    found = []
    places = limits(brackets, runs_root())
    for one in todo:
        epochs = places[one.directory.path.relative_to(runs_root())].epochs
        until = epochs if epochs < one.config.epochs else None
        path = one.directory.path
        if (path in tried and tried[path] == until) or (until and one.directory.has_come(until)):
            continue
        found.append(replace(one, until=until))
    return distributed.broadcast(found) if tried else found


def _say_what_is_idle(todo: Sequence[Todo]) -> None:
    """That a single run on a CPU leaves cores alone, where nobody has decided on its threads."""
    alone = len(todo) == 1 and distributed.world_size() == 1 and VARIABLE not in os.environ
    if alone and cores() > 1 and build_device(todo[0].config).type == "cpu":
        say(
            f"one run with one thread, of {cores()} cores; {VARIABLE}=N trains it with N, "
            "with results that differ by rounding"
        )


@dataclass(frozen=True)
class Job:
    """What a process needs to know of its run.

    Attributes:
        config, title: of the run.
        gpus: what CUDA_VISIBLE_DEVICES may be, by slot; empty on a CPU.
        bar: whether the terminal is the process's own.
        until: as in `Todo`.
    """

    config: Config
    title: str
    gpus: Sequence[str]
    bar: bool
    until: int | None = None


def _train_in_processes(todo: Sequence[Todo], jobs: int | None) -> int:
    gpus = _gpus() if any(build_device(one.config).type == "cuda" for one in todo) else []
    threads = threads_per_run()
    jobs = min(jobs or len(gpus) or max(cores() // threads, 1), len(todo))
    each = "" if gpus else f", {threads} thread{'s' if threads > 1 else ''} each"
    say(f"{len(todo)} runs, {jobs} at a time{each}")
    items = [Job(one.config, one.title, gpus, jobs == 1, one.until) for one in todo]
    # torch imports its compiler, as long as itself, when the first optimizer is made.
    preload = ["experiments.training.session", "torch._dynamo"]
    return max(run_each(_train_one, items, jobs, preload, _say_if_killed))


def _gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",")]
    return [str(number) for number in range(torch.cuda.device_count())]


def _train_one(job: Job, slot: int) -> int:
    """Train in a process of its own, on the GPU of its slot; returns the exit code."""
    if job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpus[slot % len(job.gpus)]
    Progress.bars = job.bar

    def train() -> int:
        try:
            return train_unless_done(job.config, title=job.title, until=job.until)
        except Stopped as stop:  # the parent says it, once
            return stop.exit_code

    return cli.guarded(train)


def _say_if_killed(job: Job, code: int) -> None:
    if code < 0:
        say(f"error: {job.title}: killed by {signal.Signals(-code).name}")


if __name__ == "__main__":
    sys.exit(main())
