"""The report in short, for the terminal and as Markdown; it writes the page as well."""

from collections.abc import Sequence
from pathlib import Path

from experiments.plots.curves import draw_training
from experiments.reports import benchmark_plots, benchmarks, page, sweep_plots, sweeps, workloads
from experiments.reports.render import latex, markdown, terminal
from experiments.reports.sections import Figure, Grid, Section, number
from experiments.results.benchmarks import BenchmarkResults
from experiments.results.cost import NOTE
from experiments.results.published import paper_figures
from experiments.results.statistics import curve, late_limits, mean_and_std, summarize
from experiments.results.sweeps import SweepResults
from experiments.results.tables import ComparisonTable, Results
from experiments.runs.storage import write_whole, writing


def write_report(results: Results, folder: Path) -> None:
    """Print the tables; write them as Markdown, a picture of each, and the page."""
    sections = [
        Section(table.title, [grid(table), Figure(table.title, picture=draw(table, folder))])
        for table in results.tables
    ]
    _write(results, sections, sections, page.SECTIONS, folder)


def write_sweep_report(results: SweepResults, folder: Path) -> None:
    """Print a sweep's table and what is not done; write all states, the picture and the page."""
    picture = sweep_plots.draw(results, folder / f"sweep-{results.path.stem}.png")
    shown, written = (sweeps.section(results, picture, every) for every in (False, True))
    _write(results, [shown], [written], page.SECTIONS_OF_A_SWEEP, folder)


def write_benchmark_report(results: BenchmarkResults, folder: Path) -> None:
    """Print a benchmark's scores; write them, as LaTeX too, its trials, a picture and the page."""
    name = f"benchmark-{results.path.stem}"
    picture = benchmark_plots.draw(results, folder / f"{name}.png")
    shown, written = (benchmarks.section(results, which) for which in (None, picture))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.tex", latex.render([shown]))
    write_whole(folder / f"{name}.csv", benchmarks.trials(results))
    _write(results, [shown], [written], page.SECTIONS_OF_A_BENCHMARK, folder)


def write_profiles(tables: Sequence[Path], folder: Path) -> None:
    """Print performance profiles over several benchmarks; write them, as LaTeX too."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    shown, written = workloads.section(tables, folder / "profiles.png")
    console = terminal.make_console()
    terminal.show(shown, console)
    write_whole(folder / "profiles.tex", latex.render([shown]))
    write_whole(folder / "profiles.md", markdown.render([written]))
    console.print(f"tables:  {folder / 'profiles.md'}", soft_wrap=True)


def _write(
    results: Results,
    shown: Sequence[Section],
    written: Sequence[Section],
    of_page: Sequence[page.Maker],
    folder: Path,
) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    console = terminal.make_console()
    for section in shown:
        terminal.show(section, console)
    for words in filter(None, (results.under_way, results.left_out)):
        console.print(words)
    text = "# Report\n\n" + markdown.render(written)
    write_whole(folder / "report.md", text)
    path = page.write_page(results, results.root / "report.html", of_page)
    console.print(f"tables:  {folder / 'report.md'}", soft_wrap=True)
    console.print(f"page:    {path}", soft_wrap=True)


def grid(table: ComparisonTable) -> Grid:
    """The table's rows as text."""
    unit = [f"× {table.reference}"] if table.reference else []
    columns = ["optimizer", "n", "last epoch", "best epoch", "step ms", *unit, "paper"]
    rows = [
        [
            row.label,
            str(len(row.last)),
            mean_and_std(table.metric, row.last),
            mean_and_std(table.metric, row.best),
            number(1000 * row.step_seconds, 1),
            *[number(row.ratio, 2) for _ in unit],
            row.paper,
        ]
        for row in summarize(table, paper_figures())
    ]
    said = " ".join([table.baselines, *table.warnings])
    note = f"{table.result_title}: mean ± sample std over n seeds. {said} {NOTE}"
    return Grid("", columns, rows, note)


def draw(table: ComparisonTable, folder: Path) -> Path:
    """Training loss and result over the epochs: mean line, band of one std over seeds."""
    metric, path = table.metric, folder / f"{table.name}.png"
    losses, metrics = (
        {
            f"{label} (n={len(runs)})": curve(runs, key, scale)
            for label, runs in table.groups.items()
        }
        for key, scale in (("train/loss", 1), (table.result_key, metric.scale))
    )
    limits = late_limits(metric, table.runs)
    draw_training(table.title, losses, metrics, table.result_title, limits, path,
                  metric.log and limits[0] > 0)  # fmt: skip
    return path
