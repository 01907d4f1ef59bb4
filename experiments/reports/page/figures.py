"""The look of the page's plots, and those of the training.

Plotly is the library because its browser part comes inside the Python package, so that a page made
without network works without network; because it redraws itself at a phone's width with letters of
unchanged size and changes its colors with the page, which pictures cannot; and because a reader
can read off values, hide lines and zoom. It costs 2 MB per page, compressed.

A group has the same color in all plots of a table. Text in plots is HTML to plotly, so labels,
which come from files, are escaped here.
"""

import html
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from experiments.plots.curves import Curve
from experiments.results.prices import gradients_by_epoch
from experiments.results.statistics import (
    CONFIDENCE,
    curve,
    curve_through,
    late_limits,
    mean_interval,
)
from experiments.results.tables import ComparisonTable
from experiments.runs.reading import Run

# Okabe and Ito's colors for all kinds of color vision, those that show on white and on black.
COLORS = ("#2f83d6", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
DASHES = ("solid", "dash", "dot", "dashdot")
HEIGHT = 300
WIDE = 24  # characters from which a tick's label takes two lines
CROWD = 12  # groups from which bands and legend would hide the lines


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
    axis["showspikes"] = False  # unified hovering has one by default, thick and white in the dark
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
                "unifiedhovertitle": {"text": f"{x_title} %{{x}}"},
            },
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
            **layout,
        }
    )


def escaped(text: str) -> str:
    """A text from a file as plotly is to show it."""
    return html.escape(text, quote=False)


# -------------------------------------------------------------------------------------- training


def style_of_rows(table: ComparisonTable) -> list[dict[str, str]]:
    """`style` of each group of a table, and of each run that is under way."""
    groups = [style(place) for place in range(len(table.groups))]
    return [*groups, *(look for _, _, _, look in runs_under_way(table))]


def runs_under_way(table: ComparisonTable) -> Iterator[tuple[int, str, Run, dict[str, str]]]:
    """Each run that is not done: its place after the groups, its label, the run, and its style.

    It has its group's color, and is dotted.
    """
    labels = list(dict.fromkeys([*table.groups, *(label for label, _ in table.under_way)]))
    for place, (label, run) in enumerate(table.under_way, len(table.groups)):
        name = f"{label}, seed {run.meta['seed']} ({run.state})"
        yield place, name, run, {**style(labels.index(label)), "dash": "dot"}


def spread_note(table: ComparisonTable) -> str:
    """What lines and bands are; without several seeds there is no band."""
    dots = " Dots: runs that are not done." if table.under_way else ""
    if all(len(runs) == 1 for runs in table.groups.values()):
        return f"One seed.{dots}"
    if len(table.groups) > CROWD:
        return f"Line: mean over the seeds; the pointer tells which.{dots}"
    return f"Line: mean; band: one sample standard deviation over the seeds.{dots}"


