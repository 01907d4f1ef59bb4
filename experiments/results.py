"""What the runs below a root say: reading, grouping and statistics, shared by every report.

Runs that share everything but the optimizer's settings and the seed (the protocol) stand in one
`Table`; runs that differ in the seed alone make one of its rows, a group. Reports are made of
finished runs; the others are listed, with the reason.
"""

import json
import math
import statistics
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from experiments.config import UserError, load, read_yaml, resolve, signature
from experiments.record import best_row, read_json

REPOSITORY = Path(__file__).parent.parent
CONFIDENCE = 0.95
STATES = ("finished", "running", "unfinished", "failed")
LEASE_SECONDS = 60  # a run whose lease nobody has touched for so long has no process


@dataclass
class Run:
    """A run as its files tell it.

    Attributes:
        directory: where its files are.
        meta, config: the contents of `meta.json` and `config.yaml`.
        rows: of `metrics.jsonl`.
        state: one of `STATES`.
        problem: why it is not finished, or what is wrong with its files; empty for a sound run.
    """

    directory: Path
    meta: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    state: str
    problem: str = ""

    @property
    def optimizer(self) -> dict[str, Any]:
        return self.config["optimizers"][self.meta["optimizer"]]

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that the runs of a table share, flat."""
        own = ("optimizers", "seed", "device")
        shared = {key: value for key, value in self.config.items() if key not in own}
        return {k: v for k, v in flatten(shared).items() if not k.startswith("checkpoint_")}

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
        """The arrays of `spectra/epoch-*.npz` by epoch; files that cannot be read are left out."""
        import numpy

        needed = {"grid", "density", "eigenvalues", "trace", "trace_standard_error"}
        found = {}
        for path in sorted((self.directory / "spectra").glob("epoch-*.npz")):
            try:
                with numpy.load(path) as file:
                    arrays = {name: file[name] for name in file.files}
                epoch = int(path.stem.partition("-")[2])
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                continue
            if needed <= arrays.keys():
                found[epoch] = arrays
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


@dataclass
class Results:
    """Everything below a root."""

    root: Path
    runs: list[Run] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def having(self, state: str) -> list[Run]:
        return [run for run in self.runs if run.state == state]

    @property
    def left_out(self) -> str:
        """How many runs no table counts, in words; empty where there are none."""
        counts = {state: len(self.having(state)) for state in STATES[1:]}
        counts["unreadable"] = len(self.unreadable)
        found = [f"{count} {state}" for state, count in counts.items() if count]
        return f"{', '.join(found)} run(s) left out" if found else ""

    @cached_property
    def tables(self) -> list[Table]:
        return make_tables(self.having("finished"))


# --------------------------------------------------------------------------------------- reading


def read_results(root: Path, dataset: str | None = None, model: str | None = None) -> Results:
    """Read all runs below a root, or those of a data set or model.

    Raises:
        UserError: there is no finished run.
    """
    results = Results(root)
    for meta_path in sorted(root.glob(f"{dataset or '*'}/{model or '*'}/*/*/meta.json")):
        try:
            results.runs.append(read_run(meta_path.parent))
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            results.unreadable[meta_path.parent] = f"{type(error).__name__}: {error}"
    if not results.having("finished"):
        raise UserError(f"no finished run below {root} ({results.left_out or 'no run at all'})")
    return results


def read_run(directory: Path) -> Run:
    """Read one run's files.

    Raises:
        OSError, ValueError, KeyError, TypeError, UserError: meta.json or config.yaml is damaged.
    """
    config = read_yaml((directory / "config.yaml").read_text())
    rows, problem = read_rows(directory / "metrics.jsonl")
    run = Run(directory, read_json(directory / "meta.json"), config, rows, "finished")
    _check(run)
    if 0 in (spectra := run.spectra()):
        run.rows.insert(0, _row_of_initialization(spectra[0]))
    run.state, reason = _state(run)
    run.problem = "; ".join(text for text in (reason, problem) if text)
    return run


def _state(run: Run) -> tuple[str, str]:
    """A run's state and the reason: from its marks, its lease and how its last attempt ended."""
    if (run.directory / "DONE").exists():
        if not run.evaluated:
            return "failed", f"it is marked as done but has no {run.test_key}"
        if not math.isfinite(run.last()):
            return "failed", f"its last {run.test_key} is {run.last()}"
        return "finished", ""
    lease = run.directory / "lease.json"
    if lease.exists() and time.time() - lease.stat().st_mtime < LEASE_SECONDS:
        return "running", ""
    attempts, _ = read_rows(run.directory / "attempts.jsonl")
    if not attempts:
        return "unfinished", ""
    reason = str(attempts[-1].get("reason", "killed"))
    stopped = reason.startswith(("killed", "stopped", "KeyboardInterrupt"))
    return "unfinished" if stopped else "failed", reason


