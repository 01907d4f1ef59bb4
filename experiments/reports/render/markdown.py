"""Sections as Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

from experiments.reports.sections import Block, Code, Figure, Grid, Section, Strong, Text


def render(sections: Sequence[Section], folder: Path | None = None) -> str:
    """The sections one after the other.

    Args:
        folder: of the file; pictures are links from there, by default to files beside it.
    """
    return "\n".join(text for section in sections for text in _section(section, folder))


def _section(section: Section, folder: Path | None) -> list[str]:
    texts = [f"## {_escape(section.title)}\n"] if section.title else []
    for block, following in zip(section.blocks, [*section.blocks[1:], None], strict=True):
        text = _block(block, folder)
        # Commands that follow each other are one block of code.
        if _is_command(block) and _is_command(following):
            text = text.removesuffix("\n")
        texts += [text] if text else []
    return texts


def _block(block: Block, folder: Path | None) -> str:
    match block:
        case Text(kind="command" | "lines"):  # as code: neither wrapped nor read as Markdown
            return "".join(f"    {line}\n" for line in block.plain.splitlines())
        case Text():
            return "".join(map(_span, block.spans)) + "\n"
        case Grid():
            return grid(block)
        case Figure(picture=picture) if picture:
            path = picture.relative_to(folder or picture.parent)
            return f"![{_escape(block.title)}]({path.as_posix()})\n"
    return ""


def _is_command(block: Block | None) -> bool:
    return isinstance(block, Text) and block.kind == "command"


def _span(part: str) -> str:
    match part:
        case Strong():
            return f"**{_escape(part)}**"
        case Code():
            return f"`{part}`"
    return _escape(part)


# What begins or ends HTML, an entity, code, emphasis, a formula, a link or an escape. Within a word
# `_` is none of these.
_MARKS = re.compile(
    r"<(?=[a-zA-Z/!?])|&(?=#?\w+;)|[`*$]|(?<!\w)_|_(?!\w)|~(?=~)|(?<=~)~|\](?=\()"
    r"|\\(?=[!-/:-@\[-`{-~])"
)


def _escape(text: str) -> str:
    """A text that is shown as it stands: patterns of names have `*`, which would be lost."""
    return _MARKS.sub(r"\\\g<0>", text)


def grid(block: Grid) -> str:
    """A grid with its title and its note."""
    columns, *rows = block.texts()
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[_escape(cell).replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    title = f"### {_escape(block.title)}\n\n" if block.title else ""
    return f"{title}{table}\n" + (f"\n{_escape(block.note)}\n" if block.note else "")
