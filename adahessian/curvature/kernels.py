"""Pieces below autograd: record and replay what :mod:`adahessian.curvature.gates` cannot reach.

A function of torch that is written in C++ or in Python comes to the gates as a whole:
``F.pairwise_distance``, ``F.softsign``, ``torch.renorm``. Below autograd it is a sequence of ATen
operators, forward and backward, and there a piece needs no derivative of its own: the backward pass
is a sequence of such operators too, with comparisons, signs and indices for the pieces. So each
operator is run as it is, and then the elements that have left their piece get the values that they
would have on it (:mod:`adahessian.curvature.kernel_pieces`). Whatever has not moved is torch's own
result.

A dispatch mode costs some microseconds for each operator, forward and backward. So the gates do
this work wherever they can, and the kernels take their place for a loss in which something else was
found, from its first evaluation on.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.curvature.closures import not_repeatable
from adahessian.curvature.kernel_pieces import PIECES
from adahessian.curvature.kernel_reductions import AtZero
from adahessian.curvature.layouts import laid_out_as
from adahessian.curvature.searches import Searches

# Their derivatives have another formula where an element is zero.
_SMOOTH = ("Prod", "Cumprod", "Sinc", "Special", "Pow")

# cuDNN has one kernel for all recurrent layers, and this is its `mode` for relu.
_CUDNN_RNN_RELU = 0

# Piecewise operators that nothing here freezes: (arguments) -> whether there is a kink.
UNFROZEN: dict[str, Callable[[dict[str, Any]], bool]] = {
    "_cudnn_rnn": lambda a: a["mode"] == _CUDNN_RNN_RELU,
    "miopen_rnn": lambda a: a["mode"] == _CUDNN_RNN_RELU,
    **dict.fromkeys(
        ("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"),
        lambda a: a["grid"].requires_grad,
    ),
    # e to the power of −|x|; the gradient by the angle, which torch has as zero.
    **dict.fromkeys(("special_i0e", "special_i1e"), lambda a: bool((a["self"] == 0).any())),
    "polar": lambda a: bool((a["abs"] == 0).any()),
}


def hidden_piece(name: str, given: dict[str, Any], out: Any, harmless: bool) -> bool:
    """Whether an operator is a reason to record kernels.

    Args:
        name: the operator's.
        given: its arguments.
        out: what it returned.
        harmless: it runs within a function whose pieces have no part in the gradient.
    """
    # The forward pass has shown what a backward pass meets; dropout draws of a fixed probability.
    if _torch.in_backward() or name == "bernoulli_":
        return False
    pieces = PIECES.get(name) or PIECES.get(name.rstrip("_"))
    if pieces is None or not pieces.freezes(given):
        return False
    if isinstance(pieces, AtZero):
        return pieces.acts(given, out)
    return not harmless


class Kernels(_torch.TorchDispatchMode):
    """Records the pieces of ATen operators in one evaluation, and replays them in further ones.

    Args:
        searches: take in what comparisons become.
    """

    def __init__(self, searches: Searches) -> None:
        super().__init__()
        self._searches = searches
        # Each device has a thread of its own in a backward pass, and its own order.
        self._tapes: dict[torch.device, list[tuple[str, Any]]] = {}
        self._next: dict[torch.device, int] | None = None  # None while recording
        self._is_paused = False

    def rewind(self) -> None:
        """Replay from the beginning."""
        self._next = dict.fromkeys(self._tapes, 0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let operators pass that will not run again."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    @property
    def met_pieces(self) -> bool:
        """Whether there is anything to be frozen."""
        return any(self._tapes.values())

    def check_complete(self) -> None:
        """Raise unless the replayed evaluation came through all that was recorded."""
        for device, tape in self._tapes.items():
            if self._next is not None and self._next[device] != len(tape):
                found = f"{self._next[device]} piecewise operators instead of {len(tape)}"
                raise not_repeatable(found)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with _torch.below_torch_functions():  # the gates have seen the call that led here
            name = _torch.kernel_name(func)
            pieces = PIECES.get(name) or PIECES.get(name.rstrip("_"))
            if self._is_paused:
                return func(*args, **kwargs)
            if pieces is None:
                out = func(*args, **kwargs)
                if not _is_step(out, args) or _is_formula_of_smooth():
                    return out
                return self._whole(name, out)
            given = _torch.kernel_arguments(func, args, kwargs)
            mutable = _torch.kernel_is_mutable(func)
            if mutable and name.endswith("_"):
                given["self"] = given["self"].clone()
            if not pieces.freezes(given):
                return func(*args, **kwargs)
            out = func(*args, **kwargs)
            if self._next is None:
                self._tape(out).append((name, pieces.pattern(given, out)))
                return out
            fixed = pieces.fix(self._recorded(name, out), given, out)
            return _put(out, fixed, mutable)

    def _whole(self, name: str, out: Tensor) -> Tensor:
        """Freeze a comparison, an index, a count: whatever says where a value lies."""
        if self._next is None:
            self._tape(out).append((name, out.clone()))
            return out
        recorded = self._recorded(name, out)
        self._searches.note(recorded, out)
        return _put(out, recorded.clone(), name.endswith("_"))

    def _tape(self, out: Any) -> list[tuple[str, Any]]:
        return self._tapes.setdefault(_device(out), [])

    def _recorded(self, name: str, out: Any) -> Any:
        assert self._next is not None
        device = _device(out)
        tape, position = self._tapes.get(device, []), self._next.get(device, 0)
        if position >= len(tape):
            raise not_repeatable(f"more than {len(tape)} piecewise operators, the next is {name}")
        recorded, pattern = tape[position]
        if recorded != name:
            raise not_repeatable(f"{name} where there was {recorded}")
        self._next[device] = position + 1
        return pattern


def _is_formula_of_smooth() -> bool:
    """Whether a comparison only chooses between formulas of a derivative that has no piece."""
    return _torch.in_backward() and _torch.derivative_in_backward().startswith(_SMOOTH)


def _device(out: Any) -> torch.device:
    return (out if torch.is_tensor(out) else out[0]).device


def _is_step(out: Any, args: tuple) -> bool:
    """Whether an operator makes integers or truth values of floating point numbers."""
    if not torch.is_tensor(out) or out.is_floating_point() or out.is_complex():
        return False
    return any(
        a.is_floating_point() or a.is_complex()
        for a in _torch.pytree.tree_leaves(args)
        if torch.is_tensor(a)
    )


def _put(out: Any, fixed: Any, mutable: bool) -> Any:
    """Return the fixed values as the operator's own came: in its tensors, or with its strides."""
    if not torch.is_tensor(out):
        return type(out)([_put(o, f, mutable) for o, f in zip(out, fixed, strict=True)])
    if fixed is out:
        return out
    if mutable:
        return out.copy_(fixed)
    fixed = fixed.to(out.dtype)
    return laid_out_as(fixed, out.stride()) if fixed.shape == out.shape else fixed
