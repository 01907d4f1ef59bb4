"""The piecewise functions of torch: how each records its pieces, and computes on given ones.

Private to :mod:`adahessian.curvature.gates`. A gate has two methods: ``record(func, args, kwargs)``
calls the function and returns its output and the pattern of its pieces; ``replay(pattern, func,
args, kwargs)`` computes the same function with the pieces given, differentiable like any other
code.

Where no element has left its piece, the values and gradients of a replay are torch's to the last
bit, in bfloat16 too: its kernels compute in float32 and round once, where a formula of several
operations would round as often. So a piece is computed in one of three ways:

- it is exact by its nature: an element selected, a constant, a change of sign;
- by the kernel of torch's derivative, which runs in torch's backward pass too: it chooses a slope
  by a tensor, and takes the pattern in that tensor's place;
- by torch's own function, with a correction of the elements that have left their piece.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from adahessian import _torch
from adahessian.curvature.embeddings import GATES as EMBEDDINGS
from adahessian.curvature.embeddings import Embedding
from adahessian.curvature.fake_quantization import GATES as FAKE_QUANTIZATIONS
from adahessian.curvature.fake_quantization import FakeQuantization
from adahessian.curvature.layouts import with_value
from adahessian.curvature.pools import GATES as POOLS
from adahessian.curvature.quantiles import GATES as QUANTILES
from adahessian.curvature.quantiles import Quantile
from adahessian.curvature.selections import GATES as SELECTIONS
from adahessian.curvature.snapshot import generator_state, set_generator_state
from adahessian.curvature.torch_calls import bind, split, writes
from adahessian.curvature.weight_gradients import FirstLayers

_aten = torch.ops.aten
_REDUCED = (torch.bfloat16, torch.float16)


class _Pointwise(NamedTuple):
    """y_i = piece(x_i) with the piece chosen by x_i.

    Where torch computes a piece with a rounding of its own, ``edge`` is given. Then torch's
    function is called, with the elements that have left their piece put back to its edge; behind
    it their piece takes the place of what came of that.
    """

    parameters: tuple[str, ...]  # what follows the input, in the functions' order
    pattern: Callable[..., Tensor]  # (x, **options): the piece of each element, in one byte
    piece: Callable[..., Tensor]  # (pattern, x, **options): the function on given pieces
    edge: Callable[..., Tensor] | None = None  # (pattern, x, **options), where x is outside

    def bind(self, func, args, kwargs):
        options = bind(self.parameters, args, kwargs)
        in_place = writes(func, options)
        options.pop("inplace", None)
        return options.pop("input"), in_place, options

    def record(self, func, args, kwargs):
        x, _, options = self.bind(func, args, kwargs)
        with torch.no_grad():
            pattern = self.pattern(x, **options)
        return func(*args, **kwargs), pattern

    def replay(self, pattern, func, args, kwargs):
        x, in_place, options = self.bind(func, args, kwargs)
        if self.edge is None:
            out = self.piece(pattern, x, **options)
        else:
            _, *further = split(args, kwargs)
            out = self.replay_corrected(pattern, x, func, further, options)
        return x.copy_(out) if in_place and out is not x else out

    def replay_corrected(self, pattern, x, func, further, options):
        assert self.edge is not None
        with torch.no_grad():
            moved = self.pattern(x, **options) != pattern
        args, kwargs = further
        given = {k: _per_element(v, x) for k, v in options.items()}
        if _can_look(x) and x.ndim:
            few = moved.nonzero(as_tuple=True)
            if len(few[0]) == 0:
                return func(x, *args, **kwargs)
            given = {k: v[few] if torch.is_tensor(v) else v for k, v in given.items()}
            beyond, on = x[few], pattern[few]
            out = func(x.index_put(few, self.edge(on, beyond.detach(), **given)), *args, **kwargs)
            return out.index_put(few, self.piece(on, beyond, **given).to(out.dtype))
        edge = self.edge(pattern, x.detach(), **given)
        out = func(torch.where(moved, edge, x), *args, **kwargs)
        # Elsewhere a piece can be infinite, of which torch.where's zero gradient makes no number.
        beyond = self.piece(pattern, torch.where(moved, x, edge), **given)
        return torch.where(moved, beyond.to(out.dtype), out)


def _per_element(option: Any, x: Tensor) -> Any:
    """Return an option of prelu, which can have one for each channel, in the shape of x."""
    if not torch.is_tensor(option):
        return option
    if option.numel() == 1:
        return option.reshape(()).expand(x.shape)
    return option.view(-1, *[1] * (x.ndim - 2)).expand(x.shape)


def _can_look(t: Tensor) -> bool:
    """Whether to ask where a mask is true: faster than torch.where, but on a device one waits."""
    return t.is_cpu and not _torch.under_functorch()


def _bytes(mask: Tensor) -> Tensor:
    """Return 0 and 1; without a copy, for which torch 2.11's vmap has no rule."""
    return mask.to(torch.uint8) if _torch.under_functorch() else mask.view(torch.uint8)


def _positive(x, **_):
    # On a CPU, whose comparison is not vectorized, in half of the time.
    return _bytes(x.relu().to(torch.bool) if x.is_cpu else x > 0)


