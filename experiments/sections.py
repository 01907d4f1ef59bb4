"""The sections of the report page, in the order of `SECTIONS`.

A section is made by a function from the results to the sections that it has to show, possibly
none. A new one is a function here (or in a module of its own) and its name in `SECTIONS`.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator

from markupsafe import Markup

from experiments import figures
from experiments.page import Cell, Figure, Grid, Section, Text
from experiments.results import (
    CONFIDENCE,
    Difference,
    Results,
    Row,
    Run,
    Table,
    compare,
    std,
    summarize,
)

NAMED = 6  # groups that a sentence names one by one; it counts the others
FOLD_FROM = 40  # rows from which a table of runs is shown on demand only


def overview(results: Results) -> Iterator[Section]:
    """How much there is, and what is best in each table where there are several."""
    finished = results.having("finished")
    hours = math.fsum(run.training_seconds() for run in results.runs) / 3600
    text = Markup("<strong>{}</strong> finished runs, {} of training in all.")
    section = Section("At a glance", [Text(text.format(len(finished), _duration(hours)))])
    if results.left_out:
        text = Markup('{}: see <a href="#runs">Runs</a>.').format(results.left_out)
        section.blocks.append(Text(text, "warning"))
    if len(results.tables) == 1:
        section.blocks += _words(results.tables[0], summarize(results.tables[0]))
    else:
        section.blocks.append(_overview_grid(results.tables))
    yield section


def _overview_grid(tables: list[Table]) -> Grid:
    rows = []
    for table in tables:
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
    columns = ("experiment", "best", "last epoch, test", "next best", "behind by", "runs")
    caption = f"Best mean of the last epoch; behind by: with simultaneous {CONFIDENCE:.0%} interval"
    return Grid(caption, columns, rows)


def comparisons(results: Results) -> Iterator[Section]:
    """Each table: who is best in words, the figures, and how the training went."""
    for table in results.tables:
        rows = summarize(table)
        words = _words(table, rows) if len(results.tables) > 1 else []
        section = Section(table.title, [*words, _comparison_grid(table, rows), _statistics(table)])
        band = _band(table)
        shown = [
            Figure(
                f"Last epoch by seed: test {table.headline}",
                figures.seeds(table),
                f"Dots: seeds. Diamond: their mean, with its own {CONFIDENCE:.0%} interval.",
            ),
            Figure(f"Test {table.headline}", figures.headline(table), band),
        ]
        if any(run.series("train/loss") for run in table.runs):
            plot = figures.curves(table, "train/loss", "training loss (epoch mean)", log=True)
            shown.append(Figure("Training loss", plot, band))
        if any(run.series("time/epoch_seconds") for run in table.runs):
            shown.append(
                Figure(
                    f"Test {table.headline} for the time spent",
                    figures.headline_by_time(table),
                    "Times compare only where runs had the same machine to themselves.",
                )
            )
        section.blocks += shown
        yield section


def _words(table: Table, rows: list[Row]) -> list[Text]:
    """The verdict and the cost as sentences."""
    blocks = [Text(verdict(table), "verdict")]
    if len(rows) > 1:
        unit = " in percentage points" if table.unit else ""
        text = f"In brackets: the lead{unit}, and its simultaneous {CONFIDENCE:.0%} interval."
        blocks.append(Text(text, "note"))
    ratios = [row for row in rows if row.ratio is not None and row.label != "sgd"]
    if ratios:
        named = [Markup("{} {:.2f}").format(row.label, row.ratio) for row in ratios[:NAMED]]
        text = Markup("A step costs, in steps of sgd: {}.").format(_list(named))
        blocks.append(Text(text))
    return blocks


def verdict(table: Table) -> Markup:
    """Which group is best, and against which others that is certain."""
    best, others = compare(table)
    measured = _measured(table, [run.last() for run in table.groups[best]])
    start = Markup("<strong>{}</strong> {} test {}: {} (n = {}).").format(
        best,
        "has the best mean last-epoch" if others else "is alone here; its last-epoch",
        table.headline,
        measured,
        len(table.groups[best]),
    )
    certain = [other for other in others if other.certain]
    unclear = [other for other in others if other.interval and not other.certain]
    single = [other for other in others if other.interval is None]
    parts = [start]
    for chosen, lead in (
        (certain, "It is ahead of"),
        (unclear, "It cannot be told apart from"),
        (single, "One seed, or no spread, is too little to judge its lead over"),
    ):
        if chosen:
            parts.append(Markup("{} {}.").format(lead, _named(table, chosen)))
    return Markup(" ").join(parts)


def _named(table: Table, differences: list[Difference]) -> Markup:
    named = [
        Markup("{} (by {})").format(other.label, _difference(table, other))
        for other in differences[:NAMED]
    ]
    rest = len(differences) - NAMED
    return _list([*named, *([Markup("{} more").format(rest)] if rest > 0 else [])])


def _difference(table: Table, other: Difference) -> str:
    text = f"{table.scale * other.mean:.2f}"
    if other.interval is not None:
        low, high = (table.scale * bound for bound in other.interval)
        text += f", {low:.2f} to {high:.2f}"
    return text.replace("-", "−")


def _measured(table: Table, values: list[float]) -> str:
    mean = f"{table.scale * statistics.mean(values):.2f}"
    spread = f" ± {table.scale * std(values):.2f}" if len(values) > 1 else ""
    return f"{mean}{spread} {table.unit}".strip()


def _list(items: list[Markup]) -> Markup:
    if len(items) < 2:
        return Markup("").join(items)
    return Markup("{} and {}").format(Markup(", ").join(items[:-1]), items[-1])


def _comparison_grid(table: Table, rows: list[Row]) -> Grid:
    best, others = compare(table)
    behind = {other.label: other for other in others}
    lines = []
    for row in rows:
        other = behind.get(row.label)
        lines.append(
            [
                row.label,
                len(row.last),
                Cell(_measured(table, row.last), statistics.mean(row.last)),
                Cell(_difference(table, other) if other else "best", other.mean if other else 0.0),
                Cell(_measured(table, row.best), statistics.mean(row.best)),
                Cell(_number(1000 * row.step_seconds, 1), row.step_seconds),
                Cell(_number(row.ratio, 2), row.ratio or math.nan),
                Cell(_duration(row.hours), row.hours),
                Cell(row.paper, float(row.paper.split()[0]) if row.paper else math.nan),
            ]
        )
    points = ", points" if table.unit else ""
    columns = [
        "optimizer", "n", "last epoch", f"behind the best by{points}", "best epoch", "step, ms",
        "× SGD", "training, all seeds", "paper",
    ]  # fmt: skip
    if not any(row.paper for row in rows):
        columns, lines = columns[:-1], [line[:-1] for line in lines]
    caption = f"Test {table.headline}: mean ± sample standard deviation over n seeds"
    return Grid(caption, columns, lines)


def _statistics(table: Table) -> Text:
    """What the intervals are, and what flatters the best epoch."""
    repeated = sum(len(runs) > 1 for runs in table.groups.values())
    split = table.runs[0].config["best_epoch_split"]
    text = (
        "The best epoch is chosen on the test set itself, which flatters every row; the comparison "
        "uses the last epoch, which nobody chose."
        if split == "test"
        else "The best epoch is chosen on the validation set; the comparison uses the last epoch."
    )
    if repeated > 1:
        pairs = math.comb(repeated, 2)
        count = f" for all {pairs} pairs at once (Bonferroni)" if pairs > 1 else ""
        text += (
            f" Intervals of differences: Welch's, the seed as unit, {CONFIDENCE:.0%}{count}. Runs "
            "of equal seed share initialization and data order but are not paired: little of it "
            "is left in the last epoch, and pairing would halve the degrees of freedom."
        )
    return Text(text, "note")


def curvature(results: Results) -> Iterator[Section]:
    """How the spectrum moved, for tables whose runs measured it."""
    for table in results.tables:
        blocks = [*_densities(table), *_curvature_curves(table), *_layers(table)]
        if blocks:
            note = "Curvature of the training loss; eigenvalues and traces are in units of the "
            note += "loss per squared unit of the parameters. Epoch 0 is the initialization."
            yield Section(f"Curvature: {table.title}", [Text(note, "note"), *blocks])


def _densities(table: Table) -> Iterator[Figure]:
    """One heat map per group, of the first seed that has spectra, on common axes."""
    chosen: dict[str, tuple[Run, dict]] = {}
    for label, runs in table.groups.items():
        for run in runs:
            if label not in chosen and (spectra := run.spectra()):
                chosen[label] = run, spectra
    if not chosen:
        return
    every = [spectra for _, spectra in chosen.values()]
    axis, limits = figures.EigenvalueAxis(every), figures.density_limits(every)
    for label, (run, spectra) in chosen.items():
        note = "Color: density of the eigenvalues. Dashes: the largest ones."
        title = f"Spectral density: {label}, seed {run.meta['seed']}"
        yield Figure(title, figures.density(spectra, axis, limits), note)


def _curvature_curves(table: Table) -> Iterator[Figure]:
    unit = "loss / parameter²"
    band = _band(table)
    bars = f"{band} Bars: the estimator's standard error."
    if _has(table, "hessian/top_eigenvalue"):
        note = "Thick: the largest; thin: the next ones. " + band
        yield Figure("Top eigenvalues", figures.eigenvalues(table), note)
    for key, title, axis, scale in (
        ("hessian/trace", "Trace", f"trace ({unit})", 1),
        ("hessian/trace_estimate", "Running trace, from training", f"trace ({unit})", 1),
        ("hessian/frobenius_norm", "Frobenius norm", f"norm ({unit})", 1),
        ("hessian/negative_share", "Negative curvature", "negative share (%)", 100),
        ("hessian/relative_error_median", "Error of the finite difference", "median (%)", 100),
        ("time/curvature_share", "Time spent on curvature", "share of training time (%)", 100),
    ):
        if _has(table, key):
            error = f"{key}_standard_error"
            note = bars if _has(table, error) else band
            plot = figures.curves(table, key, axis, scale=scale, error=error)
            yield Figure(title, plot, note)
    if any("signal_to_noise" in key for run in table.runs for row in run.rows for key in row):
        note = "At the last epoch measured; bars: one sample standard deviation over the seeds."
        yield Figure("Signal-to-noise by block size", figures.signal_to_noise(table), note)


def _band(table: Table) -> str:
    """What lines and bands are; without several seeds there is no band."""
    if all(len(runs) == 1 for runs in table.groups.values()):
        return "One seed."
    return "Mean line; band: one sample standard deviation over the seeds."


def _has(table: Table, key: str) -> bool:
    return any(key in row for run in table.runs for row in run.rows)


def _layers(table: Table) -> Iterator[Figure]:
    """One heat map of the layers' traces per group, with common colors."""
    means = {label: figures.layer_means(runs)[2] for label, runs in table.groups.items()}
    positive = {label: array[array > 0] for label, array in means.items()}
    positive = {label: array for label, array in positive.items() if array.size}
    if not positive:
        return
    high = math.log10(max(float(array.max()) for array in positive.values()))
    low = math.log10(min(float(array.min()) for array in positive.values()))
    limits = (max(low, high - 5), high)
    for label in positive:
        note = "Mean over the seeds; gaps: a trace that is not positive."
        plot = figures.layer_traces(table.groups[label], limits)
        yield Figure(f"Traces of the layers: {label}", plot, note)


