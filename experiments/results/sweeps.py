"""The results of a sweep, from its file and its runs' files.

A combination of the swept keys is a `Point`; its runs are its seeds, those never begun included.
`SweepResults` are `Results` with one table for the whole sweep, so every report takes them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config.flat import flatten, shown
from experiments.config.signature import signature
from experiments.plans import sweeps
from experiments.plans.planned_run import PlannedRun, each_once
from experiments.results.halving import Limit, limits
from experiments.results.statistics import compare
from experiments.results.tables import ComparisonTable, Results, find_reference
from experiments.runs import problem
from experiments.runs.reading import Run
from experiments.runs.states import State, read_state


@dataclass
class Member:
    """One run of a sweep.

    Attributes:
        run: what the sweep's file asks for.
        directory: where it is recorded, whether it was begun or not.
        record: what its files say; None where there are none, or none that can be read.
        state: see `experiments.runs.states`.
        problem: why it has no result, as far as its files say.
        stopped: whether halving has left it behind, in this plan.
    """

    run: PlannedRun
    directory: Path
    record: Run | None
    state: State
    problem: str = ""
    stopped: bool = False

    @property
    def missing(self) -> bool:
        """Whether submitting the sweep again sends this run."""
        done = self.stopped or (self.directory / "DONE").exists()
        return not done and self.state != "running"


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
        return [one.record for one in self.members
                if one.record and one.state == "done" and not one.stopped]  # fmt: skip

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
    """The runs of one sweep.

    Attributes:
        path: the sweep's file.
        keys: what differs between the points besides optimizer and seed, as in the file.
        points: all combinations, in the file's order.
        searched: whether they are points of a space, not of a grid.
    """

    path: Path = Path()
    keys: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    searched: bool = False

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

    @property
    def under_way(self) -> str:
        """Nothing, for the same reason."""
        return ""

    @cached_property
    def all_tables(self) -> list[ComparisonTable]:
        """All combinations side by side, whatever the sweep changes; none without a result."""
        groups = {point.label: point.finished for point in self.points if point.finished}
        under_way = [(point.label, one.record) for point in self.points for one in point.members
                     if one.record and one.record.is_under_way]  # fmt: skip
        if not groups and not under_way:
            return []
        title, name = f"{self.title}: all trainings", f"sweep-{self.path.stem}"
        return [ComparisonTable(title, name, groups, find_reference(groups), under_way)]

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
        return f"make sweep SWEEP={self.path}"


def read_sweep(path: Path, root: Path) -> SweepResults:
    """Read the runs of a sweep's file below a root.

    Raises:
        UserError: something in the file is wrong.
    """
    sweep = sweeps.read(path)
    results = SweepResults(root, path=path, searched=sweep.search is not None)
    brackets = sweeps.brackets(sweep, path)
    runs, far = each_once(run for one in brackets for run in one.runs), limits(brackets, root)
    named = dict.fromkeys(key for run in runs for key in run.settings)
    keys = [key for key in named if key not in ("optimizer", "seed")]
    values = [_effective(run, keys) for run in runs]
    results.keys = [key for key in keys if len({_spelt(known[key]) for known in values}) > 1]
    points: dict[str, Point] = {}
    for run, known in zip(runs, values, strict=True):
        swept = {key: known[key] for key in results.keys}
        name = run.config.optimizer_name
        words = [f"{short(key)}={shown(value)}" for key, value in swept.items() if value != ""]
        label, mark = " ".join([name, *words]), signature(run.config)
        if mark not in points and label in (one.label for one in points.values()):
            label += f" {mark}"  # 1 and "1" are two settings, and no words tell them apart
        point = points.setdefault(mark, Point(label, name, swept, []))
        point.members.append(member(run, results, far[run.place]))
    results.points = list(points.values())
    set_apart(results.members)
    return results


def short(key: str) -> str:
    """A key as a heading: `optimizer.` says nothing beside the optimizer's name."""
    return key.removeprefix("optimizer.")


def _spelt(value: Any) -> str:
    """A value as a text that no value of another kind has."""
    return json.dumps(value, sort_keys=True, default=str)


def _effective(run: PlannedRun, keys: list[str]) -> dict[str, Any]:
    """The values of keys in a run, also where only other runs of the sweep set them."""
    resolved = flatten(run.config.model_dump(mode="json"))
    name = run.config.optimizer_name
    paths = {key: re.sub(r"^optimizer[.]", f"optimizers.{name}.", key) for key in keys}
    return {key: run.settings.get(key, resolved.get(path, "")) for key, path in paths.items()}


def set_apart(members: Iterable[Member]) -> None:
    """Leave out of a plan the runs whose problem is not that of the plan's other runs."""
    read = [(one, one.record) for one in members if one.record is not None]
    metas, configs = [run.meta for _, run in read], [run.config for _, run in read]
    for one, why in problem.apart([one for one, _ in read], metas, configs):
        one.record, one.state, one.problem = None, "other problem", why


def member(run: PlannedRun, results: Results, limit: Limit | None = None) -> Member:
    """Read one run of a sweep into the results, if it was begun.

    Args:
        limit: how far it was to be trained; None: to its end.
    """
    path = results.root / run.place
    state, reason = read_state(path)
    if state in ("unreadable", "moved"):
        return Member(run, path, None, state, reason)
    record = results.add(path) if (path / "meta.json").exists() else None
    if record is not None:
        stopped = bool(limit and limit.is_final and limit.epochs < run.config.epochs)
        problem = "" if stopped and state == "stopped" else record.problem
        return Member(run, path, record, record.state, problem, stopped)
    if path in results.unreadable:
        return Member(run, path, None, "unreadable", results.unreadable[path])
    return Member(run, path, None, state, reason)
