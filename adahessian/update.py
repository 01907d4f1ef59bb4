"""The update rule, in the order of the formulas in :class:`adahessian.AdaHessian`.

Twice: tensor by tensor, to be read, and for a list of tensors at once, to be fast. ``update_group``
gathers what they need.

Args of both, lists with one entry for each parameter:
    params, grads: parameters (changed in place) and their gradients.
    diagonals: the averaged curvature d (used up); None between refreshes.
    exp_avgs, hessian_avgs: the running averages m and v (changed in place).
    corrections: the bias corrections, 1 − β₁ᵗ and that of v; 1 where there is none.
    second_moment: what v averages: d² ("rms"), |d| ("mean_abs") or d itself ("signed").
    update_clip: the bound of m̂ over the denominator, element by element; or None.
    wait: whether elements without any curvature so far are moved by the weight decay alone. A row
        of an embedding can have a gradient before a part of the batch has shown its curvature; the
        denominator would be eps.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.closures import gradients
from adahessian.options import SECOND_MOMENTS
from adahessian.refresh import is_due
from adahessian.replicas import local
from adahessian.state import are_starved, counts, init_state


def single_update(
    params, grads, diagonals, exp_avgs, hessian_avgs, corrections, *,
    beta1, beta2, lr, eps, weight_decay, hessian_power, second_moment, update_clip, wait=False,
):  # fmt: skip
    for i, param in enumerate(params):
        exp_avg, hessian_avg = exp_avgs[i], hessian_avgs[i]
        bias_correction1, bias_correction2 = corrections[i]
        exp_avg.lerp_(grads[i], 1 - beta1)
        if diagonals is not None and second_moment == "rms":
            hessian_avg.mul_(beta2).addcmul_(diagonals[i], diagonals[i], value=1 - beta2)
        elif diagonals is not None:
            d = diagonals[i].abs() if second_moment == "mean_abs" else diagonals[i]
            hessian_avg.lerp_(d, 1 - beta2)
        denom = denominator(hessian_avg, bias_correction2, eps, hessian_power, second_moment)
        param.mul_(1 - lr * weight_decay)
        if wait:
            exp_avg = exp_avg * hessian_avg.sign().abs_()
        if update_clip is None:
            param.addcdiv_(exp_avg, denom, value=-lr / bias_correction1)
        else:
            update = (exp_avg / bias_correction1).div_(denom)
            param.add_(update.clamp_(-update_clip, update_clip), alpha=-lr)


def denominator(
    hessian_avg: Tensor, correction: float, eps: float, hessian_power: float, second_moment: str
) -> Tensor:
    """Return what a parameter's step is divided by."""
    denom = hessian_avg / correction
    if second_moment == "signed":
        denom.clamp_(min=0)
    power = hessian_power / 2 if second_moment == "rms" else hessian_power
    if power == 0.5:
        denom.sqrt_()
    elif power != 1:
        denom.pow_(power)
    return denom.clamp_(min=eps) if second_moment == "signed" else denom.add_(eps)


def foreach_update(
    params, grads, diagonals, exp_avgs, hessian_avgs, corrections, *,
    beta1, beta2, lr, eps, weight_decay, hessian_power, second_moment, update_clip, wait=False,
):  # fmt: skip
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    if diagonals is not None and second_moment == "rms":
        torch._foreach_mul_(hessian_avgs, beta2)
        torch._foreach_addcmul_(hessian_avgs, diagonals, diagonals, value=1 - beta2)
    elif diagonals is not None:
        if second_moment == "mean_abs":
            diagonals = torch._foreach_abs(diagonals)
        torch._foreach_lerp_(hessian_avgs, diagonals, 1 - beta2)
    denoms = torch._foreach_div(hessian_avgs, [c[1] for c in corrections])
    if second_moment == "signed":
        torch._foreach_clamp_min_(denoms, 0)
    power = hessian_power / 2 if second_moment == "rms" else hessian_power
    if power == 0.5:
        torch._foreach_sqrt_(denoms)
    elif power != 1:
        torch._foreach_pow_(denoms, power)
    if second_moment == "signed":
        torch._foreach_clamp_min_(denoms, eps)
    else:
        torch._foreach_add_(denoms, eps)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    if wait:
        seen = torch._foreach_sign(hessian_avgs)
        if second_moment == "signed":
            torch._foreach_abs_(seen)
        torch._foreach_mul_(seen, exp_avgs)
        exp_avgs = seen
    if update_clip is None:
        torch._foreach_addcdiv_(params, exp_avgs, denoms, [-lr / c[0] for c in corrections])
    else:
        updates = torch._foreach_div(exp_avgs, [c[0] for c in corrections])
        torch._foreach_div_(updates, denoms)
        torch._foreach_clamp_min_(updates, -update_clip)
        torch._foreach_clamp_max_(updates, update_clip)
        torch._foreach_add_(params, updates, alpha=-lr)


def in_place_of(
    diagonals: list[Tensor],
    finite: Sequence[Tensor],
    hessian_avgs: list[Tensor],
    divisors: Sequence[float],
    second_moment: str,
) -> list[Tensor]:
    """Return the diagonals, but what the running average says where one is not finite.

    With it the corrected average after the refresh is what it was before. The device decides.

    Args:
        diagonals: d; they may share memory with whatever they were averaged from.
        finite: whether to use it, one bool on its device.
        hessian_avgs: v.
        divisors: what v is to be divided by (:func:`_divisor`).
        second_moment: of the rule.
    """
    if _can_be_read(finite) and torch.stack(list(finite)).all():
        return diagonals
    averages = torch._foreach_div(hessian_avgs, list(divisors))
    if second_moment == "rms":
        torch._foreach_sqrt_(averages)
    for is_finite, d, average in zip(finite, diagonals, averages, strict=True):
        torch.where(is_finite, d, average, out=average)
    return list(averages)


