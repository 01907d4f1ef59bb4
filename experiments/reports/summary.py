"""The report in the terminal and as Markdown."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.reports import sweeps as reports_sweeps
from experiments.reports.page import write_page
from experiments.reports.plots import draw, draw_sweep
from experiments.reports.sweeps import advice, rows
from experiments.results.statistics import mean_and_std, summarize
from experiments.results.sweeps import SweepResults
from experiments.results.tables import Results, Table

COLUMNS = ("optimizer", "n", "last epoch", "best epoch", "step ms", "x SGD", "paper")


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
        reports_sweeps.columns(results),
        rows(results),
        reports_sweeps.caption(results),
        draw_sweep(results, folder / f"sweep-{results.path.stem}.png"),
        reports_sweeps.verdict(results),
        reports_sweeps.states(results),
        advice(results),
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
