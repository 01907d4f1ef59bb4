"""Evaluating a model without leaving a trace, and at shifted parameters."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adahessian import _torch
from adahessian.curvature.module_calls import before_each_call
from adahessian.curvature.precision import STEP_SIZES
from adahessian.curvature.replay import Replay
from adahessian.curvature.snapshot import RandomStates, random_states, set_random_states


class PreservedState:
    """Puts back what evaluating a model changes: buffers, gradients and random states.

    While it is active, each module that is called works on copies of its buffers. The copies stay
    with the graph that was built on them; the module gets its own ones back.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self._devices = {p.device for p in params if p.device.type != "cpu"}
        self._modules: dict[nn.Module, None] = {}  # all that were ever called, in order
        self._buffers: dict[nn.Module, dict[str, Tensor | None]] = {}

    def __enter__(self) -> None:
        self._grads = [p.grad for p in self._params]
        self._random = self.random_states()
        # A further evaluation by finite differences changes buffers before the modules are called.
        for module in self._modules:
            self._lend_copies(module)
        self._hook = before_each_call(self._lend_copies)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        # It is called once more for the shell of a compiled module, which has no buffers.
        warnings.filterwarnings("ignore", "Using `torch.compile\\(module\\)` when .*global hooks")

    def __exit__(self, *_: Any) -> None:
        self._warnings.__exit__(None, None, None)
        self._hook.remove()
        for module, buffers in self._buffers.items():
            _torch.buffers(module).update(buffers)
        self._buffers.clear()
        for p, grad in zip(self._params, self._grads, strict=True):
            p.grad = grad
        set_random_states(self._random)

    def random_states(self) -> RandomStates:
        """Return the states of the generators for the CPU and the parameters' devices."""
        return random_states(self._devices)

    def _lend_copies(self, module: nn.Module, _: Any = None) -> None:
        self._modules[module] = None
        buffers = _torch.buffers(module)
        if buffers and module not in self._buffers:
            self._buffers[module] = dict(buffers)
            for name, buffer in self._buffers[module].items():
                if buffer is not None:
                    buffers[name] = buffer.clone()


# The optimizer's step h suits random signs, which the largest eigenvectors have little part in: the
# difference of gradients is small, and rounding counts. The vectors of Lanczos lie along those
# eigenvectors: the difference is a hundred times larger, and so are the higher derivatives, which
# call for a smaller step (docs/spectrum.md has the errors over the steps).
_STEP_ALONG_EIGENVECTORS = 0.01  # in terms of h


class ShiftedEvaluation:
    """A function of the parameters θ, and its values at θ + h·v with the pieces of θ's own.

    The step is h·v/rms(v) for vectors like random signs, and a hundredth of it for others. Unlike
    :class:`~adahessian.curvature.finite_difference.FiniteDifference`, it need not be felt in every
    single tensor.

    Args:
        function: takes nothing; it is evaluated here for the first time.
        params: the parameters.
        check: warn of pieces that cannot be frozen, and see whether the function is repeatable.

    Attributes:
        value: what the function returned at θ.
    """

    def __init__(
        self, function: Callable[[], Any], params: Sequence[Tensor], *, check: bool = False
    ) -> None:
        self._params = params
        self._size = sum(p.numel() for p in params)
        self._replay = Replay(function, params)
        self.value = self._replay.record(check=check)

    def at(self, pieces: list[Tensor]) -> tuple[Any, float]:
        """Return the function's value at θ + step·v, and the step; (None, 0) for v = 0.

        Args:
            pieces: v, one tensor for each parameter.

        Raises:
            RuntimeError: the step is lost in the rounding of θ.
        """
        norm = _norm(pieces)
        if norm == 0:
            return None, 0.0
        rms = norm / self._size**0.5
        step = STEP_SIZES[self._replay.precision(self._params)] / rms
        filled = [piece for piece in pieces if piece.numel()]  # none has no largest element
        if max(float(n) for n in torch._foreach_norm(filled, torch.inf)) > 2 * rms:
            step *= _STEP_ALONG_EIGENVECTORS
        # Through .data: what autograd has saved for other products need not be thrown away,
        # because afterwards the values are the same again.
        values = [p.data for p in self._params]
        before = [value.clone() for value in values]
        try:
            torch._foreach_add_(values, pieces, alpha=step)
            rounding = torch._foreach_sub(values, before)
            torch._foreach_sub_(rounding, pieces, alpha=step)
            if _norm(rounding) > 0.5 * step * norm:
                raise RuntimeError(
                    "the step of the finite difference is lost in the rounding of the parameters: "
                    "use curvature='double_backward'"
                )
            value, _ = self._replay.again()
        finally:
            torch._foreach_copy_(values, before)
        return value, step


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> float:
    return math.hypot(*(float(n) for n in torch._foreach_norm(tensors)))
