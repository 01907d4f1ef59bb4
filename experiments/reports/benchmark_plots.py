"""What is drawn of a benchmark, in numbers: performance profiles and tuning curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.plots import benchmarks as plots
from experiments.plots.benchmarks import LinesByRow
from experiments.results.benchmarks import BenchmarkResults
from experiments.results.prices import MEASURES
from experiments.results.ranking import best_of, profile_over

WIDEST = 16.0  # largest factor of a profile


def draw(results: BenchmarkResults, path: Path) -> Path | None:
    """Draw profiles and tuning curves; nothing before the benchmark is complete."""
    if not (found := lines(results)):
        return None
    plots.draw(found, results.title, path)
    return path


def lines(results: BenchmarkResults) -> list[LinesByRow]:
    """The plots; none before the benchmark is complete or where no row reaches the target.

    Where trials are halved, the survivor alone has a score, and n of them say nothing: no tuning
    curve.
    """
    scores = {row: results.studies(row, MEASURES[0]) for row in results.benchmark.rows}
    reached = any(math.isfinite(value) for values in scores.values() for value in values)
    if results.missing or not reached:
        return []
    found = [profiles(scores)]
    if results.benchmark.trials > 1 and not results.benchmark.halving:
        found.append(tuning(results))
    return found


def profiles(*workloads: Mapping[str, Sequence[float]]) -> LinesByRow:
    """The share of studies within each factor of the best row, from 1 to where nothing changes."""
    ratios = sorted(
        value / best
        for scores in workloads
        for column in zip(*scores.values(), strict=True)
        for value in column
        if math.isfinite(value) and (best := min(column)) > 0
    )
    last = min(WIDEST, max(2.0, 1.1 * max(ratios, default=1.0)))
    places = sorted({1.0, *(ratio for ratio in ratios if ratio <= last), last})
    return LinesByRow(
        "performance profile",
        "factor of the best row's gradient equivalents",
        "share of studies",
        "the share of studies in which a row's gradient equivalents to target are within a factor "
        "of the best row's",
        places,
        profile_over(workloads, [place * (1 + 1e-12) for place in places]),
        {},
        steps=True,
        log_x=True,
        limits=(-0.02, 1.02),
    )


def tuning(results: BenchmarkResults) -> LinesByRow:
    """The best score of n trials as n grows; a row that is not tuned has one point."""
    most = max(len(t) for row in results.benchmark.rows for t in results.trials(row))
    counts = range(1, most + 1)
    found, bands = {}, {}
    for row in results.benchmark.rows:
        studies = results.trials(row)
        there = min(map(len, studies))
        quantiles = [
            [best_of(studies, n, share) if n <= there else math.inf for n in counts]
            for share in (0.5, 0.25, 0.75)
        ]
        middle, low, high = ([v if math.isfinite(v) else math.nan for v in q] for q in quantiles)
        found[row] = middle
        bands[row] = low, high
    return LinesByRow(
        "best of n trials", "n", "gradient equivalents to target",
        "the best score of n trials, median over all choices of n trials in all studies, band: "
        "quartiles; no line where fewer than half of the choices reach the target",
        list(counts), found, bands, log_y=True,
    )  # fmt: skip
