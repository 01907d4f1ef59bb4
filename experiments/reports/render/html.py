"""Sections as one page: it needs no network, and works on a phone and in the dark.

All texts are escaped. Plotly's browser part is inside the page where a section has a plot.
"""

import base64
import gzip
import io
import re
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from experiments.reports.sections import Block, Cell, Code, Figure, Grid, Link, Section, Strong
from experiments.runs.provenance import git_state

TEMPLATES = Path(__file__).parent
DASHES = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}  # as plotly draws them
CROWD = 8  # rows from which a grid can be filtered


def render(name: str, sections: Sequence[Section], version: str = "") -> str:
    """The page, complete.

    Args:
        name: of the folder that the page is made of.
        version: of a page that is served (`experiments.reports.live`): it asks for newer ones.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"markup": _markup, "numeric": numeric, "spec": _spec, "image": _image}
    environment.globals |= {"dashes": DASHES, "crowd": CROWD}
    plots = any(_kind(block) == "plot" for section in sections for block in section.blocks)
    return environment.get_template("page.html").render(
        name=name,
        sections=[
            (anchor, section.title, section.folded, _runs(section.blocks))
            for anchor, section in _by_anchor(sections).items()
        ],
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z" if version else "%Y-%m-%d %H:%M %Z"),
        commit=(git_state()["commit"] or "unknown")[:10],
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(_library()) if plots else "",
        version=version,
        live=Markup((TEMPLATES / "live.js").read_text(encoding="utf-8")) if version else "",
    )


def anchor(title: str) -> str:
    """What the address of a section on its page ends with."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _by_anchor(sections: Sequence[Section]) -> dict[str, Section]:
    """Sections by anchors that no two share: titles can differ in punctuation alone."""
    found: dict[str, Section] = {}
    for section in sections:
        name = anchor(section.title)
        while name in found:
            name += "-more"
        found[name] = section
    return found


def _runs(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Blocks in their order with their kind; plots that follow each other are one run."""
    runs: list[tuple[str, list[Block]]] = []
    for kind, members in groupby(blocks, _kind):
        if kind == "plot":
            runs.append((kind, list(members)))
        else:
            runs += [(kind, [block]) for block in members]
    return runs


def _kind(block: Block) -> str:
    if isinstance(block, Figure):
        return "picture" if block.plot is None else "plot"
    return "grid" if isinstance(block, Grid) else "text"


def _markup(parts: Sequence[str]) -> Markup:
    return Markup("").join(map(_span, parts))


def _span(part: str) -> Markup:
    match part:
        case Strong():
            return Markup("<strong>{}</strong>").format(str(part))
        case Code():
            return Markup("<code>{}</code>").format(str(part))
        case Link():
            return Markup('<a href="#{}">{}</a>').format(anchor(part), str(part))
    return Markup.escape(part)


def numeric(rows: Sequence[Sequence[Cell]], width: int) -> list[bool]:
    """Which of `width` columns hold numbers, and so are aligned to the right."""
    if not rows:
        return [False] * width
    return [
        all(isinstance(cell.value, float) for cell in column if cell.text)
        for column in zip(*rows, strict=True)
    ]


def _spec(figure: Figure) -> Markup:
    """A plot for a script element: no text from a file can end the element."""
    text = figure.plot.to_json()
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _image(picture: Path) -> str:
    """A picture inside of the page, which loads nothing; a plot's colors fit into a palette."""
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(picture) as opened:
        opened.convert("RGB").quantize(128).save(smaller, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(smaller.getvalue()).decode()}"


def _library() -> str:
    """Plotly's browser part, complete and compressed: two fifths of its size, even as text."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode()
