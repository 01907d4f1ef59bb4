"""The plots of the report page, drawn by plotly: the one importer of it beside `experiments.page`.

Plotly is the library because its browser part comes inside the Python package, so that a page made
without network works without network; because it redraws itself at a phone's width with letters of
unchanged size and changes its colors with the page, which pictures cannot; and because a reader
can read off values, hide lines and zoom. It costs 4.8 MB per page (1.5 MB compressed).

A group has the same color in all plots of a table. Text in plots is HTML to plotly, so labels,
which come from files, are escaped here.
"""

import html
import math
import re
import statistics
from typing import Any

from experiments.results import CONFIDENCE, Run, Table, curve, mean_interval

# Okabe and Ito's colors for all kinds of color vision, those that show on white and on black.
COLORS = ("#2f83d6", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
DASHES = ("solid", "dash", "dot", "dashdot")
HEIGHT = 300
COLUMN_LIMIT = 60  # epochs in a heat map


def style(place: int) -> dict[str, str]:
    """Color and dash of the group at a place of the table: each color solid first."""
    return {
        "color": COLORS[place % len(COLORS)],
        "dash": DASHES[place // len(COLORS) % len(DASHES)],
    }


def figure(x_title: str, y_title: str, height: int = HEIGHT, **layout: Any) -> Any:
    """An empty plot with the look of the page; colors of text and lines are set in the browser."""
    from plotly import graph_objects

    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 4}
    return graph_objects.Figure(
        layout={
            "template": graph_objects.layout.Template(),
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "font": {"size": 12, "family": "system-ui, sans-serif"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": COLORS,
            "hovermode": "x unified",
            "hoverlabel": {"namelength": -1},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "showlegend": True,
            "xaxis": {
                **axis,
                "title": {"text": x_title, "standoff": 8},
                "showgrid": False,
                "zeroline": False,
            },
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}, "zeroline": False},
            **layout,
        }
    )


def label(text: str) -> str:
    """A text from a file as plotly is to show it."""
    return html.escape(text, quote=False)


def headline_title(table: Table) -> str:
    return f"test {table.headline}{f' ({table.unit})' if table.unit else ''}"


# -------------------------------------------------------------------------------------- training


def seeds(table: Table) -> Any:
    """Each seed's last epoch, and per group the mean with its confidence interval."""
    height = max(HEIGHT, 110 + 34 * len(table.groups))
    plot = figure(
        f"last epoch, {headline_title(table)}", "", height, hovermode="closest", showlegend=False
    )
    names = []
    for place, (name, runs) in enumerate(table.groups.items()):
        values = [table.scale * run.last() for run in runs]
        mean, interval = statistics.mean(values), mean_interval(values)
        names.append(label(name))
        color = style(place)["color"]
        low, high = interval or (mean, mean)
        plot.add_scatter(
            x=values, y=[place + 0.18] * len(values), mode="markers", name=label(name),
            marker={"color": color, "size": 7, "opacity": 0.6},
            text=[f"seed {run.meta['seed']}" for run in runs],
            hovertemplate="%{text}: %{x:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        plot.add_scatter(
            x=[mean], y=[place - 0.12], mode="markers", name=label(name),
            marker={"color": color, "size": 11, "symbol": "diamond"},
            error_x={"array": [high - mean], "arrayminus": [mean - low], "thickness": 2,
                     "color": color},
            hovertemplate=f"mean %{{x:.4g}}, {CONFIDENCE:.0%} interval {low:.4g} to {high:.4g}"
            "<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    # Wide intervals of few seeds would squeeze all else: they may leave the picture.
    everything = [table.scale * run.last() for run in table.runs]
    margin = 0.6 * (max(everything) - min(everything)) or abs(everything[0]) * 0.01 or 1.0
    plot.update_xaxes(range=[min(everything) - margin, max(everything) + margin], showgrid=True)
    plot.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6],
        showgrid=False, ticks="",
    )  # fmt: skip
    return plot


