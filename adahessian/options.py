"""The optimizer's options: those that all groups share, and what is refused.

Messages name the value and say what to do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Number
from typing import Any

from torch import Tensor, float32, float64

from adahessian.averaging import check_block_size
from adahessian.curvature import CURVATURES

_AVERAGINGS = ("abs", "signed")
# What the running average of the curvature is of, and its name in a parameter's state: three, so
# that no average can be taken for another.
SECOND_MOMENTS = {
    "rms": "exp_hessian_diag_sq",
    "mean_abs": "exp_hessian_diag_abs",
    "signed": "exp_hessian_diag",
}
_BIAS_CORRECTIONS = ("refreshes", "steps", None)
_LARGEST = 1e30  # of numbers that scale a step: not far above, float32 overflows


@dataclass(frozen=True)
class SharedOptions:
    """The options that are one for all parameter groups.

    One product H·z and one gradient norm span all groups.
    """

    curvature: str
    curvature_fraction: float
    num_samples: int
    seed: int
    check_interval: int
    max_grad_norm: float | None

    @classmethod
    def of(cls, group: dict[str, Any]) -> "SharedOptions":
        """Return those of a parameter group."""
        return cls(**{field.name: group[field.name] for field in fields(cls)})

    @classmethod
    def of_all(cls, groups: Sequence[dict[str, Any]]) -> "SharedOptions":
        """Return those of all parameter groups; raise ValueError if one was set in some only."""
        first = cls.of(groups[0])
        for group in groups[1:]:
            first.check_same(cls.of(group))
        return first

    def check_same(self, other: "SharedOptions") -> None:
        """Raise ValueError if ``other``, of a further group, differs."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                raise ValueError(
                    f"{field.name} is one for all parameter groups: got {theirs!r} beside {ours!r}"
                )


def check_parameter(p: Tensor, name: Callable[[], str]) -> None:
    """Raise ValueError if a parameter is of an unfit kind."""
    if p.is_complex():
        raise ValueError(
            f"{name()}, is complex: AdaHessian is defined for real parameters (use view_as_real)"
        )
    if p.is_meta:
        raise ValueError(
            f"{name()}, is on the meta device: make the optimizer of the parameters that the model "
            "has after to_empty(...), which are others"
        )
    if p.dtype not in (float32, float64):
        raise ValueError(
            f"{name()}, has dtype {p.dtype}: keep the parameters in float32 and use torch.autocast "
            "for the forward pass"
        )


def check_gradient(p: Tensor, name: Callable[[], str]) -> None:
    """Raise ValueError if a parameter with a gradient, or that, is of an unfit kind."""
    if p.grad is not None and p.grad.is_sparse:
        raise ValueError(
            f"{name()}, has a sparse gradient: AdaHessian needs dense ones (for an embedding use "
            "sparse=False, or train it with another optimizer)"
        )
    check_parameter(p, name)


def check_options(group: dict[str, Any]) -> None:
    """Raise ValueError if an option of ``group`` is not finite or out of range.

    numpy's numbers become Python's, in place.
    """
    for name, value in group.items():
        if _is_numpys(value):
            group[name] = value.item()
        elif type(value) is tuple and any(map(_is_numpys, value)):
            group[name] = tuple(v.item() if _is_numpys(v) else v for v in value)

    def require(name: str, value: Any, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"{name} must be {allowed}, got {value!r}")

    lr = group["lr"]
    if isinstance(lr, Tensor):
        valid = lr.numel() == 1 and not lr.is_complex()
        require("lr", lr, valid, "a number or a tensor with one element")
    # A schedule that ends at zero can end below it by rounding.
    small = f"at least 0 and at most {_LARGEST:g}"
    require("lr", lr, _is_number(lr) and -1e-12 < lr <= _LARGEST, small)
    betas = group["betas"]
    require("betas", betas, isinstance(betas, tuple | list) and len(betas) == 2, "two numbers")
    plain = all(_is_number(b) and not isinstance(b, Tensor) for b in betas)
    require("betas", betas, plain and all(0 <= b < 1 for b in betas), "Python numbers in [0, 1)")
    for name in ("eps", "weight_decay"):
        value = group[name]
        require(name, value, _is_number(value) and 0 <= value <= _LARGEST, small)
    power = group["hessian_power"]
    require("hessian_power", power, _is_number(power) and 0 <= power <= 1, "in [0, 1]")
    check_block_size(group["block_size"])
    averaging = group["averaging"]
    curvature = group["curvature"]
    require("curvature", curvature, curvature in CURVATURES, f"one of {CURVATURES}")
    require("averaging", averaging, averaging in _AVERAGINGS, f"one of {_AVERAGINGS}")
    _check_rule(group, require)
    fraction = group["curvature_fraction"]
    valid = _is_number(fraction) and 0 < fraction <= 1
    require("curvature_fraction", fraction, valid, "above 0 and at most 1")
    for name in ("update_interval", "num_samples"):
        value = group[name]
        require(name, value, _is_int(value) and value >= 1, "an int of at least 1")
    interval = group["check_interval"]
    require("check_interval", interval, _is_int(interval) and interval >= 0, "an int, 0 or more")
    for name in ("max_grad_norm", "update_clip"):
        bound = group[name]
        valid = bound is None or _is_number(bound) and 0 < bound < math.inf
        require(name, bound, valid, "None or finite and above 0")
    seed = group["seed"]
    require("seed", seed, _is_int(seed) and 0 <= seed < 2**63, "an int from 0 to 2**63 - 1")


def _check_rule(group: dict[str, Any], require: Callable[[str, Any, bool, str], None]) -> None:
    """Raise ValueError unless the update rule's options are known and fit together."""
    moment, correction = group["second_moment"], group["bias_correction"]
    known = tuple(SECOND_MOMENTS)
    require("second_moment", moment, moment in known, f"one of {known}")
    valid = correction in _BIAS_CORRECTIONS
    require("bias_correction", correction, valid, f"one of {_BIAS_CORRECTIONS}")
    if moment != "signed":
        return
    averaging, eps = group["averaging"], group["eps"]
    with_it = "with second_moment='signed', which averages z · Hz with its sign"
    require("averaging", averaging, averaging == "signed", f"'signed' {with_it}")
    with_it = "with second_moment='signed', where it is all that is left of a negative average"
    require("eps", eps, eps > 0, f"above 0 {with_it}")


def _is_numpys(value: Any) -> bool:
    # Without importing it. A file with one in it could not be loaded with weights_only=True.
    return type(value).__module__ == "numpy" and isinstance(value, Number)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)
