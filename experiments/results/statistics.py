"""The statistics of every report: what a group's runs show, and which group is better.

The unit is the seed: a run is one observation of its group.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.results.published import paper_figures
from experiments.results.tables import Table
from experiments.runs.reading import Run

CONFIDENCE = 0.95


@dataclass
class Row:
    """What a table says about one group.

    Attributes:
        label: of the group.
        last, best: the test metric of the last and of the best epoch, one value per seed.
        step_seconds: the median over the runs; nan where no time was recorded.
        ratio: of the step times to SGD's; None without a single group of SGD.
        hours: of training, over all runs of the group.
        paper: the paper's figure for exactly this run, or nothing.
    """

    label: str
    last: list[float]
    best: list[float]
    step_seconds: float
    ratio: float | None
    hours: float
    paper: str


def summarize(table: Table) -> list[Row]:
    """The table's rows as numbers."""
    seconds = {label: _median_step(runs) for label, runs in table.groups.items()}
    reference = seconds.get("sgd")
    return [
        Row(
            label,
            [run.last() for run in runs],
            [run.best() for run in runs],
            seconds[label],
            seconds[label] / reference if reference else None,
            math.fsum(run.training_seconds() for run in runs) / 3600,
            paper_figures().get((runs[0].meta["dataset"], runs[0].meta["signature"]), ""),
        )
        for label, runs in table.groups.items()
    ]


def _median_step(runs: list[Run]) -> float:
    times = [seconds for run in runs if not math.isnan(seconds := run.step_seconds())]
    return statistics.median(times) if times else math.nan


def std(values: list[float]) -> float:
    """The sample standard deviation; nan for a single value, or where one is not finite."""
    known = len(values) > 1 and all(map(math.isfinite, values))  # stdev raises on nan and inf
    return statistics.stdev(values) if known else math.nan


def mean_and_std(table: Table, values: list[float]) -> str:
    """`mean ± sample standard deviation` as shown, without the latter for a single value."""
    mean = f"{table.scale * statistics.mean(values):.{table.digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {table.scale * std(values):.{table.digits}f}"


@dataclass
class Difference:
    """How far a group lies behind the best one.

    Attributes:
        label: of the group.
        mean: difference of the means, positive where the group is worse.
        interval: simultaneous confidence interval of `mean`, or None where there is no spread to
            make one of: a single seed on either side, or no variance at all.
    """

    label: str
    mean: float
    interval: tuple[float, float] | None

    @property
    def certain(self) -> bool:
        return self.interval is not None and self.interval[0] > 0


def compare(table: Table) -> tuple[str, list[Difference]]:
    """The group with the best mean of the last epoch, and how far the others lie behind it.

    The unit is the seed. Intervals are Welch's, for unequal variances. Which group is best was
    seen from the same data, so that every pair could have been asked about: Bonferroni's
    correction over all pairs makes the intervals hold at once, with the selection. Runs of the
    same seed share initialization and order of the data; they are not paired, because that would
    halve the degrees of freedom, of which there are few. What such runs have in common makes the
    intervals too wide, not too narrow; and the seeds of two groups need not be the same.

    Returns:
        The best group's label, and the others from the nearest to the farthest.
    """
    values = {label: [run.last() for run in runs] for label, runs in table.groups.items()}
    sign = 1 if table.maximize else -1
    best = max(values, key=lambda label: sign * statistics.mean(values[label]))
    repeated = sum(len(group) > 1 for group in values.values())
    level = 1 - (1 - CONFIDENCE) / max(1, math.comb(repeated, 2))
    differences = []
    for label in values.keys() - {best}:
        mine, theirs = ([sign * value for value in values[key]] for key in (best, label))
        mean = statistics.mean(mine) - statistics.mean(theirs)
        differences.append(
            Difference(label, mean, welch(Sample.of(mine), Sample.of(theirs), level))
        )
    return best, sorted(differences, key=lambda difference: (difference.mean, difference.label))


@dataclass(frozen=True)
class Sample:
    """Observations in short: sample standard deviation, nan or None for a single one."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Sample":
        return cls(statistics.mean(values), std(values), len(values))


def welch(mine: Sample, theirs: Sample, level: float = CONFIDENCE) -> tuple[float, float] | None:
    """Welch's confidence interval of the difference of two means, `mine` minus `theirs`.

    Source: B. L. Welch, Biometrika 34 (1947), with the degrees of freedom of Satterthwaite.

    Returns:
        None for a single observation on either side, or without any variance.
    """
    from scipy import stats

    if min(mine.n, theirs.n) < 2 or not mine.std + theirs.std:
        return None
    parts = [sample.std**2 / sample.n for sample in (mine, theirs)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (mine.n - 1) + parts[1] ** 2 / (theirs.n - 1))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(sum(parts))
    difference = mine.mean - theirs.mean
    return difference - half, difference + half


def judgement(interval: tuple[float, float] | None, tolerance: float) -> str:
    """What a difference says, in words.

    Args:
        interval: of the difference, positive where the first is larger.
        tolerance: what counts as no difference: an interval that lies within it says so.
    """
    if interval is None:
        return "no interval"
    low, high = interval
    if -tolerance <= low and high <= tolerance:
        return "within tolerance"
    if low <= 0 <= high:
        return "cannot be told apart"
    return "above" if low > 0 else "below"


def mean_interval(values: list[float]) -> tuple[float, float] | None:
    """Student's confidence interval of a mean; None for a single value or without variance."""
    from scipy import stats

    if len(values) < 2 or not std(values):
        return None
    error = std(values) / math.sqrt(len(values))
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, statistics.mean(values), error)
    return float(low), float(high)


@dataclass
class Curve:
    """A metric over the epochs: mean and sample standard deviation over the runs that have it.

    Over a swept key (`experiments.results.sweeps`) its values stand in for the epochs.
    """

    epochs: list[float]
    means: list[float]
    stds: list[float]  # 0 where a single run has the epoch

    def band(self) -> tuple[list[float], list[float]]:
        """One standard deviation to both sides; a positive mean keeps a positive lower edge.

        A band that reaches zero has no lower edge on a logarithmic axis.
        """
        pairs = list(zip(self.means, self.stds, strict=True))
        low = [max(m - s, m / 10) if m > 0 else m - s for m, s in pairs]
        return low, [m + s for m, s in pairs]


def curve(runs: Iterable[Run], key: str, scale: float = 1) -> Curve:
    """The curve of a key, empty where no run has it. Runs can be of different lengths."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in run.series(key).items():
            values.setdefault(epoch, []).append(scale * value)
    epochs = sorted(values)
    spread = [std(values[epoch]) if len(values[epoch]) > 1 else 0.0 for epoch in epochs]
    return Curve(epochs, [statistics.mean(values[epoch]) for epoch in epochs], spread)
