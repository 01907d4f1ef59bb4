"""What a GradScaler tells an optimizer that it calls.

With ``_step_supports_amp_scaling`` it sets ``found_inf`` and ``grad_scale`` for the time of a step.
"""

import contextlib
from collections.abc import Generator

from torch import Tensor
from torch.optim import Optimizer


@contextlib.contextmanager
def forgotten_if_it_raises(optimizer: Optimizer) -> Generator[None]:
    """Delete what a GradScaler has set where a step raises.

    It does so itself, but not then: a later step that it does not call would be unscaled again, or
    skipped for good.
    """
    try:
        yield
    except BaseException:
        for name in ("found_inf", "grad_scale"):
            if name in vars(optimizer):
                delattr(optimizer, name)
        raise


def calls(optimizer: Optimizer) -> bool:
    """Whether one has called the step that runs."""
    return getattr(optimizer, "found_inf", None) is not None


def has_found_overflow(optimizer: Optimizer) -> bool:
    """Whether one calls and has found a gradient that is not finite."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def loss_scale(optimizer: Optimizer, *, must_be_known: bool) -> Tensor | None:
    """Return the factor of the loss of a GradScaler that calls; None for 1.

    Raises:
        RuntimeError: it must be known, but the gradient is unscaled already.
    """
    if not calls(optimizer):
        return None
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None and must_be_known:
        raise RuntimeError(
            "scaler.unscale_(optimizer) has unscaled the gradient, but not the Hessian, by a "
            "factor that torch does not pass on: call scaler.step(optimizer) without it, and "
            "clip by max_grad_norm= instead; or use bfloat16 autocast without a GradScaler"
        )
    return scale
