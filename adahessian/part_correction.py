r"""The scale of a curvature that comes from a part of the batch.

Let t be z · Hz over a batch of n examples: the mean of their t_i. A part of f·n of them, drawn
without replacement, gives s = t plus sampling noise, and the optimizer's denominator, a root mean
square, grows with it: by up to √(1/f), which is a learning rate lowered without a word. With S² the
variance of the t_i over the batch (denominator n − 1), and two disjoint halves of the part with
means s₁ and s₂, so that s = (s₁ + s₂) / 2,

    E[s²] = t² + (1 − f) S² / (f n)         Var(s₁) = S² (2 / (f n) − 1 / n)
    E[(s₁ − s₂)² / 4] = S² / (f n)          Cov(s₁, s₂) = − S² / n

exactly, for each element; the second line follows from the right column. So the halves tell both

    noise²  = S² / n = E[f (s₁ − s₂)² / 4]
    signal² = t²     = E[s² − (1 − f) (s₁ − s₂)² / 4]

without a product with the whole batch, and for a tensor as a whole the factor

    √(signal² / (signal² + (1 / f − 1) noise²))

brings the root mean square of s down to that of t. Both are sums over the tensor and averaged over
refreshes, as v is, before they are divided: the quotient of two noisy sums would be biased, and a
single signal² can be negative. The factor lies within [√f, 1] for what is left of the noise.

Halves cost more than a whole part, by what an evaluation costs that does not depend on its size. So
only the first ``HALVES_FIRST`` refreshes and every ``HALVES_EVERY``-th of the later ones take them.

What the derivation leaves out: batch normalization makes the loss of a part another function than
that of the batch, and within a tensor the inflation is uneven (docs/curvature.md).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Of a parameter's state, one element each: the running means of both, neither depends on f.
SUMS = ("exp_signal_sq", "exp_noise_sq")
HALVES_FIRST, HALVES_EVERY = 16, 8


def takes_halves(states: Sequence[dict[str, Any]]) -> bool:
    """Whether the coming refresh of parameters with these states takes the part in halves."""
    if any(SUMS[0] not in state for state in states):
        return True
    refreshes = int(states[0].get("num_refreshes", 0))
    return refreshes < HALVES_FIRST or refreshes % HALVES_EVERY == 0


def remember(
    states: Sequence[dict[str, Any]],
    samples: Sequence[list[Tensor]],
    noises: Sequence[list[Tensor]],
    *,
    fraction: float,
    beta2: float,
) -> Callable[[Tensor], None]:
    """Take two halves into the running means.

    Args:
        states: of the parameters, on one device and of one type. Their entries ``SUMS`` are made
            and updated.
        samples: (s₁ + s₂) / 2 for each probe, one tensor for each parameter.
        noises: (s₁ − s₂) / 2.
        fraction: f, in (0, 1].
        beta2: decay of v at a refresh. Most take no halves: it counts once for each of them.

    Returns:
        A function that forgets the halves again but for the parameters where a bool is true.
    """
    squares, differences = (
        torch.stack([torch.stack(torch._foreach_norm(tensors)) for tensors in probes])
        .square()
        .mean(0)
        for probes in (samples, noises)
    )
    seen = torch.stack([squares - (1 - fraction) * differences, fraction * differences])
    for state in states:
        for name in SUMS:
            if name not in state:
                state[name] = seen.new_zeros(())
    running = [state[name] for name in SUMS for state in states]
    before = torch.stack(running).view_as(seen)
    # A refresh that overflows is not remembered; the device decides, so that nobody waits for it.
    after = torch.where(seen.isfinite().all(0), before.lerp(seen, 1 - beta2**HALVES_EVERY), before)
    torch._foreach_copy_(running, after.view(-1).unbind())

    def keep(good: Tensor) -> None:
        torch._foreach_copy_(running, torch.where(good, after, before).view(-1).unbind())

    return keep


def scale_factors(states: Sequence[dict[str, Any]], fraction: float) -> list[Tensor]:
    """Return the factor of each tensor's curvature, one element each.

    Args:
        states: of the parameters, on one device and of one type, with ``SUMS``.
        fraction: f, in (0, 1].
    """
    signal, noise = (torch.stack([state[name] for state in states]) for name in SUMS)
    whole = signal + (1 / fraction - 1) * noise
    share = torch.where(whole > 0, signal / whole, 1.0)
    return list(share.clamp(fraction, 1).sqrt().unbind())
