"""What a sweep answers: the best combination, the swept keys' effect, and how every run is."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from experiments.reports import sweeps as reports_sweeps
from experiments.reports.page import figures
from experiments.reports.page.blocks import Cell, Figure, Grid, Section, Text
from experiments.reports.sweeps import (
    BEST,
    advice,
    axis,
    by_optimizer,
    cell_text,
    dots,
    ink,
    is_line,
    is_map,
    logarithmic,
    states,
)
from experiments.results import sweeps
from experiments.results.sweeps import Point, SweepResults
from experiments.results.tables import Results

FOLD_FROM = 20  # runs from which the table of their states is shown on demand only
TEXT_LIMIT = 8  # columns of a heat map with texts in its cells; beyond, the pointer reads values


def answer(results: Results) -> Iterator[Section]:
    """The table over the swept keys, its plot and the state of every run of a sweep."""
    if not isinstance(results, SweepResults):
        return
    texts = []
    if missing := advice(results):
        text = Markup("{} <code>{}</code>").format(missing, results.command)
        texts.append(Text(text, "warning"))
    if verdict := reports_sweeps.verdict(results):
        texts.append(Text(verdict))
    blocks = [*texts, _combinations(results), *_plots(results), _states(results)]
    yield Section(results.title, blocks)


def _combinations(results: SweepResults) -> Grid:
    rows = []
    for point, line in zip(results.points, reports_sweeps.rows(results), strict=True):
        last = len(results.keys) + 2
        rows.append(
            [
                line[0],
                *(value if _is_number(value) else str(value) for value in point.values.values()),
                len(point.finished),
                Cell(line[last], reports_sweeps.mean(results, point)),
                *line[last + 1 :],
            ]
        )
    return Grid(reports_sweeps.caption(results), reports_sweeps.columns(results), rows)


def _states(results: SweepResults) -> Grid:
    rows = [[run, place, state, problem] for state, run, place, problem in
            states(results)]  # fmt: skip
    caption = "The sweep's runs; new: never begun, or waiting in a queue"
    columns = ("run", "directory", "state", "problem")
    return Grid(caption, columns, rows, folded=len(rows) >= FOLD_FROM)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ----------------------------------------------------------------------------------------- plots


def _plots(results: SweepResults) -> Iterator[Figure]:
    groups = by_optimizer(results)
    if not groups:
        return
    title = f"Last epoch: {results.tables[0].headline_title}"
    if is_line(results):
        note = "Line: mean; band: one sample standard deviation over the seeds; dots: the seeds; "
        yield Figure(title, lines(results, groups), f"{note}ring: the best mean.")
    elif is_map(results):
        for name, points in groups.items():
            note = "Mean over the seeds, n where some are missing; gaps: no result; star: the best."
            yield Figure(f"{title}: {name}", heat_map(results, points), note)


def lines(results: SweepResults, groups: dict[str, list[Point]]) -> Any:
    """The metric over the one swept key, a line per optimizer."""
    (key,) = results.keys
    plot = figures.figure(
        figures.escaped(sweeps.short(key)), results.tables[0].headline_title,
        hovermode="closest",
    )  # fmt: skip
    for place, (name, points) in enumerate(groups.items()):
        mean = reports_sweeps.line(results, points)
        figures.add_line(plot, place, name, mean.epochs, mean)
        x, y = dots(results, points)
        plot.add_scatter(
            x=x, y=y, mode="markers", showlegend=False, legendgroup=str(place),
            marker={"color": figures.style(place)["color"], "size": 5, "opacity": 0.6},
            text=[f"seed {run.meta['seed']}" for point in points for run in point.finished],
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    best = results.best
    plot.add_scatter(
        x=[best.values[key]], y=[reports_sweeps.mean(results, best)], mode="markers",
        name="best mean", hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 16, "color": figures.COLORS[3],
                "line": {"width": 2}},
    )  # fmt: skip
    values = axis(results, key)
    plot.update_xaxes(tickvals=values, ticktext=[str(value) for value in values])
    if logarithmic(results):
        plot.update_xaxes(type="log")
    return plot


def heat_map(results: SweepResults, points: list[Point]) -> Any:
    """The metric over two swept keys for one optimizer; colors are common to all of them."""
    first, second = results.keys
    across, down = (
        [figures.escaped(str(value)) for value in axis(results, key)] for key in (first, second)
    )
    grid = reports_sweeps.cells(results, points)
    low, high = reports_sweeps.limits(results)
    plot = figures.figure(
        figures.escaped(sweeps.short(first)), figures.escaped(sweeps.short(second)),
        hovermode="closest", showlegend=False,
    )  # fmt: skip
    means = [[reports_sweeps.mean(results, point) for point in line] for line in grid]
    plot.add_heatmap(
        x=across, y=down, z=means, zmin=low, zmax=high, colorscale="Viridis", hoverongaps=False,
        hovertemplate="%{x}, %{y}: %{z:.4g}<extra></extra>",
        colorbar={"thickness": 9, "outlinewidth": 0, "xpad": 4},
    )  # fmt: skip
    if len(across) <= TEXT_LIMIT:
        _add_texts(plot, results, grid, (across, down))
    plot.update_xaxes(type="category")
    plot.update_yaxes(type="category", showgrid=False)
    return plot


def _add_texts(
    plot: Any, results: SweepResults, grid: list[list[Point | None]], names: tuple[list, list]
) -> None:
    """Write into the cells; a heat map's own texts leave out the gaps, and why they are there."""
    limits = reports_sweeps.limits(results)
    cells = [
        (names[0][column], names[1][row], point)
        for row, line in enumerate(grid)
        for column, point in enumerate(line)
        if point is not None
    ]
    for gaps in (False, True):
        chosen = [cell for cell in cells if (not cell[2].finished) == gaps]
        inks = [ink(reports_sweeps.mean(results, p), limits) for _, _, p in chosen]
        plot.add_scatter(
            x=[x for x, _, _ in chosen], y=[y for _, y, _ in chosen], mode="text",
            text=[_cell_text(results, point) for _, _, point in chosen], hoverinfo="skip",
            textfont={"size": 10} if gaps else {"size": 10, "color": inks},  # gaps: the page's
        )  # fmt: skip


def _cell_text(results: SweepResults, point: Point) -> str:
    text = cell_text(results, point).replace("\n", "<br>")
    return f"{BEST} {text}" if point is results.best else text
