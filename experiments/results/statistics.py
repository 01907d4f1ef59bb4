"""The statistics of every report: what a group's runs measured, and which group is better.

The unit is the seed: a run is one observation of its group.
"""

import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from experiments.config.metrics import Metric
from experiments.plots.curves import Curve
from experiments.results.cost import hours, step_time
from experiments.results.tables import ComparisonTable
from experiments.runs.reading import Run

CONFIDENCE = 0.95
FEW = 4  # evaluations, of which a plot shows all


@dataclass
class Row:
    """One group of a table in numbers.

    Attributes:
        label: of the group.
        last, best: the result of the last and of the best epoch, one value per seed.
        step_seconds: see `experiments.results.cost`; nan where it is not known.
        median_seconds: the median of all optimizer steps, without loading and rare costly steps.
        ratio: of the step times to those of the table's reference; None without a reference, or
            where it is not known.
        hours: of training, over all runs of the group.
        paper: the published figure for exactly this run, or nothing.
    """

    label: str
    last: list[float]
    best: list[float]
    step_seconds: float
    median_seconds: float
    ratio: float | None
    hours: float
    paper: str


def summarize(
    table: ComparisonTable, published: Mapping[tuple[str, str], str] | None = None
) -> list[Row]:
    """The table's rows as numbers.

    Args:
        published: figures by data set and signature of the run that they are of.
    """
    steps = {label: step_time(runs) for label, runs in table.groups.items()}
    unit = steps.get(table.reference) if table.reference else None
    return [
        Row(
            label,
            [run.last() for run in runs],
            [run.best() for run in runs],
            steps[label].seconds,
            statistics.median(run.step_seconds() for run in runs),
            None if unit is None or math.isnan(ratio := steps[label].ratio_to(unit)) else ratio,
            hours(runs),
            (published or {}).get((runs[0].meta["dataset"], runs[0].meta["signature"]), ""),
        )
        for label, runs in table.groups.items()
    ]


def std(values: Sequence[float]) -> float:
    """The sample standard deviation; nan for a single value, or where one is not finite."""
    known = len(values) > 1 and all(map(math.isfinite, values))  # stdev raises on nan and inf
    return statistics.stdev(values) if known else math.nan


