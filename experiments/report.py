"""Tables, pictures and a page from the files of finished runs: `python -m experiments.report`.

Prints one table per protocol (see `experiments.results`), writes them as `report/report.md` with
a picture each below `RUNS_ROOT`, and everything as one page, `RUNS_ROOT/report.html`.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.comparison import curve, mean_and_std, summarize
from experiments.config import UserError
from experiments.page import write_page
from experiments.results import Results, Run, Table, read_results

COLUMNS = ("optimizer", "n", "last epoch", "best epoch", "step ms", "x SGD", "paper")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parsed = parser.parse_args(arguments)
    root = Path(os.environ.get("RUNS_ROOT") or "runs")
    try:
        results = read_results(root, parsed.dataset, parsed.model)
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
    for table in results.tables:
        note = caption(table)
        grid = Grid(*COLUMNS, title=escape(table.title), caption=note, box=style, pad_edge=False)
        lines = cells(table)
        for column in grid.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for line in lines:
            grid.add_row(*map(escape, line))
        picture = draw(table, folder / f"{table.name}.png")
        console.print(grid)
        console.print(f"picture: {picture}", soft_wrap=True)
        markdown += [f"## {table.title}\n", _markdown(COLUMNS), _markdown(["---"] * len(COLUMNS))]
        markdown += [*map(_markdown, lines), f"\n{note}\n\n![{table.title}]({picture.name})\n"]
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
        _curve(left, runs, "train/loss", 1, text)
        _curve(right, runs, f"test/{headline}", table.scale, text)
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


def _curve(axes: Any, runs: list[Run], key: str, scale: float, label: str) -> None:
    mean = curve(runs, key, scale)
    (line,) = axes.plot(mean.epochs, mean.means, label=label, linewidth=1.4)
    if len(runs) > 1:
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


if __name__ == "__main__":
    sys.exit(main())
