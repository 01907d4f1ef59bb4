"""What happens inside the epochs, for runs that logged single steps (`log_every_steps`)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.plots.curves import Curve
from experiments.reports.page.figures import (
    HEIGHT,
    add_line,
    decades,
    declutter,
    escaped,
    figure,
    runs_under_way,
    style,
    use_logarithmic_y,
)
from experiments.reports.sections import Figure, Section, Text
from experiments.results.statistics import curve_through
from experiments.results.tables import ComparisonTable, Results
from experiments.runs.reading import Run

MOST_POINTS = 250  # of a line: more than a plot is wide on a phone
MOST_COLUMNS = 80  # of a heat map
CURVES = {
    "step/loss": "Loss of single batches",
    "step/gradient_norm": "Norm of the gradient",
    "step/update_ratio": "Update, in units of the weights",
    "step/update_norm": "Norm of the update",
    "step/weight_norm": "Norm of the weights",
    "learning_rate": "Learning rate",
}
QUANTILES = {
    "step/denominator": "What AdaHessian divides by",
    "step/curvature": "AdaHessian's averaged curvature d",
}


def inside_epochs(results: Results) -> Iterator[Section]:
    """Curves over the steps, for tables whose runs logged them."""
    for table in results.all_tables:
        blocks = [*_curves(table), *_layers(table)]
        if blocks:
            dots = " Dots: runs that are not done." if table.under_way else ""
            note = f"Single steps; lines are means over the seeds.{dots} {_thinned(table)}"
            text = Text(note.strip(), "note")
            yield Section(f"Inside the epochs: {table.title}", [text, *blocks])


def _thinned(table: ComparisonTable) -> str:
    longest = max(len(run.steps) for run in table.all_runs)
    if longest <= MOST_POINTS:
        return ""
    return f"Of up to {longest} rows each line shows {MOST_POINTS}, evenly chosen."


def _lines(
    table: ComparisonTable,
) -> Iterator[tuple[int, str, Sequence[Run], dict[str, str]]]:
    """Each group and each run that is under way: place, name, runs and style."""
    for place, (name, runs) in enumerate(table.groups.items()):
        yield place, name, runs, style(place)
    for place, name, run, look in runs_under_way(table):
        yield place, name, [run], look


def _curves(table: ComparisonTable) -> Iterator[Figure]:
    for key, title in CURVES.items():
        plot = figure("epoch", key.partition("/")[2].replace("_", " ") or "learning rate")
        for place, name, runs, look in _lines(table):
            mean = _mean(runs, key)
            add_line(plot, place, name, mean.x, mean, look=look)
        if plot.data:
            declutter(plot, table)
            use_logarithmic_y(plot)
            yield Figure(title, plot)
    for prefix, title in QUANTILES.items():
        plot = figure("epoch", prefix.partition("/")[2])
        for place, name, runs, look in _lines(table):
            for quantile, width in (("p50", 2.0), ("p05", 0.8), ("p95", 0.8)):
                mean = _mean(runs, f"{prefix}/{quantile}")
                if mean.x:
                    plot.add_scatter(
                        x=_short(mean.x), y=_short(mean.means), mode="lines", name=escaped(name),
                        line={**look, "width": width}, legendgroup=str(place),
                        showlegend=quantile == "p50",
                        hovertemplate=f"{quantile}: %{{y:.3g}}",
                    )  # fmt: skip
        if plot.data:
            declutter(plot, table)
            use_logarithmic_y(plot)
            note = "Quantiles over the elements: median thick, 5 % and 95 % thin."
            yield Figure(title, plot, note)


def _mean(runs: Sequence[Run], key: str) -> Curve:
    """The mean over the runs at the steps that all of them logged, thinned.

    Seeds may differ in `log_every_steps`: a line through single ones would jump between them. No
    band: noise would fill it.
    """
    values: dict[float, list[float]] = {}
    for run in runs:
        for epoch, value in run.steps_series(key).items():
            values.setdefault(epoch, []).append(value)
    most = max(map(len, values.values()), default=0)
    chosen = _thin(sorted(e for e, found in values.items() if len(found) == most), MOST_POINTS)
    mean = curve_through({epoch: values[epoch] for epoch in chosen})
    return Curve(mean.x, mean.means, [0.0] * len(mean.x))


def _thin(places: list[float], most: int) -> list[float]:
    """At most so many of them, evenly chosen, the first and the last among them."""
    if len(places) <= most:
        return places
    last = len(places) - 1
    return [places[round(i * last / (most - 1))] for i in range(most)]


def _short(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


# ---------------------------------------------------------------------------------------- layers


def _layers(table: ComparisonTable) -> Iterator[Figure]:
    """A heat map of the layers' updates for each group that logged them (`log_layers`)."""
    found = {}
    for _, name, runs, _ in _lines(table):
        prefix = "step/update_ratio/"
        keys = list(dict.fromkeys(
            key for run in runs for row in run.steps for key in row if key.startswith(prefix)
        ))  # fmt: skip
        if keys:
            found[name] = {key.removeprefix(prefix): _mean(runs, key) for key in keys}
    ratios = [
        r for layers in found.values() for mean in layers.values() for r in mean.means if r > 0
    ]
    if not ratios:
        return
    limits = math.log10(min(ratios)), math.log10(max(ratios))
    for name, layers in found.items():
        yield Figure(f"Update by layer, in units of its weights: {name}", _map(layers, limits))


def _map(layers: dict[str, Curve], limits: tuple[float, float]) -> Any:
    columns = _thin(sorted({epoch for mean in layers.values() for epoch in mean.x}), MOST_COLUMNS)
    ratios = [
        [dict(zip(mean.x, mean.means, strict=True)).get(epoch) for epoch in columns]
        for mean in layers.values()
    ]
    height = max(HEIGHT, 90 + 17 * len(layers))
    plot = figure("epoch", "", height, hovermode="closest", showlegend=False)
    plot.add_heatmap(
        x=_short(columns), y=[escaped(layer) for layer in layers],
        z=[[round(math.log10(r), 3) if r and r > 0 else None for r in row] for row in ratios],
        zmin=limits[0], zmax=limits[1], colorscale="Viridis",
        hovertemplate="epoch %{x}, %{y}: 10<sup>%{z:.2f}</sup><extra></extra>",
        colorbar=decades("update / weights", *limits),
    )  # fmt: skip
    plot.update_yaxes(autorange="reversed", showgrid=False, ticks="", tickfont={"size": 10})
    return plot
