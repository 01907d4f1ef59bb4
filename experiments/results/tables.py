"""What the runs below a root say: reading and grouping, shared by every report.

Runs that share everything but the optimizer's settings and the seed (the protocol) stand in one
`Table`; runs that differ in the seed alone make one of its rows, a group. Reports are made of
finished runs; the others are listed, with the reason.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs.layout import find
from experiments.runs.reading import Run, flatten, read_run
from experiments.runs.states import STATES, State


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
    for directory in find(root, dataset, model, holding="meta.json"):
        results.add(directory)
    here = {run.directory for run in results.having("done")}
    for run in more:
        chosen = dataset in (None, run.meta["dataset"]) and model in (None, run.meta["model"])
        if chosen and run.state == "done" and run.directory not in here:
            results.runs.append(run)
    if not results.having("done"):
        raise UserError(f"no finished run below {root} ({results.left_out or 'no run at all'})")
    return results


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
