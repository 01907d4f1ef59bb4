"""A benchmark in words: its scores, who wins by the rule, profiles, and what is missing."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.reports import benchmark_plots
from experiments.reports.sections import Cell, Figure, Grid, Section, Text
from experiments.results.benchmarks import BenchmarkResults
from experiments.results.prices import MEASURES
from experiments.results.ranking import LEVEL, median_interval, profile_over, studies_needed, wins

FACTORS = (1.0, 1.25, 1.5, 2.0, 4.0)


def section(results: BenchmarkResults, picture: Path | None) -> Section:
    """The benchmark, for every renderer.

    Args:
        picture: of its profiles and tuning curves, where there is one.
    """
    blocks: list = [Text(fixed(results)), scores(results)]
    if not results.missing:
        scores_by_row = {row: results.studies(row, MEASURES[0]) for row in results.benchmark.rows}
        blocks += [matrix(results), Text(rule(results), "note"), profiles(scores_by_row)]
    else:
        count = f"{len(results.missing)} of {len(results.members)} trainings are missing, so"
        words = "no winner is named yet. This trains them (CLUSTER=slurm: on a cluster):"
        blocks += [Text(f"{count} {words}"), Text(results.command, "command")]
    if picture:
        plots = benchmark_plots.lines(results)
        titles = " and ".join(plot.title for plot in plots)
        notes = ". ".join(f"{plot.title}: {plot.note}" for plot in plots)
        blocks += [Figure(titles, picture=picture), Text(notes, "note")]
    lines = [
        f"{one.state}: {one.directory.relative_to(results.root)}: {one.problem}"
        for one in results.members
        if one.problem
    ]
    if lines:
        blocks.append(Text("\n".join(lines), "lines"))
    return Section(results.title, blocks)


def fixed(results: BenchmarkResults) -> str:
    """What the file fixes, in a sentence."""
    benchmark, halving = results.benchmark, ""
    if (rule := benchmark.halving) and benchmark.trials > 1:
        halving = (
            f" Of a study's trials one in {rule.factor} goes on after epoch {rule.first}, and "
            f"again after {rule.factor} times as many; those that stop keep what they had reached."
        )
    return (
        f"Target: {benchmark.target.metric} of {benchmark.target.value:g}. Trials of a row in a "
        f"study: {benchmark.trials} points of its space ({benchmark.method}); studies: "
        f"{benchmark.studies}. A study's score is that of its best trial.{halving}"
    )


def scores(results: BenchmarkResults) -> Grid:
    """One row per optimizer: medians over studies."""
    columns = ["optimizer", "reached", *MEASURES, "final", "tuning"]
    rows = []
    for row in results.benchmark.rows:
        values = {measure: results.studies(row, measure) for measure in MEASURES}
        reached = sum(map(math.isfinite, values["steps"]))
        finals = results.finals(row)
        final = ""
        if finals and results.metric:
            final = results.metric.text(statistics.median(finals))
        rows.append(
            [row, f"{reached} of {len(values['steps'])}",
             *(_median(values[measure]) for measure in MEASURES), final,
             _median(results.prices(row), interval=False)]
        )  # fmt: skip
    note = (
        "Medians over studies, in brackets their 95 % bootstrap intervals; ∞: at least half of the "
        "studies never reached the target. Reached: complete studies that did. Gradients, steps, "
        "seconds: until then; gradient equivalents count evaluations of the gradient and hold on "
        f"every machine, seconds are this one's. Final: {results.benchmark.target.metric} of the "
        "last epoch, best trial of a study. Tuning: gradient equivalents of all trials of a study, "
        "reached or not."
    )
    return Grid("Scores", columns, rows, note)


def _median(values: list[float], interval: bool = True) -> Cell:
    if not values:
        return Cell("", math.nan)
    middle = statistics.median(values)
    if not math.isfinite(middle):
        return Cell("∞", math.inf)
    text = _number(middle)
    if interval and (found := median_interval(values)):
        text += f" [{_number(found[0])}, {_number(found[1])}]"
    return Cell(text, middle)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def matrix(results: BenchmarkResults) -> Grid:
    """Who wins over whom, in gradient equivalents."""
    names = list(results.benchmark.rows)
    found = wins({row: results.studies(row, MEASURES[0]) for row in names})
    rows = [
        [f"{place} {row}",
         *("wins" if (row, other) in found else "loses" if (other, row) in found
                else "" if row == other else "–" for other in names)]
        for place, row in enumerate(names, 1)
    ]  # fmt: skip
    columns = ["row", *(str(place) for place in range(1, len(names) + 1))]
    return Grid("Gradient equivalents to target: row against column", columns, rows)


def rule(results: BenchmarkResults) -> str:
    """The rule of the matrix, and whether there are enough studies for it."""
    rows, studies = len(results.benchmark.rows), results.benchmark.studies
    text = (
        "Exact two-sided permutation test of the studies' mean ranks, all pairs at once: "
        f"the chance that any win is called wrongly is at most {LEVEL:.0%}."
    )
    if studies < (needed := studies_needed(rows)):
        count = "1 study" if studies == 1 else f"{studies} studies"
        text += f" {count} of {rows} rows can tell nothing apart: that takes {needed} studies."
    return text


def trials(results: BenchmarkResults) -> str:
    """Every trial that has come to an end, as comma-separated values; no cost: never reached."""
    names = dict.fromkeys(name for trial in results.planned for name in trial.point)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["row", "study", "trial", *names, *MEASURES, "price", "final", "end"])
    for row, studies in results.scores.items():
        for study, of_study in sorted(studies.items()):
            for one in sorted(of_study, key=lambda score: score.trial.number):
                costs = [f"{cost:.12g}" if math.isfinite(cost) else "" for cost in
                         (*(one.costs[measure] for measure in MEASURES), one.price)]  # fmt: skip
                final = f"{one.final:.6g}" if math.isfinite(one.final) else ""
                points = [one.trial.point.get(name, "") for name in names]
                end = "stopped" if one.stopped else one.member.state
                writer.writerow([row, study, one.trial.number, *points, *costs, final, end])
    return table.getvalue()


def profiles(*workloads: Mapping[str, Sequence[float]]) -> Grid:
    """The share of studies within a factor of the best row."""
    shares = profile_over(workloads, FACTORS)
    rows = [[row, *(f"{share:.0%}" for share in of_row)] for row, of_row in shares.items()]
    columns = ["optimizer", *(f"within {factor:g} ×" for factor in FACTORS)]
    note = "Share of studies in which a row is within this factor of the best"
    if len(workloads) > 1:
        note += "; each workload counts the same"
    return Grid("Performance profile, gradient equivalents", columns, rows, note)
