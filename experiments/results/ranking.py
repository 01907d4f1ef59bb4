"""What the studies of a benchmark say: intervals, profiles, who wins, and how easily one tunes.

**Who wins**, the rule: two rows' study scores in gradient equivalents are compared by the exact
two-sided permutation test of their mean ranks; studies that never reach the target share the last
rank. With all pairs of rows at once (Holm's correction), a win is called only at a family-wise
error of 5 %. The test assumes only that the scores of equal rows are exchangeable. With few
studies no win is possible: `studies_needed` says how many it takes.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

LEVEL = 0.05  # of a wrong win, in the whole matrix
RESAMPLES = 2_000  # of a bootstrap


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


def profile_over(
    workloads: Sequence[Mapping[str, Sequence[float]]], factors: Sequence[float]
) -> dict[str, list[float]]:
    """The mean of several workloads' profiles: each counts the same, however many studies it has.

    Args:
        workloads: the scores of the same rows in each.
    """
    found = [profile(scores, factors) for scores in workloads]
    return {
        row: [statistics.mean(shares) for shares in zip(*(one[row] for one in found), strict=True)]
        for row in workloads[0]
    }


def p_value(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the permutation test of two rows' mean ranks, two-sided and exact."""
    from scipy import stats

    ranks = [round(2 * rank) for rank in stats.rankdata([*mine, *theirs])]  # of ties: halves
    # In how many ways so many of the ranks have which sum: those of half a million splits, or of
    # any number, without going through them.
    ways: list[Counter[int]] = [Counter({0: 1}), *(Counter() for _ in mine)]
    for rank in ranks:
        for fewer, more in reversed(list(itertools.pairwise(ways))):
            for total, count in fewer.items():
                more[total + rank] += count
    observed = sum(ranks[: len(mine)])
    below, above = (
        sum(count for total, count in ways[-1].items() if side * total <= side * observed)
        for side in (1, -1)
    )
    return min(1.0, 2 * min(below, above) / math.comb(len(ranks), len(mine)))


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


def best_of(studies: Sequence[Sequence[float]], trials: int, share: float = 0.5) -> float:
    """A quantile of the best score of so many trials, over all choices of them in all studies.

    Exact: a study's k-th smallest score of N is the smallest of n chosen in C(N - k, n - 1) of the
    C(N, n) choices. Studies weigh the same.

    Args:
        studies: the scores of each one's trials, infinite where the target was not reached.
        trials: n, at most as many as each study has.
        share: of the choices whose best is not above the result; 0.5: the median.

    Returns:
        Infinite where fewer choices hold a trial that has reached the target.
    """
    weights: dict[float, float] = {}
    for scores in studies:
        for k, score in enumerate(sorted(scores), 1):
            weight = math.comb(len(scores) - k, trials - 1) / math.comb(len(scores), trials)
            weights[score] = weights.get(score, 0.0) + weight / len(studies)
    covered = 0.0
    for score in sorted(weights):
        covered += weights[score]
        if covered >= share - 1e-12:
            return score
    raise AssertionError("the weights add up to 1")
