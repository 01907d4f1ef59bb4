"""What an evaluation writes to the parameters themselves.

A constraint (of their norm, say) is written once, and the Hessian is that at the parameters as they
then are. A closure may also move parameters for a while and take that back, as sharpness-aware
minimization does: then each evaluation moves them by as much.

Private to :mod:`adahessian.curvature.gates`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian.curvature.shifts import Shifts, distance
from adahessian.replicas import local

_ROUNDING = 1e-3  # of the way: it may have been taken back by subtracting


class Move(NamedTuple):
    """One write to parameters; None where a difference of values says nothing."""

    shifts: Shifts | None


class Moves:
    """Records the writes of one evaluation to parameters, and repeats those that it takes back."""

    def __init__(self) -> None:
        self._before: dict[Tensor, Tensor] = {}  # the parameters, before any was written to
        self._ways: list[Tensor] = []  # how far each write has moved them
        self._puts_back: Tensor | None = None  # one bool: the closure takes them back

    @contextlib.contextmanager
    def within_evaluation(self, params: Iterable[Tensor], *, is_first: bool) -> Iterator[None]:
        """Return a context for an evaluation, behind which parameters are what they were before.

        That is where the recorded one has taken its writes back; by more than its rounding.

        Args:
            params: that may be written to.
            is_first: the evaluation is recorded.
        """
        moves = not is_first and self._puts_back is not None
        values = {p: local(p.detach()).clone() for p in params} if moves else {}
        try:
            yield
        finally:
            with torch.no_grad():
                if is_first:
                    self._see_whether_put_back()
                for p, value in values.items():
                    local(p).copy_(value)

    def record(
        self, params: Iterable[Tensor], func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, Move]:
        """Call a function that writes to parameters."""
        self._before = self._before or {p: local(p.detach()).clone() for p in params}
        out, shifts = Shifts.record(func, args, kwargs)
        if shifts is not None:
            device = next(iter(self._before)).device
            self._ways.append(distance(shifts.before, shifts.after).to(device))
        return out, Move(shifts)

    def repeat(self, move: Move, targets: Iterable[Tensor]) -> None:
        """Write by as much to what the parameters are now, if all of it will be taken back."""
        if move.shifts is not None and self._puts_back is not None:
            move.shifts.repeat(targets, self._puts_back)

    def _see_whether_put_back(self) -> None:
        before, self._before = self._before, {}
        now = [local(p.detach()) for p in before]
        is_as_large = all(a.shape == b.shape for a, b in zip(before.values(), now, strict=True))
        if self._ways and is_as_large:
            left = distance(before.values(), now)
            self._puts_back = left <= _ROUNDING * torch.stack(self._ways).sum()
