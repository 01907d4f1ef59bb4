"""Times at which the parts of an optimizer's step begin and end, on the device's own clock."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class Clock:
    """Moments and the seconds between them.

    Args:
        device: that computes. On a GPU a moment is an event in its queue, so that taking one does
            not wait for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Any:
        """This moment, to be read by `seconds`."""
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        """Wait until the device has passed all moments taken."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two moments that the device has passed."""
        return end - start if self._device.type == "cpu" else start.elapsed_time(end) / 1000


def register_evaluation_hook(
    optimizer: torch.optim.Optimizer, begin: Callable[[], None], evaluated: Callable[[], None]
) -> RemovableHandle:
    """Call `begin` before each step, and `evaluated` after each evaluation of its closure.

    A step without a closure has no evaluations.
    """

    def hook(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        begin()
        if len(args) < 2:
            return args, kwargs
        optimizer_, closure, *rest = args

        def evaluate() -> Tensor:
            loss = closure()
            evaluated()
            return loss

        return (optimizer_, evaluate, *rest), kwargs

    return optimizer.register_step_pre_hook(hook)
