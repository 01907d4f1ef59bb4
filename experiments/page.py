"""The report as one page, `report.html`: it needs no network, and works on a phone and in the dark.

A page is a list of sections, a section a list of blocks (`Text`, `Grid`, `Figure`). To add a
section, write a function `(results) -> Iterator[Section]` and name it in `SECTIONS` of
`experiments.sections`; nothing else is needed. Everything that a block shows is escaped; a `Text`
can hold markup as `markupsafe.Markup`, whose `format` escapes what it inserts.
"""

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.record import git_state
from experiments.results import Results

TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Text:
    """A paragraph; `kind` is a class of the style sheet: `verdict`, `note` or `warning`."""

    text: str
    kind: str = ""


@dataclass
class Cell:
    """A table's cell that is sorted by something else than what it shows."""

    text: str
    value: float | str


@dataclass
class Grid:
    """A table that the reader can sort.

    Attributes:
        caption: what it shows, with units and n.
        columns: their headings.
        rows: of strings, numbers or `Cell`; the first of each row names it.
        folded: shown only on demand.
    """

    caption: str
    columns: Sequence[str]
    rows: list[Sequence[Any]]
    folded: bool = False
    kind: str = field(default="grid", init=False)

    def cells(self) -> list[list[Cell]]:
        return [[_cell(value) for value in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and so are aligned to the right."""
        columns = zip(*self.cells(), strict=True) if self.rows else [()] * len(self.columns)
        return [
            any(cell.text for cell in column)
            and all(isinstance(cell.value, float) for cell in column if cell.text)
            for column in columns
        ]


@dataclass
class Figure:
    """A plot.

    Attributes:
        title: what it shows.
        plot: a plotly figure, see `experiments.figures`.
        note: what its lines, bands and marks are.
        wide: whether it needs the whole width of the page.
    """

    title: str
    plot: Any
    note: str = ""
    wide: bool = False
    kind: str = field(default="figure", init=False)

    @property
    def json(self) -> Markup:
        """The plot for a script element: no text from a file can end the element."""
        text = self.plot.to_json()
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return Markup(text)


@dataclass
class Section:
    """A part of the page under a heading of its own."""

    title: str
    blocks: list[Text | Grid | Figure] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def runs_of_blocks(self) -> list[list[Text | Grid | Figure]]:
        """The blocks in order, with figures that follow each other in one list."""
        runs: list[list[Text | Grid | Figure]] = []
        for block in self.blocks:
            if runs and isinstance(block, Figure) and isinstance(runs[-1][-1], Figure):
                runs[-1].append(block)
            else:
                runs.append([block])
        return runs


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if isinstance(value, int | float):
        return Cell("" if math.isnan(value) else f"{value:,}", float(value))
    return Cell(str(value), str(value))


def write_page(results: Results, path: Path) -> Path:
    """Write the page of all sections by rename, and return its path."""
    from experiments.sections import SECTIONS

    sections = [section for make in SECTIONS for section in make(results)]
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(render(results.root.resolve().name, sections))
    os.replace(temporary, path)
    return path


def render(name: str, sections: list[Section]) -> str:
    """The page as HTML, with the plotting library, the style sheet and the script inside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    plots = any(isinstance(block, Figure) for section in sections for block in section.blocks)
    return environment.get_template("page.html").render(
        name=name,
        sections=sections,
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        commit=(git_state()["commit"] or "unknown")[:10],
        style=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        plotly=Markup(get_plotlyjs()) if plots else "",
    )