def mean_and_std(metric: Metric, values: Sequence[float]) -> str:
    """`mean ± sample standard deviation` as shown, without the latter for a single value.

    Args:
        values: as recorded.
    """
    mean = metric.text(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {metric.text(std(values))}"


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


def compare(table: ComparisonTable) -> tuple[str, list[Difference]]:
    """The group with the best mean of the last epoch, and how far the others lie behind it.

    Returns:
        The best group's label, and the others from the nearest to the farthest, with intervals of
        the whole table as their `Family`.
    """
    sign = table.metric.sign
    values = {label: [sign * run.last() for run in runs] for label, runs in table.groups.items()}
    best = max(values, key=lambda label: statistics.mean(values[label]))
    family = Family(values)
    differences = [
        Difference(label, *family.difference(best, label)) for label in values.keys() - {best}
    ]
    return best, sorted(differences, key=lambda difference: (difference.mean, difference.label))


class Family:
    """Groups of which every two may be compared; the intervals of all differences hold at once.

    Whoever looks for the best group, or for the largest difference, has looked at all pairs. The
    intervals are those of P. A. Games and J. F. Howell, Journal of Educational Statistics 1 (1976):
    Welch's standard error and degrees of freedom for each pair, so variances may differ, with
    Tukey's studentized range of as many means as there are groups in place of Student's t. For two
    groups that is Welch's interval. The unit is the seed. Runs of the same seed share
    initialization and order of the data; they are not paired, because that would halve the
    degrees of freedom, of which there are few, and the seeds of two groups need not be the same.
    What such runs have in common makes the intervals too wide, not too narrow.

    Args:
        values: of each group, one per seed. Groups of one seed have no interval, and count for
            none.
    """

    def __init__(self, values: Mapping[str, Sequence[float]]) -> None:
        self._samples = {label: Sample.of(list(group)) for label, group in values.items()}
        self.size = sum(sample.n > 1 for sample in self._samples.values())

    def difference(self, mine: str, theirs: str) -> tuple[float, tuple[float, float] | None]:
        """The first group's mean minus the second's, and its interval.

        The interval is None for a single seed on either side, without any variance, or where a
        value is not finite.
        """
        one, other = self._samples[mine], self._samples[theirs]
        return one.mean - other.mean, _interval(one, other, CONFIDENCE, self.size)


@dataclass(frozen=True)
class Sample:
    """Observations in short: sample standard deviation, nan for a single one."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Sample":
        return cls(statistics.mean(values), std(values), len(values))


def welch(mine: Sample, theirs: Sample, level: float = CONFIDENCE) -> tuple[float, float] | None:
    """Welch's confidence interval of the difference of two means, `mine` minus `theirs`.

    Source: B. L. Welch, Biometrika 34 (1947), with the degrees of freedom of Satterthwaite.

    Returns:
        None for a single observation on either side, without any variance, or where a value is not
        finite.
    """
    return _interval(mine, theirs, level, 2)


def _interval(
    mine: Sample, theirs: Sample, level: float, groups: int
) -> tuple[float, float] | None:
    """The interval of two of so many groups that are compared at once."""
    if min(mine.n, theirs.n) < 2 or not 0 < mine.std + theirs.std < math.inf:
        return None
    # As shares of the variance: squares of a diverging perplexity are no numbers any more.
    errors = [sample.std / math.sqrt(sample.n) for sample in (mine, theirs)]
    error = math.hypot(*errors)
    shares = [(one / error) ** 2 for one in errors]
    freedom = 1 / sum(s**2 / (one.n - 1) for s, one in zip(shares, (mine, theirs), strict=True))
    half = _quantile(level, groups, freedom) * error
    difference = mine.mean - theirs.mean
    return difference - half, difference + half


@cache
def _quantile(level: float, groups: int, freedom: float) -> float:
    """How many standard errors the largest of all differences stays within."""
    from scipy import optimize, stats

    def student(alpha: float) -> float:
        return float(stats.t.ppf(1 - alpha / 2, freedom))

    alpha = 1 - level
    if groups == 2 or math.isnan(freedom):
        return student(alpha)

    # Between that of one pair alone and Bonferroni's correction for all pairs.
    def excess(quantile: float) -> float:
        return studentized_range(quantile * math.sqrt(2), groups, freedom) - alpha

    single, bonferroni = student(alpha), student(alpha / math.comb(groups, 2))
    return float(optimize.root_scalar(excess, bracket=(single, bonferroni), xtol=1e-4).root)


def studentized_range(q: float, groups: int, freedom: float) -> float:
    """The probability that the range of so many means exceeds q of their standard errors.

    As `scipy.stats.studentized_range.sf` in a tenth of its time, of which a sweep has hundreds: by
    Gauss and Legendre's rule over the standard deviation s and over the largest of the means.
    """
    import numpy
    from scipy import special

    def rule(low: float, high: float, nodes: int) -> tuple[Any, Any]:
        places, weights = _nodes(nodes)
        return low + (high - low) * (1 + places) / 2, weights * (high - low) / 2

    ends = numpy.sqrt(2 * special.gammaincinv(freedom / 2, [1e-14, 1 - 1e-14]) / freedom)
    # Above 17 / q no range is larger; the fourth root of s is smooth at 0 whatever the freedom.
    root, weights = rule(ends[0] ** 0.25, min(ends[1], 17 / q) ** 0.25, nodes=64)
    s, half = root**4, freedom / 2
    density = math.log(2) + half * math.log(half) - math.lgamma(half)
    density = numpy.exp(density + (freedom - 1) * numpy.log(s) - half * s**2)
    z, of_z = rule(-8.5, 8.5, nodes=96)
    others = (special.ndtr(z) - special.ndtr(z - q * s[:, None])) ** (groups - 1)
    within = groups * (others @ (of_z * numpy.exp(-(z**2) / 2))) / math.sqrt(2 * math.pi)
    return float((weights * 4 * root**3 * density) @ (1 - within))


@cache
def _nodes(number: int) -> tuple[Any, Any]:
    from scipy import special

    return special.roots_legendre(number)


def intervals(groups: int) -> str:
    """What the intervals of a `Family` of so many groups with several seeds are, in words."""
    if groups < 3:
        return "Welch's"
    return f"Games and Howell's: all {math.comb(groups, 2)} pairs of {groups} groups at once"


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


def curve(runs: Iterable[Run], key: str, scale: float = 1) -> Curve:
    """The curve of a key over the epochs, empty where no run has it.

    Mean and sample standard deviation are over the runs that have an epoch: runs can be of
    different lengths.
    """
    values: dict[float, list[float]] = {}
    for run in runs:
        for epoch, value in run.series(key).items():
            values.setdefault(epoch, []).append(scale * value)
    return curve_through(values)


def curve_through(values: Mapping[float, Sequence[float]]) -> Curve:
    """Mean and sample standard deviation of the values at each place; 0 for a single value."""
    places = sorted(values)
    spread = [std(values[place]) if len(values[place]) > 1 else 0.0 for place in places]
    return Curve(places, [statistics.mean(values[place]) for place in places], spread)


def late_limits(metric: Metric, runs: Iterable[Run]) -> tuple[float, float]:
    """Limits of an axis around the second half of the trainings, where groups differ little.

    The start may leave the plot. On the side that is better there is less margin: the last epochs
    are near the best values.
    """
    late = [
        metric.scale * row[run.test_key]
        for run in runs
        for row in run.evaluated[len(run.evaluated) // 2 if len(run.evaluated) > FEW else 0 :]
        if math.isfinite(row[run.test_key])
    ]
    if not late:
        return 0.0, 1.0
    if metric.log and min(late) > 0:
        low, high = map(math.log, (min(late), max(late)))
        margin = high - low or 0.05
        highest = math.log(sys.float_info.max)
        return math.exp(low - 0.03 * margin), math.exp(min(high + 0.15 * margin, highest))
    low, high = min(late), max(late)
    margin = high - low or 0.05 * abs(low) or 1.0
    worse, better = 0.15 * margin, 0.03 * margin
    below, above = (worse, better) if metric.direction == "max" else (better, worse)
    return low - below, high + above
