"""What an optimizer counts and remembers: how it begins, and how files are taken over.

The counters of a parameter's state stay on the CPU, whatever torch's default device is: a step must
not wait for the device to read them.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian.options import SECOND_MOMENTS, SharedOptions, check_options
from adahessian.part_correction import SUMS
from adahessian.replicas import local

# The counters of a parameter group, with their first values: how many steps it has taken, the
# number of the step that refreshed its curvature last, the places in it of parameters that have
# waited too long (`are_starved`), and the finite difference's h in units of the usual one. They
# stand among the options, in `param_groups`, because only what is there or in `state` survives
# deepcopy, pickle and state_dict.
COUNTERS: dict[str, Any] = {
    "step": 0,
    "last_refresh": None,
    "missed": (),
    "difference_scale": 1.0,
}

# A parameter's counters: steps with a gradient, refreshes, and the step of the last of these.
_COUNTS = ("step", "num_refreshes", "last_refresh")
# What a published AdaHessian keeps that is of no use to a later step.
_NOT_NEEDED = ("hessian", "hessian step")
# Its options that we have not: the value that is our rule.
_FIXED_OPTIONS = {"weight_decouple": True, "fixed_decay": False, "adam_debias": False}


def counts(states: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return one of the counters of each state, 0 where it has not begun.

    All are read at once: a model has hundreds of them, and each call of torch takes a microsecond.
    """
    there = [state[name] for state in states if name in state]
    values = iter(torch.stack(there).tolist() if there else ())
    return [next(values) if name in state else 0.0 for state in states]


def has_begun(state: Mapping[str, Any]) -> bool:
    """Whether a parameter with this state has had a refresh."""
    return counts([state], "num_refreshes")[0] > 0


def are_starved(states: Sequence[Mapping[str, Any]], update_interval: int) -> list[bool]:
    """Whether parameters that had a gradient in this step should not wait for their refresh.

    One that has a gradient at some steps only can miss all refreshes: two heads that are trained in
    turns, every second step being a refresh. Before its first one it would not move at all.
    """
    begun = counts(states, "num_refreshes")
    since = zip(counts(states, "step"), counts(states, "last_refresh"), strict=True)
    waited = [step - last >= 4 * update_interval for step, last in since]
    return [not has or long for has, long in zip(begun, waited, strict=True)]


def init_state(
    state: dict[str, Any], p: Tensor, hessian_average: str, *, with_sums: bool = False
) -> None:
    """Begin the state of a parameter, where it has not begun.

    Args:
        state: of the parameter, changed in place.
        p: the parameter.
        hessian_average: the name of that of the curvature, one of ``SECOND_MOMENTS``'s.
        with_sums: begin those of :mod:`adahessian.part_correction`, too.
    """
    if "step" not in state:
        for name in _COUNTS:
            state[name] = torch.zeros((), dtype=torch.float32, device="cpu")
        for name in ("exp_avg", hessian_average):
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
    for name in SUMS if with_sums else ():
        state.setdefault(name, p.new_zeros(()))


def is_only_to_begin(
    groups: list[dict[str, Any]], states: MutableMapping[Tensor, dict[str, Any]]
) -> bool:
    """Whether a step is torch.distributed.checkpoint's way to make the state; then make it.

    Before it saves or loads, it lets a fresh optimizer take a step at a learning rate of zero along
    gradients of zero.
    """
    if states or any(float(group["lr"]) != 0 for group in groups):
        return False
    members = [(g, p, p.grad) for g in groups for p in g["params"] if p.grad is not None]
    if not members or any(grad.requires_grad or local(grad).any() for *_, grad in members):
        return False
    for group, p, _ in members:
        moment = group["second_moment"]
        with_sums = group["curvature_fraction"] < 1 and moment != "signed"
        init_state(states[p], p, SECOND_MOMENTS[moment], with_sums=with_sums)
    return True


