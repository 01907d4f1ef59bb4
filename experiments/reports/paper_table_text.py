"""A table of the paper in words: means, differences with intervals, verdicts, costs, provenance.

The unit is the seed. The last epoch is judged: the best one may be chosen on the test set.
Everything that is shown, in whatever format, is made here as sections.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from experiments.config.metrics import Metric
from experiments.plans.paper_tables import FOLDER, Line, PaperTable, PaperValue, Request
from experiments.reports.sections import Figure, Grid, Section, Text
from experiments.results.cost import NOTE, hours, step_time
from experiments.results.paper_tables import COMMITTED, CellResult, TableResults, ratio, sessions
from experiments.results.statistics import CONFIDENCE, Family, Sample, intervals, judgement, welch


def section(results: TableResults, picture: Path | None) -> Section:
    """Everything that belongs to a table, with its picture where there is one."""
    made = Section(results.request.title)
    if results.request.table.note:
        made.blocks.append(Text(results.request.table.note))
    made.blocks += beforehand(results)
    made.blocks += [Text(command, "command") for command in commands(results)]
    if picture:
        made.blocks.append(Figure(results.request.title, picture=picture))
    made.blocks += ours(results)
    if source := provenance(results):
        made.blocks.append(Text(source, "note"))
    return made


def published_section(results: TableResults, picture: Path | None, paper: bool) -> Section:
    """What belongs into a document: not which runs there are, and not how to get others.

    Args:
        picture: of the table, where there is one.
        paper: whether the paper's figures are in it.
    """
    table = results.request.table
    made = Section(results.request.title)
    if table.note:
        made.blocks.append(Text(table.note))
    if paper and any(line.paper for line in table.lines):
        made.blocks.append(papers_figures(results.request))
    made.blocks += ours(results)
    if picture:
        made.blocks.append(Figure(results.request.title, picture=picture))
    if source := provenance(results):
        made.blocks.append(Text(source, "note"))
    return made


def measured(metric: Metric, values: list[float]) -> str:
    """Mean and sample standard deviation, without the latter for a single value."""
    mean = f"{statistics.mean(values):.{metric.digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{metric.digits}f}"


def shown(metric: Metric, one: CellResult, values: list[float]) -> str:
    """Mean and spread; what diverged is in words, never in the mean."""
    parts = [measured(metric, values) if values else "", one.divergence]
    return "; ".join(part for part in parts if part)


def _two(value: float | None) -> str:
    """Two decimals, nothing where there is no number."""
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def signed(metric: Metric, difference: float, interval: tuple[float, float] | None) -> str:
    """A difference with its interval."""
    text = f"{_rounded(difference, metric.digits):+.{metric.digits}f}".replace("-", "−")
    return text if interval is None else f"{text} ({span(metric, interval)})"


def span(metric: Metric, interval: tuple[float, float]) -> str:
    """An interval of differences."""
    low, high = (_rounded(bound, metric.digits) for bound in interval)
    return f"{low:.{metric.digits}f} to {high:.{metric.digits}f}".replace("-", "−")


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # no negative zero


def provenance(results: TableResults) -> str:
    """Where the figures come from: commits, machines, versions, dates."""
    if not results.finished:
        return ""
    found = sessions(results.finished)
    committed = sum(one.state == COMMITTED for one in results.members)
    commits = sorted({str(s.get("commit") or "unknown")[:10] for s in found})
    dirty = sum(any(s.get("dirty") for s in run.meta["sessions"]) for run in results.finished)
    machines = sorted({_machine(session) for session in found})
    dates = sorted(str(s["started"])[:10] for s in found if s.get("started"))
    parts = [
        f"{len(results.finished)} runs" + (f", {committed} of them {COMMITTED}" * bool(committed)),
        f"commit {', '.join(commits)}" + (f" ({dirty} with changed files)" * bool(dirty)),
        ", ".join(machines),
        f"torch {', '.join(sorted({str(s.get('torch')) for s in found}))}",
        " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "",
    ]
    return f"Source: {'; '.join(part for part in parts if part)}."


def _machine(session: dict) -> str:
    """The kind of device, and the number of threads of a CPU."""
    device, threads = str(session.get("device")), session.get("threads")
    if device != "cpu" or threads is None:
        return device
    return f"cpu ({threads} thread{'s' * (threads != 1)})"


def advice(results: TableResults) -> str:
    """What is missing, in sentences; `commands` train it."""
    request, total = results.request, len(results.members)
    words = [
        f"{block}: {config} is not there, so this column has no runs."
        for block, config in request.absent.items()
    ]
    words += [
        f"{one.directory.relative_to(results.request.root)} is left out, as {one.problem}."
        for one in results.members
        if one.state == "other problem"
    ]
    if running := sum(one.state == "running" for one in results.members):
        words.append(f"{running} of {total} runs are being trained.")
    if missing := len(results.missing):
        words.append(
            f"{missing} of {total} runs are missing. These commands train them and no others: "
            "local, in the background of this machine; slurm, on a cluster."
        )
    elif results.members:
        words.append("No other run is missing." if running else "No run is missing.")
    return " ".join(words)


def commands(results: TableResults) -> list[str]:
    """What trains the missing runs, here or on a cluster; nothing where none are."""
    if not results.missing:
        return []
    return [command(results.request, profile) for profile in ("local", "slurm")]


def command(request: Request, profile: str) -> str:
    """What sends the missing runs."""
    if request.path.parent == FOLDER:
        return f"make {request.name} DATASET={request.dataset} CLUSTER={profile}"
    words = f"{request.path} dataset={request.dataset} --profile {profile}"
    return f".venv/bin/python -m slurm.submit {words}"


# ---------------------------------------------------------------------------------- the tables


def beforehand(results: TableResults) -> list[Grid]:
    """What can be said before any run: the paper's figures, and which runs there are."""
    shown = (
        [papers_figures(results.request)]
        if any(x.paper for x in results.request.table.lines)
        else []
    )
    return [*shown, existing(results)]


