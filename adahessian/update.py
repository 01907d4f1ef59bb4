"""AdaHessian's update rule, in the order of the formulas in :class:`adahessian.AdaHessian`.

Twice: tensor by tensor, to be read, and for a list of tensors at once, to be fast.

Args of both, lists with one entry for each parameter:
    params, grads: parameters (changed in place) and their gradients.
    diagonals: the averaged curvature d; None between refreshes.
    exp_avgs, exp_hessian_diag_sqs: the running averages m and v (changed in place).
    corrections: the bias corrections (1 − β₁ᵗ, 1 − β₂ʳ).
    wait: whether elements without any curvature so far stay where they are. A row of an embedding
        can have a gradient before a part of the batch has shown its curvature; the denominator
        would be eps.
"""

import torch


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
