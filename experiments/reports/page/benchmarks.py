"""A benchmark on the page: its tables, with the plots to be read off."""

from collections.abc import Iterator
from typing import Any

from experiments.plots.benchmarks import LinesByRow
from experiments.reports import benchmark_plots, benchmarks
from experiments.reports.page.figures import escaped, figure, style
from experiments.reports.sections import Figure, Section
from experiments.results.benchmarks import BenchmarkResults


def answer(results: BenchmarkResults) -> Iterator[Section]:
    """The benchmark's section."""
    section = benchmarks.section(results, None)
    section.blocks += [
        Figure(plot.title, _figure(plot), plot.note) for plot in benchmark_plots.lines(results)
    ]
    yield section


def _figure(plot: LinesByRow) -> Any:
    found = figure(plot.x_title, plot.y_title, hovermode="closest")
    for place, (row, values) in enumerate(plot.lines.items()):
        found.add_scatter(
            x=list(plot.x),
            y=list(values),
            name=escaped(row),
            mode="lines" if plot.steps else "lines+markers",
            line={**style(place), "shape": "hv" if plot.steps else "linear"},
        )
    if plot.log_x:
        found.update_xaxes(type="log")
    if plot.log_y:
        found.update_yaxes(type="log")
    return found
