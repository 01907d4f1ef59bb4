"""The scores of a benchmark, from its file and its runs' files alone.

A trial's score is what its training had cost at the end of the first epoch in which the target was
reached; infinite where it never was. A study's score is that of its best trial, so that
tuning is part of what is measured; a row's is the median of its studies. Costs are steps, seconds
of training (`time/epoch_seconds`, which only a quiet machine makes comparable), and gradient
equivalents (`experiments.results.prices`). Who wins, `experiments.results.ranking` says.

Where halving has stopped a trial, nothing after that epoch counts, even if another plan has trained
the run further: its score is infinite unless it reached the target before, it has no final metric,
and its price is that of the epochs that it was given.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from experiments.config.metrics import Metric
from experiments.errors import UserError
from experiments.plans import benchmarks
from experiments.plans.benchmarks import Benchmark, Trial
from experiments.results.halving import Limit, limits
from experiments.results.prices import MEASURES, costs_until
from experiments.results.sweeps import Member, member, set_apart
from experiments.results.tables import Results

ENDS = ("done", "diverged")  # states from which nothing more is to be expected


@dataclass(frozen=True)
class Score:
    """The score of a trial.

    Attributes:
        trial: what was planned.
        member: its run's files.
        costs: by measure; infinite where the target was not reached before the end.
        final: the target's metric in the last row; nan where the training diverged or was stopped.
        price: gradient equivalents of all its epochs.
        stopped: whether halving stopped it.
    """

    trial: Trial
    member: Member
    costs: Mapping[str, float]
    final: float
    price: float
    stopped: bool


@dataclass
class BenchmarkResults(Results):
    """The runs of one benchmark.

    Attributes:
        path: the benchmark's file.
        benchmark: its content.
        scores: of all trials whose runs have come to an end, by row and study.
        members: all runs, those never begun included.
    """

    path: Path = Path()
    benchmark: Benchmark = field(kw_only=True)
    scores: dict[str, dict[int, list[Score]]] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"Benchmark {self.path.stem}"

    @property
    def missing(self) -> list[Member]:
        return [one for one in self.members if not one.stopped and one.state not in ENDS]

    @property
    def left_out(self) -> str:
        """Nothing: the benchmark's own table counts every run, begun or not."""
        return ""

    @property
    def under_way(self) -> str:
        """Nothing, for the same reason."""
        return ""

    @property
    def command(self) -> str:
        """What trains the runs that are missing, and no others."""
        return f"make benchmark BENCHMARK={self.path}"

    @cached_property
    def metric(self) -> Metric | None:
        """The target's metric, where a run's files declare it."""
        name = self.benchmark.target.metric.partition("/")[2]
        return next((run.metrics[name] for run in self.runs if name in run.metrics), None)

    def studies(self, row: str, measure: str) -> list[float]:
        """The score of each study of a row, of those that are complete."""
        return [min(one.costs[measure] for one in trials) for trials in self._complete(row)]

    def trials(self, row: str) -> list[list[float]]:
        """Of each complete study the scores of all trials, in gradient equivalents."""
        return [[one.costs[MEASURES[0]] for one in trials] for trials in self._complete(row)]

    def prices(self, row: str) -> list[float]:
        """Of each complete study the gradient equivalents of all its trials together."""
        return [math.fsum(one.price for one in trials) for trials in self._complete(row)]

    def finals(self, row: str) -> list[float]:
        """The best trial's last metric, of each complete study.

        Trials that diverged or were stopped have none.
        """
        if self.metric is None:
            return []
        best = max if self.metric.direction == "max" else min
        found = [[s.final for s in t if math.isfinite(s.final)] for t in self._complete(row)]
        return [best(values) for values in found if values]

    def _complete(self, row: str) -> list[list[Score]]:
        wanted: dict[int, int] = {}
        for one in self.planned:
            if one.row == row:
                wanted[one.study] = wanted.get(one.study, 0) + 1
        there = self.scores.get(row, {})
        return [there[s] for s, count in wanted.items() if len(there.get(s, [])) == count]

    @cached_property
    def planned(self) -> list[Trial]:
        return benchmarks.trials(self.benchmark, self.path)


def read_benchmark(path: Path, root: Path) -> BenchmarkResults:
    """Read the runs of a benchmark's file below a root.

    Raises:
        UserError: something in the file is wrong, or its metric is none that the runs have.
    """
    results = BenchmarkResults(root, path=path, benchmark=benchmarks.read(path))
    far = limits(benchmarks.brackets(results.benchmark, path), root)
    seen: dict[Path, Member] = {}
    for trial in results.planned:
        place = trial.run.place
        if place not in seen:
            seen[place] = member(trial.run, results, far[place])
            results.members.append(seen[place])
    set_apart(results.members)
    for trial in results.planned:
        place = trial.run.place
        one = seen[place]
        if one.record is not None and (one.stopped or one.state in ENDS and far[place].is_final):
            row = results.benchmark.rows[trial.row]
            score = _score(trial, one, results.benchmark, row.gradients_per_step, far[place])
            results.scores.setdefault(trial.row, {}).setdefault(trial.study, []).append(score)
    return results


def _score(
    trial: Trial, one: Member, benchmark: Benchmark, per_step: float | None, limit: Limit
) -> Score:
    run, key, target = one.record, benchmark.target.metric, benchmark.target.value
    assert run is not None
    name, optimizer = key.partition("/")[2], trial.run.config.optimizer
    if name not in run.metrics:
        raise UserError(f"target.metric = {key}: the runs have {', '.join(run.metrics)}")
    metric = run.metrics[name]
    rows = [row for row in run.rows if key in row and row["epoch"] <= limit.epochs]
    reached = [row for row in rows if metric.sign * row[key] >= metric.sign * target]
    costs = dict.fromkeys(MEASURES, math.inf)
    if reached:
        costs = costs_until(run, optimizer, reached[0]["epoch"], per_step)
    price = costs_until(run, optimizer, limit.epochs, per_step)[MEASURES[0]]
    came_to_its_end = one.state == "done" and not one.stopped
    if came_to_its_end and not rows:  # not measured, which is not the same as never reached
        raise UserError(f"target.metric = {key}: {run.directory} has it in no epoch")
    final = rows[-1][key] if came_to_its_end else math.nan
    return Score(trial, one, costs, final, price, one.stopped)