def _region(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return above.to(torch.int8).sub_(below.to(torch.int8))


def _unit_region(x, **_):
    return _region(x, x >= 3, x <= -3)


def _select(x: Tensor, pattern: Tensor) -> Tensor:
    """x where the pattern is positive, else 0, as relu's derivative does it.

    A product with the pattern takes a CPU longer, and of an infinite x it makes no number;
    torch.where takes three times as long.
    """
    if x.shape != pattern.shape or _torch.under_functorch():
        return _aten.threshold_backward(x, pattern, 0)
    return _Selection.apply(x, pattern)


class _Selection(Function):
    """As threshold_backward, into the pattern's copy in x's type: a tensor less."""

    @staticmethod
    def forward(ctx, x, pattern):
        ctx.save_for_backward(pattern)
        out = pattern.to(x.dtype)
        return _aten.threshold_backward.grad_input(x, out, 0, grad_input=out)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        saved = ctx.saved_tensors  # for which a checkpoint computes again, through its gates
        with _torch.below_torch_functions():
            return _select(grad, *saved), None


def _bounded_piece(region, x, low, high):
    y = _aten.hardtanh_backward(x, region, -1, 1)  # x where the region is 0, else 0
    for bound, beyond in ((low, region < 0), (high, region > 0)):
        if bound != 0:
            y = y + _select(x.new_full((), bound), _bytes(beyond))
    return y


def _sign(x, **_):
    return x.sign().to(torch.int8)


def _prelu_piece(positive, x, weight):
    return torch.where(positive > 0, x, weight * x)


# At zero torch has the slope of the negative piece, and takes it for constant.
def _exponential_piece(sign, x, alpha=1.0, scale=1.0, width=1.0):
    below = torch.where(sign < 0, torch.expm1(x / width), x / width)
    return torch.where(sign > 0, scale * x, scale * alpha * below)


# Edges lie within their piece: which one has the kink itself is not ours to know.
def _edge_at_zero(sign, x, **_):
    return sign.to(x.dtype) * torch.finfo(x.dtype).tiny


def _edge_of_sign(positive, x, **_):
    return _edge_at_zero(2 * positive.to(torch.int8) - 1, x)


def _edge_at(kink, region, x):
    eps = kink * torch.finfo(x.dtype).eps
    return torch.where(region == 0, x.sign() * (kink - eps), region.to(x.dtype) * (kink + eps))


def _edge_at_three(region, x):
    return _edge_at(3, region, x)


def _edge_of_shrinkage(region, x, lambd=0.5):
    return _edge_at(lambd, region, x)


_POINTWISE = {
    ("relu",): _Pointwise(("inplace",), _positive, lambda on, x: _select(x, on)),
    ("leaky_relu",): _Pointwise(
        ("negative_slope", "inplace"),
        _positive,
        lambda on, x, negative_slope=0.01: _aten.leaky_relu_backward(x, on, negative_slope, False),
    ),
    ("prelu",): _Pointwise(("weight",), _positive, _prelu_piece, _edge_of_sign),
    ("elu",): _Pointwise(("alpha", "inplace"), _sign, _exponential_piece, _edge_at_zero),
    ("celu",): _Pointwise(
        ("alpha", "inplace"),
        _sign,
        lambda on, x, alpha=1.0: _exponential_piece(on, x, alpha, width=alpha),
        _edge_at_zero,
    ),
    ("selu",): _Pointwise(
        ("inplace",),
        _sign,
        lambda on, x: _exponential_piece(on, x, 1.6732632423543772, 1.0507009873554805),
        _edge_at_zero,
    ),
    ("threshold",): _Pointwise(
        ("threshold", "value", "inplace"),
        lambda x, threshold, value: x > threshold,
        lambda on, x, threshold, value: torch.where(on, x, value),
    ),
    ("hardtanh",): _Pointwise(
        ("min_val", "max_val", "inplace"),
        lambda x, min_val=-1.0, max_val=1.0: _region(
            x, x >= max_val, x <= min_val if min_val < max_val else x < min_val
        ),
        lambda r, x, min_val=-1.0, max_val=1.0: _bounded_piece(r, x, min_val, max_val),
    ),
    ("relu6",): _Pointwise(
        ("inplace",),
        lambda x: _region(x, x >= 6, x <= 0),
        lambda r, x: _bounded_piece(r, x, 0.0, 6.0),
    ),
    ("hardsigmoid",): _Pointwise(
        ("inplace",),
        _unit_region,
        lambda r, x: torch.where(r == 0, x / 6 + 0.5, (r > 0).to(x)),
        _edge_at_three,
    ),
    ("hardswish",): _Pointwise(
        ("inplace",),
        _unit_region,
        lambda r, x: torch.where(r == 0, x * (x + 3) / 6, (r > 0) * x),
        _edge_at_three,
    ),
    ("softshrink",): _Pointwise(
        ("lambd",),
        lambda x, lambd=0.5: _region(x, x > lambd, x < -lambd),
        lambda r, x, lambd=0.5: torch.where(r == 0, 0, x - lambd * r.to(x)),
        _edge_of_shrinkage,
    ),
    ("hardshrink",): _Pointwise(
        ("lambd",),
        lambda x, lambd=0.5: _bytes(x.abs() > lambd),
        lambda on, x, lambd=0.5: _aten.hardshrink_backward(x, on, 0.5),
    ),
    ("abs", "absolute"): _Pointwise((), _sign, lambda sign, x: x * sign),
}


class _RandomLeakyReLU:
    """rrelu draws its slopes only for negative elements: the drawn slopes are the pattern.

    What is drawn next must not depend on how many there were.
    """

    def bind(self, func, args, kwargs):
        given = bind(("lower", "upper", "training", "inplace"), args, kwargs)
        low, high = given.get("lower", 1 / 8), given.get("upper", 1 / 3)
        return given["input"], low, high, given.get("training", False), writes(func, given)

    def record(self, func, args, kwargs):
        x, low, high, training, in_place = self.bind(func, args, kwargs)
        before = x.detach().clone() if in_place else x.detach()
        if not training:
            return func(*args, **kwargs), _positive(before)
        slopes = x.new_empty(x.shape)
        draw = _aten.rrelu_with_noise_ if in_place else _aten.rrelu_with_noise
        out = draw(x, slopes, low, high, True)
        drawn = generator_state(x.device)
        if x.dtype in _REDUCED:  # slopes are rounded for the backward pass, but not the forward one
            unrounded = out.detach().float() / before
            return out, (slopes, torch.where(unrounded.isfinite(), unrounded, slopes), drawn)
        return out, (slopes, slopes, drawn)

    def replay(self, pattern, func, args, kwargs):
        x, low, high, training, in_place = self.bind(func, args, kwargs)
        if training:
            slopes, unrounded, drawn = pattern
            set_generator_state(x.device, drawn)
            out = x * slopes
            if unrounded is not slopes:
                out = with_value(out, x.detach() * unrounded)
        else:
            out = _aten.leaky_relu_backward(x, pattern, (low + high) / 2, False)
        return x.copy_(out) if in_place else out


class _Constant:
    """Steps: the derivative is zero wherever there is one, the value must not jump."""

    def record(self, func, args, kwargs):
        out = func(*args, **kwargs)
        return out, out.detach().clone()

    def replay(self, value, func, args, kwargs):
        out = func(*args, **kwargs)  # a random one must draw as often as before
        if not writes(func, kwargs):
            return with_value(out, value)
        out.data.copy_(value)  # behind autograd's back: sgn_ has saved it, for nothing
        return out


class Detached(_Constant):
    """detach: what the loss takes as a constant must not move with the parameters."""


class _L1Loss:
    """mean or sum of |input − target|, which torch computes of an absolute value too."""

    parameters = ("target", "size_average", "reduce", "reduction", "weight")

    def distance(self, args, kwargs, dtype):
        given = bind(self.parameters, args, kwargs)
        x, target = torch.broadcast_tensors(given["input"], given["target"])
        return x.to(dtype) - target.to(dtype)  # autocast computes it in float32

    def record(self, func, args, kwargs):
        out = func(*args, **kwargs)
        with torch.no_grad():
            sign = self.distance(args, kwargs, out.dtype).sign().to(torch.int8)
        return out, (sign, out.dtype)

    def replay(self, pattern, func, args, kwargs):
        sign, dtype = pattern
        distance = self.distance(args, kwargs, dtype) * sign
        given = bind(self.parameters, args, kwargs)
        reduction = given.get("reduction", "mean")
        legacy = given.get("size_average"), given.get("reduce")
        if legacy != (None, None):
            reduction = _torch.legacy_reduction(*legacy)
        weight = given.get("weight")
        if weight is not None:
            distance = distance * weight
            if reduction == "mean":
                return distance.sum() / weight.sum()
        return distance if reduction == "none" else getattr(distance, reduction)()


def _build_table() -> dict[Callable, Any]:
    """Return the gate of each function, in all the forms under which torch offers it."""
    kinds = {name: gate for names, gate in _POINTWISE.items() for name in names}
    kinds |= SELECTIONS | POOLS | QUANTILES | FAKE_QUANTIZATIONS
    constants = "round floor ceil trunc fix sign sgn heaviside bernoulli".split()
    kinds |= dict.fromkeys(constants, _Constant())
    kinds |= {"rrelu": _RandomLeakyReLU(), "l1_loss": _L1Loss(), "detach": Detached()}
    kinds |= dict.fromkeys("conv1d conv2d conv3d".split(), FirstLayers())
    table = {}
    for name, gate in kinds.items():
        for form in (name, name + "_", f"__{name}__"):
            for home in (torch, Tensor, F):
                func = getattr(home, form, None)
                if func is not None:
                    table[func] = gate
    return table | EMBEDDINGS


GATES = _build_table()
ELEMENTWISE = (_Pointwise, _Constant, _RandomLeakyReLU)

# Needed beside the kernels' records, too: they freeze no piece, or one that no kernel shows.
ABOVE_AUTOGRAD = (Detached, FakeQuantization, FirstLayers, Embedding, Quantile)
