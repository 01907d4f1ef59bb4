"""The memory layout of what a replayed gate returns, and of the gradients that leave it.

Many kernels choose their algorithm by the strides of what they get, and round differently: batch
normalization in bfloat16 sums a channels_last gradient in another order than a contiguous one. So a
replayed piece that computes the right values in another layout than torch's own function makes
everything behind it another computation, whose rounding a difference of gradients takes for
curvature. Here the strides of the recorded evaluation are noted, and given to the replayed one.

Private to :mod:`adahessian.curvature.gates`.
"""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adahessian import _torch

Strides = tuple[int, ...]


class _Layout(NamedTuple):
    """How a tensor lies; ``vmap``'s dims come first, and lay at these places."""

    strides: Strides
    places: list[tuple[int, int]]


class Layouts:
    """Strides of a gate's outputs, and of its inputs' gradients in each backward pass."""

    def __init__(self) -> None:
        self._outputs: list[_Layout | None] = []
        self._gradients: list[list[Strides | None]] = []  # of each input that is no leaf

    def note_gradients(self, inputs: Iterable[Tensor]) -> None:
        """Note how the gradients of a recorded gate's inputs lie, when they come."""
        for x in inputs:
            if _has_gradient_within(x):
                noted: list[Strides | None] = []
                self._gradients.append(noted)
                x.register_hook(partial(_note, noted=noted))

    def note_outputs(self, out: Any) -> None:
        """Note how a recorded gate's outputs lie."""
        self._outputs = [_layout_of(t) for t in _tensors(out)]

    def lay_out_gradients(self, inputs: Iterable[Tensor]) -> None:
        """Lay out the gradients of a replayed gate's inputs as those of the recorded one."""
        inputs = (x for x in inputs if _has_gradient_within(x))
        for x, noted in zip(inputs, self._gradients, strict=False):
            x.register_hook(partial(_laid_out_next, coming=iter(noted)))

    def lay_out_outputs(self, out: Any) -> Any:
        """Return a replayed gate's outputs, laid out as the recorded ones."""
        laid_out = [
            t if layout is None else _laid_out(t, layout)
            for t, layout in zip(_tensors(out), self._outputs, strict=True)
        ]
        # torch.return_types are made of one argument, a sequence, as a tuple is.
        return laid_out[0] if torch.is_tensor(out) else type(out)(laid_out)


def laid_out_as(t: Tensor, strides: Strides) -> Tensor:
    """Return t with these strides: itself if it has them, else a copy; differentiable."""
    if t.stride() == strides:
        return t
    repeated = [s == 0 and n > 1 for s, n in zip(strides, t.shape, strict=True)]
    if any(repeated):  # an expanded tensor: a copy can be written to one of its elements only
        if t.requires_grad:
            return t
        first = t[tuple(slice(1) if r else slice(None) for r in repeated)]
        return laid_out_as(first, strides).expand(t.shape)
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def copy_of(t: Tensor) -> Tensor:
    """Return a copy of t with its strides, also where they leave gaps; differentiable."""
    if not _is_plain(t) or any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True)):
        return t.clone()
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)


def with_value(graph: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` with the derivative and the strides of ``graph``."""
    out = copy_of(graph)
    with torch.no_grad():
        return out.copy_(value)


def with_gradient_laid_out(t: Tensor, strides: Strides) -> Tensor:
    """Return t itself, whose gradient from here will have these strides."""
    if not t.requires_grad or not _is_plain(t):
        return t
    t = t.view_as(t)
    t.register_hook(partial(_laid_out_next, coming=itertools.repeat(strides)))
    return t


def _note(grad: Tensor | None, noted: list[Strides | None]) -> None:
    with _torch.below_torch_functions():  # the gates are active in a backward pass, too
        noted.append(grad.stride() if grad is not None and _is_plain(grad) else None)


def _laid_out_next(grad: Tensor | None, coming: Iterator[Strides | None]) -> Tensor | None:
    strides = next(coming, None)
    if grad is None or strides is None:
        return grad
    with _torch.below_torch_functions():
        return laid_out_as(grad, strides) if _is_plain(grad) else grad


def _tensors(out: Any) -> tuple[Any, ...]:
    return (out,) if torch.is_tensor(out) else tuple(out)


def _layout_of(t: Any) -> _Layout | None:
    value, places = _torch.unbatched(t) if torch.is_tensor(t) else (t, [])
    return _Layout(value.stride(), places) if _is_plain(value) else None


def _laid_out(t: Tensor, layout: _Layout) -> Tensor:
    value, places = _torch.unbatched(t)
    if not _is_plain(value) or layout == (value.stride(), places):
        return t
    return _torch.batched(laid_out_as(value, layout.strides), layout.places)


def _is_plain(t: Any) -> bool:
    """Whether t is a tensor with strides of its own; one that torch.func has wrapped is not."""
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.layout is torch.strided
        and not _torch.under_derivative_transform()
        and not _torch.is_functorch_wrapped_tensor(t)
    )


def _has_gradient_within(x: Any) -> bool:
    """Whether x gets a gradient that no one but autograd sees. AccumulateGrad lays out a leaf's."""
    return _is_plain(x) and x.grad_fn is not None