def _can_be_read(flags: Sequence[Tensor]) -> bool:
    """Whether the host has the flags: a device is not waited for."""
    return all(flag.is_cpu for flag in flags)


def corrections_of(
    states: Sequence[dict[str, Any]], beta2: float, bias_correction: str | None
) -> list[float]:
    """Return what v is divided by: 1 − β₂ʳ, or with the steps until the last refresh, or 1."""
    if bias_correction is None:
        return [1.0] * len(states)
    count = "num_refreshes" if bias_correction == "refreshes" else "last_refresh"
    return [1 - beta2**number for number in counts(states, count)]


def _divisors(
    states: Sequence[dict[str, Any]], beta2: float, bias_correction: str | None
) -> list[float]:
    """Return the divisors of v that give the averages that leave v̂ as it is at the next refresh.

    v̂ = v / c stays, where c becomes c', if the new average is v · (c' / c − β₂) / (1 − β₂). With
    refreshes counted, c' = 1 − β₂ (1 − c), that is v / c; and 0 before the first refresh, where
    every d is used.
    """
    before = corrections_of(states, beta2, bias_correction)
    if bias_correction != "steps":
        return before
    after = [1 - beta2 ** (step + 1) for step in counts(states, "step")]
    return [c and c * (1 - beta2) / (d - beta2 * c) for c, d in zip(before, after, strict=True)]


def update_group(
    group: dict[str, Any],
    states: MutableMapping[Tensor, dict[str, Any]],
    curvature: MutableMapping[Tensor, Tensor],
    finite: MutableMapping[Tensor, Tensor],
    *,
    is_idle: bool,
) -> None:
    """Take a group's step, with its counters.

    Args:
        group: the parameter group.
        states: of the optimizer, by parameter.
        curvature: d of the parameters that are refreshed. Each is used up, so that its memory is
            free for what follows.
        finite: whether it is, for the same parameters.
        is_idle: whether no parameter of the optimizer has a gradient.
    """
    due, missed = is_due(group), set(group["missed"])
    moving = [
        (place, p)
        for place, p in enumerate(group["params"])
        if p.grad is not None and p.requires_grad
    ]
    refreshed = [p for _, p in moving if p in curvature]
    missed -= {place for place, p in moving if p in curvature}
    rest = [(place, p) for place, p in moving if p not in curvature]
    their_states = [states.get(p, {}) for _, p in rest]
    if not due:
        starved = are_starved(their_states, group["update_interval"])
        missed |= {place for (place, _), waits in zip(rest, starved, strict=True) if waits}
    # The others await their first refresh. Their state need not be empty: wrappers such as timm's
    # Lookahead keep things of their own there.
    begun = counts(their_states, "num_refreshes")
    others = [p for (_, p), has in zip(rest, begun, strict=True) if has]
    if others:
        _update(group, others, [states[p] for p in others])
    if refreshed:
        for p in refreshed:
            init_state(states[p], p, SECOND_MOMENTS[group["second_moment"]])
        _update(group, refreshed, [states[p] for p in refreshed], curvature, finite)
    # Where nobody has a gradient there is nothing to refresh: who has one later begins between
    # refreshes. A frozen group asks for none, and stays due.
    is_unused = not moving and any(p.requires_grad for p in group["params"])
    if due and (refreshed or is_unused and not is_idle):
        group["last_refresh"] = group["step"]
    group["missed"] = tuple(sorted(missed))
    group["step"] += 1


def _update(
    group: dict[str, Any],
    params: list[Tensor],
    states: list[dict[str, Any]],
    curvature: MutableMapping[Tensor, Tensor] | None = None,
    finite: MutableMapping[Tensor, Tensor] | None = None,
) -> None:
    """Apply the update rule to some parameters of a group; without curvature between refreshes."""
    beta1, beta2 = group["betas"]
    second_moment, bias_correction = group["second_moment"], group["bias_correction"]
    hessian_avgs = [local(state[SECOND_MOMENTS[second_moment]]) for state in states]
    diagonals = None
    if curvature is not None and finite is not None:
        found = [curvature.pop(p) for p in params]
        if group["maximize"] and second_moment == "signed":  # the others take magnitudes
            found = list(torch._foreach_neg(found))
        diagonals = in_place_of(
            found,
            [finite[p] for p in params],
            hessian_avgs,
            _divisors(states, beta2, bias_correction),
            second_moment,
        )
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    if diagonals is not None:
        torch._foreach_add_([state["num_refreshes"] for state in states], 1)
        torch._foreach_copy_([state["last_refresh"] for state in states], steps)
    of_gradients = [1.0] * len(states)
    if bias_correction is not None:
        of_gradients = [1 - beta1**step for step in counts(states, "step")]
    of_curvature = corrections_of(states, beta2, bias_correction)
    corrections = list(zip(of_gradients, of_curvature, strict=True))
    update = single_update if group["foreach"] is False else foreach_update
    grads = [local(g) for g in gradients(params)]
    update(
        [local(p) for p in params],
        torch._foreach_neg(grads) if group["maximize"] else grads,
        diagonals,
        [local(state["exp_avg"]) for state in states],
        hessian_avgs,
        corrections,
        beta1=beta1,
        beta2=beta2,
        lr=max(float(group["lr"]), 0.0),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        hessian_power=group["hessian_power"],
        second_moment=second_moment,
        update_clip=group["update_clip"],
        wait=group["curvature_fraction"] < 1,
    )
