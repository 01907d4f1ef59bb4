"""Tables of text, on the screen, as Markdown and as LaTeX."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Table:
    """Rows of text under a title; the note below says what the columns mean, and n."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        grid = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        return f"### {self.title}\n\n{grid}\n\n{self.note}\n"

    def latex(self) -> str:
        """A floating table; the document needs the package booktabs."""
        rows = [" & ".join(map(latex, row)) + r" \\" for row in (self.columns, *self.rows)]
        return "\n".join(
            [
                r"\begin{table}[htbp]",
                r"\centering",
                rf"\caption{{{latex(self.title)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                rows[0],
                r"\midrule",
                *rows[1:],
                r"\bottomrule",
                r"\end{tabular}",
                rf"\par\smallskip\footnotesize {latex(self.note)}",
                r"\end{table}",
                "",
            ]
        )


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "²": r"\textsuperscript{2}",
}


def latex(text: str) -> str:
    """A text with what LaTeX reads as commands escaped, for any engine."""
    return "".join(_LATEX.get(character, character) for character in text)


def show(tables: Sequence[Table], console: Any) -> None:
    """Print tables on a rich console."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as Grid

    for table in tables:
        grid = Grid(
            *map(escape, table.columns), title=escape(table.title), box=box.SIMPLE_HEAD,
            pad_edge=False, padding=(0, 1, 0, 0),
        )  # fmt: skip
        for column in grid.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for row in table.rows:
            grid.add_row(*map(escape, row))
        console.print(grid)
        console.print(table.note + "\n", markup=False)


def make_console() -> Any:
    """A console; piped output has no width of its own: 80 columns are readable everywhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)