# ------------------------------------------------------------------------------------ provenance


def runs(results: Results) -> Iterator[Section]:
    """What ran where and when, from which commit, and what did not come to its end."""
    section = Section("Runs", [Text(_origin(results.having("finished")))])
    dirty = sum(any(session.get("dirty") for session in _sessions(run)) for run in results.runs)
    if dirty:
        text = f"{dirty} run(s) had files that differed from their commit (dirty)."
        section.blocks.append(Text(text, "warning"))
    incomplete = [run for run in results.runs if run.state != "finished"]
    if incomplete or results.unreadable:
        section.blocks.append(_incomplete_grid(incomplete, results))
    section.blocks.append(_runs_grid(results.runs))
    yield section


def _sessions(run: Run) -> list[dict]:
    return run.meta["sessions"]


def _origin(finished: list[Run]) -> str:
    sessions = [session for run in finished for session in _sessions(run)]
    commits = Counter(str(session.get("commit"))[:10] for session in sessions)
    hosts = sorted({f"{s.get('host', '?')} ({s.get('device', '?')})" for s in sessions})
    versions = sorted({f"torch {session.get('torch', '?')}" for session in sessions})
    found = ", ".join(commit for commit, _ in commits.most_common(NAMED))
    more = f" and {len(commits) - NAMED} more" if len(commits) > NAMED else ""
    return (
        f"The finished runs took {len(sessions)} session(s), at {_count(len(commits), 'commit')} "
        f"({found}{more}), on {_count(len(hosts), 'host')} ({', '.join(hosts[:NAMED])}), with "
        f"{', '.join(versions)}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _incomplete_grid(incomplete: list[Run], results: Results) -> Grid:
    rows: list[list] = []
    for run in incomplete:
        epochs = run.config.get("epochs", "?")
        rows.append(
            [
                _place(run, results),
                run.state,
                Cell(f"{run.epoch()} of {epochs}", float(run.epoch())),
                _written(run),
                run.problem,
            ]
        )
    for directory, problem in results.unreadable.items():
        rows.append([str(directory.relative_to(results.root)), "unreadable", "", "", problem])
    columns = ("run", "state", "epochs", "last sign of life", "problem")
    return Grid("Left out: unfinished, failed or unreadable runs", columns, rows)


def _written(run: Run) -> Cell:
    """When the run last wrote into its directory."""
    seconds = max(path.stat().st_mtime for path in run.directory.iterdir())
    return Cell(time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)), seconds)


