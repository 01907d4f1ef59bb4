"""A stopwatch over the phases of a training step."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from experiments.training.clock import Clock, register_evaluation_hook

PHASES = ("data", "forward", "backward", "curvature", "update", "rest")


class Watch:
    """Lets a few batches of a loop through, and sees how long they take.

    What is timed begins when a batch is there and ends when the batch after the last one is: whole
    steps, each with the making of one batch.

    Args:
        device: what computes.
        lead: steps before the timed ones.
        steps: how many are timed.

    Attributes:
        first_batch: seconds until the first batch was there.
        total: seconds of the timed steps. The loops wait for the device in every step.
    """

    def __init__(self, device: torch.device, lead: int, steps: int) -> None:
        self.clock, self.lead, self.steps = Clock(device), lead, steps
        self.first_batch = self.total = 0.0
        self._marks: list[tuple[str, Any]] | None = None

    def passing(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of a loop."""
        start = time.perf_counter()
        iterator = iter(batches)
        batch = next(iterator)
        self.first_batch = time.perf_counter() - start
        for number in range(self.lead + self.steps):
            if number == self.lead:
                self.total = -time.perf_counter()
                if self._marks is not None:
                    self._marks = [("", self.clock.now())]
            yield batch
            self.mark("rest")
            batch = next(iterator)
            self.mark("data")
        self.total += time.perf_counter()

    def mark(self, phase: str) -> None:
        """What was done since the last mark was part of `phase`."""
        if self._marks is not None:
            self._marks.append((phase, self.clock.now()))

    def split(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        """Mark the phases of the steps by hooks, which go with `stack`."""
        self._marks = []
        evaluations = None  # of the step that is being taken

        def before_forward(*_: Any) -> None:
            self.mark("data" if evaluations is None else "curvature" if evaluations else "update")

        def after_forward(*_: Any) -> None:
            self.mark("curvature" if evaluations else "forward")

        def begin() -> None:
            nonlocal evaluations
            evaluations = 0
            # Without a closure the gradients are there when the step begins.
            self.mark("backward" if self._marks and self._marks[-1][0] == "forward" else "rest")

        def evaluated() -> None:
            nonlocal evaluations
            self.mark("curvature" if evaluations else "backward")
            evaluations += 1

        def end(*_: Any) -> None:
            nonlocal evaluations
            self.mark("update")
            evaluations = None

        handles = [
            model.register_forward_pre_hook(before_forward),
            model.register_forward_hook(after_forward),
            register_evaluation_hook(optimizer, begin, evaluated),
            optimizer.register_step_post_hook(end),
        ]
        if hasattr(optimizer, "register_curvature_hook"):
            handles.append(optimizer.register_curvature_hook(lambda *_: self.mark("curvature")))
        for handle in handles:
            stack.callback(handle.remove)

    def phases(self) -> dict[str, float]:
        """Seconds per timed step of each phase."""
        self.clock.synchronize()
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, start), (phase, moment) in zip(self._marks, self._marks[1:], strict=False):
            seconds[phase] += self.clock.seconds(start, moment) / self.steps
        return seconds
