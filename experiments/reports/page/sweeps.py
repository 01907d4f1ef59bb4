"""A sweep on the page: the best combination, the swept keys' effect, and every run's state."""

from collections.abc import Iterator
from typing import Any

from experiments.config.flat import shown
from experiments.plots.sweeps import HeatMap, HeatMaps, LinePlot, ink
from experiments.reports import sweeps as words
from experiments.reports.page import figures
from experiments.reports.page.figures import escaped
from experiments.reports.sections import Cell, Code, Figure, Grid, Section, Text
from experiments.reports.sweep_plots import is_number, sweep_plot
from experiments.reports.sweeps import BEST
from experiments.results.sweeps import SweepResults

FOLD_FROM = 20  # runs from which the table of their states is shown on demand only
TEXT_LIMIT = 8  # columns of a heat map with texts in its cells; beyond, the pointer reads values


def answer(results: SweepResults) -> Iterator[Section]:
    """The table over the swept keys, its plot and the state of every run."""
    texts = []
    if missing := words.advice(results):
        texts.append(Text([missing, " ", Code(results.command)], "warning"))
    if verdict := words.verdict(results):
        texts.append(Text(verdict))
    blocks = [*texts, _combinations(results), *_plots(results), _states(results)]
    yield Section(results.title, blocks)


def _combinations(results: SweepResults) -> Grid:
    rows = []
    for point, line in zip(results.points, words.rows(results), strict=True):
        last = len(results.keys) + 2
        rows.append(
            [
                line[0],
                *(value if is_number(value) else shown(value) for value in point.values.values()),
                len(point.finished),
                Cell(line[last], words.mean(results, point)),
                *line[last + 1 :],
            ]
        )
    return Grid(words.caption(results), words.columns(results), rows)


def _states(results: SweepResults) -> Grid:
    rows = [[run, place, state, problem] for state, run, place, problem in words.states(results)]
    title = "The sweep's runs; new: never begun, or waiting in a queue"
    columns = ("run", "directory", "state", "problem")
    return Grid(title, columns, rows, folded=len(rows) >= FOLD_FROM)


# ----------------------------------------------------------------------------------------- plots


def _plots(results: SweepResults) -> Iterator[Figure]:
    plot = sweep_plot(results)
    if plot is None:
        return
    title = f"Last epoch: {results.tables[0].result_title}"
    if isinstance(plot, LinePlot):
        note = "Line: mean; band: one sample standard deviation over the seeds; dots: the seeds; "
        yield Figure(title, lines(plot), f"{note}ring: the best mean.")
        return
    for one in plot.maps:
        note = "Mean over the seeds, n where some are missing; gaps: no result; star: the best."
        yield Figure(f"{title}: {one.name}", heat_map(plot, one), note)


def lines(plot: LinePlot) -> Any:
    """The metric over the one swept key, a line per optimizer."""
    drawn = figures.figure(escaped(plot.x_title), plot.y_title, hovermode="closest")
    for place, line in enumerate(plot.lines):
        figures.add_line(drawn, place, line.name, line.curve.x, line.curve)
        drawn.add_scatter(
            x=[x for x, _ in line.dots], y=[y for _, y in line.dots], mode="markers",
            showlegend=False, legendgroup=str(place), text=line.dot_names,
            marker={"color": figures.style(place)["color"], "size": 5, "opacity": 0.6},
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    x, y = plot.best
    drawn.add_scatter(
        x=[x], y=[y], mode="markers", name="best mean", hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 16, "color": figures.COLORS[3],
                "line": {"width": 2}},
    )  # fmt: skip
    drawn.update_xaxes(tickvals=plot.ticks, ticktext=[str(value) for value in plot.ticks])
    if plot.logarithmic:
        drawn.update_xaxes(type="log")
    return drawn


def heat_map(plot: HeatMaps, one: HeatMap) -> Any:
    """The metric over two swept keys for one optimizer; colors are common to all of them."""
    across, down = ([escaped(text) for text in texts] for texts in (plot.across, plot.down))
    drawn = figures.figure(
        escaped(plot.x_title), escaped(plot.y_title), hovermode="closest", showlegend=False
    )
    drawn.add_heatmap(
        x=across, y=down, z=one.means, zmin=plot.limits[0], zmax=plot.limits[1],
        colorscale="Viridis", hoverongaps=False,
        hovertemplate="%{x}, %{y}: %{z:.4g}<extra></extra>",
        colorbar={"thickness": 9, "outlinewidth": 0, "xpad": 4},
    )  # fmt: skip
    if len(across) <= TEXT_LIMIT:
        _add_texts(drawn, plot, one, (across, down))
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(type="category", showgrid=False)
    return drawn


def _add_texts(drawn: Any, plot: HeatMaps, one: HeatMap, names: tuple[list, list]) -> None:
    """Write into the cells; a heat map's own texts leave out the gaps, and why they are there."""
    for gaps in (False, True):
        inks, x, y, texts = [], [], [], []
        for row, column, value, text in one.cells:
            color = ink(value, plot.limits)
            if gaps == (not color):
                star = f"{BEST} " if one.best == (row, column) else ""
                inks.append(color)
                x.append(names[0][column])
                y.append(names[1][row])
                texts.append(star + text.replace("\n", "<br>"))
        drawn.add_scatter(
            x=x, y=y, mode="text", text=texts, hoverinfo="skip",
            textfont={"size": 10} if gaps else {"size": 10, "color": inks},  # gaps: the page's
        )  # fmt: skip
