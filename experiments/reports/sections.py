"""What reports consist of, as plain data: sections, and in them texts, grids and figures.

`experiments.reports.render` turns them into a terminal's text, Markdown, LaTeX or a page. Texts are
plain here: each renderer escapes them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Strong(str):
    """A part of a text that stands out."""


class Code(str):
    """A part of a text that is typed as it stands."""


class Link(str):
    """The title of a section of the same report, which leads there."""


@dataclass
class Text:
    """A paragraph.

    Attributes:
        parts: a text, or parts of one, among them `Strong`, `Code` and `Link`.
        kind: "verdict", "note", "warning", "command" (to be typed), "lines" (never wrapped), or
            nothing in particular.
    """

    parts: str | Sequence[str]
    kind: str = ""

    @property
    def plain(self) -> str:
        return self.parts if isinstance(self.parts, str) else "".join(self.parts)

    @property
    def spans(self) -> list[str]:
        """The parts, one or several."""
        return [self.parts] if isinstance(self.parts, str) else list(self.parts)


@dataclass
class Cell:
    """A cell of a grid that is sorted by another value than the text that it shows."""

    text: str
    value: float | str


@dataclass
class Grid:
    """A table of texts and numbers.

    Attributes:
        title: what it shows.
        columns: their headings.
        rows: of strings, numbers or `Cell`; the first of each row names it.
        note: what the columns mean, with units and n.
        folded: a page shows it on demand only.
        marks: the color and dash of each row in the plots of its section, as `figures.style` has
            them: a page makes the grid their legend, to choose rows in.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    folded: bool = False
    marks: Sequence[Mapping[str, str]] = ()

    def filled(self) -> tuple[list[str], list[list[Cell]]]:
        """Headings and rows as renderers show them: without columns in which no row has a text."""
        rows = [[_cell(value) for value in row] for row in self.rows]
        keep = [
            not rows or any(row[place].text for row in rows) for place in range(len(self.columns))
        ]
        columns = [name for name, kept in zip(self.columns, keep, strict=True) if kept]
        return columns, [[c for c, k in zip(row, keep, strict=True) if k] for row in rows]

    def texts(self) -> list[list[str]]:
        """Headings and rows as `filled` has them, in texts alone."""
        columns, rows = self.filled()
        return [columns, *([cell.text for cell in row] for row in rows)]


@dataclass
class Figure:
    """A plot or a picture.

    Attributes:
        title: what it shows.
        plot: a plotly figure, made with `experiments.reports.page.figures.figure`; a page draws it.
        note: what its lines, bands and marks are.
        picture: a file; where there is no plot, a page holds it as well.
    """

    title: str
    plot: Any = None
    note: str = ""
    picture: Path | None = None


Block = Text | Grid | Figure


@dataclass
class Section:
    """A part of a report under a heading of its own; without a title, no heading.

    Attributes:
        title: its heading.
        blocks: what it consists of.
        folded: a page shows its heading alone until somebody opens it.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)
    folded: bool = False


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