def curves(
    table: Table, key: str, y_title: str, *, scale: float = 1, log: bool = False, error: str = ""
) -> Any:
    """A metric over the epochs: each group's mean line and a band of one standard deviation.

    Args:
        table: its groups are the lines; those without the key have none.
        key: of `metrics.jsonl`.
        y_title: with the unit.
        scale: what values are multiplied with.
        log: a logarithmic axis.
        error: key of the values' standard error, drawn as error bars of the mean.
    """
    plot = figure("epoch", y_title)
    for place, (name, runs) in enumerate(table.groups.items()):
        mean = curve(runs, key, scale)
        bars = _standard_errors(runs, error, mean.epochs) if error else None
        _add_line(plot, place, name, mean.epochs, mean, bars)
    if log:
        plot.update_yaxes(type="log", exponentformat="power")
    return plot


def headline(table: Table) -> Any:
    """The test metric over the epochs, with limits that show how the last epochs differ."""
    plot = curves(table, f"test/{table.headline}", headline_title(table), scale=table.scale)
    plot.update_yaxes(range=_late_limits(table))
    return plot


def headline_by_time(table: Table) -> Any:
    """The test metric over the time spent training, evaluation not counted."""
    longest = max(run.training_seconds() for run in table.runs)
    unit, seconds_each = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60)
    plot = figure(f"training time per run ({unit})", headline_title(table), hovermode="closest")
    for place, (name, runs) in enumerate(table.groups.items()):
        mean = curve(runs, f"test/{table.headline}", table.scale)
        seconds = curve(runs, "time/epoch_seconds")
        passed, times = 0.0, []
        spent = dict(zip(seconds.epochs, seconds.means, strict=True))
        for epoch in mean.epochs:
            passed += spent.get(epoch, 0) / seconds_each
            times.append(passed)
        _add_line(plot, place, name, times, mean)
    plot.update_yaxes(range=_late_limits(table))
    return plot


def _add_line(
    plot: Any, place: int, name: str, x: list[float], mean: Any, bars: list[float] | None = None
) -> None:
    if not x:
        return
    look = style(place)
    if any(mean.stds):
        low, high = mean.band()
        plot.add_scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", mode="none",
            fillcolor=_transparent(look["color"]), hoverinfo="skip", showlegend=False,
            legendgroup=str(place),
        )  # fmt: skip
    plot.add_scatter(
        x=x, y=mean.means, name=label(name), line={**look, "width": 2}, legendgroup=str(place),
        mode="lines+markers" if len(x) < 12 else "lines", marker={"size": 5},
        customdata=mean.stds, hovertemplate="%{y:.4g} ± %{customdata:.2g}",
        error_y={"array": bars, "thickness": 1, "width": 2} if bars else None,
    )  # fmt: skip


