"""The runs below a root, read and grouped for every report.

Runs that share everything but the optimizer's settings and the seed (the protocol), the data and
what is measured (`experiments.runs.problem`) are in one `ComparisonTable`; runs that differ in the
seed alone are one of its rows, a group. Groups are made of finished runs, and so are all
statistics. Runs that are under way have a row and curves of their own; the others are listed, with
the reason.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config.flat import flatten, optimizer_defaults
from experiments.config.metrics import Metric
from experiments.errors import UserError
from experiments.plans.differences import protocol, protocol_defaults, words_apart
from experiments.plans.experiments import optimizer_order
from experiments.runs import own_code, problem
from experiments.runs.layout import TRACES, find, holds
from experiments.runs.reading import Run, read_run
from experiments.runs.states import STATES, State, read_state


@dataclass
class ComparisonTable:
    """The runs of one data set, model and protocol.

    Attributes:
        title: data set, model, and what sets this protocol apart from others of the report.
        name: of its files and anchors.
        groups: finished runs by row label, one signature each.
        reference: the group whose step is the unit of cost; none where no group, or more than one,
            is of the experiment's first optimizer.
        under_way: runs that are not done, each with the label of its group; the group need not be
            among `groups`.
    """

    title: str
    name: str
    groups: dict[str, list[Run]]
    reference: str | None = None
    under_way: list[tuple[str, Run]] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """Those that are done."""
        return [run for runs in self.groups.values() for run in runs]

    @property
    def all_runs(self) -> list[Run]:
        return [*self.runs, *(run for _, run in self.under_way)]

    @property
    def _example(self) -> Run:
        return self.all_runs[0]

    @property
    def metric(self) -> Metric:
        """What the table compares."""
        return self._example.headline

    @property
    def result_key(self) -> str:
        """The key of what the table compares, in a run's rows."""
        return self._example.test_key

    @property
    def baselines(self) -> str:
        """A sentence on what the test set's result is without learning; empty where not known."""
        for run in self.runs:
            if found := run.baselines:
                data = run.meta.get("data") or {}
                count = f" of {data['test examples']:,} examples" if "test examples" in data else ""
                named = ", ".join(f"{key} {self.metric.text(v)}" for key, v in found.items())
                return f"Without learning the test set{count} has: {named}."
        return ""

    @property
    def result_name(self) -> str:
        """Split and metric, as a sentence names them: `test loss`."""
        return f"{self._example.result_split} {self.metric.name}"

    @property
    def result_title(self) -> str:
        """Split, metric and unit, as an axis names them: `test error (K)`."""
        return f"{self._example.result_split} {self.metric.title}"

    @property
    def warnings(self) -> list[str]:
        """Sentences on runs that stand side by side and were not made by the same code."""
        found = []
        for label, runs in self.groups.items():
            sizes_of_runs = (run.meta.get("parameters") for run in runs)
            counts = dict.fromkeys(size for size in sizes_of_runs if isinstance(size, int))
            if len(counts) > 1:
                sizes = " and ".join(f"{count:,}" for count in counts)
                found.append(f"The runs of {label} have {sizes} parameters: not the same network.")
        versions: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for mark in dict.fromkeys(own_code.recorded(run.meta["sessions"])):
                versions.setdefault(mark.split()[0], {})[mark] = None
        for name, marks in versions.items():
            if len(marks) > 1:
                found.append(
                    f"Runs of this table were made with {len(marks)} versions of your own code "
                    f"in {name} ({', '.join(mark.split()[-1] for mark in marks)})."
                )
        return found


# What reading damaged files raises, whatever is in them.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, UserError)


@dataclass
class Results:
    """Everything below a root."""

    root: Path
    runs: list[Run] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def add(self, directory: Path) -> Run | None:
        """Read a run's directory; what cannot be read is noted with the reason.

        One that has just begun has no `meta.json` yet, and is not noted.
        """
        if not holds(directory, "meta.json"):
            state, reason = read_state(directory)
            if state != "running":
                words = "" if state == "unreadable" else f" ({state}: {reason})"
                self.unreadable[directory] = f"there is no meta.json{words}"
            return None
        try:
            self.runs.append(run := read_run(directory))
        except DAMAGE as error:
            self.unreadable[directory] = f"{type(error).__name__}: {error}"
            return None
        return run

    def having(self, state: State) -> list[Run]:
        return [run for run in self.runs if run.state == state]

    @property
    def left_out(self) -> str:
        """How many runs no table shows, in words; empty where there are none."""
        states = [run.state for run in self.runs if not run.is_under_way]
        counted = _count([*states, *["unreadable"] * len(self.unreadable)])
        return f"{counted} run(s) left out" if counted else ""

    @property
    def under_way(self) -> str:
        """How many runs are shown before they are done, in words; empty where there are none."""
        counted = _count([run.state for run in self.runs if run.is_under_way])
        return f"{counted} run(s) shown as far as they have come, and in no mean" if counted else ""

    @cached_property
    def all_tables(self) -> list[ComparisonTable]:
        """Also those in which no run is done yet."""
        return make_tables([run for run in self.runs if run.state == "done" or run.is_under_way])

    @property
    def tables(self) -> list[ComparisonTable]:
        """Those with finished runs."""
        return [table for table in self.all_tables if table.groups]


