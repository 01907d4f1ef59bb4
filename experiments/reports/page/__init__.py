"""The report as one page, `report.html`: it needs no network, and works on a phone and in the dark.

A page is a list of sections (`experiments.reports.page.blocks`). To add one, write a function from
the results to the sections that it has to show, possibly none, and name it in `SECTIONS`: nothing
else is needed.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from experiments.reports.page import (
    comparisons,
    curvature,
    figures,
    paper_tables,
    provenance,
    sweeps,
)
from experiments.reports.page.blocks import Figure, Section
from experiments.results.tables import Results
from experiments.runs.provenance import git_state

SECTIONS: tuple[Callable[[Results], Iterator[Section]], ...] = (
    comparisons.overview,
    sweeps.answer,
    comparisons.tables,
    paper_tables.tables,
    curvature.spectra,
    provenance.runs,
)
TEMPLATES = Path(__file__).parent


def write_page(results: Results, path: Path) -> Path:
    """Write the page of all sections by rename, and return its path."""
    sections = [section for make in SECTIONS for section in make(results)]
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(render(results.root.resolve().name, sections), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(name: str, sections: Sequence[Section]) -> str:
    """The page as HTML, with the plotting library, the style sheet and the script inside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    plots = any(isinstance(block, Figure) for section in sections for block in section.blocks)
    return environment.get_template("page.html").render(
        name=name,
        sections=_by_anchor(sections),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        commit=(git_state()["commit"] or "unknown")[:10],
        style=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        plotly=Markup(figures.library()) if plots else "",
    )


def _by_anchor(sections: Sequence[Section]) -> dict[str, Section]:
    """Sections under anchors that no two share: titles can differ in punctuation alone."""
    found: dict[str, Section] = {}
    for section in sections:
        anchor = section.anchor
        while anchor in found:
            anchor += "-more"
        found[anchor] = section
    return found
