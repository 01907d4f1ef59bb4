"""AdaHessian's update rule, in the order of the formulas in :class:`adahessian.AdaHessian`.

Twice: tensor by tensor, to be read, and for a list of tensors at once, to be fast. ``update_group``
gathers what they need.

Args of both, lists with one entry for each parameter:
    params, grads: parameters (changed in place) and their gradients.
    diagonals: the averaged curvature d; None between refreshes.
    exp_avgs, exp_hessian_diag_sqs: the running averages m and v (changed in place).
    corrections: the bias corrections (1 − β₁ᵗ, 1 − β₂ʳ).
    wait: whether elements without any curvature so far stay where they are. A row of an embedding
        can have a gradient before a part of the batch has shown its curvature; the denominator
        would be eps.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.closures import gradients
from adahessian.refresh import is_due
from adahessian.replicas import local
from adahessian.state import has_begun, init_state, is_starved


def single_update(
    params, grads, diagonals, exp_avgs, exp_hessian_diag_sqs, corrections, *,
    beta1, beta2, lr, eps, weight_decay, hessian_power, wait=False,
):  # fmt: skip
    for i, param in enumerate(params):
        exp_avg, exp_hessian_diag_sq = exp_avgs[i], exp_hessian_diag_sqs[i]
        bias_correction1, bias_correction2 = corrections[i]
        exp_avg.lerp_(grads[i], 1 - beta1)
        if diagonals is not None:
            exp_hessian_diag_sq.mul_(beta2).addcmul_(diagonals[i], diagonals[i], value=1 - beta2)
        denom = exp_hessian_diag_sq / bias_correction2
        denom = denom.sqrt_() if hessian_power == 1 else denom.pow_(hessian_power / 2)
        denom.add_(eps)
        param.mul_(1 - lr * weight_decay)
        if wait:
            exp_avg = exp_avg * exp_hessian_diag_sq.sign()
        param.addcdiv_(exp_avg, denom, value=-lr / bias_correction1)


def foreach_update(
    params, grads, diagonals, exp_avgs, exp_hessian_diag_sqs, corrections, *,
    beta1, beta2, lr, eps, weight_decay, hessian_power, wait=False,
):  # fmt: skip
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    if diagonals is not None:
        torch._foreach_mul_(exp_hessian_diag_sqs, beta2)
        torch._foreach_addcmul_(exp_hessian_diag_sqs, diagonals, diagonals, value=1 - beta2)
    denoms = torch._foreach_div(exp_hessian_diag_sqs, [c[1] for c in corrections])
    if hessian_power == 1:
        torch._foreach_sqrt_(denoms)
    else:
        torch._foreach_pow_(denoms, hessian_power / 2)
    torch._foreach_add_(denoms, eps)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    if wait:
        exp_avgs = torch._foreach_mul(torch._foreach_sign(exp_hessian_diag_sqs), exp_avgs)
    torch._foreach_addcdiv_(params, exp_avgs, denoms, [-lr / c[0] for c in corrections])


def in_place_of(
    diagonals: list[Tensor],
    finite: Sequence[Tensor],
    exp_hessian_diag_sqs: list[Tensor],
    corrections: Sequence[float],
) -> list[Tensor]:
    """Return the diagonals, but what the running average says where one is not finite.

    With d² = v / (1 − β₂ʳ), the average over r refreshes, v̂ after r + 1 is v̂ before. The device
    decides.

    Args:
        diagonals: d; they may share memory with whatever they were averaged from.
        finite: whether to use it, one bool on its device.
        exp_hessian_diag_sqs: v.
        corrections: 1 − β₂ʳ; 0 before the first refresh, where every d is used.
    """
    averages = torch._foreach_div(exp_hessian_diag_sqs, list(corrections))
    torch._foreach_sqrt_(averages)
    for is_finite, d, average in zip(finite, diagonals, averages, strict=True):
        torch.where(is_finite, d, average, out=average)
    return list(averages)


def update_group(
    group: dict[str, Any],
    states: MutableMapping[Tensor, dict[str, Any]],
    curvature: MutableMapping[Tensor, Tensor],
    finite: MutableMapping[Tensor, Tensor],
) -> None:
    """Take a group's step, with its counters.

    Args:
        group: the parameter group.
        states: of the optimizer, by parameter.
        curvature: d of the parameters that are refreshed. Each is used up, so that its memory is
            free for what follows.
        finite: whether it is, for the same parameters.
    """
    due, missed = is_due(group), set(group["missed"])
    refreshed, others = [], []
    for place, p in enumerate(group["params"]):
        if p.grad is None or not p.requires_grad:
            continue
        state = states.get(p, {})
        if p in curvature:
            refreshed.append(p)
            missed.discard(place)
        else:
            # The others await their first refresh. Their state need not be empty: wrappers such as
            # timm's Lookahead keep things of their own there.
            others += [p] if has_begun(state) else []
            if not due and is_starved(state, group["update_interval"]):
                missed.add(place)
    if others:
        _update(group, others, [states[p] for p in others])
    if refreshed:
        for p in refreshed:
            init_state(states[p], p)
        _update(group, refreshed, [states[p] for p in refreshed], curvature, finite)
        group["last_refresh"] = group["step"] if due else group["last_refresh"]
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
    exp_hessian_diag_sqs = [local(state["exp_hessian_diag_sq"]) for state in states]
    diagonals = None
    if curvature is not None and finite is not None:
        diagonals = in_place_of(
            [curvature.pop(p) for p in params],
            [finite[p] for p in params],
            exp_hessian_diag_sqs,
            [1 - beta2 ** state["num_refreshes"].item() for state in states],
        )
    corrections = []
    for state in states:
        state["step"] += 1
        if diagonals is not None:
            state["num_refreshes"] += 1
            state["last_refresh"].copy_(state["step"])
        corrections.append(
            (1 - beta1 ** state["step"].item(), 1 - beta2 ** state["num_refreshes"].item())
        )
    update = single_update if group["foreach"] is False else foreach_update
    grads = [local(g) for g in gradients(params)]
    update(
        [local(p) for p in params],
        torch._foreach_neg(grads) if group["maximize"] else grads,
        diagonals,
        [local(state["exp_avg"]) for state in states],
        exp_hessian_diag_sqs,
        corrections,
        beta1=beta1,
        beta2=beta2,
        lr=max(float(group["lr"]), 0.0),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        hessian_power=group["hessian_power"],
        wait=group["curvature_fraction"] < 1,
    )
