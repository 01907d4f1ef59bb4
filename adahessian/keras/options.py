"""The options of :class:`adahessian.keras.AdaHessian`: what is refused, with which words."""

import math
from typing import Any

from adahessian.keras.averaging import check_block_size


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError if one of ``options`` is not finite or out of range."""

    def require(name: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"{name} must be {allowed}, got {options[name]!r}")

    for name in ("beta_1", "beta_2"):
        beta = options[name]
        require(name, _is_number(beta) and 0 <= beta < 1, "in [0, 1)")
    epsilon = options["epsilon"]
    valid = _is_number(epsilon) and 0 <= epsilon < math.inf
    require("epsilon", valid, "finite and at least 0")
    power = options["hessian_power"]
    require("hessian_power", _is_number(power) and 0 <= power <= 1, "in [0, 1]")
    check_block_size(options["block_size"])
    axes = options["block_axes"]
    require(
        "block_axes", axes is None or callable(axes), "None or a function (path, shape) -> axes"
    )
    require("averaging", options["averaging"] in ("abs", "signed"), "'abs' or 'signed'")
    clip = options["update_clip"]
    valid = clip is None or _is_number(clip) and 0 < clip < math.inf
    require("update_clip", valid, "None or finite and above 0")
    for name in ("update_interval", "num_samples"):
        number = options[name]
        require(name, _is_int(number) and number >= 1, "an int of at least 1")
    seed = options["seed"]
    require("seed", _is_int(seed) and 0 <= seed < 2**63, "an int from 0 to 2**63 - 1")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
