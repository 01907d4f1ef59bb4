"""The learning rate over a training: one section for each shape, chosen by `name`.

A shape is a pure function of the step: it has no state to save or lose. A new one is a subclass of
`Schedule` with a `decay`, and a line in `SCHEDULES`.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from experiments.config.sections import Fraction, NotNegative, Section, refuse
from experiments.errors import nearest

Share = Annotated[float, Field(ge=0, le=1)]


class Plateau(Section):
    """A metric that has stopped improving: `torch.optim.lr_scheduler.ReduceLROnPlateau`."""

    metric: str
    """`train/loss`, or `<split>/<metric>` of a split that is evaluated."""
    patience: NotNegative
    """Epochs without an improvement that are tolerated."""
    threshold: Annotated[float, Field(ge=0, lt=1)]
    """An improvement by less, relative to the best value, is none."""


class Schedule(Section):
    """Base of the shapes: a linear warm-up, then what the shape makes of the rate."""

    name: str
    """The shape."""
    warmup_steps: NotNegative = 0
    """Steps of the warm-up; 0: none."""
    warmup_epochs: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """The same in epochs, in place of `warmup_steps`."""
    warmup_start: Share | None = None
    """The first step's rate, as a share of `lr`; null: 1 / steps of the warm-up."""
    floor: Share = 0.0
    """The share of `lr` below which the rate does not fall behind the warm-up."""

    @model_validator(mode="after")
    def _check_warmup(self) -> "Schedule":
        if self.warmup_steps and self.warmup_epochs:
            refuse("the warm-up is given twice: write warmup_steps or warmup_epochs")
        if self.warmup_start is not None and not self.warms_up:
            refuse("warmup_start needs warmup_steps or warmup_epochs")
        return self

    @property
    def warms_up(self) -> bool:
        """Whether there is a warm-up."""
        return bool(self.warmup_steps or self.warmup_epochs)

    @property
    def changes(self) -> bool:
        """Whether the rate is ever another than `lr`."""
        return True

    @property
    def waits_for(self) -> Plateau | None:
        """What the rate waits for, in place of the shape; None where it is a function of the step.

        `experiments.training.schedule.build_plateau` lowers it then.
        """
        return None

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps of the warm-up; a part of an epoch is at least one."""
        if not self.warmup_epochs:
            return self.warmup_steps
        return max(1, round(self.warmup_epochs * steps_per_epoch))

    def relative_rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate at a step, divided by the optimizer's `lr`; without a plateau.

        The warm-up is that of fairseq: linear from `warmup_start` at step 0 to 1 at the first step
        behind it. A shape that ends reaches its floor where the training ends, one step after its
        last, as torch's schedulers do.

        Args:
            step: optimizer steps before this one, from the start of the training.
            steps_per_epoch: in one pass over the training set.
            epochs: of the whole training.
        """
        warmup = self.warmup(steps_per_epoch)
        if step < warmup:
            start = 1 / warmup if self.warmup_start is None else self.warmup_start
            return start + (1 - start) * step / warmup
        return max(self.floor, self.decay(step, warmup, steps_per_epoch, epochs))

    def decay(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        """As `relative_rate`, behind the warm-up of so many steps."""
        raise NotImplementedError

    def _progress(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        """How much of what follows the warm-up is done, from 0 to 1."""
        return (step - warmup) / (steps_per_epoch * epochs - warmup)


class Drops(Schedule):
    """Multiplied by `factor` at each of the `drops`, or at each plateau."""

    name: Literal["drops"] = "drops"
    """The shape: steps downwards. It is this one where no name is given."""
    drops: list[Fraction]
    """Where in the training, as fractions of `epochs`."""
    factor: Annotated[float, Field(gt=0, le=1)]
    """The learning rate is multiplied by it."""
    stepped_at_epoch_start: bool
    """Whether each drop acts one epoch early, as in the released code.

    That code steps its scheduler before it trains an epoch: of its milestones 80 and 120, the first
    acts after 79 epochs and the second after 119.
    """
    plateau: Plateau | None = None
    """In place of `drops`: wait for a metric to stop improving."""

    @model_validator(mode="after")
    def _check_plateau(self) -> "Drops":
        if self.plateau and (self.drops or self.stepped_at_epoch_start or self.factor == 1):
            refuse("a plateau needs drops [], stepped_at_epoch_start false and a factor below 1")
        if self.plateau and (self.warms_up or self.floor):
            refuse("a plateau has no warm-up and no floor")
        return self

    @property
    def waits_for(self) -> Plateau | None:
        return self.plateau

    def decay(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        early = 1 if self.stepped_at_epoch_start else 0
        # The first epoch always has the full rate, however short the training.
        starts = [max(1, round(drop * epochs) - early) for drop in self.drops]
        return self.factor ** sum(step // steps_per_epoch >= start for start in starts)


class Constant(Schedule):
    """The same rate to the end."""

    name: Literal["constant"]
    """The shape."""

    @property
    def changes(self) -> bool:
        return self.warms_up

    def decay(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        return 1.0


class Linear(Schedule):
    """A straight line down to the floor."""

    name: Literal["linear"]
    """The shape."""

    def decay(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        done = self._progress(step, warmup, steps_per_epoch, epochs)
        return 1 - (1 - self.floor) * done


class Cosine(Schedule):
    """Half a period of a cosine down to the floor (Loshchilov and Hutter, 2017, Eq. 5)."""

    name: Literal["cosine"]
    """The shape."""

    def decay(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        done = self._progress(step, warmup, steps_per_epoch, epochs)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


class InverseSqrt(Schedule):
    """√(warm-up / step) behind the warm-up (Vaswani et al., 2017, section 5.3)."""

    name: Literal["inverse_sqrt"]
    """The shape."""

    @model_validator(mode="after")
    def _needs_a_warmup(self) -> "InverseSqrt":
        if not self.warms_up:
            refuse("inverse_sqrt falls with the length of its warm-up: set warmup_steps")
        return self

    def decay(self, step: int, warmup: int, steps_per_epoch: int, epochs: int) -> float:
        return math.sqrt(warmup / step)


SCHEDULES = {
    "drops": Drops,
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "inverse_sqrt": InverseSqrt,
}


def _check_name(value: Any) -> Any:
    """Refuse what is no shape before its keys are looked at."""
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, dict):
        name = value if value in tuple(SCHEDULES) else "cosine"
        refuse(f"is no section: write schedule={{name: {name}, warmup_epochs: 5}}, say")
    if (name := value.get("name", "drops")) not in tuple(SCHEDULES):
        refuse(f"no schedule is called '{name}'; {nearest(str(name), SCHEDULES)}")
    return value


def _tag(value: Any) -> str:
    name = value.get("name", "drops") if isinstance(value, dict) else value.name
    return f"[{name}]"  # in brackets it is no part of a key's path, see `sections.validate`


AnySchedule = Annotated[
    Annotated[Drops, Tag("[drops]")]
    | Annotated[Constant, Tag("[constant]")]
    | Annotated[Linear, Tag("[linear]")]
    | Annotated[Cosine, Tag("[cosine]")]
    | Annotated[InverseSqrt, Tag("[inverse_sqrt]")],
    Discriminator(_tag),
    BeforeValidator(_check_name),
]
