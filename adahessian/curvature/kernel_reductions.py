"""The operators of ATen that select elements, or sum absolute values: how they are frozen.

Private to :mod:`adahessian.curvature.kernel_pieces`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

Given = dict[str, Any]


class Order(NamedTuple):
    """sort, topk, max over a dim, max pooling: values with the indices at which they were found."""

    dims: int | None = None  # the last dims that an index counts through; None: of the dim given

    def freezes(self, a: Given) -> bool:
        return a["self"].is_floating_point()

    def pattern(self, a: Given, out: Any) -> Tensor:
        return out[1].clone()  # a model may change what it gets

    def fix(self, pattern: Tensor, a: Given, out: Any) -> Any:
        x = a["self"]
        if self.dims is not None:
            values = x.flatten(-self.dims).gather(-1, pattern.flatten(-self.dims))
            return values.view(pattern.shape), pattern.clone()
        dim = -1 if a.get("dim") is None else a["dim"]
        if x.ndim == 0:
            values = x.clone()
        elif pattern.ndim < x.ndim:  # the dim was reduced
            values = x.gather(dim, pattern.unsqueeze(dim)).squeeze(dim)
        else:
            values = x.gather(dim, pattern)
        return values, pattern.clone()


class Extremum:
    """amax, amin, aminmax; max, min, median of a whole tensor: the mean of equal elements."""

    def freezes(self, a: Given) -> bool:
        return a["self"].is_floating_point()

    def pattern(self, a: Given, out: Any) -> list[Tensor]:
        outs = (out,) if torch.is_tensor(out) else out
        return [_same(a["self"], self._kept(a, o)) for o in outs]

    def fix(self, pattern: list[Tensor], a: Given, out: Any) -> Any:
        outs = (out,) if torch.is_tensor(out) else out
        fixed = [self._value(m, a, o) for m, o in zip(pattern, outs, strict=True)]
        return fixed[0] if torch.is_tensor(out) else fixed

    def _value(self, mask: Tensor, a: Given, out: Tensor) -> Tensor:
        x, kept = a["self"], self._kept(a, out)
        moved = (_same(x, kept) != mask).any()
        share = torch.where(mask, x, 0).sum(_dims(a), keepdim=True) / mask.sum(_dims(a), True)
        return torch.where(moved, share, kept).view(out.shape)

    def _kept(self, a: Given, out: Tensor) -> Tensor:
        shape = [1 if d in _dims(a) else n for d, n in enumerate(a["self"].shape)]
        return out.view(shape)


class AtZero:
    """std, hypot: zero where it was zero. Smooth otherwise."""

    def freezes(self, a: Given) -> bool:
        return True

    def acts(self, a: Given, out: Any) -> bool:
        """Whether there is anything to freeze."""
        return bool(((out if torch.is_tensor(out) else out[0]) == 0).any())

    def pattern(self, a: Given, out: Any) -> Any:
        return (out if torch.is_tensor(out) else out[0]) == 0

    def fix(self, pattern: Tensor, a: Given, out: Any) -> Any:
        if torch.is_tensor(out):
            return torch.where(pattern, 0, out)
        return torch.where(pattern, 0, out[0]), out[1]


class Norm(AtZero):
    """Of p = 1 the signs are frozen, of infinity the largest elements; of any the zeros."""

    def acts(self, a: Given, out: Tensor) -> bool:
        return not 1 < _power(a) < torch.inf or super().acts(a, out)

    def pattern(self, a: Given, out: Tensor) -> Any:
        x, p = _vector(a), _power(a)
        if p == 0:
            return out.clone()
        if abs(p) == torch.inf:
            return x.sgn() * _same(x.abs(), Extremum()._kept({**a, "self": x}, out))
        return x.sgn() if p == 1 else x == 0

    def fix(self, pattern: Any, a: Given, out: Tensor) -> Tensor:
        x, p, dims = _vector(a), _power(a), _dims({**a, "self": _vector(a)})
        if p == 0:
            return pattern.clone()
        if abs(p) == torch.inf:
            count = (pattern != 0).sum(dims, True).clamp(min=1)
            kept = (x * pattern.conj()).real.sum(dims, True) / count
            value = kept.view(out.shape)
            moved = (pattern != self.pattern(a, out)).any()
            return torch.where(moved, value, out)
        if p == 1:
            sign = pattern if not x.is_complex() else torch.where(pattern == 0, 0, x.sgn())
            change = (x * sign.conj()).real - x.abs()
            return out + change.sum(dims, True).view(out.shape)
        # A norm of nothing but zeros stays zero, and an element that was zero adds nothing.
        return torch.where(self._all_zero(pattern, dims, out), 0, out)

    @staticmethod
    def _all_zero(zeros: Tensor, dims: list[int], out: Tensor) -> Tensor:
        for d in dims:
            zeros = zeros.all(d, keepdim=True)
        return zeros.view(out.shape)


class Renormed:
    """renorm: the slices that were too long are shortened."""

    def freezes(self, a: Given) -> bool:
        return True

    def _norms(self, a: Given) -> Tensor:
        dims = [d for d in range(a["self"].ndim) if d != a["dim"] % a["self"].ndim]
        return torch.linalg.vector_norm(a["self"], a["p"], dims, keepdim=True)

    def pattern(self, a: Given, out: Tensor) -> Tensor:
        return self._norms(a) > a["maxnorm"]

    def fix(self, pattern: Tensor, a: Given, out: Tensor) -> Tensor:
        norms = self._norms(a)
        short = torch.where(pattern, a["self"] * (a["maxnorm"] / (norms + 1e-7)), a["self"])
        return torch.where(pattern == (norms > a["maxnorm"]), out, short)


class Distance(Norm):
    """cdist and pdist, forward and backward: the norms of differences between rows."""

    def __init__(self, backward: bool = False) -> None:
        self.backward = backward

    def pattern(self, a: Given, out: Tensor) -> Tensor:
        differences, distance = _differences(a), self._distance(a, out)
        if a["p"] == torch.inf:
            return differences.sign() * _same(differences.abs(), distance.unsqueeze(-1))
        return differences.sign() if a["p"] <= 1 else distance == 0

    def fix(self, pattern: Tensor, a: Given, out: Tensor) -> Tensor:
        differences, p = _differences(a), a["p"]
        moved = (self.pattern(a, out) != pattern).any()
        if not self.backward:
            if p == torch.inf:
                count = (pattern != 0).sum(-1).clamp(min=1)
                return torch.where(moved, (differences * pattern).sum(-1) / count, out)
            if p == 1:
                return torch.where(moved, (differences * pattern).sum(-1), out)
            return torch.where(pattern.all(-1) if p < 1 else pattern, 0, out)
        grad = a["grad_output"].unsqueeze(-1)
        if p == torch.inf or p == 1:
            terms = grad * pattern
        else:
            kept = pattern.logical_not() if p > 1 else (pattern != 0).any(-1)
            distance = torch.where(kept, self._distance(a, out), 1).unsqueeze(-1)
            terms = grad * differences * differences.abs() ** (p - 2) / distance ** (p - 1)
            terms = torch.where(kept.unsqueeze(-1) & (differences != 0), terms, 0)
        return torch.where(moved, _to_rows(a, terms), out)

    def _distance(self, a: Given, out: Tensor) -> Tensor:
        return out if not self.backward else a.get("cdist", a.get("pdist"))


def _differences(a: Given) -> Tensor:
    """Return x1_i − x2_j for all i, j of cdist; x_i − x_j for i < j of pdist."""
    if "x1" in a:
        return a["x1"].unsqueeze(-2) - a["x2"].unsqueeze(-3)
    i, j = torch.triu_indices(len(a["self"]), len(a["self"]), 1, device=a["self"].device)
    return a["self"][i] - a["self"][j]


def _to_rows(a: Given, terms: Tensor) -> Tensor:
    if "x1" in a:
        return terms.sum(-2)
    i, j = torch.triu_indices(len(a["self"]), len(a["self"]), 1, device=a["self"].device)
    return torch.zeros_like(a["self"]).index_add(0, i, terms).index_add(0, j, -terms)


class Scattered:
    """scatter_reduce, index_reduce with amax or amin: the mean of those that were largest."""

    def freezes(self, a: Given) -> bool:
        return a["self"].is_floating_point() and a["reduce"] in ("amax", "amin")

    def _parts(self, a: Given) -> tuple[Tensor, Tensor]:
        """Return (source, index) of a scatter."""
        if "src" in a:
            return a["src"], a["index"]
        source = a["source"]
        if source.ndim == 0:
            return source, a["index"].view(())
        shape = [1] * source.ndim
        shape[a["dim"]] = -1
        return source, a["index"].view(shape).expand(source.shape)

    def pattern(self, a: Given, out: Tensor) -> tuple[Tensor, Tensor]:
        source, index = self._parts(a)
        # autograd counts an element that was there among equals, even where it is not included
        if a["self"].ndim == 0:
            return _same(source, out), _same(a["self"], out)
        source = source[tuple(slice(n) for n in index.shape)]
        chosen = _same(source, out.gather(a["dim"], index))
        untouched = torch.ones_like(out, dtype=torch.bool).scatter(a["dim"], index, False)
        return chosen, untouched | _same(a["self"], out)

    def fix(self, pattern: tuple[Tensor, Tensor], a: Given, out: Tensor) -> Tensor:
        now = self.pattern(a, out)
        moved = (now[0] != pattern[0]).any() | (now[1] != pattern[1]).any()
        chosen, kept = pattern
        source, index = self._parts(a)
        if a["self"].ndim == 0:
            total = torch.where(chosen, source, 0).sum() + torch.where(kept, a["self"], 0)
            return torch.where(moved, total / (chosen.sum() + kept), out)
        source = torch.where(chosen, source[tuple(slice(n) for n in index.shape)], 0)
        total = torch.where(kept, a["self"], 0).scatter_add(a["dim"], index, source)
        count = kept.to(total).scatter_add(a["dim"], index, chosen.to(total))
        return torch.where(moved, total / count, out)


def _same(x: Tensor, value: Tensor) -> Tensor:
    return (x == value) | (x != x) & (value != value)


def _dims(a: Given) -> list[int]:
    ndim, given = a["self"].ndim, a.get("dim")
    given = [given] if isinstance(given, int) else list(given or ())
    return sorted(d % max(ndim, 1) for d in given) if given and ndim else list(range(ndim))


def _vector(a: Given) -> Tensor:
    return a["self"] - a["other"] if "other" in a else a["self"]


def _power(a: Given) -> float:
    p = a["ord"] if "ord" in a else a.get("p")
    return 2.0 if p is None else float(p)


REDUCTIONS: dict[str, Any] = {
    **dict.fromkeys("sort topk kthvalue mode cummax cummin".split(), Order()),
    **dict.fromkeys(("max_pool2d_with_indices", "adaptive_max_pool2d"), Order(2)),
    **dict.fromkeys(("max_pool3d_with_indices", "adaptive_max_pool3d"), Order(3)),
    "fractional_max_pool2d": Order(2),
    "fractional_max_pool3d": Order(3),
    **dict.fromkeys(("amax", "amin", "aminmax"), Extremum()),
    **dict.fromkeys(("linalg_vector_norm", "norm", "dist"), Norm()),
    **dict.fromkeys(("std", "std_mean", "hypot"), AtZero()),
    "renorm": Renormed(),
    **dict.fromkeys(("_cdist_forward", "_pdist_forward"), Distance()),
    **dict.fromkeys(("_cdist_backward", "_pdist_backward"), Distance(backward=True)),
    **dict.fromkeys(("scatter_reduce", "index_reduce"), Scattered()),
}


class _FirstOf:
    """max, min, median: over a dim with indices, or of the whole tensor."""

    def freezes(self, a: Given) -> bool:
        return a["self"].is_floating_point()

    def _kind(self, out: Any) -> Any:
        return Extremum() if torch.is_tensor(out) else Order()

    def pattern(self, a: Given, out: Any) -> Any:
        return self._kind(out).pattern(a, out)

    def fix(self, pattern: Any, a: Given, out: Any) -> Any:
        return self._kind(out).fix(pattern, a, out)


REDUCTIONS |= dict.fromkeys("max min median nanmedian".split(), _FirstOf())
