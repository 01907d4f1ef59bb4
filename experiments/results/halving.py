"""How far each run of a plan is to be trained, from what its rivals' files say.

A comparison waits until every trial of its bracket has come so far, so its outcome does not depend
on the order in which trials are trained: the same files always give the same survivors. It reads
the rows of its own epoch alone, so a run that another plan has trained further changes nothing.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError
from experiments.plans.brackets import Bracket
from experiments.plans.planned_run import PlannedRun
from experiments.runs import problem
from experiments.runs.layout import misplaced
from experiments.runs.metrics import read_json, read_metrics
from experiments.runs.states import read_state


@dataclass(frozen=True)
class Limit:
    """How far a run is to be trained.

    Attributes:
        epochs: that many, as far as is known by now.
        is_final: whether that will not change; False where a comparison waits for other trials.
    """

    epochs: int
    is_final: bool


def limits(brackets: Iterable[Bracket], root: Path) -> dict[Path, Limit]:
    """How far to train each run, by its place; where several brackets have it, the farthest.

    Raises:
        UserError: a run has come to a comparison without what is compared, or on other data.
    """
    found: dict[Path, Limit] = {}
    for bracket in brackets:
        for run, limit in _limits(bracket, root):
            known = found.get(run.place)
            both = [one for one in (known, limit) if one]
            epochs = max(one.epochs for one in both)
            found[run.place] = Limit(epochs, all(o.is_final for o in both if o.epochs == epochs))
    return found


def _limits(bracket: Bracket, root: Path) -> list[tuple[PlannedRun, Limit]]:
    left, found = list(bracket.trials), []
    for rung in bracket.rungs:
        if len(left) == 1:
            break
        values = [_value(bracket, trial, rung, root) for trial in left]
        known = [value for value in values if value is not None]
        _refuse_apart(bracket, left, root)
        if len(known) < len(left):
            return [*found, *_all(left, rung, False)]
        assert bracket.halving
        order = sorted(range(len(left)), key=lambda place: -known[place])  # stable: first of equals
        going_on = set(order[: bracket.halving.kept(len(left))])
        found += _all([t for i, t in enumerate(left) if i not in going_on], rung, True)
        left = [trial for place, trial in enumerate(left) if place in going_on]
    return [*found, *((run, Limit(run.config.epochs, True)) for trial in left for run in trial)]


def _all(
    trials: Sequence[Sequence[PlannedRun]], epochs: int, is_final: bool
) -> list[tuple[PlannedRun, Limit]]:
    return [(run, Limit(epochs, is_final)) for trial in trials for run in trial]


def _refuse_apart(bracket: Bracket, trials: Sequence[Sequence[PlannedRun]], root: Path) -> None:
    """Refuse to choose among trials on other data, or whose result is another one."""
    found = {}
    for run in (run for trial in trials for run in trial):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            meta = read_json(root / run.place / "meta.json")
            problem.identity(meta)
            found[root / run.place] = meta, run.config.model_dump()
    metas, configs = zip(*found.values(), strict=True) if found else ((), ())
    for directory, why in problem.apart(list(found), metas, configs):
        raise UserError(
            f"{bracket.name}: {directory} is {why}. Set RUNS_ROOT to another place for new runs"
        )


def _value(bracket: Bracket, trial: Sequence[PlannedRun], rung: int, root: Path) -> float | None:
    """A trial at a comparison, larger is better: -∞ once diverged, None if not there yet."""
    values = []
    for run in trial:
        directory = root / run.place
        if why := misplaced(directory):
            raise UserError(f"{bracket.name}: {directory} is {why}; move it away")
        row = next(
            (row for row in read_metrics(directory / "metrics.jsonl") if row.get("epoch") == rung),
            None,
        )
        if row is None:
            if read_state(directory)[0] != "diverged":
                return None
            values.append(-math.inf)
        elif not isinstance(row.get(bracket.key), int | float):
            raise UserError(f"{bracket.name}: {directory} has no {bracket.key} in epoch {rung}, "
                            "where trials are compared")  # fmt: skip
        else:
            value = bracket.metric.sign * row[bracket.key]
            values.append(value if math.isfinite(value) else -math.inf)
    return statistics.fmean(values)
