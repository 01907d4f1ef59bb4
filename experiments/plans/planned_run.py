"""A run that is to be: what it trains, and what sets it apart within its plan."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config
from experiments.runs.layout import path_of


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan; `experiments.runs.directory.RunDirectory` is where it is recorded.

    Attributes:
        config: resolved, what it trains.
        settings: what the plan chose for it, in the plan's order and with its keys: `optimizer`
            and `seed`, and what a sweep or a line of a table sets.
        source: the file of the plan.
    """

    config: Config
    settings: dict[str, Any]
    source: Path

    @property
    def place(self) -> Path:
        """Its directory relative to the root of all runs: two plans of one place are one run."""
        return path_of(self.config)


def each_once(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The runs in their order, without those that came before under another name."""
    found: dict[Path, PlannedRun] = {}
    for run in runs:
        found.setdefault(run.place, run)
    return list(found.values())