def ours(results: TableResults) -> list[Grid]:
    """Our results, block by block."""
    return [
        table
        for block, found in results.blocks.items()
        if any(one.finished or one.diverged for one in found)
        for table in _block(results, block, found)
    ]


def _block(results: TableResults, block: str, found: list[CellResult]) -> Iterator[Grid]:
    yield measurements(results, block, found)
    if results.request.comparable:
        yield against_paper(results, block, found)
    yield from comparisons(results, block, found)
    yield costs(results, block, found)


def papers_figures(request: Request) -> Grid:
    """The paper's figures, costs among them."""
    table = request.table
    blocks = list(dict.fromkeys(name for line in table.lines for name in line.paper))
    priced = list(dict.fromkeys(name for line in table.lines for name in line.paper_cost))
    lines = [line for line in table.lines if line.paper]
    texts = {name: lambda line, b=name: str(line.paper.get(b, "")) for name in blocks}
    for name in priced:
        heading = f"× {table.unit_of_cost}, {name}"
        texts[heading] = lambda line, b=name: _two(line.paper_cost.get(b))
    columns, rows = _matrix(table, lines, texts)
    note = f"{table.source}: {table.paper_metric}, mean ± std."
    if not request.comparable:
        what = "Other data" if table.paper_dataset else "Another task and metric"
        note += f" {what} than below: nothing there may be compared with it."
    return Grid("The paper's figures", columns, rows, note)


def existing(results: TableResults) -> Grid:
    """How many runs of each line have a result."""
    request = results.request
    states = {(one.cell.block, one.label): one.states for one in results.found}

    def text(line: Line, block: str) -> str:
        return states.get((block, request.table.label(line)), "no config")

    texts = {b: partial(text, block=b) for b in (*results.blocks, *request.absent)}
    columns, rows = _matrix(request.table, request.table.lines, texts)
    return Grid("What there is: runs with a result", columns, rows, advice(results))


