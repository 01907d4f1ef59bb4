"""Whether something moves in a smooth loss that is to stand still.

A smooth loss is not recorded at each refresh (:mod:`adahessian.curvature.earlier`). A constant that
joins it without an operation of its own (a target of the network's own, a weight by ``detach``)
moves with the parameters until the next record. Then the loss changes otherwise than its gradients
say, which costs some twenty kernels to see.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.check import Evaluation


def strays(
    z: Mapping[Tensor, Tensor],
    after: Evaluation,
    first_value: Any,
    first_grads: Mapping[Tensor, Tensor],
    width: float,
    *,
    eps: float,
    tolerance: float,
) -> Tensor | None:
    """Return whether a change of the loss is none that the gradients at both ends explain.

    Args:
        z: the direction.
        after: the evaluation that is a step further.
        first_value, first_grads: what the other one returned, and left.
        width: of the step.
        eps: of the numbers that the loss is computed in.
        tolerance: the part that may be left open, as in a check.

    Returns:
        One element; None where the values are not a loss's.
    """
    both = [p for p in z if p in after.grads and p in first_grads]
    values = after.value, first_value
    if not both or not all(isinstance(v, Tensor) and v.numel() == 1 for v in values):
        return None
    firsts = [first_grads[p] for p in both]
    products = torch._foreach_add(firsts, [after.grads[p] for p in both])
    torch._foreach_mul_(products, [z[p] for p in both])
    up = _norms(torch._foreach_clamp_min(products, 0), 1).sum()
    torch._foreach_clamp_max_(products, 0)
    along = up - _norms(products, 1).sum()
    second, first = (v.detach().reshape(()).to(along.device) for v in values)
    # A small loss is rounded as the logits are that it is computed from: of the order of one.
    rounding = 8 * eps * (0.5 + second.abs() + first.abs())
    unexplained = (second - first - width / 2 * along).abs()
    return unexplained > rounding + tolerance * width * _norms(firsts, 2).norm()


def _norms(tensors: Sequence[Tensor], order: int) -> Tensor:
    norms = torch._foreach_norm(list(tensors), order)
    return torch.stack([n.to(norms[0]) for n in norms])
