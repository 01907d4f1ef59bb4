"""How far a training has come, and what its last steps have left on the device.

A step's losses and sums stay on the device, because reading them waits for it. They are read where
something is logged, before each checkpoint and at the end of an epoch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.training.clock import Clock

MOST_UNREAD = 1000  # steps: no training goes on for longer after its loss has become infinite


@dataclass
class Position:
    """How far a training has come.

    Attributes:
        epoch: whole epochs, evaluated.
        step: steps of the next one; all of them where only its evaluation is missing.
        totals, seconds: sums and time of these steps.
        step_seconds: the time of each of these steps that was measured.
        waited: seconds of these times in which the process had no processor (autograd may have a
            thread of its own).
        gradients: evaluations of the gradient in these steps, as `Training` counts them.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    waited: float = 0.0
    gradients: int = 0


class Loss(NamedTuple):
    """The loss of a step.

    Attributes:
        step: its number in the whole training, from 1.
        rate: its learning rate, None where the optimizer has none.
        value: the mean loss of its batch.
    """

    step: int
    rate: float | None
    value: float


class Steps:
    """The steps of an epoch, as they come; `read` brings a position up to date with them.

    Args:
        position: from which the epoch goes on.
        device: that computes.
    """

    def __init__(self, position: Position, device: torch.device) -> None:
        self._position, self._clock = position, Clock(device)
        self._totals: dict[str, Any] = dict(position.totals)
        self._moments: list[tuple[Any, Any]] = []
        self._losses: list[tuple[int, float | None, Tensor]] = []
        self._earlier, self._start = position.seconds, time.perf_counter()

    def begin(self) -> None:
        """A step begins."""
        self._began = self._clock.now()
        self._host, self._processor = time.perf_counter(), time.process_time()

    def end(self, sums: Mapping[str, Tensor], rate: float | None, number: int) -> None:
        """It has ended.

        Args:
            sums: of its batch: `loss` times `weight`, `weight`, and others.
            rate: its learning rate.
            number: its own, in the whole training, from 1.
        """
        self._moments.append((self._began, self._clock.now()))
        passed = time.perf_counter() - self._host
        processor = time.process_time() - self._processor
        self._position.waited += max(0.0, passed - processor)
        add(self._totals, sums)
        self._losses.append((number, rate, sums["loss"] / sums["weight"]))

    @property
    def must_be_read(self) -> bool:
        """Whether enough steps have gone by unread."""
        return len(self._losses) >= MOST_UNREAD

    def read(self, more: Sequence[Tensor] = ()) -> tuple[list[Loss], list[float]]:
        """Wait for the device and bring the position up to date.

        Args:
            more: elements to read with the same transfer.

        Returns:
            The losses of the steps since the last call, and what `more` holds.
        """
        unread, self._losses = self._losses, []
        totals = list(self._totals.values())
        numbers = read([*totals, *(loss for *_, loss in unread), *more])
        position = self._position
        position.totals = dict(zip(self._totals, numbers, strict=False))
        losses = numbers[len(totals) : len(totals) + len(unread)]
        self._clock.synchronize()
        position.step_seconds += [self._clock.seconds(*pair) for pair in self._moments]
        self._moments = []
        position.seconds = self._earlier + time.perf_counter() - self._start
        named = [
            Loss(step, rate, value) for (step, rate, _), value in zip(unread, losses, strict=True)
        ]
        return named, numbers[len(totals) + len(unread) :]


def first_bad(losses: Sequence[Loss]) -> Loss | None:
    """The first that is infinite or not a number."""
    return next((loss for loss in losses if not math.isfinite(loss.value)), None)


def add(totals: dict[str, Any], sums: Mapping[str, Any]) -> None:
    """Add sums to totals of the same names, which begin with them."""
    for key, value in sums.items():
        totals[key] = totals[key] + value if key in totals else value


def read(values: Sequence[Any]) -> list[float]:
    """Numbers and elements of tensors as numbers, by one transfer from the device."""
    away = [isinstance(value, Tensor) and value.device.type != "cpu" for value in values]
    sent = [value.double() for value, is_away in zip(values, away, strict=True) if is_away]
    arrived = iter(torch.stack(sent).tolist() if sent else ())
    return [
        next(arrived) if is_away else float(value)
        for value, is_away in zip(values, away, strict=True)
    ]
