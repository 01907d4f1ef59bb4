"""Which optimizer is best, by how much, and at what cost: in words, figures and curves."""

import math
import statistics
from collections.abc import Iterator

from experiments.reports.page import figures
from experiments.reports.sections import (
    Cell,
    Figure,
    Grid,
    Link,
    Section,
    Strong,
    Text,
    duration,
    number,
)
from experiments.results.cost import NOTE
from experiments.results.published import paper_figures
from experiments.results.statistics import (
    CONFIDENCE,
    Difference,
    Row,
    compare,
    intervals,
    mean_and_std,
    summarize,
)
from experiments.results.tables import ComparisonTable, Results
from experiments.runs.reading import Run

NAMES = {"val": "validation"}  # of splits, where the word is another one
DIFFERS = 0.2  # of a step's mean: its median is then shown as well
NAMED = 4  # groups that a sentence names one by one; it counts the others


def overview(results: Results) -> Iterator[Section]:
    """How many runs there are, and what is best in each table."""
    finished = results.having("done")
    hours = math.fsum(run.training_seconds() for run in results.runs) / 3600
    count = [Strong(len(finished)), f" finished runs, {duration(hours)} of training in all."]
    section = Section("At a glance", [Text(count)])
    if results.under_way:
        section.blocks.append(Text(f"{results.under_way}.", "note"))
    if results.left_out:
        text = [f"{results.left_out}: see ", Link("Runs"), "."]
        section.blocks.append(Text(text, "warning"))
    if len(results.tables) == 1:
        section.blocks += _words(results.tables[0], summarize(results.tables[0]))
    elif results.tables:
        section.blocks.append(_overview_grid(results.tables))
    yield section


def _overview_grid(every: list[ComparisonTable]) -> Grid:
    rows = []
    for table in every:
        best, others = compare(table)
        values = [run.last() for run in table.groups[best]]
        lead = _difference(table, others[0]) if others else ""
        rows.append(
            [
                Cell(table.title, table.title),
                best,
                _measured(table, values),
                others[0].label if others else "",
                Cell(lead, others[0].mean if others else math.nan),
                len(table.runs),
            ]
        )
    columns = ("experiment", "best", "last epoch", "next best", "behind by", "runs")
    caption = f"Best mean of the last epoch; behind by: with simultaneous {CONFIDENCE:.0%} interval"
    return Grid(caption, columns, rows)


def tables(results: Results) -> Iterator[Section]:
    """Each table: the verdict in words, the figures, and curves of the training."""
    for table in results.all_tables:
        rows = summarize(table, paper_figures())
        words = _words(table, rows) if table.groups and len(results.tables) > 1 else []
        doubts = [Text(sentence, "warning") for sentence in table.warnings]
        blocks = [*words, *doubts, _comparison_grid(table, rows), _statistics(table)]
        section = Section(table.title, blocks)
        spread = figures.spread_note(table)
        shown = []
        if any(run.evaluated for run in table.all_runs):
            shown.append(Figure(_title(table), figures.headline(table), spread))
            by_price = figures.headline_by_gradients(table)
            if by_price is not None:
                shown.append(
                    Figure(
                        f"{_title(table)} at equal price",
                        by_price,
                        "Evaluations of the whole batch's gradient, which hold on every machine; "
                        "what they do not count is in docs/benchmark.md.",
                    )
                )
        if any(run.series("train/loss") for run in table.all_runs):
            plot = figures.curves(table, "train/loss", "training loss (epoch mean)", log=True)
            shown.append(Figure("Training loss", plot, spread))
        if any(run.series("time/epoch_seconds") for run in table.all_runs):
            shown.append(
                Figure(
                    f"{_title(table)} for the time spent",
                    figures.headline_by_time(table),
                    "Times compare only where runs had the same machine to themselves.",
                )
            )
        if table.groups:
            shown.append(
                Figure(
                    f"Last epoch by seed: {table.result_title}",
                    figures.seeds(table),
                    f"Dots: seeds. Diamond: their mean, with its own {CONFIDENCE:.0%} interval.",
                )
            )
        for one in shown:
            one.plot.update_layout(showlegend=False)  # the table above is their legend
        section.blocks += [*shown, *_samples(table)]
        yield section


def _samples(table: ComparisonTable) -> list[Grid]:
    """What the best run makes of some examples, beside what it was to make of them."""
    if not table.groups:
        return []
    best, _ = compare(table)
    direction = table.metric.sign
    run = max(table.groups[best], key=lambda run: direction * run.last())
    found = run.samples()
    if not found:
        return []
    result = f"{table.metric.text(run.last())} {table.metric.unit}".strip()
    note = f"{best}, seed {run.meta['seed']}: {table.result_name} {result} at the end."
    columns = list(found[0])
    rows = [[sample.get(column, "") for column in columns] for sample in found]
    return [Grid("Samples of the best run", columns, rows, note)]


def _words(table: ComparisonTable, rows: list[Row]) -> list[Text]:
    """The verdict and the cost as sentences."""
    blocks = [Text(verdict(table), "verdict")]
    if len(rows) > 1:
        unit = f" in {found}" if (found := table.metric.difference_unit) else ""
        text = f"In brackets: the lead{unit}, and its simultaneous {CONFIDENCE:.0%} interval."
        blocks.append(Text(text, "note"))
    ratios = [row for row in rows if row.ratio is not None and row.label != table.reference]
    if ratios:
        named = [f"{row.label} {row.ratio:.2f}" for row in ratios[:NAMED]]
        blocks.append(Text(f"A step costs, in steps of {table.reference}: {_list(named)}."))
    return blocks