def seeds(table: ComparisonTable) -> Any:
    """Each seed's last epoch, and per group the mean with its confidence interval."""
    rows = len(table.groups)
    height = max(HEIGHT, 90 + (26 if rows <= CROWD else 18) * rows)
    # No title below the axis: on a phone, long names leave no room for it.
    plot = figure("", "", height, hovermode="closest", showlegend=False)
    names = []
    for place, (name, runs) in enumerate(table.groups.items()):
        recorded, scale = [run.last() for run in runs], table.metric.scale
        values, mean = [scale * value for value in recorded], scale * statistics.mean(recorded)
        interval = mean_interval(recorded)
        first, _, settings = escaped(name).partition(" ")
        names.append(
            f"{first}<br>{settings}" if rows <= CROWD and len(name) > WIDE else escaped(name)
        )
        color = style(place)["color"]
        low, high = (mean, mean)
        if interval:
            low, high = (scale * bound for bound in table.metric.clipped(interval))
        plot.add_scatter(
            x=values, y=[place + 0.18] * len(values), mode="markers", name=escaped(name),
            legendgroup=str(place),
            marker={"color": color, "size": 7, "opacity": 0.6},
            text=[f"seed {run.meta['seed']}" for run in runs],
            hovertemplate="%{text}: %{x:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        plot.add_scatter(
            x=[mean], y=[place - 0.12], mode="markers", name=escaped(name), legendgroup=str(place),
            marker={"color": color, "size": 11, "symbol": "diamond"},
            error_x={"array": [high - mean], "arrayminus": [mean - low], "thickness": 2,
                     "color": color},
            hovertemplate=f"mean %{{x:.4g}}, {CONFIDENCE:.0%} interval {low:.4g} to {high:.4g}"
            "<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    # The wide intervals of few seeds may leave the picture, so that the seeds fill it.
    everything = [run.last() for run in table.runs]
    margin = 0.6 * (max(everything) - min(everything)) or abs(everything[0]) * 0.01 or 1.0
    limits = table.metric.clipped((min(everything) - margin, max(everything) + margin))
    low, high = (table.metric.scale * limit for limit in limits)
    edge = 0.02 * (high - low)  # half a marker
    plot.update_xaxes(range=[low - edge, high + edge], showgrid=True)
    plot.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6],
        showgrid=False, ticks="",
    )  # fmt: skip
    return plot


def curves(
    table: ComparisonTable,
    key: str,
    y_title: str,
    *,
    scale: float = 1,
    log: bool = False,
    error: str = "",
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
        bars = _standard_errors(runs, error, mean.x) if error else None
        add_line(plot, place, name, mean.x, mean, bars)
    for place, name, run, look in runs_under_way(table):
        mean = curve([run], key, scale)
        add_line(plot, place, name, mean.x, mean, look=look)
    declutter(plot, table)
    if log:
        use_logarithmic_y(plot)
    return plot


def headline(table: ComparisonTable) -> Any:
    """The result over the epochs, with limits that show how the last epochs differ."""
    plot = curves(table, table.result_key, table.result_title, scale=table.metric.scale)
    _show_late(plot, table)
    return plot


def headline_by_time(table: ComparisonTable) -> Any:
    """The result over the time spent training, evaluation not counted."""
    longest = max(run.training_seconds() for run in table.all_runs)
    unit, seconds_each = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60)

    def spent(runs: list[Run]) -> dict[float, float]:
        seconds = curve(runs, "time/epoch_seconds", 1 / seconds_each)
        return dict(zip(seconds.x, accumulate(seconds.means), strict=True))

    return _headline_over(table, f"training time per run ({unit})", spent)


def headline_by_gradients(table: ComparisonTable) -> Any | None:
    """The result over the gradient equivalents; None where they are the steps for all runs."""
    prices = {run.directory: gradients_by_epoch(run) for run in table.all_runs}
    if all(prices[run.directory].items() <= run.series("step").items() for run in table.all_runs):
        return None

    def spent(runs: list[Run]) -> dict[float, float]:
        passed: dict[float, list[float]] = {}
        for run in runs:
            for epoch, gradients in prices[run.directory].items():
                passed.setdefault(epoch, []).append(gradients)
        mean = curve_through(passed)
        return dict(zip(mean.x, mean.means, strict=True))

    return _headline_over(table, "gradients evaluated", spent)


def _headline_over(
    table: ComparisonTable, x_title: str, spent: Callable[[list[Run]], Mapping[float, float]]
) -> Any:
    """The result over what runs have spent up to the end of each epoch; no line for no figures."""
    plot = figure(x_title, table.result_title, hovermode="closest")
    lines = [(place, name, runs, None) for place, (name, runs) in enumerate(table.groups.items())]
    lines += [(place, name, [run], look) for place, name, run, look in runs_under_way(table)]
    for place, name, runs, look in lines:
        mean = curve(runs, table.result_key, table.metric.scale)
        until = spent(runs)
        x, passed = [], 0.0
        for epoch in mean.x:  # the metric may be measured every few epochs only
            passed = until.get(epoch, passed)
            x.append(passed)
        if until:
            add_line(plot, place, name, x, mean, look=look)
    declutter(plot, table)
    _show_late(plot, table)
    return plot