def _count(states: Sequence[str]) -> str:
    """How many runs are in which state but done, in the order of `STATES`."""
    counts = {state: states.count(state) for state in STATES if state != "done"}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


# --------------------------------------------------------------------------------------- reading


def read_results(
    root: Path, dataset: str | None = None, model: str | None = None, more: Iterable[Run] = ()
) -> Results:
    """Read all runs below a root, or those of a data set or model.

    Args:
        more: runs from elsewhere (`experiments.export`); those finished below the root win.

    Raises:
        UserError: there is no run with anything to show.
    """
    results = Results(root)
    for directory in find(root, dataset, model, holding=TRACES):
        results.add(directory)
    here = {run.directory for run in results.having("done")}
    for run in more:
        chosen = dataset in (None, run.meta["dataset"]) and model in (None, run.meta["model"])
        if chosen and run.state == "done" and run.directory not in here:
            results.runs.append(run)
    if not results.all_tables:
        raise UserError(f"no finished run below {root} ({results.left_out or 'no run at all'})")
    return results


# -------------------------------------------------------------------------------------- grouping


def make_tables(runs: list[Run]) -> list[ComparisonTable]:
    """Sort runs into tables (one problem each) and rows (one signature each)."""
    tables = []
    for (dataset, model), same in _group(runs, lambda r: (r.meta["dataset"], r.meta["model"])):
        protocols = _group(same, lambda r: r.meta["protocol"])
        settings = [protocol(members[0].config) for _, members in protocols]
        for (name, every), own in zip(protocols, settings, strict=True):
            of_protocol = words_apart(own, settings, protocol_defaults(every[0].config))
            problems = problem.sort(every, [problem.identity(run.meta) for run in every])
            for known, members in problems:
                words = problem.words(known, [other for other, _ in problems])
                parts = [name, *([problem.mark(known)] if len(problems) > 1 else [])]
                title = " ".join([dataset, model, *of_protocol, *filter(None, [words])])
                tables.append(_table(title, "-".join([dataset, model, *parts]), members))
    return tables


def _table(title: str, name: str, members: list[Run]) -> ComparisonTable:
    rows = _rows(members)
    done = {label: [r for r in runs if r.state == "done"] for label, runs in rows.items()}
    groups = {label: runs for label, runs in done.items() if runs}
    under_way = [(label, r) for label, runs in rows.items() for r in runs if r.state != "done"]
    return ComparisonTable(title, name, groups, find_reference(groups), under_way)


def find_reference(groups: dict[str, list[Run]]) -> str | None:
    """The one group of the experiment's first optimizer, if all groups share a problem."""
    runs = [members[0] for members in groups.values()]
    if len(problem.sort(runs, [problem.identity(run.meta) for run in runs])) != 1:
        return None
    order = optimizer_order(runs[0].meta["dataset"], runs[0].meta["model"])
    found = [label for label, run in zip(groups, runs, strict=True) if _name(run) in order[:1]]
    return found[0] if len(found) == 1 else None


def _rows(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by label: the optimizer's name, with its settings where one name has several.

    Optimizers are in the order of the experiment's file, unknown ones after them in alphabetical
    order; settings are sorted by the size of their numbers.
    """
    order = optimizer_order(runs[0].meta["dataset"], runs[0].meta["model"])
    rows: dict[str, list[Run]] = {}
    for name, same in sorted(_group(runs, _name), key=lambda item: _place(item[0], order)):
        signatures = [members for _, members in _group(same, lambda r: r.meta["signature"])]
        settings = [flatten(members[0].optimizer) for members in signatures]
        labels = [name] * len(signatures)
        if len(signatures) > 1:
            defaults = optimizer_defaults(signatures[0][0].optimizer.get("constructor"))
            words = [words_apart(own, settings, defaults) for own in settings]
            labels = [" ".join([name, *found]) for found in words]
        for label, members in sorted(
            zip(labels, signatures, strict=True), key=lambda item: _natural(item[0])
        ):
            # Signatures that differ by a default of the code alone have no words to show.
            mark = members[0].meta["signature"]
            rows[f"{label} {mark}" if label in rows else label] = members
    return rows


def _name(run: Run) -> str:
    return run.meta["optimizer"]


def _place(name: str, order: list[str]) -> tuple[int, list[str | float]]:
    return (order.index(name) if name in order else len(order)), _natural(name)


def _natural(label: str) -> list[str | float]:
    """A key that sorts numbers in a text by their size."""
    parts = re.split(r"(\d+\.?\d*(?:e[-+]?\d+)?)", label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _group(runs: list[Run], key: Callable[[Run], Any]) -> list[tuple[Any, list[Run]]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.items())
