"""The arguments of a call of a torch function, in whichever form it was called.

Private to the gates (:mod:`adahessian.curvature.piecewise`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

_OF_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x2": "other"}
_OF_NUMPY |= dict.fromkeys(("x", "a", "x1"), "input")


def name_of(func: Callable) -> str:
    """Return a function's name for comparison and messages."""
    return getattr(func, "__name__", str(func))


def in_torchs_words(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a built-in function by torch's names: it takes numpy's, too."""
    return {_OF_NUMPY.get(name, name): value for name, value in kwargs.items()}


def bind(parameters: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name: the input, and the parameters that follow it."""
    return dict(zip(("input", *parameters), args, strict=False)) | kwargs


def split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, tuple, dict[str, Any]]:
    """Return a call's input, and the call without it."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["input"], (), {k: v for k, v in kwargs.items() if k != "input"}


def writes(func: Callable, arguments: dict[str, Any]) -> bool:
    """Whether a call changes its input in place."""
    name = name_of(func)
    return arguments.get("inplace", False) or name.endswith("_") and not name.endswith("__")


def written_by(args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return what a call that writes in place writes to, by whatever name its argument has."""
    return args[0] if args else next(iter(kwargs.values()), None)
