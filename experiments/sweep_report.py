"""What the runs of a sweep say together, from their files and the sweep's file.

A combination of the swept keys is a `Point`, and its seeds are its runs: those that were never
begun are there too. `SweepResults` is what every report takes, with one table for the sweep.
"""

import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments import sweep
from experiments.comparison import CONFIDENCE, Curve, compare, mean_and_std, std
from experiments.results import Results, Run, Table, flatten
from experiments.signature import signature
from experiments.states import State, read_state

BEST = "★"
LOGARITHMIC_FROM = 10  # largest value by smallest, from which an axis is logarithmic


@dataclass
class Member:
    """One run of a sweep.

    Attributes:
        run: what the sweep's file asks for.
        record: what its files say; None where there are none, or none that can be read.
        state: see `experiments.states`.
        problem: why it has no result, as far as its files tell.
    """

    run: sweep.Run
    record: Run | None
    state: State
    problem: str = ""

    @property
    def missing(self) -> bool:
        """Whether submitting the sweep again sends this run."""
        return not self.run.directory.done and self.state != "running"


@dataclass
class Point:
    """One combination of the swept keys.

    Attributes:
        label: the optimizer and the values, as the table of all runs names it.
        optimizer: its name.
        values: of the swept keys, also where the sweep leaves one at the configuration's value.
        members: one per seed.
    """

    label: str
    optimizer: str
    values: dict[str, Any]
    members: list[Member]

    @property
    def finished(self) -> list[Run]:
        return [one.record for one in self.members if one.record and one.state == "done"]

    @property
    def complete(self) -> bool:
        return len(self.finished) == len(self.members)

    @property
    def states(self) -> str:
        """How many runs are in which state, in words."""
        counts = Counter(one.state for one in self.members)
        return ", ".join(f"{count} {state}" for state, count in counts.items())


@dataclass
class SweepResults(Results):
    """The runs of one sweep, as the results that a report is made of.

    Attributes:
        path: the sweep's file.
        keys: what differs between the points besides optimizer and seed, as in the file.
        points: all combinations, in the file's order.
    """

    path: Path = Path()
    keys: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"Sweep {self.path.stem}"

    @property
    def members(self) -> list[Member]:
        return [one for point in self.points for one in point.members]

    @property
    def missing(self) -> list[Member]:
        return [one for one in self.members if one.missing]

    @property
    def left_out(self) -> str:
        """Nothing: the sweep's own table counts every run, begun or not."""
        return ""

    @cached_property
    def tables(self) -> list[Table]:
        """All combinations side by side, whatever the sweep changes; none without a result."""
        groups = {point.label: point.finished for point in self.points if point.finished}
        name = f"sweep-{self.path.stem}"
        return [Table(f"{self.title}: all trainings", name, groups)] if groups else []

    @cached_property
    def best(self) -> Point | None:
        """The point with the best mean of the last epoch."""
        if not self.tables:
            return None
        label, _ = compare(self.tables[0])
        return next(point for point in self.points if point.label == label)

    @property
    def command(self) -> str:
        """What sends the runs that are missing, and no others."""
        return f"python -m slurm.submit {self.path} --profile local"


def read_sweep(path: Path, root: Path) -> SweepResults:
    """Read the runs of a sweep's file below a root.

    Raises:
        UserError: something in the file is wrong.
    """
    results = SweepResults(root, path=path)
    runs = sweep.expand(path, root)
    named = dict.fromkeys(key for run in runs for key in run.settings)
    keys = [key for key in named if key not in ("optimizer", "seed")]
    values = [_effective(run, keys) for run in runs]
    results.keys = [key for key in keys if len({str(known[key]) for known in values}) > 1]
    points: dict[str, Point] = {}
    for run, known in zip(runs, values, strict=True):
        swept = {key: known[key] for key in results.keys}
        name = run.config.optimizer_name
        words = [f"{short(key)}={value}" for key, value in swept.items() if value != ""]
        label = " ".join([name, *words])
        point = points.setdefault(signature(run.config), Point(label, name, swept, []))
        point.members.append(member(run, results))
    results.points = list(points.values())
    return results


def short(key: str) -> str:
    """A key as a heading: `optimizer.` says nothing beside the optimizer's name."""
    return key.removeprefix("optimizer.")


def _effective(run: sweep.Run, keys: list[str]) -> dict[str, Any]:
    """The values of keys in a run, also where only other runs of the sweep set them."""
    resolved = flatten(run.config.model_dump(mode="json"))
    name = run.config.optimizer_name
    paths = {key: re.sub(r"^optimizer[.]", f"optimizers.{name}.", key) for key in keys}
    return {key: run.settings.get(key, resolved.get(path, "")) for key, path in paths.items()}


def member(run: sweep.Run, results: Results) -> Member:
    """Read one run of a sweep into the results, if it was begun."""
    path = run.directory.path
    record = results.add(path) if (path / "meta.json").exists() else None
    if record is not None:
        return Member(run, record, record.state, record.problem)
    state, reason = read_state(path)
    if state == "done":
        return Member(run, None, "unreadable", results.unreadable[path])
    return Member(run, None, state, reason)


# ------------------------------------------------------------------------------------- the table


def states(results: SweepResults) -> list[tuple[str, str, str, str]]:
    """State, combination, directory and problem of every run, in the file's order."""
    return [
        (one.state, f"{point.label}, seed {one.run.config.seed}",
         str(one.run.directory.path.relative_to(results.root)), one.problem)
        for point in results.points
        for one in point.members
    ]  # fmt: skip


