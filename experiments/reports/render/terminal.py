"""Sections on the screen."""

import sys
from typing import Any

from experiments.reports.sections import Block, Figure, Grid, Section, Text

NARROW = 24  # characters up to which a column's cells are never wrapped
NAME = 10  # where that leaves no room for the first column, which keeps this


def make_console() -> Any:
    """A console that shows texts as they are: names and paths may have `[x]` or `:x:` in them.

    Piped output has no width of its own: 80 columns are readable everywhere. A reader that leaves
    ends no command, whose files are not written yet.
    """
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:  # rich would exit here
            self.quiet = True

    width = None if sys.stdout.isatty() else 80
    return Patient(width=width, highlight=False, markup=False, emoji=False)


def show(section: Section, console: Any) -> None:
    """Print a section on a rich console, and an empty line after it."""
    if section.title:
        console.print(section.title, style="bold")
    for place, block in enumerate(section.blocks):
        if place or section.title:
            _separate(section.blocks[place - 1] if place else None, block, console)
        _show(block, console)
    console.print()


def _separate(before: Block | None, block: Block, console: Any) -> None:
    """An empty line, but where the two belong together, or a grid brings its own."""
    together = isinstance(block, Figure) or (isinstance(block, Text) and block.kind == "command")
    own = isinstance(block, Grid) and not block.title
    if not own and not (together and before):
        console.print()


def _show(block: Block, console: Any) -> None:
    match block:
        case Text(kind="command"):
            console.print(f"  {block.plain}", soft_wrap=True)
        case Text():
            console.print(block.plain, soft_wrap=block.kind == "lines")
        case Grid():
            _show_grid(block, console)
        case Figure(picture=picture) if picture:
            console.print(f"picture: {picture}", soft_wrap=True)


def _show_grid(grid: Grid, console: Any) -> None:
    from rich import box
    from rich.table import Table

    columns, *rows = grid.texts()
    table = Table(
        *columns, title=grid.title or None, box=box.SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*[columns, *rows], strict=True)]
    is_roomy = sum(min(width, NARROW) + 1 for width in widths[1:]) + NAME < console.width
    for place, column in enumerate(table.columns):
        longest = widths[place]
        column.overflow = "fold"
        column.min_width = min(longest, NAME)
        if place:
            column.justify = "right"
            column.no_wrap = longest <= (NARROW if is_roomy else NAME)
    for row in rows:
        table.add_row(*row)
    # A table that is wider than the screen runs over its edge: cut off, it would lose a column.
    needed = sum(min(width, NAME) + 1 for width in widths) + 1
    console.print(table, width=max(needed, console.width), crop=False)
    if grid.note:
        console.print(grid.note)