def _transparent(color: str, opacity: float = 0.18) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _late_limits(table: Table) -> list[float]:
    """Limits around what the second half of the trainings shows; the start may leave the plot."""
    late = [
        table.scale * row[run.test_key]
        for run in table.runs
        for row in run.evaluated[len(run.evaluated) // 2 :]
        if math.isfinite(row[run.test_key])
    ]
    margin = 0.15 * (max(late) - min(late)) or 0.05 * abs(late[0]) or 1.0
    low, high = min(late) - margin, max(late) + margin
    return [low, min(high, 100.5) if table.unit == "%" else high]


def _standard_errors(runs: list[Run], key: str, epochs: list[int]) -> list[float]:
    """The estimator's standard error of the mean over the runs, by epoch; 0 where unknown."""
    errors = [run.series(key) for run in runs]
    found = []
    for epoch in epochs:
        here = [error[epoch] for error in errors if epoch in error]
        found.append(math.hypot(*here) / len(here) if here else 0.0)
    return found


# ------------------------------------------------------------------------------------- curvature


def eigenvalues(table: Table) -> Any:
    """The top eigenvalues over the epochs: the largest as a thick line, further ones thin."""
    plot = figure("epoch", "eigenvalue (loss / parameter²)")
    keys = {key for run in table.runs for row in run.rows for key in row}
    further = sorted(
        (key for key in keys if re.fullmatch(r"hessian/top_eigenvalue_\d+", key)),
        key=lambda key: int(key.rpartition("_")[2]),
    )
    for place, (name, runs) in enumerate(table.groups.items()):
        mean = curve(runs, "hessian/top_eigenvalue")
        _add_line(plot, place, name, mean.epochs, mean)
        for key in further:
            mean = curve(runs, key)
            plot.add_scatter(
                x=mean.epochs, y=mean.means, line={**style(place), "width": 0.8}, mode="lines",
                name=f"{label(name)}, number {key.rpartition('_')[2]}", showlegend=False,
                legendgroup=str(place), opacity=0.8, hoverinfo="skip",
            )  # fmt: skip
    plot.update_yaxes(type="log", exponentformat="power")
    return plot


def signal_to_noise(table: Table) -> Any:
    """The diagonal's signal-to-noise ratio by block size, at the last epoch that has it."""
    plot = figure("block size (parameters)", "signal-to-noise ratio")
    sizes = set()
    for place, (name, runs) in enumerate(table.groups.items()):
        by_size: dict[int, list[float]] = {}
        for run in runs:
            for key in {key for row in run.rows for key in row}:
                if match := re.fullmatch(r"hessian/signal_to_noise/block_(\d+)", key):
                    values = run.series(key)
                    if values:
                        by_size.setdefault(int(match[1]), []).append(values[max(values)])
        x = sorted(by_size)
        sizes |= by_size.keys()
        if x:
            spread = [statistics.stdev(v) if len(v := by_size[b]) > 1 else 0.0 for b in x]
            plot.add_scatter(
                x=x, y=[statistics.mean(by_size[b]) for b in x], name=label(name),
                mode="lines+markers", line={**style(place), "width": 2}, customdata=spread,
                error_y={"array": spread, "thickness": 1, "width": 2},
                hovertemplate="%{y:.3g} ± %{customdata:.2g}",
            )  # fmt: skip
    plot.update_xaxes(type="log", tickvals=sorted(sizes))
    return plot


def layer_traces(runs: list[Run], limits: tuple[float, float]) -> Any:
    """The trace of each layer's block over the epochs, mean over the runs of a group.

    Args:
        runs: of one group.
        limits: of the colors, decades; the same for all groups of a table.
    """
    import numpy

    layers, epochs, means = layer_means(runs)
    height = max(HEIGHT, 90 + 17 * len(layers))
    plot = figure("epoch", "", height, hovermode="closest", showlegend=False)
    positive = numpy.where(means > 0, means, numpy.nan)
    plot.add_heatmap(
        x=epochs, y=[label(layer) for layer in layers], z=numpy.log10(positive).astype("float32"),
        zmin=limits[0], zmax=limits[1], colorscale="Viridis", customdata=means.astype("float32"),
        hoverongaps=True,
        hovertemplate="epoch %{x}, %{y}: trace %{customdata:.3g}<extra></extra>",
        colorbar=_decades("trace (loss / parameter²)", *limits),
    )  # fmt: skip
    plot.update_yaxes(autorange="reversed", showgrid=False, ticks="", tickfont={"size": 10})
    if len(layers) <= 30:
        plot.update_yaxes(dtick=1)
    return plot


def layer_means(runs: list[Run]) -> tuple[list[str], list[int], Any]:
    """Layers in the model's order, epochs, and the mean traces (layers, epochs)."""
    import numpy

    prefix = "hessian/layer_trace/"
    keys = list(
        dict.fromkeys(key for run in runs for row in run.rows for key in row if prefix in key)
    )
    lines = [curve(runs, key) for key in keys]
    epochs = thin(sorted({epoch for line in lines for epoch in line.epochs}))
    values = [dict(zip(line.epochs, line.means, strict=True)) for line in lines]
    means = [[value.get(epoch, math.nan) for epoch in epochs] for value in values]
    return [key.removeprefix(prefix) for key in keys], epochs, numpy.array(means)


def thin(epochs: list[int]) -> list[int]:
    """At most `COLUMN_LIMIT` of them, evenly chosen, the first and the last among them."""
    if len(epochs) <= COLUMN_LIMIT:
        return epochs
    last = len(epochs) - 1
    return [epochs[round(i * last / (COLUMN_LIMIT - 1))] for i in range(COLUMN_LIMIT)]


def _decades(title: str, low: float, high: float) -> dict[str, Any]:
    """A color bar for colors that are decimal logarithms."""
    ticks = list(range(math.ceil(low), math.floor(high) + 1))
    ticks = ticks[:: max(1, len(ticks) // 5)]
    return {
        "title": {"text": title, "side": "right", "font": {"size": 11}}, "thickness": 9,
        "tickvals": ticks, "ticktext": [f"10<sup>{tick}</sup>" for tick in ticks],
        "outlinewidth": 0, "xpad": 4,
    }  # fmt: skip


class EigenvalueAxis:
    """An axis for eigenvalues of both signs over decades: linear around zero, logarithmic beyond.

    Args:
        spectra: by epoch, of all the runs that are to be compared.
        points: of the axis.
    """

    def __init__(self, spectra: list[dict[int, dict[str, Any]]], points: int = 160) -> None:
        import numpy

        grids = [arrays["grid"] for run in spectra for arrays in run.values()]
        low, high = min(grid.min() for grid in grids), max(grid.max() for grid in grids)
        largest = max(abs(low), abs(high))
        # Finer than the narrowest density's own smoothing there is nothing to see.
        self.linear = max(min(numpy.ptp(grid) for grid in grids) / 20, largest / 1000)
        self.positions = numpy.linspace(*self.position([low, high]), points)
        self.values = self.linear * numpy.sinh(self.positions)
        first, last = math.ceil(math.log10(self.linear)), math.floor(math.log10(largest))
        steps = (1, 3) if last - first < 3 else (1,)
        sizes = [step * 10.0**k for k in range(first, last + 1) for step in steps]
        ticks = [0.0, *sizes, *(-size for size in sizes)]
        self.ticks = sorted(tick for tick in ticks if low <= tick <= high)

    def position(self, values: Any) -> Any:
        """Where eigenvalues are on the axis."""
        import numpy

        return numpy.arcsinh(numpy.asarray(values) / self.linear)


def density(
    spectra: dict[int, dict[str, Any]], axis: EigenvalueAxis, limits: tuple[float, float]
) -> Any:
    """The spectral density over the epochs as a heat map, with the largest eigenvalues on it."""
    import numpy

    epochs = thin(sorted(spectra))
    columns = []
    for epoch in epochs:
        grid, values = spectra[epoch]["grid"], spectra[epoch]["density"]
        here = numpy.interp(axis.values, grid, values, left=0, right=0)
        columns.append(numpy.where(here > 10 ** limits[0], here, numpy.nan))
    plot = figure("epoch", "eigenvalue (loss / parameter²)", 360, hovermode="closest")
    plot.add_heatmap(
        x=[str(epoch) for epoch in epochs], y=axis.positions.astype("float32"),
        z=numpy.log10(numpy.array(columns).T).astype("float32"), zmin=limits[0], zmax=limits[1],
        customdata=numpy.tile(axis.values[:, None], len(epochs)).astype("float32"),
        colorscale="Viridis", colorbar=_decades("density", *limits), hoverongaps=False,
        hovertemplate="epoch %{x}, eigenvalue %{customdata:.3g}: density 10^%{z:.1f}"
        "<extra></extra>",
    )  # fmt: skip
    tops = [(str(epoch), value) for epoch in epochs for value in spectra[epoch]["eigenvalues"]]
    plot.add_scatter(
        x=[epoch for epoch, _ in tops], y=axis.position([value for _, value in tops]),
        mode="markers", marker={"size": 5, "color": COLORS[3], "symbol": "line-ew-open"},
        text=[f"{value:.4g}" for _, value in tops], showlegend=False,
        hovertemplate="epoch %{x}, eigenvalue %{text}<extra></extra>",
    )  # fmt: skip
    plot.update_xaxes(type="category")
    plot.update_yaxes(
        tickvals=axis.position(axis.ticks), ticktext=[f"{tick:g}" for tick in axis.ticks]
    )
    return plot


def density_limits(spectra: list[dict[int, dict[str, Any]]]) -> tuple[float, float]:
    """The decades of density worth a color, over all the runs that are to be compared.

    They begin a little below the height that a single eigenvalue has, the largest one.
    """
    import numpy

    every = [arrays for run in spectra for arrays in run.values()]
    tops = [numpy.interp(max(a["eigenvalues"]), a["grid"], a["density"]) for a in every]
    high = math.log10(max(float(arrays["density"].max()) for arrays in every))
    low = math.log10(min((top for top in tops if top > 0), default=10 ** (high - 5)))
    return max(low - 0.3, high - 8), high