def _check(run: Run) -> None:
    """Touch what every report needs, so that what is missing is noticed here."""
    for key in ("dataset", "model", "signature", "protocol", "seed", "sessions"):
        if key not in run.meta:
            raise KeyError(key)
    run.optimizer.items(), run.meta["metrics"][run.meta["headline"]]
    run.config["best_epoch_split"]


def _row_of_initialization(spectrum: dict[str, Any]) -> dict[str, Any]:
    """What the metrics say of later spectra: they begin with the first epoch's end."""
    row = {"epoch": 0, "hessian/trace": float(spectrum["trace"])}
    row["hessian/trace_standard_error"] = float(spectrum["trace_standard_error"])
    for number, value in enumerate(spectrum["eigenvalues"], 1):
        row[f"hessian/top_eigenvalue{'' if number == 1 else f'_{number}'}"] = float(value)
    return row


def read_rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a `metrics.jsonl` that can be read, and what is wrong with the others.

    A process that was killed can leave half a line; resuming cuts it off.
    """
    if not path.exists():
        return [], ""
    rows, damaged = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return rows, f"{damaged} damaged line(s) in {path.name}" if damaged else ""


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
    return dict(sorted(rows.items(), key=lambda item: _ORDER.get(item[0].split()[0], 99)))


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


# ------------------------------------------------------------------------------------ statistics


@dataclass
class Row:
    """What a table says about one group.

    Attributes:
        label: of the group.
        last, best: the test metric of the last and of the best epoch, one value per seed.
        step_seconds: the median over the runs; nan where no time was recorded.
        ratio: of the step times to SGD's; None without a single group of SGD.
        hours: of training, over all runs of the group.
        paper: the paper's figure for exactly this run, or nothing.
    """

    label: str
    last: list[float]
    best: list[float]
    step_seconds: float
    ratio: float | None
    hours: float
    paper: str


def summarize(table: Table) -> list[Row]:
    """The table's rows as numbers."""
    seconds = {label: _median_step(runs) for label, runs in table.groups.items()}
    reference = seconds.get("sgd")
    return [
        Row(
            label,
            [run.last() for run in runs],
            [run.best() for run in runs],
            seconds[label],
            seconds[label] / reference if reference else None,
            math.fsum(run.training_seconds() for run in runs) / 3600,
            paper_figures().get((runs[0].meta["dataset"], runs[0].meta["signature"]), ""),
        )
        for label, runs in table.groups.items()
    ]


def _median_step(runs: list[Run]) -> float:
    times = [seconds for run in runs if not math.isnan(seconds := run.step_seconds())]
    return statistics.median(times) if times else math.nan


