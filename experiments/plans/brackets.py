"""Runs that a plan trains together: all to their end, or by successive halving."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.config.metrics import Metric
from experiments.errors import UserError
from experiments.plans.planned_run import PlannedRun
from experiments.plans.search import Halving


@dataclass(frozen=True)
class Bracket:
    """Trials that are compared with each other; without halving, runs that are trained to the end.

    Attributes:
        trials: the runs of each: one, or one per seed, whose mean is compared.
        halving: when trials are compared, and how many go on.
        key: of the rows of `metrics.jsonl`, what is compared: `val/loss`.
        name: for messages.
    """

    trials: Sequence[Sequence[PlannedRun]]
    halving: Halving | None = None
    key: str = ""
    name: str = ""

    @property
    def runs(self) -> list[PlannedRun]:
        return [run for trial in self.trials for run in trial]

    @property
    def rungs(self) -> list[int]:
        """The epochs after which trials are compared; none where all are trained to the end."""
        return self.halving.rungs(self._epochs) if self.halving else []

    @property
    def metric(self) -> Metric:
        """What is compared."""
        name = self.key.partition("/")[2]
        return next(one for one in self.runs[0].config.metrics if one.name == name)

    @property
    def _epochs(self) -> int:
        return self.runs[0].config.epochs


def halved(
    trials: Sequence[Sequence[PlannedRun]], halving: Halving, name: str, key: str = ""
) -> Bracket:
    """The bracket of some trials.

    Args:
        trials: of one configuration but for what is searched.
        halving, name, key: see `Bracket`; by default the headline metric is compared, on the split
            that names the best epoch.

    Raises:
        UserError: their epochs differ, or no comparison comes before the last of them.
    """
    config = trials[0][0].config
    key = key or f"{config.best_epoch_split}/{config.headline.name}"
    bracket = Bracket(trials, halving, key, name)
    epochs = sorted({run.config.epochs for run in bracket.runs})
    if len(epochs) > 1:
        several = ", ".join(map(str, epochs))
        raise UserError(f"{name}: halving compares trials of one length, not of {several} epochs")
    if not bracket.rungs:
        raise UserError(
            f"{name}: halving.first = {halving.first} is not before the last of {epochs[0]} epochs"
        )
    return bracket
