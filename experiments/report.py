"""Tables, pictures and a page from the files of finished runs: `python -m experiments.report`.

Prints one table per protocol (see `experiments.results`), writes them as `report/report.md` with
a picture each below `RUNS_ROOT`, and everything as one page, `RUNS_ROOT/report.html`. Of a sweep it
says which combination is best, and how every run is, those included that were never begun.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import export, sweep, sweep_report
from experiments.comparison import Curve, curve, mean_and_std, summarize
from experiments.config import UserError
from experiments.page import write_page
from experiments.results import Results, Table, read_results
from experiments.sweep_report import SweepResults, read_sweep

COLUMNS = ("optimizer", "n", "last epoch", "best epoch", "step ms", "x SGD", "paper")
TICKS = 12  # values of a swept key that are all written on its axis


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (or its file)")
    parser.add_argument("--committed", action="store_true", help="also the runs in results/")
    parsed = parser.parse_args(arguments)
    root = Path(os.environ.get("RUNS_ROOT") or "runs")
    try:
        if parsed.sweep and (parsed.dataset or parsed.model or parsed.committed):
            raise UserError(
                "--sweep names its runs itself: leave out --dataset, --model and --committed"
            )
        committed = export.read(export.FOLDER, root).values() if parsed.committed else ()
        results = (
            read_sweep(sweep.find(parsed.sweep), root)
            if parsed.sweep
            else read_results(root, parsed.dataset, parsed.model, committed)
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_report(results, root / "report")
    return 0


def cells(table: Table) -> list[tuple[str, ...]]:
    """The table's rows as text, in the order of `COLUMNS`."""
    return [
        (
            row.label,
            str(len(row.last)),
            mean_and_std(table, row.last),
            mean_and_std(table, row.best),
            "" if math.isnan(row.step_seconds) else f"{1000 * row.step_seconds:.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.paper,
        )
        for row in summarize(table)
    ]


@dataclass
class Part:
    """What the terminal and the Markdown file show of one table.

    Attributes:
        lines: of the table, as text.
        note: what the figures are.
        picture: its file, where there is one.
        verdict: what is best in it, where the note does not say it all.
        states: every run's state, name, directory and problem, where that is asked.
        missing, command: how many runs are missing, and what sends them.
    """

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str
    picture: Path | None
    verdict: str = ""
    states: list[tuple[str, str, str, str]] = field(default_factory=list)
    missing: str = ""
    command: str = ""

    def markdown(self) -> str:
        text = [f"## {self.title}\n", *_markdown_table(self.columns, self.lines)]
        text += [f"\n{self.note}\n"]
        if self.verdict:
            text.append(f"{self.verdict}\n")
        if self.picture:
            text.append(f"![{self.title}]({self.picture.name})\n")
        if self.missing:
            text.append(f"{self.missing}\n\n    {self.command}\n")
        if self.states:
            headings = ("state", "run", "directory", "problem")
            text += [*_markdown_table(headings, self.states), ""]
        return "\n".join(text)


def parts(results: Results, folder: Path) -> list[Part]:
    """The tables of the results as text, with a picture of each drawn into the folder."""
    if isinstance(results, SweepResults):
        return [_sweep_part(results, folder)]
    return [
        Part(table.title, COLUMNS, cells(table), caption(table),
             draw(table, folder / f"{table.name}.png"))
        for table in results.tables
    ]  # fmt: skip


def _sweep_part(results: SweepResults, folder: Path) -> Part:
    return Part(
        results.title,
        sweep_report.columns(results),
        sweep_report.rows(results),
        sweep_report.caption(results),
        draw_sweep(results, folder / f"sweep-{results.path.stem}.png"),
        sweep_report.verdict(results),
        sweep_report.states(results),
        sweep_report.advice(results),
        results.command,
    )


