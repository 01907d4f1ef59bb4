"""The scores of a benchmark, from its file and its runs' files alone.

A trial's score is what its training had cost at the end of the first epoch in which the target was
reached; infinite where it never was. A study's score is that of its best trial, so that
tuning is part of what is measured; a row's is the median of its studies. Costs are steps, seconds
of training (`time/epoch_seconds`, which only a quiet machine makes comparable), and gradient
equivalents.

**Gradient equivalents** count evaluations of the gradient of the whole batch, by the configuration:
one a step; and where the curvature is refreshed, every `update_interval` steps, for each sample two
more by double backward, which goes forward and backward through the gradient's graph, or one by
finite differences. From a part f of the batch a refresh costs f times that, and f for the part's
own gradient. An optimizer that cannot be counted this way states `gradients_per_step` in its row.
Checks of the finite difference, one evaluation in some hundred refreshes, are left out.

**Who wins**, the rule: two rows' study scores in gradient equivalents are compared by the exact
two-sided permutation test of their mean ranks; studies that never reach the target share the last
rank. With all pairs of rows at once (Holm's correction), a win is called only at a family-wise
error of 5 %. The test assumes only that the scores of equal rows are exchangeable. With few
studies no win is possible: `studies_needed` says how many it takes.
"""

import inspect
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from adahessian import AdaHessian
from experiments.config.metrics import Metric
from experiments.config.optimizers import Optimizer
from experiments.errors import UserError
from experiments.plans import benchmarks
from experiments.plans.benchmarks import Benchmark, Trial
from experiments.results.sweeps import Member, member
from experiments.results.tables import Results
from experiments.runs.reading import Run

MEASURES = ("gradients", "steps", "seconds")  # the first is what decides who wins
LEVEL = 0.05  # of a wrong win, in the whole matrix
ENDS = ("done", "diverged")  # states from which nothing more is to be expected
RESAMPLES = 2_000  # of a bootstrap
EXACT = 20_000  # splits of the studies, up to which all are taken


@dataclass(frozen=True)
class Score:
    """The score of a trial.

    Attributes:
        trial: what was planned.
        member: its run's files.
        costs: by measure; infinite where the target was not reached before the end.
        final: the target's metric in the last row; nan where the training diverged.
    """

    trial: Trial
    member: Member
    costs: Mapping[str, float]
    final: float


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
        return [one for one in self.members if one.state not in ENDS]

    @property
    def left_out(self) -> str:
        """Nothing: the benchmark's own table counts every run, begun or not."""
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

    def finals(self, row: str) -> list[float]:
        """The best trial's last metric, of each complete study; diverged trials count as none."""
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
    seen: dict[Path, Member] = {}
    for trial in results.planned:
        place = trial.run.place
        if place not in seen:
            seen[place] = member(trial.run, results)
            results.members.append(seen[place])
        one = seen[place]
        if one.record is not None and one.state in ENDS:
            row = results.benchmark.rows[trial.row]
            score = _score(trial, one, results.benchmark, row.gradients_per_step)
            results.scores.setdefault(trial.row, {}).setdefault(trial.study, []).append(score)
    return results


def _score(trial: Trial, one: Member, benchmark: Benchmark, price: float | None) -> Score:
    run, key, target = one.record, benchmark.target.metric, benchmark.target.value
    assert run is not None
    name = key.partition("/")[2]
    if name not in run.metrics:
        raise UserError(f"target.metric = {key}: the runs have {', '.join(run.metrics)}")
    metric = run.metrics[name]
    rows = [row for row in run.rows if key in row]
    reached = [row for row in rows if metric.sign * row[key] >= metric.sign * target]
    costs = dict.fromkeys(MEASURES, math.inf)
    if reached:
        costs = costs_until(run, trial.run.config.optimizer, reached[0], price)
    final = rows[-1][key] if rows and one.state == "done" else math.nan
    return Score(trial, one, costs, final)


