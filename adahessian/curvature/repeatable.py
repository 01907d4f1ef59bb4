"""Whether a closure computes the same gradient again, and does with it what may be done.

Private to :mod:`adahessian.curvature.replay`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.closures import not_repeatable
from adahessian.replicas import any_of, local, mesh_groups, over_all

_FACTOR = 32.0  # of the loss in another evaluation
_TOLERANCE = 0.01  # of the gradient
_ROUNDING = 100.0  # of it, in units of the precision

Repeat = Callable[[float], tuple[Any, list[Tensor], set[Tensor]]]


def check_repeatable(
    value: Any, params: Sequence[Tensor], first: Sequence[Tensor], repeat: Repeat, scales: bool
) -> list[Tensor]:
    """Evaluate a closure again, with a loss that is some times as large.

    The gradient must be as many times as large: one that is clipped is not. Of one that the closure
    has written by hand or has added to (what ``torch.autograd.grad`` returned, weight decay) the
    change must be linear in the factor, which takes two more evaluations to see.

    Args:
        value: what the closure returned first.
        params: its parameters.
        first: their gradients.
        repeat: evaluates it with a factor at its backward passes; returns its value, the gradients
            and the parameters whose gradients the passes have brought.
        scales: there were backward passes.

    Returns:
        By how much the gradients differ, which is little; nothing where they are not finite.

    Raises:
        RuntimeError: it is not repeatable, or does something else with its gradients.
    """
    factor = _FACTOR if scales else 1.0
    again, scaled, _ = repeat(factor)
    groups = mesh_groups(params)  # of processes that must decide alike
    differs = isinstance(value, Tensor) and not torch.allclose(value, again, rtol=1e-3, atol=1e-6)
    if any_of(differs, groups, params[0].device):
        losses = f"{float(again.detach())} instead of {float(value.detach())}"
        raise not_repeatable(f"the loss is {losses}")
    found = torch._foreach_div(_less(scaled, first, factor), factor)
    norms = torch.stack([_norm(found), _norm(first)])
    change, scale = over_all(norms.square(), groups).sqrt() if groups else norms
    # Of what is not finite nothing can be said here; the step says it.
    if not scale.isfinite():
        return []
    is_linear = bool(change <= _TOLERANCE * scale)
    alone = scales and not groups  # what follows is decided by each process for itself
    # More than rounding is noise, or a gradient that is linear up to a solver's tolerance.
    rounding = _ROUNDING * torch.finfo(first[0].dtype).eps * scale
    if is_linear and not (alone and change > rounding):
        return list(found)
    if alone:
        _, same, reached = repeat(1.0)
        found = _less(same, first)
        change = _norm(found)
        if change <= _TOLERANCE * scale:
            if not is_linear and _norm(scaled).isfinite():  # or so large a loss overflows somewhere
                _, twice, _ = repeat(2 * _FACTOR)
                _check_linear(params, reached, [same, scaled, twice])
            return found
    raise not_repeatable(
        f"its gradient differs by {float(change):.2g} of {float(scale):.2g} (does the "
        "closure clear the gradients itself? does it clip them? max_grad_norm does it)"
    )


def _check_linear(
    params: Sequence[Tensor], reached: set[Tensor], grads: Sequence[Sequence[Tensor]]
) -> None:
    """Raise unless gradients are linear in the loss's factor, and change with it if they should.

    Args:
        params: the parameters.
        reached: those whose gradients backward passes have brought.
        grads: at the factors 1, 32 and 64.
    """
    for p, same, scaled, twice in zip(params, *grads, strict=True):
        slope = _less([scaled], [same])[0] / (_FACTOR - 1)
        expected = scaled + _FACTOR * slope
        is_linear = _norm(_less([twice], [expected])) <= _TOLERANCE * _norm([twice])
        if is_linear and (p not in reached or _norm([slope]) >= _TOLERANCE * _norm([same])):
            continue
        raise RuntimeError(
            "the closure does something to the gradient that a backward pass has brought (of a "
            f"parameter of shape {tuple(p.shape)}), so that it is not that of the loss any more: "
            "does it clip it? max_grad_norm does that. Does it write another in its place? Then "
            "leave the parameter out of the backward pass: loss.backward(inputs=...)"
        )


def _less(grads: Sequence[Tensor], others: Sequence[Tensor], factor: float = 1.0) -> list[Tensor]:
    return [local(g) - factor * local(o) for g, o in zip(grads, others, strict=True)]


def _norm(grads: Sequence[Tensor]) -> Tensor:
    norms = torch._foreach_norm([local(g) for g in grads])
    return torch.stack([n.to(norms[0]) for n in norms]).norm()