def _show_late(plot: Any, table: ComparisonTable) -> None:
    """Limits that show how the last epochs differ; of a logarithmic axis they are exponents."""
    low, high = late_limits(table.metric, table.all_runs)
    if table.metric.log and low > 0:
        use_logarithmic_y(plot)
    if plot.layout.yaxis.type == "log":
        low, high = math.log10(low), math.log10(high)
    plot.update_yaxes(range=(low, high))


def add_line(
    plot: Any,
    place: int,
    name: str,
    x: list[float],
    mean: Curve,
    bars: list[float] | None = None,
    look: dict[str, str] | None = None,
) -> None:
    """A mean line, a band of one standard deviation, and error bars where there are some.

    Args:
        place: of the row whose line it is, from which it has its style unless there is a `look`.
    """
    if not x:
        return
    look, x = look or style(place), _short(x, 6)
    mean = Curve(mean.x, _short(mean.means), _short(mean.stds))
    if any(mean.stds):
        low, high = map(_short, mean.band())
        plot.add_scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", mode="none",
            fillcolor=_transparent(look["color"]), hoverinfo="skip", showlegend=False,
            legendgroup=str(place),
        )  # fmt: skip
    plot.add_scatter(
        x=x, y=mean.means, name=escaped(name), line={**look, "width": 2}, legendgroup=str(place),
        mode="lines+markers" if len(x) < 12 else "lines", marker={"size": 5},
        customdata=mean.stds, hovertemplate="%{y:.4g} ± %{customdata:.2g}",
        error_y={"array": bars, "thickness": 1, "width": 2} if bars else None,
    )  # fmt: skip


def declutter(plot: Any, table: ComparisonTable) -> None:
    """Leave out bands and legend where groups are many."""
    if len(table.groups) > CROWD:
        plot.data = [trace for trace in plot.data if trace.fill is None]
        plot.update_layout(showlegend=False, hovermode="closest")


def use_logarithmic_y(plot: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5, or at powers where there are many.

    An axis stays linear where these numbers could all lie outside of it.
    """
    values = [y for trace in plot.data for y in trace.y if y > 0]
    if not values or max(values) < 2.5 * min(values):
        return
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    shown = range(low, min(high, sys.float_info.max_10_exp) + 1, max(1, (high - low) // 10))
    ticks = [step * 10.0**decade for decade in shown for step in steps]
    plot.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def decades(title: str, low: float, high: float) -> dict[str, Any]:
    """A color bar for colors that are decimal logarithms."""
    ticks = list(range(math.ceil(low), math.floor(high) + 1))
    ticks = ticks[:: max(1, len(ticks) // 5)]
    return {
        "title": {"text": title, "side": "right", "font": {"size": 11}}, "thickness": 9,
        "tickvals": ticks, "ticktext": [f"10<sup>{tick}</sup>" for tick in ticks],
        "outlinewidth": 0, "xpad": 4,
    }  # fmt: skip


def _short(values: list[float], digits: int = 4) -> list[float]:
    """Significant digits, more than a plot can show, in a third of the characters."""
    rounded = [float(f"{value:.{digits}g}") for value in values]
    return [int(value) if value.is_integer() else value for value in rounded]


def _transparent(color: str, opacity: float = 0.18) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _standard_errors(runs: list[Run], key: str, epochs: list[int]) -> list[float]:
    """The estimator's standard error of the mean over the runs, by epoch; 0 where unknown."""
    errors = [run.series(key) for run in runs]
    found = []
    for epoch in epochs:
        here = [error[epoch] for error in errors if epoch in error]
        found.append(math.hypot(*here) / len(here) if here else 0.0)
    return found
