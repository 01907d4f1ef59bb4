"""The spectrum of the Hessian over the epochs, for runs that measured it."""

import math
import re
import statistics
from collections.abc import Iterator
from typing import Any

from experiments.config.experiment import SpectrumSettings
from experiments.config.flat import shown
from experiments.reports.page.figures import (
    COLORS,
    HEIGHT,
    add_line,
    curves,
    decades,
    declutter,
    escaped,
    figure,
    spread_note,
    style,
    use_logarithmic_y,
)
from experiments.reports.sections import Figure, Section, Text
from experiments.results.statistics import curve
from experiments.results.tables import ComparisonTable, Results
from experiments.runs.reading import Run

UNIT = "loss / parameter²"
OF_MEMORY = ("keep_batches", "on_host")  # settings that change no result
COLUMN_LIMIT = 60  # epochs in a heat map


def spectra(results: Results) -> Iterator[Section]:
    """The spectrum over the epochs, for tables whose runs measured it."""
    for table in results.tables:
        blocks = [*_densities(table), *_curvature_curves(table), *_layers(table)]
        if blocks:
            note = "Curvature of the training loss; eigenvalues and traces are in units of the "
            note += "loss per squared unit of the parameters. Epoch 0 is the initialization."
            doubts = [Text(words, "warning") for words in _unlike(table)]
            yield Section(f"Curvature: {table.title}", [Text(note, "note"), *doubts, *blocks])


def _unlike(table: ComparisonTable) -> Iterator[str]:
    """A sentence where runs that stand side by side measured their spectra by other settings.

    These cannot change a training, and so runs of one signature can differ in them.
    """
    measured = [run for run in table.runs if run.series("hessian/trace")]
    defaults = SpectrumSettings().model_dump()
    settings = (run.config.get("spectrum") for run in measured)  # earlier versions had none
    found = [defaults | (one if isinstance(one, dict) else {}) for one in settings]
    for key in (key for key in defaults if key not in OF_MEMORY):
        values = dict.fromkeys(shown(one[key]) for one in found)
        if len(values) > 1:
            yield (
                f"These spectra were measured with spectrum.{key} = {' and '.join(values)}: what "
                "differs between runs, and means over them, may come from that."
            )


def _densities(table: ComparisonTable) -> Iterator[Figure]:
    """One heat map per group, of the first seed that has spectra, on common axes."""
    chosen: dict[str, tuple[Run, dict]] = {}
    for label, runs in table.groups.items():
        for run in runs:
            if label not in chosen and (spectra := run.spectra()):
                chosen[label] = run, spectra
    if not chosen:
        return
    every = [spectra for _, spectra in chosen.values()]
    axis, limits = EigenvalueAxis(every), density_limits(every)
    for label, (run, spectra) in chosen.items():
        note = "Color: density of the eigenvalues. Dashes: the largest ones."
        title = f"Spectral density: {label}, seed {run.meta['seed']}"
        yield Figure(title, density(spectra, axis, limits), note)


def _curvature_curves(table: ComparisonTable) -> Iterator[Figure]:
    spread = spread_note(table)
    bars = f"{spread} Bars: the estimator's standard error."
    if _has(table, "hessian/top_eigenvalue"):
        note = "Thick: the largest; thin: the next ones. " + spread
        yield Figure("Top eigenvalues", eigenvalues(table), note)
    for key, title, axis, scale in (
        ("hessian/trace", "Trace", f"trace ({UNIT})", 1),
        ("hessian/trace_estimate", "Running trace, from training", f"trace ({UNIT})", 1),
        ("hessian/frobenius_norm", "Frobenius norm", f"norm ({UNIT})", 1),
        ("hessian/negative_share", "Negative curvature", "negative share (%)", 100),
        ("hessian/relative_error_median", "Error of the finite difference", "median (%)", 100),
        ("time/curvature_share", "Time spent on curvature", "share of training time (%)", 100),
    ):
        if _has(table, key):
            error = f"{key}_standard_error"
            note = bars if _has(table, error) else spread
            plot = curves(table, key, axis, scale=scale, error=error)
            yield Figure(title, plot, note)
    if any("signal_to_noise" in key for run in table.runs for row in run.rows for key in row):
        note = "At the last epoch measured; bars: one sample standard deviation over the seeds."
        yield Figure("Signal-to-noise by block size", signal_to_noise(table), note)


def _has(table: ComparisonTable, key: str) -> bool:
    return any(key in row for run in table.runs for row in run.rows)


def _layers(table: ComparisonTable) -> Iterator[Figure]:
    """One heat map of the layers' traces per group, with common colors."""
    means = {label: layer_means(runs)[2] for label, runs in table.groups.items()}
    positive = {label: array[array > 0] for label, array in means.items()}
    positive = {label: array for label, array in positive.items() if array.size}
    if not positive:
        return
    high = math.log10(max(float(array.max()) for array in positive.values()))
    low = math.log10(min(float(array.min()) for array in positive.values()))
    limits = (max(low, high - 5), high)
    for label in positive:
        note = "Mean over the seeds; gaps: a trace that is not positive."
        plot = layer_traces(table.groups[label], limits)
        yield Figure(f"Traces of the layers: {label}", plot, note)


# ----------------------------------------------------------------------------------------- plots


