"""The paper's tables as sections: what our runs say beside the paper's figures."""

import base64
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from markupsafe import Markup

from experiments.config.signature import signature
from experiments.plans import paper_tables as plans_paper_tables
from experiments.reports import paper_table_text
from experiments.reports.page.blocks import Grid, Section, Text
from experiments.reports.text_table import Table
from experiments.results import paper_tables
from experiments.results.paper_tables import TableResults
from experiments.results.sweeps import SweepResults
from experiments.results.tables import Results


def tables(results: Results) -> Iterator[Section]:
    """Every table of `configs/tables/` that counts one of the runs."""
    # The pictures share a helper with the report, which imports this package.
    from experiments.reports.paper_table_plots import draw

    if isinstance(results, SweepResults):
        return
    found = {(run.meta["dataset"], run.meta["signature"]) for run in results.having("done")}
    datasets = {dataset for dataset, _ in found}
    for name in plans_paper_tables.names():
        for variant in plans_paper_tables.find(name, None).table.datasets:
            if variant in datasets and found & _signatures(name, variant):
                request = plans_paper_tables.find(name, variant, results.root)
                read = paper_tables.read(request)
                folder = results.root / "report"
                folder.mkdir(exist_ok=True)
                yield section(read, draw(read, folder / f"{name}-{variant}.png"))


@cache
def _signatures(name: str, variant: str) -> frozenset[tuple[str, str]]:
    """Data set and signature of each cell of a table."""
    configs = [cell.runs[0] for cell in plans_paper_tables.find(name, variant).cells]
    return frozenset((run.config.dataset.name, signature(run.config)) for run in configs)


def section(results: TableResults, picture: Path | None) -> Section:
    """A table as a section of a page, with its picture where there is one."""
    made = Section(results.request.title)
    if results.request.table.note:
        made.blocks.append(Text(results.request.table.note))
    for table in paper_table_text.beforehand(results):
        made.blocks += _blocks(table)
    for command in paper_table_text.commands(results):
        made.blocks.append(Text(Markup("<code>{}</code>").format(command)))
    if picture:
        made.blocks.append(Text(_image(picture, results.request.title)))
    for table in paper_table_text.ours(results):
        made.blocks += _blocks(table)
    if source := paper_table_text.provenance(results):
        made.blocks.append(Text(source, "note"))
    return made


def _blocks(table: Table) -> list[Grid | Text]:
    return [Grid(table.title, table.columns, table.rows), Text(table.note, "note")]


def _image(picture: Path, title: str) -> Markup:
    """A picture inside of the page, which loads nothing."""
    data = base64.b64encode(picture.read_bytes()).decode()
    tag = '<img alt="{}" style="max-width: 100%" src="data:image/png;base64,{}">'
    return Markup(tag).format(title, data)
