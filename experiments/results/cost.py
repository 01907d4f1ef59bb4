"""What a training step costs, for every table and page alike.

A step is the mean step of an epoch, so that refreshes of the curvature count in their proportion,
loading included and the epochs before the last change of settings (`after_epochs`) left out. Over
epochs and seeds the fastest tenth counts: other load on the machine only adds. Where half of the
epochs took much longer than that, the machine was not quiet, and no cost is given; nor of epochs
that shared their processor, which steady load would hide (`time/waited_share`).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.runs.reading import Run

QUIET = 1.3  # the median epoch may take this much longer than the fastest tenth
NOTE = (
    "Steps: an epoch's mean step, the 10 % quantile over epochs and seeds, because other load on "
    f"the machine only adds; none where half of the epochs took more than {QUIET:g} times that, or "
    "where they shared their processor."
)


@dataclass(frozen=True)
class StepTime:
    """The time of a group's step.

    Attributes:
        seconds: nan where none was recorded, or the machine was not quiet.
        epochs: how many were measured.
        machines: kinds of device, with their threads, that the group ran on.
    """

    seconds: float
    epochs: int
    machines: frozenset[tuple]

    def ratio_to(self, reference: "StepTime") -> float:
        """This step in steps of another group; nan unless both ran on one kind of machine."""
        same = self.machines == reference.machines and len(self.machines) == 1
        return self.seconds / reference.seconds if same and reference.seconds else math.nan


def step_time(runs: Sequence[Run]) -> StepTime:
    """The time of a step of a group: runs of one configuration, seed apart."""
    times = sorted(seconds for run in runs for seconds in run.mean_steps())
    sessions = [session for run in runs for session in run.meta["sessions"]]
    machines = frozenset((one.get("device"), one.get("threads")) for one in sessions)
    if not times:
        return StepTime(math.nan, 0, machines)
    fast = times[len(times) // 10]
    quiet = statistics.median_low(times) <= QUIET * fast
    return StepTime(fast if quiet else math.nan, len(times), machines)


def hours(runs: Sequence[Run]) -> float:
    """Hours of training over all runs, as they were spent."""
    return math.fsum(run.training_seconds() for run in runs) / 3600
