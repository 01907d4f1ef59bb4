"""The gate of quantile and nanquantile: each is an interpolation between two elements.

Below autograd they are no sequence of operators that could be replayed: torch 2.15 takes another
algorithm where a dispatch mode is active, and of equal elements other ones. So torch is asked,
without one, how much of the output each element is.

Private to :mod:`adahessian.curvature.piecewise`, where it is said what a gate is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adahessian import _torch
from adahessian.curvature.layouts import Strides, laid_out_as, with_gradient_laid_out
from adahessian.curvature.torch_calls import bind, name_of


class _Between(NamedTuple):
    """Where outputs lie, along one dim of the input."""

    below: Tensor  # indices
    above: Tensor
    weight: Tensor | None  # of what is above; None where one element is chosen
    q: Tensor | None  # where it has a gradient, too, and
    gaps: Tensor | int  # how many lie between the elements of a slice
    strides: Strides  # of the input's gradient


class _Pattern(NamedTuple):
    places: list[_Between]  # of each quantile
    shape: torch.Size
    strides: Strides


class Quantile:
    """The gate of ``torch.quantile`` and ``torch.nanquantile``."""

    def record(
        self, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Tensor, _Pattern]:
        x, q, options = _given(args, kwargs)
        moves = torch.is_tensor(q) and q.requires_grad and _kind(options) == "linear"
        with torch.no_grad(), _torch.without_dispatch_modes():
            x, q = x.detach(), q.detach() if torch.is_tensor(q) else q
            out, shares = _value_and_shares(lambda x: func(x, q, **options), x, _is_several(q))
            places = [
                _between(x, each, options, one if moves else None, "nan" in name_of(func))
                for one, each in zip(_each(q), shares, strict=True)
            ]
        pattern = _Pattern(places, out.shape, out.stride())
        return self.replay(pattern, func, args, kwargs), pattern

    def replay(
        self, pattern: _Pattern, func: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Tensor:
        places, shape, strides = pattern
        given, q, options = _given(args, kwargs)
        found = []
        for one, place in zip(_each(q), places, strict=True):
            x, dim = _along(with_gradient_laid_out(given, place.strides), options)
            weight = place.weight
            if weight is None:
                found.append(x.gather(dim, place.below))
                continue
            if place.q is not None:
                weight = weight + (one - place.q) * place.gaps
            found.append(torch.lerp(x.gather(dim, place.below), x.gather(dim, place.above), weight))
        out = found[0].reshape(shape) if len(found) == 1 else torch.stack(found).reshape(shape)
        return out if _torch.under_functorch() else laid_out_as(out, strides)


def _value_and_shares(
    function: Callable[[Tensor], Tensor], x: Tensor, is_several: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return quantiles, and how much of each every element is."""
    if _torch.under_derivative_transform():
        out, pull, *_ = torch.func.vjp(function, x)
        return out, [pull(each)[0] for each in _selections(out, is_several)]
    # Within vmap, too, by autograd: of equal elements torch.func takes other ones there.
    value, places = _torch.unbatched(x)
    with torch.enable_grad():
        leaf = nn.Parameter(value.detach())  # torch.func forbids requires_grad_
        out = function(_torch.batched(leaf, places))
    selections = map(_torch.innermost, _selections(out.detach(), is_several))
    shares = [
        torch.autograd.grad(_torch.innermost(out), leaf, each, retain_graph=True)[0]
        for each in selections
    ]
    return out.detach(), [_torch.batched(share, places) for share in shares]


def _selections(out: Tensor, is_several: bool) -> list[Tensor]:
    """Return ones for one quantile, and zeros for the others, of each."""
    ones = torch.ones_like(out)
    if not is_several:
        return [ones]
    places = torch.arange(len(out), device=out.device).view(-1, *[1] * (out.ndim - 1))
    return [ones * (places == place) for place in range(len(out))]


def _between(
    x: Tensor, shares: Tensor, options: dict[str, Any], q: Tensor | None, ignores_nan: bool
) -> _Between:
    strides = shares.stride()
    (x, dim), (shares, _) = _along(x, options), _along(shares, options)
    weights, places = shares.topk(min(2, x.shape[dim]), dim)
    first, last = places.narrow(dim, 0, 1), places.narrow(dim, -1, 1)
    # A single element is the whole output where the other one has no share.
    last = torch.where(weights.narrow(dim, -1, 1) == 0, first, last)
    swapped = x.gather(dim, first) > x.gather(dim, last)
    below, above = torch.where(swapped, last, first), torch.where(swapped, first, last)
    weight = torch.where(below == above, 0, shares.gather(dim, above))
    weight = weight if _kind(options) in ("linear", "midpoint") else None
    if ignores_nan:
        gaps = (~x.isnan()).sum(dim, keepdim=True) - 1
    else:
        gaps = x.shape[dim] - 1
    return _Between(below, above, weight, None if q is None else q.clone(), gaps, strides)


def _given(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Any, dict[str, Any]]:
    options = bind(("q", "dim", "keepdim"), args, kwargs)
    return options.pop("input"), options.pop("q"), options


def _kind(options: dict[str, Any]) -> str:
    return options.get("interpolation", "linear")


def _is_several(q: Any) -> bool:
    return torch.is_tensor(q) and q.ndim > 0


def _each(q: Any) -> list[Any]:
    return list(q) if _is_several(q) else [q]


def _along(x: Tensor, options: dict[str, Any]) -> tuple[Tensor, int]:
    """Return a tensor, and the dim along which a quantile is taken of it."""
    dim = options.get("dim")
    return (x.flatten(), 0) if dim is None or x.ndim == 0 else (x, dim)


GATES = dict.fromkeys(("quantile", "nanquantile"), Quantile())