def _place(run: Run, results: Results) -> str:
    return str(run.directory.relative_to(results.root))


def _runs_grid(every: list[Run]) -> Grid:
    rows = []
    for run in every:
        sessions = _sessions(run)
        first, last = (sessions[0], sessions[-1]) if sessions else ({}, {})
        commits = dict.fromkeys(str(session.get("commit"))[:10] for session in sessions)
        mark = " dirty" if any(session.get("dirty") for session in sessions) else ""
        seconds = run.training_seconds()
        rows.append(
            [
                f"{run.meta['optimizer']}, seed {run.meta['seed']}",
                f"{run.meta['dataset']} {run.meta['model']}",
                run.directory.name,
                run.state,
                run.epoch(),
                Cell(_number(run.evaluated[-1][run.test_key], 4), run.evaluated[-1][run.test_key])
                if run.evaluated
                else "",
                Cell(_duration(seconds / 3600), seconds),
                len(sessions),
                ", ".join(commits) + mark,
                last.get("host", ""),
                last.get("device", ""),
                Cell(str(last.get("threads", "")), last.get("threads", "")),
                last.get("torch", ""),
                last.get("python", ""),
                str(first.get("started", "")),
            ]
        )
    columns = (
        "run", "experiment", "directory", "state", "epochs", "last test value", "training",
        "sessions", "commit", "host", "device", "threads", "torch", "python", "started",
    )  # fmt: skip
    caption = "All runs; host, device and versions are those of the last session"
    return Grid(caption, columns, rows, folded=len(rows) >= FOLD_FROM)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _duration(hours: float) -> str:
    """Hours in the unit that suits them."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


SECTIONS: tuple[Callable[[Results], Iterator[Section]], ...] = (
    overview,
    comparisons,
    curvature,
    runs,
)
