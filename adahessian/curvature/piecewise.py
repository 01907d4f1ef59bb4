"""The piecewise functions of torch: how each records its pieces, and computes on given ones.

Private to :mod:`adahessian.curvature.gates`. A gate has two methods: ``record(func, args, kwargs)``
calls the function and returns its output and the pattern of its pieces; ``replay(pattern, func,
args, kwargs)`` computes the same function with the pieces given, differentiable like any other
code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adahessian.curvature.weight_gradients import FirstLayers


def name_of(func: Callable) -> str:
    """Return a function's name for comparison and messages."""
    return getattr(func, "__name__", str(func))


class _Pointwise(NamedTuple):
    """y_i = piece(x_i) with the piece chosen by x_i."""

    parameters: tuple[str, ...]  # what follows the input, in the functions' order
    pattern: Callable[..., Tensor]  # (x, **options): the piece of each element, in one byte
    piece: Callable[..., Tensor]  # (pattern, x, **options): the function on given pieces

    def bind(self, args, kwargs):
        options = {**dict(zip(("input", *self.parameters), args, strict=False)), **kwargs}
        return options.pop("input"), options.pop("inplace", False), options

    def record(self, func, args, kwargs):
        x, _, options = self.bind(args, kwargs)
        with torch.no_grad():
            pattern = self.pattern(x, **options)
        return func(*args, **kwargs), pattern

    def replay(self, pattern, func, args, kwargs):
        x, in_place, options = self.bind(args, kwargs)
        if in_place or name_of(func).endswith("_") and not name_of(func).endswith("__"):
            # The copy is what autograd may save: x itself is overwritten.
            return x.copy_(self.piece(pattern, x.clone(), **options))
        return self.piece(pattern, x, **options)


