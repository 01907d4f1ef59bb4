"""The piecewise operators of ATen: what their pieces are, and the values on given ones.

Private to :mod:`adahessian.curvature.kernels`. Operators are met below autograd, forward and
backward, so nothing here is differentiated: an entry tells the pattern of the recorded evaluation,
and puts the elements right that are on another piece in the replayed one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian.curvature.kernel_reductions import REDUCTIONS
from adahessian.curvature.snapshot import generator_state, set_generator_state

Given = dict[str, Any]  # an operator's arguments by name


class Pointwise(NamedTuple):
    """y_i = value(piece, x_i, ...) with the piece chosen by x_i; also the derivative of such a one.

    Attributes:
        region: (arguments) -> the piece of each element, in one byte.
        value: (region, arguments) -> the operator's result on given pieces.
    """

    region: Callable[[Given], Tensor]
    value: Callable[[Tensor, Given], Any]

    def freezes(self, a: Given) -> bool:
        return _main(a).is_floating_point()

    def pattern(self, a: Given, out: Any) -> Tensor:
        return self.region(a)

    def fix(self, pattern: Tensor, a: Given, out: Any) -> Any:
        moved = self.region(a) != pattern
        values = self.value(pattern, a)
        if torch.is_tensor(out):
            return torch.where(moved, values, out)
        return [torch.where(moved, v, o) for v, o in zip(values, out, strict=True)]


class RandomSlopes:
    """rrelu's forward pass, which draws for negative elements only, and saves what."""

    def freezes(self, a: Given) -> bool:
        return True

    def pattern(self, a: Given, out: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _positive(a), a["noise"].clone(), generator_state(out.device)

    def fix(self, pattern: tuple[Tensor, Tensor, Tensor], a: Given, out: Any) -> Tensor:
        on, noise, drawn = pattern
        if a["training"]:
            a["noise"].copy_(noise)
            set_generator_state(out.device, drawn)
        return torch.where(on, a["self"], _rrelu_slope(a) * a["self"])


class Loss(NamedTuple):
    """A loss that is piecewise in self − target and may be reduced.

    Attributes:
        region: (difference, arguments) -> the piece of each element.
        value: (region, difference, arguments) -> the loss, or its derivative, of each element.
        backward: the derivative is meant.
    """

    region: Callable[[Tensor, Given], Tensor]
    value: Callable[[Tensor, Tensor, Given], Tensor]
    backward: bool = False

    def freezes(self, a: Given) -> bool:
        return True

    def pattern(self, a: Given, out: Tensor) -> Tensor:
        return self.region(a["self"] - a["target"], a)

    def fix(self, pattern: Tensor, a: Given, out: Tensor) -> Tensor:
        x = a["self"] - a["target"]
        now = self.region(x, a)
        change = torch.where(now == pattern, 0, self.value(pattern, x, a) - self.value(now, x, a))
        if self.backward:
            mean = a["reduction"] == 1
            return out + a["grad_output"] * change / (x.numel() if mean else 1)
        return out + (change, change.mean(), change.sum())[a["reduction"]]


class Step:
    """The value itself is what is frozen: its derivative is zero wherever there is one."""

    def freezes(self, a: Given) -> bool:
        return _main(a).is_floating_point()

    def pattern(self, a: Given, out: Tensor) -> Tensor:
        return out.clone()

    def fix(self, pattern: Tensor, a: Given, out: Tensor) -> Tensor:
        return pattern.clone()


class RoundedQuotient(Step):
    """div, where a rounding mode is given."""

    def freezes(self, a: Given) -> bool:
        return a.get("rounding_mode") is not None


class Sign(Step):
    """sign, sgn: of complex numbers a smooth function, but at zero."""

    def freezes(self, a: Given) -> bool:
        return True

    def pattern(self, a: Given, out: Tensor) -> Tensor:
        return a["self"] == 0 if out.is_complex() else out.clone()

    def fix(self, pattern: Tensor, a: Given, out: Tensor) -> Tensor:
        return torch.where(pattern, 0, out) if out.is_complex() else pattern.clone()


class Quantized(NamedTuple):
    """remainder, fmod, frac, atan2: smooth but for a whole number of jumps, which are undone."""

    size: Callable[[Given], Any]  # of a jump
    linear: bool = True  # out + jumps is self: the number of jumps can be read from a result

    def freezes(self, a: Given) -> bool:
        return _main(a).is_floating_point()

    def pattern(self, a: Given, out: Tensor) -> Tensor:
        return self._jumps(a, out) if self.linear else out.clone()

    def fix(self, pattern: Tensor, a: Given, out: Tensor) -> Tensor:
        if self.linear:
            moved = self._jumps(a, out) - pattern
        else:
            moved = torch.round((pattern - out) / self.size(a))
        return torch.where(moved == 0, out, out + moved * self.size(a))

    def _jumps(self, a: Given, out: Tensor) -> Tensor:
        return torch.round((a["self"] - out) / self.size(a))


class Mantissa:
    """frexp: the exponent stays."""

    def freezes(self, a: Given) -> bool:
        return True

    def pattern(self, a: Given, out: Any) -> Tensor:
        return out[1].clone()

    def fix(self, pattern: Tensor, a: Given, out: Any) -> Any:
        return [torch.ldexp(out[0], out[1] - pattern), pattern.clone()]


def _main(a: Given) -> Tensor:
    for name in ("self", "input", "grad_output", "self_or_result", "x1"):
        if torch.is_tensor(a.get(name)):
            return a[name]
    return next(v for v in a.values() if torch.is_tensor(v))


def _argument(a: Given) -> Tensor:
    return a["self"] if "self" in a else a["self_or_result"]


def _grad(a: Given) -> Tensor:
    return a["grad_output"] if "grad_output" in a else a["grad_out"]


def _positive(a: Given) -> Tensor:
    return _argument(a) > 0


def _sign(a: Given) -> Tensor:
    return _argument(a).sign().to(torch.int8)


def _between(low: Callable[[Given], Any], high: Callable[[Given], Any], closed: bool) -> Callable:
    """Return the region of a bounded piece: −1 below, 1 above; closed: with its bounds."""

    def region(a: Given) -> Tensor:
        x = _argument(a)
        if closed:
            return (x > high(a)).to(torch.int8) - (x < low(a)).to(torch.int8)
        above = x >= high(a)
        return above.to(torch.int8) - (~above & (x <= low(a))).to(torch.int8)

    return region


# At zero torch has the slope of the negative piece, and takes it for constant.
def _elu(sign: Tensor, a: Given) -> Tensor:
    x, width = a["self"], a["input_scale"]
    below = a["alpha"] * torch.where(sign < 0, torch.expm1(x * width), x * width)
    return a["scale"] * torch.where(sign > 0, x, below)


def _celu(sign: Tensor, a: Given) -> Tensor:
    x, alpha = a["self"], a["alpha"]
    return torch.where(sign > 0, x, torch.where(sign < 0, alpha * torch.expm1(x / alpha), x))


def _elu_slope(sign: Tensor, a: Given) -> Tensor:
    x, width, factor = a["self_or_result"], a["input_scale"], a["alpha"] * a["scale"]
    below = (x + factor) if a["is_result"] else factor * torch.exp(x * width)
    below = torch.where(sign < 0, below, factor)
    return a["grad_output"] * torch.where(sign > 0, a["scale"], below * width)


def _rrelu_slope(a: Given) -> Any:
    return a["noise"] if a["training"] else (a["lower"] + a["upper"]) / 2


def _prelu_slopes(on: Tensor, a: Given) -> tuple[Tensor, Tensor]:
    grad, x = a["grad_output"], a["self"]
    return torch.where(on, grad, a["weight"] * grad), torch.where(on, 0, x * grad)


_hardtanh = _between(lambda a: a["min_val"], lambda a: a["max_val"], closed=False)
_three = _between(lambda a: -3, lambda a: 3, closed=False)
_shrunk = _between(lambda a: -a["lambd"], lambda a: a["lambd"], closed=True)


def _bounds(a: Given) -> Tensor:
    """−1 where clamp gives its lower bound, 1 its upper one; autograd has the bounds inside."""
    x, low, high = a["self"], a.get("min"), a.get("max")
    below = torch.zeros_like(x, dtype=torch.bool) if low is None else x < low
    if high is None:
        return -below.to(torch.int8)
    above = (x if low is None else torch.clamp(x, min=low)) > high
    return torch.where(above, 1, -below.to(torch.int8))


def _clamped(r: Tensor, a: Given) -> Tensor:
    out = a["self"]
    if a.get("min") is not None:
        out = torch.where(r < 0, a["min"], out)
    return out if a.get("max") is None else torch.where(r > 0, a["max"], out)


def _order(a: Given) -> Tensor:
    return (a["self"] - a["other"]).sign().to(torch.int8)


def _of_two(sign: int) -> Callable[[Tensor, Given], Tensor]:
    def value(r: Tensor, a: Given) -> Tensor:
        x, y = a["self"], a["other"]
        return torch.where(r == 0, 0.5 * x + 0.5 * y, torch.where(r == sign, x, y))

    return value


def _copied_sign(r: Tensor, a: Given) -> Tensor:
    return a["self"] * r


def _sign_change(a: Given) -> Tensor:
    changed = torch.copysign(a["self"].new_ones(()), a["other"]) * a["self"].sign()
    return changed.to(torch.int8)


def _curved(x: Tensor, width: float) -> Tensor:
    """0 where a smooth L1 loss is a square, else the sign of the difference."""
    return (x.sign() * (x.abs() >= width)).to(torch.int8)


_LOSSES = {
    "smooth_l1_loss": Loss(
        lambda x, a: _curved(x, a["beta"]),
        lambda r, x, a: torch.where(r == 0, 0.5 * x * x / a["beta"], r * x - 0.5 * a["beta"]),
    ),
    "smooth_l1_loss_backward": Loss(
        lambda x, a: _curved(x, a["beta"]),
        lambda r, x, a: torch.where(r == 0, x / a["beta"], r.to(x)),
        backward=True,
    ),
    "huber_loss": Loss(
        lambda x, a: _curved(x, a["delta"]),
        lambda r, x, a: torch.where(r == 0, 0.5 * x * x, a["delta"] * (r * x - 0.5 * a["delta"])),
    ),
    "huber_loss_backward": Loss(
        lambda x, a: _curved(x, a["delta"]),
        lambda r, x, a: torch.where(r == 0, x, a["delta"] * r),
        backward=True,
    ),
}

_POINTWISE = {
    "relu": Pointwise(_positive, lambda on, a: torch.where(on, a["self"], 0)),
    "leaky_relu": Pointwise(
        _positive, lambda on, a: torch.where(on, a["self"], a["negative_slope"] * a["self"])
    ),
    "leaky_relu_backward": Pointwise(
        _positive, lambda on, a: torch.where(on, _grad(a), a["negative_slope"] * _grad(a))
    ),
    "rrelu_with_noise": RandomSlopes(),
    "rrelu_with_noise_backward": Pointwise(
        _positive, lambda on, a: torch.where(on, _grad(a), _rrelu_slope(a) * _grad(a))
    ),
    "_prelu_kernel": Pointwise(
        _positive, lambda on, a: torch.where(on, a["self"], a["weight"] * a["self"])
    ),
    "_prelu_kernel_backward": Pointwise(_positive, _prelu_slopes),
    "elu": Pointwise(_sign, _elu),
    "celu": Pointwise(_sign, _celu),
    "elu_backward": Pointwise(_sign, _elu_slope),
    "threshold": Pointwise(
        lambda a: a["self"] > a["threshold"],
        lambda on, a: torch.where(on, a["self"], a["value"]),
    ),
    "threshold_backward": Pointwise(
        lambda a: a["self"] > a["threshold"], lambda on, a: torch.where(on, _grad(a), 0)
    ),
    "hardtanh": Pointwise(
        _hardtanh,
        lambda r, a: torch.where(r == 0, a["self"], torch.where(r > 0, a["max_val"], a["min_val"])),
    ),
    "hardtanh_backward": Pointwise(_hardtanh, lambda r, a: torch.where(r == 0, _grad(a), 0)),
    "hardsigmoid": Pointwise(
        _three, lambda r, a: torch.where(r == 0, a["self"] / 6 + 0.5, (r > 0).to(a["self"]))
    ),
    "hardsigmoid_backward": Pointwise(_three, lambda r, a: torch.where(r == 0, _grad(a) / 6, 0)),
    "hardswish": Pointwise(
        _three,
        lambda r, a: torch.where(r == 0, a["self"] * (a["self"] + 3) / 6, (r > 0) * a["self"]),
    ),
    "hardswish_backward": Pointwise(
        _three,
        lambda r, a: _grad(a) * torch.where(r == 0, a["self"] / 3 + 0.5, (r > 0).to(a["self"])),
    ),
    "softshrink": Pointwise(
        _shrunk, lambda r, a: torch.where(r == 0, 0, a["self"] - a["lambd"] * r)
    ),
    "softshrink_backward": Pointwise(_shrunk, lambda r, a: torch.where(r == 0, 0, _grad(a))),
    "hardshrink": Pointwise(_shrunk, lambda r, a: torch.where(r == 0, 0, a["self"])),
    "hardshrink_backward": Pointwise(_shrunk, lambda r, a: torch.where(r == 0, 0, _grad(a))),
    "abs": Pointwise(_sign, _copied_sign),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), Pointwise(_bounds, _clamped)),
    **dict.fromkeys(("maximum", "fmax"), Pointwise(_order, _of_two(1))),
    **dict.fromkeys(("minimum", "fmin"), Pointwise(_order, _of_two(-1))),
    "copysign": Pointwise(_sign_change, _copied_sign),
}

_STEPS = "round floor ceil trunc heaviside floor_divide angle bernoulli".split()

PIECES: dict[str, Any] = {
    **_POINTWISE,
    **_LOSSES,
    **dict.fromkeys(_STEPS, Step()),
    **dict.fromkeys(("sign", "sgn"), Sign()),
    **dict.fromkeys(("remainder", "fmod"), Quantized(lambda a: a["other"])),
    "frac": Quantized(lambda a: 1),
    "atan2": Quantized(lambda a: 2 * torch.pi, linear=False),
    "frexp": Mantissa(),
    "div": RoundedQuotient(),
    **REDUCTIONS,
}