def take_over(
    groups: list[dict[str, Any]], defaults: dict[str, Any], states: dict[Any, dict[str, Any]]
) -> None:
    """Complete what a pickle or a state dict holds, in place, with tensors of its own.

    A published AdaHessian knows no refresh counter (it counts steps) and keeps ``step`` as an
    int, pytorch_optimizer in the group; earlier versions of this one may lack options. The next
    step after one of the former refreshes the curvature.

    Raises:
        ValueError: it is another optimizer's, of other parameters, or has options that are not
            ours.
    """
    _refuse_other_optimizers(states)
    for group in groups:
        for name, ours in _FIXED_OPTIONS.items():
            matters = name == "adam_debias" or group.get("weight_decay", 0)
            if group.get(name, ours) != ours and matters:
                raise ValueError(
                    f"the state dict has {name}={group[name]!r}, which AdaHessian has not: here it "
                    f"is always {ours}"
                )
        is_ours = "last_refresh" in group
        for key, value in {**defaults, **COUNTERS}.items():
            group.setdefault(key, value)
        check_options(group)
        for place, p in enumerate(group["params"]):
            state = states.get(p, {})
            for name in _NOT_NEEDED:
                state.pop(name, None)
            for name, value in state.items():
                if isinstance(value, Tensor):  # torch shares it with the optimizer that saved it
                    state[name] = value.clone()
            if "exp_avg" not in state:
                continue
            name = f"parameter {place} of its group, of shape {tuple(p.shape)}"
            _check_averages(state, p, name, SECOND_MOMENTS[group["second_moment"]])
            state.setdefault("step", group["step"])
            state.setdefault("num_refreshes", state["step"])
            state.setdefault("last_refresh", state["step"])
            for name in _COUNTS:
                count = float(state[name])
                state[name] = torch.tensor(count, dtype=torch.float32, device="cpu")
            if not is_ours:
                group["step"] = max(group["step"], int(state["step"]))
    SharedOptions.of_all(groups)


def check_fits(
    state: Mapping[str, Any], p: Tensor, name: Callable[[], str], second_moment: str
) -> None:
    """Raise ValueError if a parameter has changed since its state began, or what it averages."""
    average = state.get("exp_avg")
    if average is None:
        return
    if SECOND_MOMENTS[second_moment] not in state:
        begun = next((k for k, v in SECOND_MOMENTS.items() if v in state), None)
        raise ValueError(
            f"{name()}, began with second_moment={begun!r}: it cannot change to "
            f"{second_moment!r}, whose average is another; begin a new optimizer"
        )
    if average.shape != p.shape:
        raise ValueError(
            f"{name()}, has a state of shape {tuple(average.shape)}: it was resized. Give the "
            "optimizer a new parameter, or delete what it knows of this one by "
            "optimizer.state.pop(parameter)"
        )
    if (average.dtype, average.device) == (p.dtype, p.device):
        return
    raise ValueError(
        f"{name()}, is {p.dtype} on {p.device}, its state {average.dtype} on {average.device}: "
        "after model.to(...) move the state, too, by "
        "optimizer.load_state_dict(optimizer.state_dict())"
    )


def _check_averages(state: Mapping[str, Any], p: Tensor, name: str, hessian_average: str) -> None:
    for key in ("exp_avg", hessian_average):
        if key not in state:
            raise ValueError(
                f"the state dict is of another optimizer: the state of {name} has "
                f"{', '.join(map(str, state))}, but no {key}"
            )
        if state[key].shape != p.shape:
            raise ValueError(
                f"the state dict is of other parameters: {name}, has a {key} of shape "
                f"{tuple(state[key].shape)} there"
            )


def _refuse_other_optimizers(states: Mapping[Any, dict[str, Any]]) -> None:
    """Raise ValueError for states with tensors, none of which is an AdaHessian's."""
    found = {
        str(name): None
        for state in states.values()
        if isinstance(state, dict)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if found and not found.keys() & {"exp_avg", *SECOND_MOMENTS.values(), *SUMS}:
        raise ValueError(
            f"the state dict is of another optimizer: its states have {', '.join(found)}, an "
            "AdaHessian's exp_avg and exp_hessian_diag_sq"
        )
