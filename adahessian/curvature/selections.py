"""Functions that select elements: the gates of clamp, maximum, amax, sort and their like.

Private to :mod:`adahessian.curvature.piecewise`, where it is said what a gate is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.curvature.layouts import with_value
from adahessian.curvature.torch_calls import bind, name_of, split, writes


class _Choice(NamedTuple):
    """clamp, maximum, fmax, ...: each element is one operand's, or shared by equal ones.

    Who has which share of the gradient torch decides differently for numbers and tensors, and in
    every version: it is asked, for the whole tensor.
    """

    bounds: tuple[str, ...]  # names of the operands that follow the input

    def bind(self, args, kwargs, dtype):
        """Return the operands: tensors, expanded to one shape and in the output's type; numbers."""
        given = {k: v for k, v in bind(self.bounds, args, kwargs).items() if v is not None}
        tensors = {k: v.to(dtype) for k, v in given.items() if torch.is_tensor(v)}
        numbers = {k: v for k, v in given.items() if k not in tensors}
        # Expanded here: the gradient of an operand is then summed once, as in torch.
        return dict(zip(tensors, torch.broadcast_tensors(*tensors.values()), strict=True)), numbers

    def record(self, func, args, kwargs):
        function = getattr(torch, name_of(func).rstrip("_"))
        in_place = writes(func, kwargs)
        # An operand of dimension zero does not decide the output's type: it is asked, too.
        out = split(args, kwargs)[0] if in_place else func(*args, **kwargs)
        tensors, numbers = self.bind(args, kwargs, out.dtype)
        value, shares = _shares(function, tensors, numbers)
        above = value == numbers["max"] if "max" in numbers else None
        halves = {name: (2 * share).to(torch.int8) for name, share in shares.items()}
        # Between equal bounds torch 2.11 gives nobody a share: the value is fixed there.
        fixed = value if len(tensors) > 2 else None
        pattern = (halves, above, fixed, out.dtype)
        return func(*args, **kwargs) if in_place else out, pattern

    def replay(self, pattern, func, args, kwargs):
        halves, above, fixed, dtype = pattern
        tensors, numbers = self.bind(args, kwargs, dtype)
        out = tensors["input"]
        nobody = torch.stack(list(halves.values())).sum(0) == 0
        if "min" in numbers:
            out = torch.where(nobody, numbers["min"], out)
        if "max" in numbers:
            out = torch.where(nobody & above, numbers["max"], out)
        if fixed is not None:
            out = torch.where(nobody, fixed, out)
        for name, t in list(tensors.items())[1:]:
            out = torch.where(halves[name] == 2, t, out)
        if len(tensors) > 1:
            tied = [torch.where(halves[name] == 1, 0.5 * t, 0) for name, t in tensors.items()]
            out = torch.where(halves["input"] == 1, sum(tied), out)
        return split(args, kwargs)[0].copy_(out) if writes(func, kwargs) else out


def _shares(
    function: Callable, tensors: dict[str, Tensor], numbers: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a function's value, and its derivative by each of some operands of one shape."""

    def of(*operands):
        return function(**dict(zip(tensors, operands, strict=True)), **numbers)

    operands = [t.detach() for t in tensors.values()]
    if _torch.under_functorch():
        out, pull, *_ = torch.func.vjp(of, *operands)
        shares = pull(torch.ones_like(out))
    else:
        with torch.enable_grad():
            operands = [t.requires_grad_() for t in operands]
            out = of(*operands)
        shares = torch.autograd.grad(out, operands, torch.ones_like(out))
    return out.detach(), dict(zip(tensors, shares, strict=True))


class _Extremum:
    """amax, amin, and max, min, median of a whole tensor: ties share the gradient."""

    @staticmethod
    def record(func, args, kwargs):
        x, rest, named = split(args, kwargs)
        out = func(*args, **kwargs)
        dims = rest[0] if rest else named.get("dim", ())
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        dims = sorted(d % max(x.ndim, 1) for d in dims) or list(range(x.ndim))
        keepdim = rest[1] if len(rest) > 1 else named.get("keepdim", False)
        kept = out.detach()
        if not keepdim:
            for d in dims:
                kept = kept.unsqueeze(d) if x.ndim else kept
        return out, (x.detach() == kept, dims, keepdim)

    @staticmethod
    def replay(pattern, func, args, kwargs):
        x = split(args, kwargs)[0]
        chosen, dims, keepdim = pattern
        if x.ndim == 0:
            return x.clone()
        share = torch.where(chosen, x, 0).sum(dims, keepdim=True)
        mean = share / chosen.sum(dims, keepdim=True)
        with torch.no_grad():  # in floating point the mean of equal numbers can be another one
            high = torch.where(chosen, x, -torch.inf).amax(dims, keepdim=True)
            low = torch.where(chosen, x, torch.inf).amin(dims, keepdim=True)
            value = torch.where(high == low, high, mean)
        mean = with_value(mean, value)
        return mean if keepdim else mean.squeeze(dims)


class _Order(NamedTuple):
    """sort, topk, max over a dim, ...: values with the indices at which they were found."""

    dim_position: int = 0  # of `dim` behind the input

    def record(self, func, args, kwargs):
        out = func(*args, **kwargs)
        _, rest, named = split(args, kwargs)
        given = rest[self.dim_position] if len(rest) > self.dim_position else None
        dim = named.get("dim", -1 if given is None else given)
        return out, (out.indices.clone(), dim, type(out))  # a model may change what it gets

    def replay(self, pattern, func, args, kwargs):
        x = split(args, kwargs)[0]
        indices, dim, kind = pattern
        if indices.ndim < x.ndim:  # the dim was reduced
            values = x.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
        else:
            values = x.gather(dim, indices)
        return kind((values, indices.clone()))


class _FirstOf(NamedTuple):
    """max, min, median and their like: another function for other arguments."""

    def _kind(self, args, kwargs):
        _, rest, named = split(args, kwargs)
        if torch.is_tensor(named.get("other", rest[0] if rest else None)):
            return _OF_TWO
        return _Order() if rest or "dim" in named else _Extremum()

    def record(self, func, args, kwargs):
        return self._kind(args, kwargs).record(func, args, kwargs)

    def replay(self, pattern, func, args, kwargs):
        return self._kind(args, kwargs).replay(pattern, func, args, kwargs)


class _Sorted:
    """msort: sorted along the first dim, without the indices."""

    @staticmethod
    def record(func, args, kwargs):
        return torch.sort(split(args, kwargs)[0], dim=0)

    @staticmethod
    def replay(indices, func, args, kwargs):
        return split(args, kwargs)[0].gather(0, indices)


_OF_TWO = _Choice(("other",))
GATES: dict[str, Any] = {
    **dict.fromkeys(("clamp", "clip"), _Choice(("min", "max"))),
    "clamp_min": _Choice(("min",)),
    "clamp_max": _Choice(("max",)),
    **dict.fromkeys("maximum minimum fmax fmin".split(), _OF_TWO),
    **dict.fromkeys("max min median nanmedian".split(), _FirstOf()),
    **dict.fromkeys(("amax", "amin"), _Extremum()),
    **dict.fromkeys("mode sort cummax cummin".split(), _Order()),
    **dict.fromkeys("topk kthvalue".split(), _Order(dim_position=1)),
    "msort": _Sorted(),
}