def columns(results: SweepResults) -> list[str]:
    return ["optimizer", *map(short, results.keys), "n", "last epoch", "best", "runs"]


def rows(results: SweepResults) -> list[list[str]]:
    """One row per combination, in the order of `columns`."""
    return [
        [
            point.optimizer,
            *map(str, point.values.values()),
            str(len(point.finished)),
            measured(results, point),
            BEST if point is results.best else "",
            point.states,
        ]
        for point in results.points
    ]


def measured(results: SweepResults, point: Point) -> str:
    """Mean and spread of the last epoch over the seeds; nothing without a finished run."""
    values = [run.last() for run in point.finished]
    return mean_and_std(results.tables[0], values) if values else ""


def caption(results: SweepResults) -> str:
    """What the figures are."""
    if not results.tables:
        return "No run is finished yet"
    (table,) = results.tables
    unit = f", {table.unit}" if table.unit else ""
    return f"test {table.headline}{unit}, last epoch: mean ± sample std over n seeds"


def verdict(results: SweepResults) -> str:
    """What the mark of the best combination is worth; nothing where there is no choice."""
    if results.best is None or len(results.tables[0].groups) == 1:
        return ""
    (table,) = results.tables
    _, others = compare(table)
    ahead = sum(other.certain for other in others)
    text = (
        f"{BEST} {results.best.label}: best of {len(others) + 1} combinations by the mean test "
        f"{table.headline} of the last epoch. It was chosen among many by the same runs, so its "
        "mean is flattered: new seeds tell by how much. It is ahead for certain "
        f"({CONFIDENCE:.0%}, all pairs at once) of {ahead} of the other {len(others)}."
    )
    if results.best.complete:
        return text
    return f"{text} It is incomplete ({results.best.states}): only what is done is in its mean."


def advice(results: SweepResults) -> str:
    """How many runs are missing, as what `results.command` sends; nothing where none are."""
    if not results.missing:
        return ""
    count = f"{len(results.missing)} of {len(results.members)} runs"
    return f"{count} are missing; this sends them (--profile slurm: to a cluster):"


# --------------------------------------------------------------------------------------- the plot


def is_line(results: SweepResults) -> bool:
    """Whether one swept key with numbers is what the plot is over."""
    return len(results.keys) == 1 and all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for point in results.points
        for value in point.values.values()
    )


def is_map(results: SweepResults) -> bool:
    """Whether two swept keys span the plot."""
    return len(results.keys) == 2


def logarithmic(results: SweepResults) -> bool:
    """Whether the values of the one swept key spread over at least a decade."""
    values = axis(results, results.keys[0])
    return values[0] > 0 and values[-1] >= LOGARITHMIC_FROM * values[0]


def axis(results: SweepResults, key: str) -> list[Any]:
    """The values of a swept key, numbers by their size, anything else in the file's order."""
    values = list({str(p.values[key]): p.values[key] for p in results.points}.values())
    try:
        return sorted(values)
    except TypeError:
        return values


def by_optimizer(results: SweepResults) -> dict[str, list[Point]]:
    """The points of each optimizer that has a result; those without one are gaps."""
    groups: dict[str, list[Point]] = {}
    for point in results.points:
        groups.setdefault(point.optimizer, []).append(point)
    return {name: points for name, points in groups.items() if any(p.finished for p in points)}


def line(results: SweepResults, points: list[Point]) -> Curve:
    """Mean and spread of the last epoch over the one swept key."""
    (key,), scale = results.keys, results.tables[0].scale
    points = sorted((p for p in points if p.finished), key=lambda point: point.values[key])
    values = [[scale * run.last() for run in point.finished] for point in points]
    spread = [std(v) if len(v) > 1 else 0.0 for v in values]
    return Curve([p.values[key] for p in points], [statistics.mean(v) for v in values], spread)


def cells(results: SweepResults, points: list[Point]) -> list[list[Point | None]]:
    """The points of one optimizer: a row per value of the second key, a column per first."""
    first, second = results.keys
    found = {(str(p.values[second]), str(p.values[first])): p for p in points}
    return [
        [found.get((str(low), str(across))) for across in axis(results, first)]
        for low in axis(results, second)
    ]


def mean(results: SweepResults, point: Point | None) -> float:
    """The mean of the last epoch as shown; nan where there is no result."""
    if point is None or not point.finished:
        return math.nan
    return results.tables[0].scale * statistics.mean(run.last() for run in point.finished)


def dots(results: SweepResults, points: list[Point]) -> tuple[list[float], list[float]]:
    """Each seed's last epoch over the one swept key: values of the key, metric as shown."""
    (key,), scale = results.keys, results.tables[0].scale
    pairs = [(p.values[key], scale * run.last()) for p in points for run in p.finished]
    return [x for x, _ in pairs], [y for _, y in pairs]


def limits(results: SweepResults) -> tuple[float, float]:
    """The smallest and the largest mean: the colors of all heat maps lie between them."""
    means = [mean(results, point) for point in results.points if point.finished]
    return min(means), max(means)


def cell_text(results: SweepResults, point: Point) -> str:
    """What stands in a heat map's cell: the mean, and n where seeds are missing, or the states."""
    if not point.finished:
        return point.states.replace(", ", "\n")
    text = f"{mean(results, point):.{results.tables[0].digits}f}"
    return text if point.complete else f"{text}\nn = {len(point.finished)}"


def ink(value: float, limits: tuple[float, float]) -> str:
    """The color of a text that can be read on a cell of a heat map; nothing on a gap."""
    if math.isnan(value):
        return ""
    return "black" if value >= statistics.mean(limits) else "white"
