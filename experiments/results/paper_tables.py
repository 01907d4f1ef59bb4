"""The results of a table of the paper: each cell's runs, their states and their cost.

Runs below `RUNS_ROOT` and the committed ones (`experiments.export`) count alike; a run that is in
both counts once. A run that diverged is a result: it is not missing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from experiments.config.metrics import Metric
from experiments.plans.paper_tables import Cell, Request
from experiments.plans.planned_run import PlannedRun
from experiments.plans.select import is_table
from experiments.results import committed
from experiments.results.committed import DIVERGED
from experiments.results.cost import step_time
from experiments.results.sweeps import Member, member, set_apart
from experiments.results.tables import Results
from experiments.runs.reading import Run

COMMITTED = "in results/"
HAVE = ("done", COMMITTED, DIVERGED)


@dataclass
class CellResult:
    """A cell of the table with its runs.

    Attributes:
        label: of its line.
        members: one per seed; beside the states of a sweep, `COMMITTED` and "diverged".
    """

    cell: Cell
    label: str
    members: list[Member]

    @property
    def finished(self) -> list[Run]:
        return [m.record for m in self.members if m.record and m.state in ("done", COMMITTED)]

    @property
    def diverged(self) -> int:
        return sum(one.state == DIVERGED for one in self.members)

    @property
    def last(self) -> list[float]:
        """The result of the last epoch as it is shown, one value per finished run."""
        return [run.headline.scale * run.last() for run in self.finished]

    @property
    def best(self) -> list[float]:
        """The result of the best epoch as it is shown, one value per finished run."""
        return [run.headline.scale * run.best() for run in self.finished]

    @property
    def states(self) -> str:
        """How many runs have a result, and the states of the others."""
        have = sum(one.state in HAVE for one in self.members)
        others = Counter(one.state for one in self.members if one.state not in HAVE)
        words = ", ".join(f"{count} {state}" for state, count in others.items())
        return f"{have} of {len(self.members)}{f' ({words})' if words else ''}"

    @property
    def divergence(self) -> str:
        return f"diverges ({self.diverged} of {len(self.members)})" if self.diverged else ""


@dataclass
class TableResults:
    """A table on one data set with its runs."""

    request: Request
    found: list[CellResult] = field(default_factory=list)

    @cached_property
    def metric(self) -> Metric:
        """What the table compares, once a run is there; see also `split`."""
        return self._any.headline

    @property
    def split(self) -> str:
        """On which split the table compares it, usually `test`."""
        return self._any.result_split

    @cached_property
    def _any(self) -> Run:
        return next(one.record for one in self.members if one.record is not None)

    @property
    def blocks(self) -> dict[str, list[CellResult]]:
        blocks: dict[str, list[CellResult]] = {}
        for one in self.found:
            blocks.setdefault(one.cell.block, []).append(one)
        return blocks

    @property
    def members(self) -> list[Member]:
        return [member for one in self.found for member in one.members]

    @property
    def missing(self) -> list[PlannedRun]:
        """What has to be trained: has no result, is not being trained, and did not diverge."""
        return [m.run for m in self.members if m.missing and m.state not in HAVE]

    @property
    def finished(self) -> list[Run]:
        return [run for one in self.found for run in one.finished]


def read(request: Request) -> TableResults:
    """Read the runs of a table, below its root and in `results/`.

    Raises:
        UserError: a configuration of the table, or a file in `results/`, is wrong.
    """
    live = Results(request.root)
    exported = committed.read(committed.FOLDER, request.root)
    results = TableResults(request)
    for cell in request.cells:
        members = [_member(member(run, live), exported) for run in cell.runs]
        results.found.append(CellResult(cell, request.table.label(cell.line), members))
    set_apart(results.members)
    return results


def have_result(planned: Sequence[PlannedRun], root: Path) -> set[Path]:
    """Of the planned runs of tables, the places of those that need no training.

    They are done below the root, committed, or known to diverge; runs of other plans are not looked
    for in `results/`.

    Raises:
        UserError: a file in `results/` is wrong.
    """
    tables = {source for source in {run.source for run in planned} if is_table(source)}
    if not tables:
        return set()
    live, exported = Results(root), committed.read(committed.FOLDER, root)
    runs = [run for run in planned if run.source in tables]
    members = [_member(member(run, live), exported) for run in runs]
    return {one.run.place for one in members if one.state in HAVE}


def _member(one: Member, exported: dict) -> Member:
    if one.state in ("done", DIVERGED):
        return one
    if (run := exported.get(one.directory)) is not None:
        state = DIVERGED if run.state == DIVERGED else COMMITTED
        return Member(one.run, one.directory, run, state)
    return one


def sessions(runs: list[Run]) -> list[dict]:
    return [session for run in runs for session in run.meta["sessions"]]


def reference(results: TableResults, one: CellResult) -> CellResult:
    """The cell of the same block whose step is the unit of cost."""
    (found,) = [
        other for other in results.blocks[one.cell.block]
        if other.label == results.request.table.reference
    ]  # fmt: skip
    return found


def ratio(results: TableResults, one: CellResult) -> float:
    """A step in steps of the block's reference; nan where it is not known."""
    return step_time(one.finished).ratio_to(step_time(reference(results, one).finished))