def _matrix(
    table: PaperTable, lines: list[Line], texts: dict[str, Callable[[Line], str]]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: lines by `texts`, or, for one text of several series, `x` by series."""
    series = list(dict.fromkeys(line.series for line in lines))
    if len(texts) > 1 or len(series) == 1 or any(line.x is None for line in lines):
        rows = [[table.label(line), *(text(line) for text in texts.values())] for line in lines]
        return ["optimizer", *texts], rows
    (text,) = texts.values()
    found = {(line.x, line.series): text(line) for line in lines}
    values = dict.fromkeys(line.x for line in lines)
    return [table.x, *series], [[str(x), *(found.get((x, s), "") for s in series)] for x in values]


def measurements(results: TableResults, block: str, found: list[CellResult]) -> Grid:
    """Last and best epoch side by side, and the paper's figures where they may stand there."""
    comparable = results.request.comparable
    columns = ["optimizer", "n", "last epoch", "best epoch", *(["paper"] if comparable else [])]
    rows = []
    for one in found:
        n, needed = len(one.finished), len(one.members)
        row = [one.label, str(n) if n + one.diverged == needed else f"{n} of {needed}"]
        row += [
            shown(results.metric, one, one.last),
            measured(results.metric, one.best) if one.finished else "",
        ]
        if comparable:
            value = one.cell.line.paper.get(block)
            row.append("" if value is None else str(value))
        rows.append(row)
    metric = results.metric
    unit = f" in {metric.unit}" if metric.unit else ""
    note = f"{results.split.capitalize()} {metric.name}{unit}: mean ± sample std over n seeds."
    if any(
        run.config["best_epoch_split"] == results.split for one in found for run in one.finished
    ):
        note += f" The best epoch is chosen on the {results.split} set, which flatters it; "
        note += "the last is judged."
    if any(one.diverged for one in found):
        note += " Diverged: the loss became infinite or no number; such a run is in no mean."
    return Grid(f"{block}: {metric.name}, {_where(results)}", columns, rows, note)


def against_paper(results: TableResults, block: str, found: list[CellResult]) -> Grid:
    """Ours minus the paper's, for the last and the best epoch."""
    tolerance, rows = results.request.table.tolerance, []
    for one in found:
        value = one.cell.line.paper.get(block)
        if not isinstance(value, PaperValue) or not one.finished:
            continue
        theirs = Sample(value.mean, value.std or math.nan, value.n)
        for epoch, values in (("last", one.last), ("best", one.best)):
            mine = Sample.of(values)
            interval = welch(mine, theirs)
            difference = signed(results.metric, mine.mean - theirs.mean, interval)
            verdict = _judged(results, interval, mine.n, theirs.n)
            rows.append([one.label, epoch, difference, verdict])
    note = (
        f"{_differences(results)} with Welch's {CONFIDENCE:.0%} interval, from the paper's mean, "
        f"std and n. Tolerance: {_amount(results, tolerance)}; within it: the whole interval is."
    )
    title = f"{block}: ours minus the paper's"
    return Grid(title, ["optimizer", "epoch", "difference", "verdict"], rows, note)


def _judged(
    results: TableResults, interval: tuple[float, float] | None, mine: int, theirs: int
) -> str:
    """The verdict of an interval; of so many runs on either side."""
    verdict = judgement(interval, results.request.table.tolerance)
    if interval is None:
        why = "no spread" if min(mine, theirs) > 1 else f"n = {mine} and {theirs}"
        verdict = f"{why}: {verdict}"
    return verdict


def comparisons(results: TableResults, block: str, found: list[CellResult]) -> Iterator[Grid]:
    """The subject minus the others, and every series compared with its own base."""
    table, tolerance = results.request.table, results.request.table.tolerance
    bases = {o.cell.line.series: o for o in found if o.cell.line.x == table.base}
    family = Family({one.label: one.last for one in found if one.finished and not one.diverged})
    against_others, against_base = [], []
    for one in found:
        series, x = one.cell.line.series, one.cell.line.x
        for other in found if series == table.subject else []:
            if other.cell.line.series != series and other.cell.line.x in (x, None):
                if difference := _difference(results, family, one, other):
                    against_others.append([one.label, other.label, *difference])
        if table.base is not None and series in bases and x != table.base:
            if difference := _difference(results, family, one, bases[series]):
                against_base.append([one.label, *difference])
    note = (
        f"Last epoch, {_differences(results).lower()} with Welch's {CONFIDENCE:.0%} interval, and "
        f"the interval that holds for all of the table at once ({intervals(family.size)}), which "
        f"the verdict is of. Within tolerance: within {_amount(results, tolerance)}."
    )
    if against_others:
        columns = ["optimizer", "minus", "difference", "all at once", "verdict"]
        yield Grid(f"{block}: {table.subject} minus the others", columns, against_others, note)
    if against_base:
        title = f"{block}: compared with the same at {table.x} = {table.base}"
        yield Grid(title, ["optimizer", "difference", "all at once", "verdict"], against_base, note)


def _difference(
    results: TableResults, family: Family, one: CellResult, other: CellResult
) -> tuple[str, str, str] | None:
    """One minus the other, the interval of all at once, and the verdict.

    Nothing where either has no result.
    """
    lost = [each.label for each in (one, other) if each.diverged]
    if lost:
        return "", "", "both diverge" if len(lost) == 2 else f"{lost[0]} diverges"
    if not one.finished or not other.finished:
        return None
    own = welch(Sample.of(one.last), Sample.of(other.last))
    difference, interval = family.difference(one.label, other.label)
    return (
        signed(results.metric, difference, own),
        "" if interval is None else span(results.metric, interval),
        _judged(results, interval, len(one.finished), len(other.finished)),
    )


def costs(results: TableResults, block: str, found: list[CellResult]) -> Grid:
    """Device-hours, steps per second and cost in steps of the reference."""
    table = results.request.table
    theory = any(one.cell.line.theory for one in found)
    priced = results.request.comparable and any(one.cell.line.paper_cost for one in found)
    columns = ["optimizer", "device-hours", "steps/s", f"× {table.unit_of_cost}"]
    columns += ["theory"] * theory + ["paper, measured"] * priced
    rows = []
    for one in found:
        if not one.finished:
            continue
        seconds, line = step_time(one.finished).seconds, one.cell.line
        rate = f"{1 / seconds:#.3g}".rstrip(".").replace("nan", "")
        row = [one.label, _two(hours(one.finished)), rate, _two(ratio(results, one))]
        if theory:
            row.append(_two(line.theory))
        if priced:
            row.append(_two(line.paper_cost.get(block)))
        rows.append(row)
    note = (
        f"Hours: all n seeds, training alone, as they were spent. {NOTE} × {table.unit_of_cost}: "
        f"in steps of {table.reference}, on one kind of machine."
    )
    if priced:
        note += " The paper's: one RTX Titan."
    return Grid(f"{block}: cost", columns, rows, note)


def _differences(results: TableResults) -> str:
    """What a difference is in, as the start of a sentence."""
    return results.metric.difference_unit.capitalize() or "Differences"


def _amount(results: TableResults, difference: float) -> str:
    unit = results.metric.difference_unit.split()
    return f"{difference} {unit[-1]}" if unit else str(difference)


def _where(results: TableResults) -> str:
    parts = [results.request.variant.title, results.request.shortened]
    return ", ".join(part for part in parts if part)
