"""What a page is made of: sections, and in them texts, tables and plots.

Everything that a block shows is escaped; a text can hold markup as `markupsafe.Markup`, whose
`format` escapes what it inserts.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


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
        rows: of strings, numbers or `Cell`; the first of each row names it. Columns in which no row
            has anything are left out.
        folded: shown only on demand.
    """

    caption: str
    columns: Sequence[str]
    rows: list[Sequence[Any]]
    folded: bool = False
    kind: str = field(default="grid", init=False)

    def __post_init__(self) -> None:
        cells = [[_cell(value) for value in row] for row in self.rows]
        filled = [any(cell.text for cell in column) for column in zip(*cells, strict=True)]
        if filled:
            self.columns = [name for name, keep in zip(self.columns, filled, strict=True) if keep]
        self.rows = [[c for c, keep in zip(row, filled, strict=True) if keep] for row in cells]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and so are aligned to the right."""
        if not self.rows:
            return [False] * len(self.columns)
        return [
            all(isinstance(cell.value, float) for cell in column if cell.text)
            for column in zip(*self.rows, strict=True)
        ]


@dataclass
class Figure:
    """A plot.

    Attributes:
        title: what it shows.
        plot: a plotly figure, made with `experiments.reports.page.figures.figure`.
        note: what its lines, bands and marks are.
    """

    title: str
    plot: Any
    note: str = ""
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
        """What an address on the page ends with."""
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


def number(value: float | None, digits: int) -> str:
    """A number as text, nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(hours: float) -> str:
    """Hours in the unit that suits them."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
