"""Performance profiles over several benchmarks, from the tables of trials that their reports wrote.

A profile compares the rows that it is made of: those that stand in all tables. No significance is
given: the rule of `experiments.results.ranking` is one benchmark's.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.plots import benchmarks as plots
from experiments.reports import benchmark_plots, benchmarks
from experiments.reports.sections import Block, Figure, Section, Text
from experiments.results.prices import MEASURES

Scores = Mapping[str, Sequence[float]]  # of each row, one a study


def section(paths: Sequence[Path], picture: Path) -> tuple[Section, Section]:
    """The profiles as they are shown and as they are written; draws the picture.

    Raises:
        UserError: a file is no such table, or they have fewer than two rows in common.
    """
    tables = [read(path) for path in paths]
    rows = [row for row in tables[0] if all(row in table for table in tables)]
    names = [path.stem.removeprefix("benchmark-") for path in paths]
    if len(rows) < 2:
        lists = "; ".join(f"{n}: {', '.join(t)}" for n, t in zip(names, tables, strict=True))
        raise UserError(f"--profiles compares rows that all tables have, two or more: {lists}")
    workloads = [{row: table[row] for row in rows} for table in tables]
    apart = dict.fromkeys(row for table in tables for row in table if row not in rows)
    words = f"Rows that all of {', '.join(names)} have."
    if apart:
        words += f" Left out, as they are not in all: {', '.join(apart)}."
    plot = benchmark_plots.profiles(*workloads)
    title = f"Benchmarks {', '.join(names)}"
    plots.draw([plot], title, picture)
    blocks: list[Block] = [Text(words), benchmarks.profiles(*workloads)]
    figure = Figure(plot.title, picture=picture)
    return Section(title, blocks), Section(title, [*blocks, figure, Text(plot.note, "note")])


def read(path: Path) -> dict[str, list[float]]:
    """The score of each study by row: its best trial's gradients to target.

    Raises:
        UserError: it is no table of a benchmark's trials, or lacks a row's studies.
    """
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                cost = float(line[MEASURES[0]] or math.inf)
                if not cost > 0:
                    raise ValueError(f"{cost} gradients")
                studies = found.setdefault(line["row"], {})
                studies[line["study"]] = min(cost, studies.get(line["study"], math.inf))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: no table of a benchmark's trials, as report/benchmark-NAME.csv is: {error!r}"
        ) from error
    counts = {row: sorted(studies) for row, studies in found.items()}
    first = next(iter(counts.values()), None)
    if first is None:
        raise UserError(f"{path}: a table without trials")
    for row, studies in counts.items():
        if studies != first:
            raise UserError(
                f"{path}: {row} has the studies {', '.join(studies)}, {next(iter(counts))} has "
                f"{', '.join(first)}: the benchmark is not complete"
            )
    return {row: [studies[s] for s in first] for row, studies in found.items()}