def _region(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return above.to(torch.int8).sub_(below.to(torch.int8))


def _clamp_region(x, min=None, max=None):  # noqa: A002 (torch's names)
    region = torch.zeros_like(x, dtype=torch.int8)
    region = region if max is None else region.add_(x > max)
    return region if min is None else region.sub_((x < min).to(torch.int8))


def _clamp_piece(region, x, min=None, max=None):  # noqa: A002
    if min is not None:
        x = torch.where(region < 0, min, x)
    return x if max is None else torch.where(region > 0, max, x)


def _bounded_piece(region, x, low, high):
    y = x * (region == 0)
    for bound, beyond in ((low, region < 0), (high, region > 0)):
        y = y if bound == 0 else y + bound * beyond.to(x.dtype)
    return y


def _prelu_piece(positive, x, weight):
    if weight.numel() > 1:
        weight = weight.view(-1, *[1] * (x.ndim - 2))
    return torch.where(positive, x, weight * x)


def _exponential_piece(positive, x, alpha=1.0, scale=1.0, width=1.0):
    below = torch.where(positive, 0, x)  # keeps expm1 finite where it is not used
    return torch.where(positive, scale * x, scale * alpha * torch.expm1(below / width))


def _positive(x, **_):
    return x > 0


def _unit_region(x, **_):
    return _region(x, x >= 3, x <= -3)


_POINTWISE = {
    # The activations of image networks multiply where others select: torch.where takes ten times
    # as long as a product on a CPU, and a product with bytes less than one with bools.
    ("relu",): _Pointwise(("inplace",), lambda x: (x > 0).view(torch.uint8), lambda on, x: x * on),
    ("leaky_relu",): _Pointwise(
        ("negative_slope", "inplace"),
        lambda x, **_: (x > 0).view(torch.uint8),
        lambda on, x, negative_slope=0.01: x * on * (1 - negative_slope) + negative_slope * x,
    ),
    ("prelu",): _Pointwise(("weight",), _positive, _prelu_piece),
    ("elu",): _Pointwise(("alpha", "inplace"), _positive, _exponential_piece),
    ("celu",): _Pointwise(
        ("alpha", "inplace"),
        _positive,
        lambda on, x, alpha=1.0: _exponential_piece(on, x, alpha, width=alpha),
    ),
    ("selu",): _Pointwise(
        ("inplace",),
        _positive,
        lambda on, x: _exponential_piece(on, x, 1.6732632423543772, 1.0507009873554805),
    ),
    ("threshold",): _Pointwise(
        ("threshold", "value", "inplace"),
        lambda x, threshold, value: x > threshold,
        lambda on, x, threshold, value: torch.where(on, x, value),
    ),
    ("hardtanh",): _Pointwise(
        ("min_val", "max_val", "inplace"),
        lambda x, min_val=-1.0, max_val=1.0: _region(x, x >= max_val, x <= min_val),
        lambda r, x, min_val=-1.0, max_val=1.0: _bounded_piece(r, x, min_val, max_val),
    ),
    ("relu6",): _Pointwise(
        ("inplace",),
        lambda x: _region(x, x >= 6, x <= 0),
        lambda r, x: _bounded_piece(r, x, 0.0, 6.0),
    ),
    ("hardsigmoid",): _Pointwise(
        ("inplace",), _unit_region, lambda r, x: torch.where(r == 0, x / 6 + 0.5, (r > 0).to(x))
    ),
    ("hardswish",): _Pointwise(
        ("inplace",),
        _unit_region,
        lambda r, x: x * (x + 3) / 6 * (r == 0) + x * (r > 0),
    ),
    ("softshrink",): _Pointwise(
        ("lambd",),
        lambda x, lambd=0.5: _region(x, x > lambd, x < -lambd),
        lambda r, x, lambd=0.5: (x - lambd * r) * (r != 0),
    ),
    ("hardshrink",): _Pointwise(
        ("lambd",), lambda x, lambd=0.5: x.abs() > lambd, lambda on, x, lambd=0.5: x * on
    ),
    ("clamp", "clip"): _Pointwise(("min", "max"), _clamp_region, _clamp_piece),
    ("clamp_min",): _Pointwise(("min",), _clamp_region, _clamp_piece),
    ("clamp_max",): _Pointwise(
        ("max",), _clamp_region, lambda r, x, max: _clamp_piece(r, x, max=max)
    ),
    ("abs", "absolute"): _Pointwise(
        (), lambda x: x.sign().to(torch.int8), lambda sign, x: x * sign
    ),
}


class _RandomLeakyReLU:
    """rrelu draws its slopes only for negative elements: the drawn slopes are the pattern."""

    @staticmethod
    def record(func, args, kwargs):
        x = (args[0] if args else kwargs["input"]).detach().clone()
        out = func(*args, **kwargs)
        return out, torch.where(x < 0, out.detach() / x, 1.0)

    @staticmethod
    def replay(slope, func, args, kwargs):
        x = args[0] if args else kwargs["input"]
        y = x * slope
        return x.copy_(y) if kwargs.get("inplace") or name_of(func) == "rrelu_" else y


class _Constant:
    """Steps: the derivative is zero wherever there is one, the value must not jump."""

    @staticmethod
    def record(func, args, kwargs):
        out = func(*args, **kwargs)
        return out, out.detach().clone()

    @staticmethod
    def replay(value, func, args, kwargs):
        out = func(*args, **kwargs)  # a random one must draw as often as before
        return out.copy_(value) if name_of(func).endswith("_") else value.clone()


class Detached(_Constant):
    """detach: what the loss takes as a constant must not move with the parameters."""


class _OfTwo:
    """maximum, minimum, fmax, fmin, and max and min of two tensors; equal ones share."""

    @staticmethod
    def record(func, args, kwargs):
        x, other = _operands(args, kwargs, "other")
        out = func(*args, **kwargs)
        equal = (x == other).detach()
        return out, (equal, (x == out).detach() & ~equal)

    @staticmethod
    def replay(pattern, func, args, kwargs):
        x, other = _operands(args, kwargs, "other")
        equal, first = pattern
        return torch.where(first, x, torch.where(equal, 0.5 * (x + other), other))


class _Extremum:
    """amax, amin, and max, min, median of a whole tensor: ties share the gradient."""

    @staticmethod
    def record(func, args, kwargs):
        x, *rest = args if args else (kwargs["input"],)
        out = func(*args, **kwargs)
        dims = rest[0] if rest else kwargs.get("dim", ())
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        dims = sorted(d % max(x.ndim, 1) for d in dims) or list(range(x.ndim))
        keepdim = rest[1] if len(rest) > 1 else kwargs.get("keepdim", False)
        kept = out.detach()
        if not keepdim:
            for d in dims:
                kept = kept.unsqueeze(d) if x.ndim else kept
        return out, (x.detach() == kept, dims, keepdim)

    @staticmethod
    def replay(pattern, func, args, kwargs):
        x = args[0] if args else kwargs["input"]
        chosen, dims, keepdim = pattern
        if x.ndim == 0:
            return x.clone()
        total = torch.where(chosen, x, 0).sum(dims, keepdim=keepdim)
        return total / chosen.sum(dims, keepdim=keepdim)


class _Order(NamedTuple):
    """sort, topk, max over a dim, ...: values with the indices at which they were found."""

    dim_position: int = 0  # of `dim` behind the input

    def record(self, func, args, kwargs):
        out = func(*args, **kwargs)
        rest = args[1:]
        given = rest[self.dim_position] if len(rest) > self.dim_position else None
        dim = kwargs.get("dim", -1 if given is None else given)
        return out, (out.indices, dim, type(out))

    def replay(self, pattern, func, args, kwargs):
        x = args[0] if args else kwargs["input"]
        indices, dim, kind = pattern
        if indices.ndim < x.ndim:  # the dim was reduced
            values = x.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
        else:
            values = x.gather(dim, indices)
        return kind((values, indices))


class _FirstOf(NamedTuple):
    """max, min, median and their like: another function for other arguments."""

    def _kind(self, args, kwargs):
        rest = args[1:]
        if torch.is_tensor(kwargs.get("other", rest[0] if rest else None)):
            return _OfTwo
        return _Order() if rest or "dim" in kwargs else _Extremum

    def record(self, func, args, kwargs):
        return self._kind(args, kwargs).record(func, args, kwargs)

    def replay(self, pattern, func, args, kwargs):
        return self._kind(args, kwargs).replay(pattern, func, args, kwargs)


class _Sorted:
    """msort: sorted along the first dim, without the indices."""

    @staticmethod
    def record(func, args, kwargs):
        x = args[0] if args else kwargs["input"]
        return func(*args, **kwargs), torch.argsort(x.detach(), dim=0)

    @staticmethod
    def replay(indices, func, args, kwargs):
        return (args[0] if args else kwargs["input"]).gather(0, indices)


def _operands(args, kwargs, second):
    return (
        args[0] if args else kwargs["input"],
        args[1] if len(args) > 1 else kwargs[second],
    )


class _MaxPool(NamedTuple):
    """Max pooling over the last ``dims`` dimensions."""

    dims: int
    with_indices: Callable
    flag: int  # position of return_indices among the arguments

    def wants_indices(self, func, args, kwargs):
        asked = args[self.flag] if len(args) > self.flag else kwargs.get("return_indices", False)
        return asked or name_of(func).endswith("_with_indices")

    def record(self, func, args, kwargs):
        arguments = {k: v for k, v in kwargs.items() if k != "return_indices"}
        # return_indices is the last argument but for the fractional pools' samples.
        plain = args[: self.flag] + args[self.flag + 1 :]
        out, indices = self.with_indices(*plain, **arguments)
        return ((out, indices) if self.wants_indices(func, args, kwargs) else out), indices

    def replay(self, indices, func, args, kwargs):
        x = args[0] if args else kwargs["input"]
        flat = x.flatten(-self.dims).gather(-1, indices.flatten(-self.dims))
        out = flat.view(indices.shape)
        return (out, indices) if self.wants_indices(func, args, kwargs) else out


class _L1Loss:
    """mean or sum of |input − target|."""

    @staticmethod
    def record(func, args, kwargs):
        x, target = _operands(args, kwargs, "target")
        return func(*args, **kwargs), (x - target).detach().sign().to(torch.int8)

    @staticmethod
    def replay(sign, func, args, kwargs):
        x, target = _operands(args, kwargs, "target")
        reduction = kwargs.get("reduction", args[4] if len(args) > 4 else "mean")
        distance = (x - target) * sign
        weight = kwargs.get("weight", args[5] if len(args) > 5 else None)
        if weight is not None:
            distance = distance * weight
            if reduction == "mean":
                return distance.sum() / weight.sum()
        return distance if reduction == "none" else getattr(distance, reduction)()


def _build_table() -> dict[Callable, Any]:
    """Return the gate of each function, in all the forms under which torch offers it."""
    kinds = {name: gate for names, gate in _POINTWISE.items() for name in names}
    kinds |= dict.fromkeys("max min median nanmedian".split(), _FirstOf())
    kinds |= dict.fromkeys("maximum minimum fmax fmin".split(), _OfTwo)
    kinds |= dict.fromkeys("amax amin".split(), _Extremum)
    kinds |= dict.fromkeys("mode sort cummax cummin".split(), _Order())
    kinds |= dict.fromkeys("topk kthvalue".split(), _Order(dim_position=1))
    constants = "round floor ceil trunc fix sign sgn heaviside bernoulli".split()
    kinds |= dict.fromkeys(constants, _Constant) | {"msort": _Sorted}
    kinds |= {"rrelu": _RandomLeakyReLU, "l1_loss": _L1Loss, "detach": Detached}
    for n in (1, 2, 3):
        for name, flag in ((f"max_pool{n}d", 6), (f"adaptive_max_pool{n}d", 2)):
            with_indices = getattr(F, name + "_with_indices")
            kinds[name] = kinds[name + "_with_indices"] = _MaxPool(n, with_indices, flag)
    for n in (2, 3):
        name = f"fractional_max_pool{n}d"
        with_indices = getattr(F, name + "_with_indices")
        kinds[name] = kinds[name + "_with_indices"] = _MaxPool(n, with_indices, 4)
    kinds |= dict.fromkeys("conv1d conv2d conv3d".split(), FirstLayers())
    table = {}
    for name, gate in kinds.items():
        for form in (name, name + "_", f"__{name}__"):
            for home in (torch, Tensor, F):
                func = getattr(home, form, None)
                if func is not None:
                    table[func] = gate
    return table


GATES = _build_table()
