"""The paper's tables on the page."""

from collections.abc import Iterator
from functools import cache

from experiments.config.signature import signature
from experiments.plans import paper_tables as plans_paper_tables
from experiments.reports.paper_table_plots import draw
from experiments.reports.paper_table_text import section
from experiments.reports.sections import Section
from experiments.results import paper_tables
from experiments.results.tables import Results


def tables(results: Results) -> Iterator[Section]:
    """Every table of `configs/tables/` that counts one of the runs."""
    found = {(run.meta["dataset"], run.meta["signature"]) for run in results.having("done")}
    datasets = {dataset for dataset, _ in found}
    for name in plans_paper_tables.names():
        for variant in plans_paper_tables.find(name, None).table.datasets:
            if variant in datasets and found & _signatures(name, variant):
                request = plans_paper_tables.find(name, variant, results.root)
                read = paper_tables.read(request)
                path = results.root / "report" / f"{name}-{variant}.png"
                made = section(read, draw(read, path))
                made.folded = True
                yield made


@cache
def _signatures(name: str, variant: str) -> frozenset[tuple[str, str]]:
    """Data set and signature of each cell of a table."""
    configs = [cell.runs[0] for cell in plans_paper_tables.find(name, variant).cells]
    return frozenset((run.config.dataset.name, signature(run.config)) for run in configs)
