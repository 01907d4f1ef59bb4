"""A sweep's `search`: points of a space, which the file alone determines.

    search:
      method: sobol                # quasi-random, the default; or random
      trials: 8
      seed: 0                      # of the points, not of the runs
      space:
        optimizer.lr: {log_uniform: [0.01, 1]}
        optimizer.weight_decay: {uniform: [0, 0.01]}
        optimizer.betas: {choices: [[0.9, 0.999], [0.9, 0.99]]}
      halving: {first: 5, factor: 3}   # optional, see `Halving`

The points are a function of this section: the same file asks for the same runs, so a search that
was interrupted goes on, and one with more `trials` keeps the first ones. A key that is added to
the space or taken away changes all points.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from experiments.config.sections import FiniteFloat, NotNegative, Positive, Section, refuse

DIGITS = 4  # of a drawn number, so that it can be read and typed
Trials = Annotated[int, Field(ge=1, le=10_000)]
MOST = 64  # draws for each trial, after which a space counts as exhausted


class Dimension(Section):
    """What a key is drawn from: one of the three."""

    log_uniform: list[FiniteFloat] | None = None
    """Between two numbers above 0, evenly in the logarithm."""
    uniform: list[FiniteFloat] | None = None
    """Between two numbers."""
    choices: list[Any] | None = None
    """One of these values."""

    @model_validator(mode="after")
    def _check(self) -> "Dimension":
        given = [name for name in Dimension.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            refuse("write one of log_uniform: [LOW, HIGH], uniform: [LOW, HIGH], choices: [...]")
        if self.choices is not None and not self.choices:
            refuse("choices: the list is empty")
        for name, bounds in (("log_uniform", self.log_uniform), ("uniform", self.uniform)):
            if bounds is None:
                continue
            if len(bounds) != 2 or bounds[0] >= bounds[1]:
                refuse(f"{name} is {bounds}: write [LOW, HIGH], the smaller number first")
            if name == "log_uniform" and bounds[0] <= 0:
                refuse(f"log_uniform is {bounds}: both must be above 0")
        return self

    def value(self, u: float) -> Any:
        """The value at u in [0, 1)."""
        if self.choices is not None:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.log_uniform is not None:
            low, high = map(math.log, self.log_uniform)
            bounds, drawn = self.log_uniform, math.exp(low + u * (high - low))
        else:
            assert self.uniform is not None
            bounds, drawn = self.uniform, self.uniform[0] + u * (self.uniform[1] - self.uniform[0])
        return min(max(float(f"{drawn:.{DIGITS}g}"), float(bounds[0])), float(bounds[1]))


class Halving(Section):
    """Successive halving (Jamieson and Talwalkar, 2016): hopeless trials are stopped early.

    After `first` epochs, and again after `factor` times as many, the best of the trials that are
    left go on, one in `factor` of them, rounded down, and at least one. The others stay where they
    are. Every trial has the schedule of the whole training from its first step on.
    """

    first: Positive
    """Epochs after which the trials are compared for the first time."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One trial in so many goes on, and so many times the epochs come to the next comparison."""

    def rungs(self, epochs: int) -> list[int]:
        """The epochs after which trials are compared, in a training of so many."""
        found, rung = [], self.first
        while rung < epochs:
            found.append(rung)
            rung *= self.factor
        return found

    def kept(self, trials: int) -> int:
        """How many of so many trials go on."""
        return max(1, trials // self.factor)


class Search(Section):
    """Points of a space."""

    trials: Trials
    space: dict[str, Dimension] = Field(min_length=1)
    method: Literal["sobol", "random"] = "sobol"
    seed: NotNegative = 0
    halving: Halving | None = None

    def points(self) -> list[dict[str, Any]]:
        """The values of each trial by their keys, in the space's order; the same point once.

        What is drawn again is replaced by what comes next, so that rivals have equally many trials.
        A space of choices alone may hold fewer than `trials`.
        """
        draws = self.trials
        while len(found := self._drawn(draws)) < self.trials and draws < MOST * self.trials:
            draws *= 2
        return found[: self.trials]

    def _drawn(self, draws: int) -> list[dict[str, Any]]:
        """The different points among so many."""
        import numpy
        from scipy.stats import qmc

        if self.method == "sobol":
            # Powers of two alone are balanced; a sequence's beginning is that of a longer one.
            power = math.ceil(math.log2(draws))
            sampler = qmc.Sobol(len(self.space), scramble=True, seed=self.seed)
            unit = sampler.random_base2(power)[:draws]
        else:
            unit = numpy.random.default_rng(self.seed).random((draws, len(self.space)))
        found: list[dict[str, Any]] = []
        for row in unit.tolist():
            values = zip(self.space.items(), row, strict=True)
            point = {key: dimension.value(u) for (key, dimension), u in values}
            if point not in found:
                found.append(point)
        return found
