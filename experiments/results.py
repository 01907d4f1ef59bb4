"""What the runs below a root say: reading and grouping, shared by every report.

Runs that share everything but the optimizer's settings and the seed (the protocol) stand in one
`Table`; runs that differ in the seed alone make one of its rows, a group. Reports are made of
finished runs; the others are listed, with the reason.
"""

import math
import re
import statistics
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config import WITHOUT_EFFECT, UserError, read_yaml
from experiments.jsonlines import read_rows
from experiments.record import best_row, read_json
from experiments.states import STATES, State, read_state


@dataclass
class Run:
    """A run as its files tell it.

    Attributes:
        directory: where its files are.
        meta, config: the contents of `meta.json` and `config.yaml`.
        rows: of `metrics.jsonl`.
        state: see `experiments.states`.
        problem: why it is not done, or what is wrong with its files; empty for a sound run.
    """

    directory: Path
    meta: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    state: State
    problem: str = ""

    @property
    def optimizer(self) -> dict[str, Any]:
        return self.config["optimizers"][self.meta["optimizer"]]

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that the runs of a table share, flat."""
        own = WITHOUT_EFFECT | {"optimizers"}
        return flatten({key: value for key, value in self.config.items() if key not in own})

    @property
    def test_key(self) -> str:
        return f"test/{self.meta['headline']}"

    def last(self) -> float:
        """The test metric of the last epoch: chosen before the training, so free of selection."""
        return self.evaluated[-1][self.test_key]

    def best(self) -> float:
        """The test metric of the epoch that is best on the split that the configuration names."""
        key = f"{self.config['best_epoch_split']}/{self.meta['headline']}"
        rows = [row for row in self.evaluated if key in row]
        direction = self.meta["metrics"][self.meta["headline"]]
        return best_row(rows, key, direction)[self.test_key]

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """The rows that have the test metric."""
        return [row for row in self.rows if self.test_key in row]

    def epoch(self) -> int:
        """Epochs that were trained to their end."""
        return max((row.get("epoch", 0) for row in self.rows), default=0)

    def step_seconds(self) -> float:
        """The median over epochs of the median step; nan where no time was recorded."""
        times = list(self.series("time/step_seconds").values())
        return statistics.median(times) if times else math.nan

    def mean_steps(self) -> list[float]:
        """Seconds of the mean step of each epoch, the data's loading included.

        Steps that refresh the curvature are in them in their proportion. Epochs count from the last
        change of the optimizer's settings on (`after_epochs`).
        """
        start = max(map(int, self.optimizer.get("after_epochs", {})), default=0)
        steps = {0: 0, **self.series("step")}
        return [
            seconds / (steps[epoch] - steps[epoch - 1])
            for epoch, seconds in self.series("time/epoch_seconds").items()
            if epoch > start and steps.get(epoch, 0) > steps.get(epoch - 1, math.inf)
        ]

    def training_seconds(self) -> float:
        """Seconds of training, without evaluation and measurements."""
        return math.fsum(self.series("time/epoch_seconds").values())

    def series(self, key: str) -> dict[int, float]:
        """The finite values of a key by epoch; a row without epoch counts by its place."""
        return {
            row.get("epoch", place): row[key]
            for place, row in enumerate(self.rows, 1)
            if isinstance(row.get(key), int | float) and math.isfinite(row[key])
        }

    def spectra(self) -> dict[int, dict[str, Any]]:
        """The arrays of `spectra/epoch-*.npz` by epoch; files that cannot be read are left out.

        `spectrum.npz`, which `experiments.spectrum` computes afterwards, fills in for its epoch.
        """
        found = {}
        afterwards = read_spectrum(self.directory / "spectrum.npz")
        if afterwards is not None and "epoch" in afterwards:
            found[int(afterwards["epoch"])] = afterwards
        for path in sorted((self.directory / "spectra").glob("epoch-[0-9]*.npz")):
            if (spectrum := read_spectrum(path)) is not None:
                found[int(path.stem.partition("-")[2])] = spectrum
        return found


@dataclass
class Table:
    """The finished runs of one data set, model and protocol.

    Attributes:
        title: data set, model, and what sets this protocol apart from others of the report.
        name: of its files and anchors.
        groups: runs by row label, one signature each.
    """

    title: str
    name: str
    groups: dict[str, list[Run]]

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.groups.values() for run in runs]

    @property
    def headline(self) -> str:
        return self.runs[0].meta["headline"]

    @property
    def maximize(self) -> bool:
        return self.runs[0].meta["metrics"][self.headline] == "max"

    @property
    def scale(self) -> float:
        """What the headline metric is multiplied with before it is shown."""
        return 100 if self.headline == "accuracy" else 1

    @property
    def unit(self) -> str:
        return "%" if self.headline == "accuracy" else ""

    @property
    def headline_title(self) -> str:
        """The headline metric as an axis names it."""
        return f"test {self.headline}{f' ({self.unit})' if self.unit else ''}"

    @property
    def digits(self) -> int:
        """Decimals with which the headline metric is shown: about four significant digits."""
        return 2 if max(abs(self.scale * run.last()) for run in self.runs) >= 10 else 4


@dataclass
class Results:
    """Everything below a root."""

    root: Path
    runs: list[Run] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def add(self, directory: Path) -> Run | None:
        """Read a run's directory; what cannot be read is noted with the reason."""
        try:
            self.runs.append(run := read_run(directory))
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            self.unreadable[directory] = f"{type(error).__name__}: {error}"
            return None
        return run

    def having(self, state: State) -> list[Run]:
        return [run for run in self.runs if run.state == state]

    @property
    def left_out(self) -> str:
        """How many runs no table counts, in words; empty where there are none."""
        counts = {state: len(self.having(state)) for state in STATES if state != "done"}
        counts["unreadable"] = len(self.unreadable)
        found = [f"{count} {state}" for state, count in counts.items() if count]
        return f"{', '.join(found)} run(s) left out" if found else ""

    @cached_property
    def tables(self) -> list[Table]:
        return make_tables(self.having("done"))


