"""How results are shown as tables: on the screen, as Markdown, LaTeX and JSON, and in `docs/`.

A page in `docs/` holds a pair of comments, `<!-- NAME:begin -->` and `<!-- NAME:end -->`, for each
benchmark that it shows; what stands between them is written by the benchmark, never by hand.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.record import git_state


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


def provenance(device: str, **more: Any) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        **git_state(),
        **more,
    }


def processor() -> str:
    """The processor's name; what the kernel calls the architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def sentence(origin: dict[str, Any]) -> str:
    """The provenance as a reader of the table wants it."""
    commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["dirty"] else "")
    return (
        f"{origin['machine']}, {origin['threads']} of {origin['cores']} cores (load "
        f"{origin['load']} at the end), torch {origin['torch']}, commit {commit}, {origin['date']}."
    )


def publish(
    name: str, tables: Sequence[Table], origin: dict[str, Any], data: Any, docs: Path | None
) -> None:
    """Print the tables; write `NAME.md` and `NAME.json` below `RUNS_ROOT`, and into `docs`."""
    console = make_console()
    show(tables, console)
    console.print(sentence(origin), markup=False)
    folder = Path(os.environ.get("RUNS_ROOT") or "runs") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    markdown = "\n".join([*(table.markdown() for table in tables), sentence(origin) + "\n"])
    (folder / f"{name}.md").write_text(markdown)
    content = {"provenance": origin, "data": data, "tables": [asdict(t) for t in tables]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"written: {folder / name}.md and .json", soft_wrap=True)
    if docs is not None:
        insert(docs, name, markdown)
        console.print(f"written: {docs}", soft_wrap=True)


def insert(page: Path, name: str, markdown: str) -> None:
    """Replace what stands between the marks of `name` on a page.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} ... {end}")
    page.write_text(f"{before}{begin}\n{markdown}\n{end}{after}")
