"""What the page `report.html` shows.

A page is a list of sections (`experiments.reports.sections`). To add one, write a function from the
results to the sections that it has to show, possibly none, and name it in `SECTIONS`: nothing
else is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.reports.page import (
    benchmarks,
    comparisons,
    curvature,
    paper_tables,
    provenance,
    steps,
    sweeps,
)
from experiments.reports.render import html
from experiments.reports.sections import Figure, Section
from experiments.results.tables import Results
from experiments.runs.storage import write_whole

Maker = Callable[[Any], Iterator[Section]]
PLOTS = 10  # plots from which the sections that follow begin folded: two or three have been shown

SECTIONS: tuple[Maker, ...] = (
    comparisons.overview,
    comparisons.tables,
    paper_tables.tables,
    steps.inside_epochs,
    curvature.spectra,
    provenance.runs,
)
SECTIONS_OF_A_SWEEP: tuple[Maker, ...] = (
    comparisons.overview,
    sweeps.answer,
    comparisons.tables,
    steps.inside_epochs,
    curvature.spectra,
    provenance.runs,
)


SECTIONS_OF_A_BENCHMARK: tuple[Maker, ...] = (
    benchmarks.answer,
    comparisons.tables,
    provenance.runs,
)


def make(results: Results, makers: Sequence[Maker] = SECTIONS) -> list[Section]:
    """The page's sections; those far down begin folded if they have plots.

    Args:
        makers: of the sections, in their order.
    """
    sections = [section for maker in makers for section in maker(results)]
    plots = 0
    for section in sections:
        own = sum(isinstance(block, Figure) for block in section.blocks)
        section.folded |= own > 0 and plots >= PLOTS
        plots += own
    return sections


def write_page(results: Results, path: Path, makers: Sequence[Maker] | None = None) -> Path:
    """Write the page of all sections by rename, and return its path.

    Args:
        makers: of the sections; `SECTIONS` by default.
    """
    sections = make(results, makers or SECTIONS)
    write_whole(path, html.render(results.root.resolve().name, sections))
    return path
