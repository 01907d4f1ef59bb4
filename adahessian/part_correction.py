r"""The scale of a curvature that comes from a part of the batch.

Let t be z · Hz over a batch of n examples: the mean of their t_i. A part of f·n of them, drawn
without replacement, gives t plus sampling noise, and the optimizer's denominator, a root mean
square, grows with it: by up to √(1/f), which is a learning rate lowered without a word. With S² the
variance of the t_i over the batch (denominator n − 1), two disjoint halves s₁ and s₂ of the part,
and s = (s₁ + s₂) / 2,

    E[s²] = t² + (1 − f) S² / (f n)         Var(s₁) = S² (2 / (f n) − 1 / n)
    E[(s₁ − s₂)² / 4] = S² / (f n)          Cov(s₁, s₂) = − S² / n

exactly, for each element; the second line follows from the right column. So s² is too large by
(1 − f) (s₁ − s₂)² / 4 on average, and for a tensor as a whole the factor

    √(1 − (1 − f) Σ (s₁ − s₂)² / 4 / Σ s²)

brings the root mean square of s down to that of t. It needs no product with the whole batch. Both
sums are averaged over refreshes, as v is, before they are divided: the quotient of two noisy sums
would be biased, and its radicand can be negative. It lies within [f, 1] for what is left of the
noise. What the derivation leaves out: batch normalization makes the loss of a half another function
than that of the batch, and within a tensor the inflation is uneven (docs/curvature.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Of a parameter's state, one element each: running means of Σ s² and Σ (s₁ − s₂)² / 4.
SUMS = ("exp_part_sq", "exp_noise_sq")


def scale_factors(
    states: Sequence[dict[str, Any]],
    samples: Sequence[list[Tensor]],
    noises: Sequence[list[Tensor]],
    *,
    fraction: float,
    decay: float,
) -> list[Tensor]:
    """Return the factor of each tensor's curvature, one element each, and remember what it is from.

    Args:
        states: of the parameters, on one device and of one type. Their entries ``SUMS`` are made
            and updated.
        samples: (s₁ + s₂) / 2 for each probe, one tensor for each parameter.
        noises: (s₁ − s₂) / 2.
        fraction: f, in (0, 1].
        decay: of the running means.
    """
    seen = torch.stack(
        [
            torch.stack([torch.stack(torch._foreach_norm(tensors)) for tensors in probes])
            .square()
            .mean(0)
            for probes in (samples, noises)
        ]
    )
    for state in states:
        for name in SUMS:
            if name not in state:
                state[name] = seen.new_zeros(())
    running = [state[name] for name in SUMS for state in states]
    before = torch.stack(running).view_as(seen)
    # A refresh that overflows is not remembered; the device decides, so that nobody waits for it.
    after = torch.where(seen.isfinite().all(0), before.lerp(seen, 1 - decay), before)
    torch._foreach_copy_(running, after.view(-1).unbind())
    part, noise = after
    share = torch.where(part > 0, noise / part, 0.0)
    return list((1 - (1 - fraction) * share).clamp(fraction, 1).sqrt().unbind())