def std(values: list[float]) -> float:
    """The sample standard deviation; nan for a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


@dataclass
class Difference:
    """How far a group lies behind the best one.

    Attributes:
        label: of the group.
        mean: difference of the means, positive where the group is worse.
        interval: simultaneous confidence interval of `mean`, or None where there is no spread to
            make one of: a single seed on either side, or no variance at all.
    """

    label: str
    mean: float
    interval: tuple[float, float] | None

    @property
    def certain(self) -> bool:
        return self.interval is not None and self.interval[0] > 0


def compare(table: Table) -> tuple[str, list[Difference]]:
    """The group with the best mean of the last epoch, and how far the others lie behind it.

    The unit is the seed. Intervals are Welch's, for unequal variances. Which group is best was
    seen from the same data, so that every pair could have been asked about: Bonferroni's
    correction over all pairs makes the intervals hold at once, with the selection. Runs of the
    same seed share initialization and order of the data; they are not paired, because chaotic
    trainings keep little of that in their last epoch and pairing would halve the degrees of
    freedom. Where they do keep some of it, the intervals are too wide, not too narrow.

    Returns:
        The best group's label, and the others from the nearest to the farthest.
    """
    values = {label: [run.last() for run in runs] for label, runs in table.groups.items()}
    sign = 1 if table.maximize else -1
    best = max(values, key=lambda label: sign * statistics.mean(values[label]))
    repeated = sum(len(group) > 1 for group in values.values())
    level = 1 - (1 - CONFIDENCE) / max(1, math.comb(repeated, 2))
    differences = []
    for label in values.keys() - {best}:
        mine, theirs = ([sign * value for value in values[key]] for key in (best, label))
        mean = statistics.mean(mine) - statistics.mean(theirs)
        differences.append(Difference(label, mean, _welch(mine, theirs, level)))
    return best, sorted(differences, key=lambda difference: (difference.mean, difference.label))


def _welch(mine: list[float], theirs: list[float], level: float) -> tuple[float, float] | None:
    from scipy import stats

    if min(len(mine), len(theirs)) < 2 or not std(mine) + std(theirs):
        return None
    with warnings.catch_warnings():
        # One group without variance is legitimate; scipy warns of the precision of its moments.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_ind(mine, theirs, equal_var=False).confidence_interval(level)
    return float(interval.low), float(interval.high)


def mean_interval(values: list[float]) -> tuple[float, float] | None:
    """Student's confidence interval of a mean; None for a single value or without variance."""
    from scipy import stats

    if len(values) < 2 or not std(values):
        return None
    error = std(values) / math.sqrt(len(values))
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, statistics.mean(values), error)
    return float(low), float(high)


@dataclass
class Curve:
    """A metric over the epochs: mean and sample standard deviation over the runs that have it."""

    epochs: list[int]
    means: list[float]
    stds: list[float]  # 0 where a single run has the epoch

    def band(self) -> tuple[list[float], list[float]]:
        """One standard deviation to both sides; a positive mean keeps a positive lower edge.

        A band that reaches zero has no lower edge on a logarithmic axis.
        """
        pairs = list(zip(self.means, self.stds, strict=True))
        low = [max(m - s, m / 10) if m > 0 else m - s for m, s in pairs]
        return low, [m + s for m, s in pairs]


def curve(runs: Iterable[Run], key: str, scale: float = 1) -> Curve:
    """The curve of a key, empty where no run has it. Runs can be of different lengths."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in run.series(key).items():
            values.setdefault(epoch, []).append(scale * value)
    epochs = sorted(values)
    spread = [std(values[epoch]) if len(values[epoch]) > 1 else 0.0 for epoch in epochs]
    return Curve(epochs, [statistics.mean(values[epoch]) for epoch in epochs], spread)


@cache
def paper_figures() -> dict[tuple[str, str], str]:
    """The paper's figures by data set and signature of the run that follows its protocol."""
    figures = {}
    for entry in read_yaml((REPOSITORY / "experiments" / "paper.yaml").read_text()):
        config = load(REPOSITORY / entry["config"])
        for name, (mean, spread) in entry["accuracy"].items():
            mark = signature(resolve(config, name, seed=1))
            figures[config.dataset.name, mark] = f"{mean:.2f} ± {spread:.2f}"
    return figures
