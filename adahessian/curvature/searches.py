"""Custom functions whose forward pass searches: their comparisons are no pieces.

A bisection (of entmax, say) compares at each of its iterations, and each outcome moves what the
next ones compare. With the outcomes of another point it ends beside its root. But what it returns
is smooth, and the function has a derivative of its own: such a forward pass is evaluated as it is.

It tells itself by what comes out of its comparisons a small step away. At a kink a few elements
leave their piece. At a search's late iterations, whose intervals are shorter than the step, half of
all do.

Private to :mod:`adahessian.curvature.gates` and :mod:`adahessian.curvature.kernels`.
"""

import sys
from collections import Counter
from types import CodeType

from torch import Tensor

from adahessian import _torch

_MOST_LEAVE = 0.1  # of a comparison's elements
_FEWEST = 3  # such comparisons in an evaluation: zeros may leave theirs all at once


class Searches:
    """The forward methods that are known to search, and what is on the way to become known.

    Attributes:
        looks: whether comparisons are taken in.
    """

    def __init__(self) -> None:
        self.looks = False
        self._known: set[CodeType] = set()
        self._found: list[tuple[CodeType, Tensor]] = []

    @property
    def is_running(self) -> bool:
        """Whether one that is known is."""
        return bool(self._known) and _running() in self._known

    def note(self, recorded: Tensor, out: Tensor) -> None:
        """Take in what a comparison, index or count was, and what it is in a further evaluation."""
        code = _running() if self.looks and recorded.shape == out.shape and out.numel() else None
        if code is not None:
            self._found.append((code, (recorded != out).float().mean() > _MOST_LEAVE))

    def settle(self) -> bool:
        """Return whether the evaluation that ends here has shown one that was not known."""
        leaving = Counter(code for code, is_leaving in self._found if is_leaving)
        self._found.clear()
        found = {code for code, count in leaving.items() if count >= _FEWEST}
        self._known |= found
        return bool(found)


def _running() -> CodeType | None:
    """Return the forward method that runs, if it is that of a custom function."""
    if not _torch.in_function_forward():
        return None
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "forward":
        frame = frame.f_back
    return None if frame is None else frame.f_code