def write_report(results: Results, folder: Path) -> None:
    """Print the tables; write them as Markdown, a picture of each, and the page."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    # Piped output has no width of its own: 80 columns are readable everywhere.
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    style = box.SIMPLE_HEAD
    markdown = ["# Report\n"]
    for part in parts(results, folder):
        title = escape(part.title)
        grid = Grid(*part.columns, title=title, caption=part.note, box=style, pad_edge=False)
        for column in grid.columns[1:]:
            # What a sweep has besides, its keys and states, may need several lines.
            column.justify, column.no_wrap = "right", column.header in COLUMNS
        for line in part.lines:
            grid.add_row(*map(escape, line))
        console.print(grid)
        if part.verdict:
            console.print(part.verdict, markup=False)
        for state, run, place, problem in part.states:
            if state != "done":
                text = f"{state}: {run} ({place}){f': {problem}' if problem else ''}"
                console.print(text, markup=False, soft_wrap=True)
        if part.missing:
            console.print(f"{part.missing}\n  {part.command}", markup=False, soft_wrap=True)
        if part.picture:
            console.print(f"picture: {part.picture}", soft_wrap=True)
        markdown.append(part.markdown())
    if results.left_out:
        console.print(results.left_out)
    (folder / "report.md").write_text("\n".join(markdown))
    console.print(f"tables:  {folder / 'report.md'}", soft_wrap=True)
    console.print(f"page:    {write_page(results, results.root / 'report.html')}", soft_wrap=True)


def caption(table: Table) -> str:
    unit = f", {table.unit}" if table.unit else ""
    return f"test {table.headline}{unit}: mean ± sample std over n seeds; step: median"


def _markdown(line: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"


def _markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [_markdown(columns), _markdown(["---"] * len(columns)), *map(_markdown, lines)]


def draw(table: Table, path: Path) -> Path:
    """Training loss and test metric over the epochs: mean line, band of one std over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    headline, percent = table.headline, table.unit == "%"
    legend_rows = math.ceil(len(table.groups) / 4)
    size = (11, 4.2 + 0.2 * legend_rows)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=size, layout="constrained")
    for label, runs in table.groups.items():
        text = f"{label} (n={len(runs)})"
        draw_curve(left, curve(runs, "train/loss"), text)
        draw_curve(right, curve(runs, f"test/{headline}", table.scale), text)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel=f"test {headline}{' (%)' if percent else ''}")
    if percent:
        right.set_ylim(*_accuracy_limits(table))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(table.title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def draw_curve(
    axes: Any, mean: Curve, label: str, marker: str = "", color: str | None = None
) -> None:
    """A line of means with a band of one standard deviation."""
    style = {"marker": marker, "color": color, "linewidth": 1.4}
    (line,) = axes.plot(mean.epochs, mean.means, label=label, **style)
    if any(mean.stds):
        low, high = mean.band()
        axes.fill_between(mean.epochs, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def _accuracy_limits(table: Table) -> tuple[float, float]:
    """Limits that fit the second half of the training, where the optimizers differ little."""
    late = [
        table.scale * row[run.test_key]
        for run in table.runs
        for row in run.evaluated[len(run.evaluated) // 2 :]
    ]
    low, high = min(late), max(late)
    margin = max(high - low, 1.0)
    return max(0.0, low - margin), min(100.0, high + 0.5)


def draw_sweep(results: SweepResults, path: Path) -> Path | None:
    """The last epoch's test metric over one swept number, or over two keys; else no picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = sweep_report.by_optimizer(results)
    if not groups or not (sweep_report.is_line(results) or sweep_report.is_map(results)):
        return None
    if sweep_report.is_line(results):
        figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
        _draw_lines(axes, results, groups)
    else:
        across = len(sweep_report.axis(results, results.keys[0]))
        down = len(sweep_report.axis(results, results.keys[1]))
        size = (len(groups) * max(3.2, 0.9 * across + 1.2) + 1, max(3.2, 0.55 * down + 1.8))
        figure, panels = pyplot.subplots(1, len(groups), figsize=size, squeeze=False,
                                         layout="constrained")  # fmt: skip
        _draw_maps(figure, panels[0], results, groups)
    figure.suptitle(results.title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _draw_lines(axes: Any, results: SweepResults, groups: dict[str, list[Any]]) -> None:
    """A line with its spread per optimizer, the seeds as dots, a ring around the best mean."""
    (key,) = results.keys
    for place, (name, points) in enumerate(groups.items()):
        draw_curve(axes, sweep_report.line(results, points), name, "o")
        x, y = sweep_report.dots(results, points)
        axes.plot(x, y, ".", color=f"C{place}", alpha=0.5, markersize=5)
    best = results.best
    axes.plot([best.values[key]], [sweep_report.mean(results, best)], "o", color="black",
              fillstyle="none", markersize=13, label="best mean", linestyle="none")  # fmt: skip
    if sweep_report.logarithmic(results):
        axes.set_xscale("log")
    values = sweep_report.axis(results, key)
    if len(values) <= TICKS:
        axes.set_xticks(values, map(str, values))
        axes.minorticks_off()
    axes.set(
        xlabel=sweep_report.short(key), ylabel=f"last epoch, {results.tables[0].headline_title}"
    )
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_maps(figure: Any, panels: Any, results: SweepResults, groups: dict[str, Any]) -> None:
    """A heat map per optimizer on common colors, the means written in, a frame on the best."""
    first, second = results.keys
    grids = {name: sweep_report.cells(results, points) for name, points in groups.items()}
    for axes, (name, grid) in zip(panels, grids.items(), strict=True):
        means = [[sweep_report.mean(results, point) for point in line] for line in grid]
        low, high = sweep_report.limits(results)
        image = axes.imshow(means, vmin=low, vmax=high, origin="lower", aspect="auto")
        for row, line in enumerate(grid):
            for column, point in enumerate(line):
                if point is None:
                    continue
                ink = sweep_report.ink(means[row][column], (low, high)) or "black"
                text = sweep_report.cell_text(results, point)
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
                if point is results.best:
                    axes.add_patch(_frame(column, row))
        for key, ticks in ((first, axes.set_xticks), (second, axes.set_yticks)):
            values = sweep_report.axis(results, key)
            ticks(range(len(values)), map(str, values))
        axes.set(title=name, xlabel=sweep_report.short(first), ylabel=sweep_report.short(second))
    figure.colorbar(image, ax=panels, label=f"last epoch, {results.tables[0].headline_title}")


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="red", lw=2)


if __name__ == "__main__":
    sys.exit(main())