# --------------------------------------------------------------------------------------- reading


def read_results(
    root: Path, dataset: str | None = None, model: str | None = None, more: Iterable[Run] = ()
) -> Results:
    """Read all runs below a root, or those of a data set or model.

    Args:
        more: runs from elsewhere (`experiments.export`); those finished below the root win.

    Raises:
        UserError: there is no finished run.
    """
    results = Results(root)
    for meta_path in sorted(root.glob(f"{dataset or '*'}/{model or '*'}/*/*/meta.json")):
        results.add(meta_path.parent)
    here = {run.directory for run in results.having("done")}
    for run in more:
        chosen = dataset in (None, run.meta["dataset"]) and model in (None, run.meta["model"])
        if chosen and run.state == "done" and run.directory not in here:
            results.runs.append(run)
    if not results.having("done"):
        raise UserError(f"no finished run below {root} ({results.left_out or 'no run at all'})")
    return results


def read_run(directory: Path) -> Run:
    """Read one run's files.

    Raises:
        OSError, ValueError, KeyError, TypeError, UserError: meta.json or config.yaml is damaged.
    """
    state, reason = read_state(directory)  # first: what is done has all its rows
    config = read_yaml((directory / "config.yaml").read_text())
    rows, damage = read_rows(directory / "metrics.jsonl")
    problem = "; ".join(text for text in (reason, damage) if text)
    run = Run(directory, read_json(directory / "meta.json"), config, rows, state, problem)
    _check(run)
    if spectrum := read_spectrum(directory / "spectra" / "epoch-0000.npz"):
        run.rows.insert(0, _row_of_initialization(spectrum))
    return run


def _check(run: Run) -> None:
    """Touch what every report needs, so that what is missing is noticed here."""
    for key in ("dataset", "model", "signature", "protocol", "seed", "sessions"):
        if key not in run.meta:
            raise KeyError(key)
    run.optimizer.items(), run.meta["metrics"][run.meta["headline"]]
    run.config["best_epoch_split"]


def read_spectrum(path: Path) -> dict[str, Any] | None:
    """The arrays of a spectrum's file; None where it is missing or damaged."""
    import numpy

    try:
        with path.open("rb") as opened, numpy.load(opened) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    needed = {"grid", "density", "eigenvalues", "trace", "trace_standard_error"}
    return arrays if needed <= arrays.keys() else None


def _row_of_initialization(spectrum: dict[str, Any]) -> dict[str, Any]:
    """What the metrics say of later spectra: they begin with the first epoch's end."""
    row = {"epoch": 0, "hessian/trace": float(spectrum["trace"])}
    row["hessian/trace_standard_error"] = float(spectrum["trace_standard_error"])
    for number, value in enumerate(spectrum["eigenvalues"], 1):
        row[f"hessian/top_eigenvalue{'' if number == 1 else f'_{number}'}"] = float(value)
    return row


# -------------------------------------------------------------------------------------- grouping


def make_tables(runs: list[Run]) -> list[Table]:
    """Sort runs into tables (one protocol each) and rows (one signature each)."""
    tables = []
    for (dataset, model), same in _group(runs, lambda r: (r.meta["dataset"], r.meta["model"])):
        protocols = _group(same, lambda r: r.meta["protocol"])
        for protocol, members in protocols:
            others = [group[0].protocol for _, group in protocols]
            differences = _differences(members[0].protocol, others)
            title = " ".join([dataset, model, *differences])
            tables.append(Table(title, f"{dataset}-{model}-{protocol}", _rows(members)))
    return tables


def _rows(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by label: the optimizer's name, with its settings where one name has several."""
    rows = {}
    for name, same in _group(runs, lambda r: r.meta["optimizer"]):
        signatures = _group(same, lambda r: r.meta["signature"])
        others = [flatten(group[0].optimizer) for _, group in signatures]
        for mark, members in signatures:
            settings = _differences(flatten(members[0].optimizer), others)
            label = " ".join([name, *settings])
            # Settings that only the code's defaults tell apart have no words to show.
            rows[f"{label} {mark}" if label in rows else label] = members
    return dict(sorted(rows.items(), key=lambda item: _place(item[0])))


def _place(label: str) -> tuple[int, list[str | float]]:
    """Known optimizers in the order of the papers' tables; settings by their numbers' size."""
    parts = re.split(r"(\d+\.?\d*(?:e[-+]?\d+)?)", label)
    natural = [float(part) if place % 2 else part for place, part in enumerate(parts)]
    return _ORDER.get(label.split()[0], 99), natural


_ORDER = {name: place for place, name in enumerate(("sgd", "adam", "adamw", "adahessian"))}


def _group(runs: list[Run], key: Callable[[Run], Any]) -> list[tuple[Any, list[Run]]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.items())


def _differences(settings: dict[str, Any], all_settings: list[dict[str, Any]]) -> list[str]:
    """`key=value` for the settings in which this one and others differ."""
    return [
        f"{key}={value}"
        for key, value in settings.items()
        if any(other.get(key) != value for other in all_settings)
    ]


def flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted paths."""
    flat = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
