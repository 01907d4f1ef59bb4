"""What an optimizer counts and remembers: how it begins, and how older files are taken over.

The counters of a parameter's state stay on the CPU: a step must not wait for the device to read
them.
"""

from typing import Any

import torch
from torch import Tensor

# The counters of a parameter group, with their first values: how many steps it has taken, and the
# number of the step that refreshed its curvature last. They stand among the options, in
# `param_groups`, because only what is there or in `state` survives deepcopy, pickle and state_dict.
COUNTERS: dict[str, Any] = {"step": 0, "last_refresh": None}


def init_state(state: dict[str, Any], p: Tensor) -> None:
    """Begin the state of a parameter, where it has not begun."""
    if "step" not in state:
        state["step"] = torch.tensor(0.0, dtype=torch.float32)
        state["num_refreshes"] = torch.tensor(0.0, dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["exp_hessian_diag_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)


def take_over(
    groups: list[dict[str, Any]], defaults: dict[str, Any], states: dict[Tensor, dict[str, Any]]
) -> None:
    """Complete what a pickle or a state dict holds, in place.

    A published AdaHessian knows no refresh counter (it counts steps) and keeps ``step`` as an
    int; earlier versions of this one may lack options. The next step after one of the former
    refreshes the curvature.
    """
    for group in groups:
        old = "last_refresh" not in group
        for key, value in {**defaults, **COUNTERS}.items():
            group.setdefault(key, value)
        for p in group["params"]:
            state = states.get(p)
            if not state or "step" not in state:
                continue
            state.setdefault("num_refreshes", state["step"])
            for key in ("step", "num_refreshes"):
                state[key] = torch.tensor(float(state[key]), dtype=torch.float32)
            if old:
                group["step"] = max(group["step"], int(state["step"]))
