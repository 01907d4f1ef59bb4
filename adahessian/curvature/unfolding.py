"""torch's functions that are written in Python, with their insides open to a mode.

Such a function hands itself over as a whole to a ``TorchFunctionMode``, which is off while it runs:
what ``F.softsign`` or ``F.gumbel_softmax`` calls, nobody sees. Here the same code gets globals in
which nothing is to be handed over.

Private to :mod:`adahessian.curvature.gates`.
"""

import functools
import types
from collections.abc import Callable

import torch
from torch.nn import functional as F

_MODULES = (F.__name__, torch.functional.__name__)


def _nothing(*_: object) -> bool:
    return False


@functools.cache
def unfolded(func: Callable) -> Callable | None:
    """Return ``func`` such that a mode that is on sees what it calls; None for other functions."""
    if not isinstance(func, types.FunctionType) or func.__module__ not in _MODULES:
        return None
    questions = [name for name in func.__code__.co_names if name.startswith("has_torch_function")]
    if not questions:
        return None
    inner = types.FunctionType(
        func.__code__,
        func.__globals__ | dict.fromkeys(questions, _nothing),
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    inner.__kwdefaults__ = func.__kwdefaults__
    return inner