def costs_until(
    run: Run, optimizer: Optimizer, row: Mapping[str, float], price: float | None = None
) -> dict[str, float]:
    """What a run had cost at the end of a row's epoch, by measure.

    Args:
        optimizer: its section of the configuration.
        row: of `metrics.jsonl`.
        price: gradients of a mean step; None: counted.
    """
    until = [one for one in run.rows if 0 < one["epoch"] <= row["epoch"] and "step" in one]
    gradients, before = 0.0, 0
    for one in until:
        each = gradients_per_step(optimizer, int(one["epoch"]) - 1) if price is None else price
        gradients += (one["step"] - before) * each
        before = one["step"]
    seconds = [one.get("time/epoch_seconds", math.nan) for one in until]
    return {"gradients": gradients, "steps": float(row["step"]), "seconds": math.fsum(seconds)}


def gradients_per_step(optimizer: Optimizer, epoch: int = 0) -> float:
    """Gradient equivalents of a mean step in an epoch, counted from 0: see the module's text."""
    constructor = optimizer.load_constructor()
    if not issubclass(constructor, AdaHessian):
        return 1.0
    defaults = inspect.signature(constructor).parameters
    given = {**optimizer.arguments(), **optimizer.changed_options(epoch)}
    curvature, fraction, samples, interval = (
        given.get(key, defaults[key].default)
        for key in ("curvature", "curvature_fraction", "num_samples", "update_interval")
    )
    refresh = samples * (2 if curvature == "double_backward" else 1)
    if fraction < 1:
        refresh = fraction * (1 + refresh)
    return 1 + refresh / interval


# ------------------------------------------------------------------------------------- statistics


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of a median; None for one value or an infinite one."""
    from scipy import stats

    if len(values) < 2 or not all(map(math.isfinite, values)) or len(set(values)) == 1:
        return None
    found = stats.bootstrap(
        (list(values),), statistics_median, method="percentile", n_resamples=RESAMPLES, rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def statistics_median(values, axis: int = -1):
    """numpy's, with the argument that `scipy.stats.bootstrap` asks for."""
    import numpy

    return numpy.median(values, axis=axis)


def profile(
    scores: Mapping[str, Sequence[float]], factors: Sequence[float]
) -> dict[str, list[float]]:
    """Performance profiles (Dolan and Moré, 2002) over the studies.

    Args:
        scores: of each row, one a study, the same studies for all.
        factors: τ, each at least 1.

    Returns:
        For each row and τ the share of studies in which its score is within τ of the best row's.
        A study in which no row reaches the target counts for none.
    """
    best = [min(column) for column in zip(*scores.values(), strict=True)]
    return {
        row: [
            statistics.mean(
                math.isfinite(b) and value <= factor * b
                for value, b in zip(values, best, strict=True)
            )
            for factor in factors
        ]
        for row, values in scores.items()
    }


def p_value(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the permutation test of two rows' mean ranks, two-sided; exact for up to eight studies."""
    from scipy import stats

    ranks = stats.rankdata([*mine, *theirs])
    groups = ranks[: len(mine)], ranks[len(mine) :]
    if len(set(ranks)) == 1:
        return 1.0
    result = stats.permutation_test(
        groups,
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        vectorized=True,
        n_resamples=EXACT,
        rng=0,
    )
    return float(result.pvalue)


def wins(
    scores: Mapping[str, Sequence[float]], level: float = LEVEL
) -> dict[tuple[str, str], float]:
    """Which row wins over which, by the rule of the module's text.

    Args:
        scores: of each row, one a study; rows with fewer than two are not compared.

    Returns:
        p, before the correction, by (winner, loser).
    """
    pairs = [
        (a, b)
        for a, b in itertools.combinations(scores, 2)
        if min(len(scores[a]), len(scores[b])) >= 2
    ]
    tested = sorted((p_value(scores[a], scores[b]), (a, b)) for a, b in pairs)
    found = {}
    for place, (p, (a, b)) in enumerate(tested):
        if p > level / (len(tested) - place):
            break
        first = _mean_rank(scores[a], scores[b]) < _mean_rank(scores[b], scores[a])
        found[(a, b) if first else (b, a)] = p
    return found


def _mean_rank(mine: Sequence[float], theirs: Sequence[float]) -> float:
    from scipy import stats

    return float(stats.rankdata([*mine, *theirs])[: len(mine)].mean())


def studies_needed(rows: int, level: float = LEVEL) -> int:
    """The least number of studies with which a pair of so many rows could be told apart."""
    pairs = max(math.comb(rows, 2), 1)
    return next(n for n in itertools.count(2) if 2 / math.comb(2 * n, n) <= level / pairs)