def eigenvalues(table: ComparisonTable) -> Any:
    """The top eigenvalues over the epochs: the largest as a thick line, further ones thin."""
    plot = figure("epoch", f"eigenvalue ({UNIT})")
    keys = {key for run in table.runs for row in run.rows for key in row}
    further = sorted(
        (key for key in keys if re.fullmatch(r"hessian/top_eigenvalue_\d+", key)),
        key=lambda key: int(key.rpartition("_")[2]),
    )
    for place, (name, runs) in enumerate(table.groups.items()):
        mean = curve(runs, "hessian/top_eigenvalue")
        add_line(plot, place, name, mean.x, mean)
        for key in further:
            mean = curve(runs, key)
            plot.add_scatter(
                x=mean.x, y=mean.means, line={**style(place), "width": 0.8}, mode="lines",
                name=f"{escaped(name)}, number {key.rpartition('_')[2]}", showlegend=False,
                legendgroup=str(place), opacity=0.8, hoverinfo="skip",
            )  # fmt: skip
    declutter(plot, table)
    use_logarithmic_y(plot)
    return plot


def signal_to_noise(table: ComparisonTable) -> Any:
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
                x=x, y=[statistics.mean(by_size[b]) for b in x], name=escaped(name),
                mode="lines+markers", line={**style(place), "width": 2}, customdata=spread,
                error_y={"array": spread, "thickness": 1, "width": 2},
                hovertemplate="%{y:.3g} ± %{customdata:.2g}",
            )  # fmt: skip
    declutter(plot, table)
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
        x=epochs, y=[escaped(layer) for layer in layers], z=numpy.log10(positive).astype("float32"),
        zmin=limits[0], zmax=limits[1], colorscale="Viridis", customdata=means.astype("float32"),
        hoverongaps=True,
        hovertemplate="epoch %{x}, %{y}: trace %{customdata:.3g}<extra></extra>",
        colorbar=decades(f"trace ({UNIT})", *limits),
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
        dict.fromkeys(
            key for run in runs for row in run.rows for key in row if key.startswith(prefix)
        )
    )
    lines = [curve(runs, key) for key in keys]
    epochs = thin(sorted({epoch for line in lines for epoch in line.x}))
    values = [dict(zip(line.x, line.means, strict=True)) for line in lines]
    means = [[value.get(epoch, math.nan) for epoch in epochs] for value in values]
    return [key.removeprefix(prefix) for key in keys], epochs, numpy.array(means)


def thin(epochs: list[float]) -> list[float]:
    """At most `COLUMN_LIMIT` of them, evenly chosen, the first and the last among them."""
    if len(epochs) <= COLUMN_LIMIT:
        return epochs
    last = len(epochs) - 1
    return [epochs[round(i * last / (COLUMN_LIMIT - 1))] for i in range(COLUMN_LIMIT)]


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
        # The narrowest density is smoothed: nothing finer can be seen.
        self.linear = max(min(numpy.ptp(grid) for grid in grids) / 20, largest / 1000)
        self.positions = numpy.linspace(*self.position([low, high]), points)
        self.values = self.value(self.positions)
        first, last = math.ceil(math.log10(self.linear)), math.floor(math.log10(largest))
        steps = (1, 3) if last - first < 3 else (1,)
        sizes = [step * 10.0**k for k in range(first, last + 1) for step in steps]
        ticks = [0.0, *sizes, *(-size for size in sizes)]
        self.ticks = sorted(tick for tick in ticks if low <= tick <= high)

    def position(self, values: Any) -> Any:
        """Where eigenvalues are on the axis."""
        import numpy

        return numpy.arcsinh(numpy.asarray(values) / self.linear)

    def value(self, positions: Any) -> Any:
        """The eigenvalues at places of the axis."""
        import numpy

        return self.linear * numpy.sinh(positions)

    def highest(self, grid: Any, density: Any) -> Any:
        """The largest density in the cell around each position.

        A cell far from zero is wider than the bump of a single eigenvalue, which one point of the
        density would miss.
        """
        import numpy

        parts = 8
        cell = self.positions[1] - self.positions[0]
        offsets = cell * ((numpy.arange(parts) + 0.5) / parts - 0.5)
        values = self.value(self.positions[:, None] + offsets)
        return numpy.interp(values, grid, density, left=0, right=0).max(1)


def density(
    spectra: dict[int, dict[str, Any]], axis: EigenvalueAxis, limits: tuple[float, float]
) -> Any:
    """The spectral density over the epochs as a heat map, with the largest eigenvalues on it."""
    import numpy

    epochs = thin(sorted(spectra))
    columns = []
    for epoch in epochs:
        here = axis.highest(spectra[epoch]["grid"], spectra[epoch]["density"])
        columns.append(numpy.where(here > 10 ** limits[0], here, numpy.nan))
    plot = figure("epoch", f"eigenvalue ({UNIT})", 360, hovermode="closest")
    plot.add_heatmap(
        x=[str(epoch) for epoch in epochs], y=axis.positions.astype("float32"),
        z=numpy.log10(numpy.array(columns).T).astype("float32"), zmin=limits[0], zmax=limits[1],
        customdata=numpy.tile(axis.values[:, None], len(epochs)).astype("float32"),
        colorscale="Viridis", colorbar=decades("density", *limits), hoverongaps=False,
        hovertemplate="epoch %{x}, eigenvalue %{customdata:.3g}: density 10<sup>%{z:.1f}</sup>"
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
    """The decades of density that get a color, over all runs that are compared.

    They begin a little below the height that a single eigenvalue has, the largest one.
    """
    import numpy

    every = [arrays for run in spectra for arrays in run.values()]
    tops = [numpy.interp(max(a["eigenvalues"]), a["grid"], a["density"]) for a in every]
    high = math.log10(max(float(arrays["density"].max()) for arrays in every))
    low = math.log10(min((top for top in tops if top > 0), default=10 ** (high - 5)))
    return max(low - 0.3, high - 8), high