def verdict(table: ComparisonTable) -> list[str]:
    """Which group is best, and against which others that is certain."""
    best, others = compare(table)
    measured = _measured(table, [run.last() for run in table.groups[best]])
    words = "has the best mean last-epoch" if others else "is alone here; its last-epoch"
    n = len(table.groups[best])
    certain = [other for other in others if other.certain]
    unclear = [other for other in others if other.interval and not other.certain]
    single = [other for other in others if other.interval is None]
    sentences = [f"{words} {table.result_name}: {measured} (n = {n})."] + [
        f"{lead} {_named(table, chosen)}."
        for chosen, lead in (
            (certain, "It is ahead of"),
            (unclear, "It cannot be told apart from"),
            (single, "One seed, or no spread, is too little to judge its lead over"),
        )
        if chosen
    ]
    return [Strong(best), f" {' '.join(sentences)}"]


def _named(table: ComparisonTable, differences: list[Difference]) -> str:
    named = [f"{other.label} (by {_difference(table, other)})" for other in differences[:NAMED]]
    rest = len(differences) - NAMED
    return _list([*named, *([f"{rest} more"] if rest > 0 else [])])


def _difference(table: ComparisonTable, other: Difference) -> str:
    text = table.metric.text(other.mean)
    if other.interval is not None:
        text += ", {} to {}".format(*map(table.metric.text, other.interval))
    return text.replace("-", "−")


def _measured(table: ComparisonTable, values: list[float]) -> str:
    return f"{mean_and_std(table.metric, values)} {table.metric.unit}".strip()


def _title(table: ComparisonTable) -> str:
    """The result as a heading: `Test loss`."""
    return table.result_name[0].upper() + table.result_name[1:]


def _list(items: list[str]) -> str:
    """Items as a sentence lists them."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def _comparison_grid(table: ComparisonTable, rows: list[Row]) -> Grid:
    others = compare(table)[1] if table.groups else []
    behind = {other.label: other for other in others}
    lines: list[list] = []
    for row in rows:
        other = behind.get(row.label)
        # Where few steps cost much more than the others, the median does not see them.
        blind = row.median_seconds < (1 - DIFFERS) * row.step_seconds
        median = row.median_seconds if blind else math.nan
        lines.append(
            [
                row.label,
                len(row.last),
                Cell(_measured(table, row.last), statistics.mean(row.last)),
                Cell(_difference(table, other) if other else "best", other.mean if other else 0.0),
                Cell(_measured(table, row.best), statistics.mean(row.best)),
                Cell(number(1000 * row.step_seconds, 1), row.step_seconds),
                Cell(number(1000 * median, 1), median),
                Cell(number(row.ratio, 2), row.ratio or math.nan),
                Cell(duration(row.hours), row.hours),
                Cell(row.paper, float(row.paper.split()[0]) if row.paper else math.nan),
            ]
        )
    lines += [_row_under_way(table, name, run) for _, name, run, _ in figures.runs_under_way(table)]
    unit = ", ".join(["behind the best by", *table.metric.difference_unit.split()[-1:]])
    columns = [
        "optimizer", "n", "last epoch", unit, "best epoch", "step, ms", "median",
        f"× {table.reference}", "training, all seeds", "paper",
    ]  # fmt: skip
    caption = f"{_title(table)}: mean ± sample standard deviation over n seeds"
    return Grid(caption, columns, lines, marks=figures.style_of_rows(table))


def _row_under_way(table: ComparisonTable, name: str, run: Run) -> list:
    """As far as it has come; nothing of it is compared."""
    nothing = Cell("", math.nan)
    values = [run.last()] if run.evaluated else []
    best = [run.best()] if run.evaluated else []
    seconds = run.training_seconds()
    return [
        name,
        nothing,
        Cell(_measured(table, values), values[0]) if values else nothing,
        Cell(f"epoch {run.epoch()} of {run.config.get('epochs', '?')}", math.nan),
        Cell(_measured(table, best), best[0]) if best else nothing,
        *[nothing] * 3,
        Cell(duration(seconds / 3600), seconds),
        nothing,
    ]


def _statistics(table: ComparisonTable) -> Text:
    """What the intervals are, and what flatters the best epoch."""
    repeated = sum(len(runs) > 1 for runs in table.groups.values())
    example = table.all_runs[0]
    chosen, judged = example.config["best_epoch_split"], example.result_split
    text = (
        f"The best epoch is chosen on the {judged} set itself, which flatters every row; the "
        "comparison uses the last epoch, which is fixed beforehand."
        if chosen == judged
        else f"The best epoch is chosen on the {NAMES.get(chosen, chosen)} set; the comparison "
        "uses the last epoch."
    )
    if repeated > 1:
        text += (
            f" Differences have {CONFIDENCE:.0%} intervals ({intervals(repeated)}), the seed as "
            "unit. Runs of equal seed share initialization and data order but are not paired, "
            "which would halve the degrees of freedom: what they have in common makes the "
            "intervals too wide, not too narrow."
        )
    if table.baselines:
        text += f" {table.baselines}"
    if any(run.series("time/epoch_seconds") for run in table.runs):
        text += f" {NOTE}"
    return Text(text, "note")
