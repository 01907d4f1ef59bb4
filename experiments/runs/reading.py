"""A run, read from its files."""

import math
import statistics
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config.metrics import Metric, read, result_key
from experiments.config.yaml_reader import read_yaml_file
from experiments.runs.jsonlines import read_rows
from experiments.runs.metrics import best_row, read_json
from experiments.runs.states import State, read_state

WAITED = 0.1  # the share of a step without a processor from which it says nothing of its cost


@dataclass
class Run:
    """A run, read from its files.

    Attributes:
        directory: where its files are.
        meta, config: the contents of `meta.json` and `config.yaml`.
        rows: of `metrics.jsonl`.
        state: see `experiments.runs.states`.
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

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """What the run's task measures, by name."""
        return read(self.meta)

    @property
    def headline(self) -> Metric:
        """The metric that reports show."""
        return self.metrics[self.meta["headline"]]

    @property
    def result_split(self) -> str:
        """The split whose headline metric is the run's result, usually `test`."""
        return self.test_key.partition("/")[0]

    @property
    def test_key(self) -> str:
        """The key of the result in the rows."""
        return result_key(self.meta)

    def last(self) -> float:
        """The test metric of the last epoch: chosen before the training, so free of selection."""
        return self.evaluated[-1][self.test_key]

    def best(self) -> float:
        """The test metric of the epoch that is best on the split that the configuration names."""
        key = f"{self.config['best_epoch_split']}/{self.headline.name}"
        rows = [row for row in self.evaluated if key in row]
        return best_row(rows, key, self.headline.direction)[self.test_key]

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
        change of the optimizer's settings on (`after_epochs`), and on a CPU only those in which the
        training had a processor for itself.
        """
        start = max(map(int, self.optimizer.get("after_epochs", {})), default=0)
        steps = {0: 0, **self.series("step")}
        on_cpu = all(session.get("device") == "cpu" for session in self.meta["sessions"])
        waited = self.series("time/waited_share") if on_cpu else {}
        return [
            seconds / (steps[epoch] - steps[epoch - 1])
            for epoch, seconds in self.series("time/epoch_seconds").items()
            if waited.get(epoch, 0) <= WAITED
            and epoch > start
            and steps.get(epoch, 0) > steps.get(epoch - 1, math.inf)
        ]

    @cached_property
    def steps(self) -> list[dict[str, float]]:
        """The rows of `steps.jsonl`, finite numbers alone; none where no steps are logged."""
        rows, _ = read_rows(self.directory / "steps.jsonl")
        return [numbers for row in rows if "epoch" in (numbers := _finite(row))]

    def steps_series(self, key: str) -> dict[float, float]:
        """The values of a key of `steps`, by the epoch with its fraction."""
        return {row["epoch"]: row[key] for row in self.steps if key in row}

    @property
    def is_under_way(self) -> bool:
        """Whether it is not done, may go on, and has something to show."""
        may_go_on = self.state in ("running", "stopped", "killed", "failed")
        return may_go_on and bool(self.evaluated or self.steps)

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

    def samples(self) -> list[dict[str, str]]:
        """What the trained model makes of some examples: texts by heading; none where not kept."""
        try:
            found = read_json(self.directory / "DONE").get("samples", [])
            return [{str(key): str(text) for key, text in sample.items()} for sample in found]
        except (OSError, ValueError, TypeError, AttributeError):
            return []

    @property
    def baselines(self) -> dict[str, float]:
        """The headline metric on the test set of what learns nothing, by name."""
        sessions = self.meta["sessions"]
        return sessions[-1].get("baselines", {}) if sessions else {}

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


def read_run(directory: Path) -> Run:
    """Read one run's files.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError, UserError: `meta.json`,
            `config.yaml` or `metrics.jsonl` is damaged.
    """
    state, reason = read_state(directory)  # first: what is done has all its rows
    config = read_yaml_file(directory / "config.yaml")
    rows, damage = read_rows(directory / "metrics.jsonl")
    problem = "; ".join(text for text in (reason, damage) if text)
    run = Run(directory, read_json(directory / "meta.json"), config, rows, state, problem)
    _check(run)
    if spectrum := read_spectrum(directory / "spectra" / "epoch-0000.npz"):
        run.rows.insert(0, _row_of_initialization(spectrum))
    return run


def _finite(row: dict[str, Any]) -> dict[str, float]:
    # No double is as large as an integer in JSON may be.
    return {k: v for k, v in row.items() if isinstance(v, int | float) and abs(v) < 1e300}


def _check(run: Run) -> None:
    """Touch what every report needs, so that what is missing or of another kind is noticed here."""
    for key in ("dataset", "model", "optimizer", "signature", "protocol"):
        if not isinstance(run.meta[key], str):
            raise TypeError(f"meta.json: {key} is {run.meta[key]!r}")
    if type(run.meta["seed"]) is not int:
        raise TypeError(f"meta.json: seed is {run.meta['seed']!r}")
    [int(epoch) for epoch in run.optimizer.get("after_epochs", {})]
    run.optimizer.items(), run.headline, run.config["dataset"].items()
    if run.config["best_epoch_split"] not in ("test", "val"):
        raise TypeError(f"config.yaml: best_epoch_split is {run.config['best_epoch_split']!r}")
    for session in run.meta["sessions"]:
        for key, value in session.items():
            if key == "baselines":  # the one entry that is no plain value
                if not all(isinstance(number, int | float) for number in value.values()):
                    raise TypeError(f"meta.json: a session's baselines are {value!r}")
            elif isinstance(value, list | dict):
                raise TypeError(f"meta.json: a session's {key} is {value!r}")
    for place, row in enumerate(run.rows, 1):
        row.setdefault("epoch", place)
        for key, value in row.items():
            if not isinstance(value, int if key in ("epoch", "step") else int | float):
                raise TypeError(f"metrics.jsonl: a {key} is {value!r}")


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
