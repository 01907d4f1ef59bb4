"""The scale of a curvature that comes from a part of the batch.

The derivation is in :mod:`adahessian.part_correction`, whose rule this is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adahessian.jax.transform import zeros_for_average

# Of the running means, at each call: torch's β₂ of 0.999 to the eighth power, as there only every
# eighth refresh takes halves.
DECAY = 0.999**8


class PartState(NamedTuple):
    """Running sums of squares of each array, one scalar each; they do not depend on the fraction.

    Attributes:
        signal: Σ t², of z · Hz over the whole batch; float32, or float64 where the parameter is.
        noise: Σ S² / n, the variance of the mean over a batch of n examples.
    """

    signal: Any
    noise: Any


def part_of_batch(
    first: Any,
    second: Any,
    state: PartState | None = None,
    *,
    fraction: float | jax.Array,
    decay: float | jax.Array = DECAY,
) -> tuple[Any, PartState]:
    """Return the curvature estimate of a part of the batch, scaled to that of the whole.

    z · Hz of a part is larger by sampling noise, by up to √(1 / fraction). Two halves of the part
    tell how much. Pass the result as ``hessian=`` to the update of an optimizer that was made with
    ``wait=True``: an element that is in the batch and not in the part (a token's embedding) has a
    gradient and no curvature. ::

        def half(start, stop):
            rows = slice(int(start * n), int(stop * n))
            return grad_and_hessian(loss, (params, x[rows], y[rows]), seed, step=step)[1]

        hessian, part = part_of_batch(half(0, f / 2), half(f / 2, f), part, fraction=f)

    Across devices average both halves first (``jax.lax.pmean``).

    Args:
        first, second: z · Hz of the halves, by one and the same probe: pytrees of arrays, signed,
            not averaged over blocks.
        state: what the call before returned; None at first.
        fraction: of the batch that both halves are together, in (0, 1].
        decay: of the running means.

    Returns:
        (hessian, state): a pytree like the halves, and what to pass next. A refresh that is not
        finite is not remembered.

    Raises:
        ValueError: ``fraction`` is a number out of range.
    """
    if isinstance(fraction, int | float) and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction!r}")
    if state is None:
        zeros = jax.tree.map(lambda leaf: zeros_for_average(leaf).sum(), first)
        state = PartState(zeros, zeros)
    sample = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    differences = jax.tree.map(lambda a, b: _sum_of_squares((a - b) / 2), first, second)
    squares = jax.tree.map(_sum_of_squares, sample)

    def running(before: Any, seen: Any) -> Any:
        def one(old, new, square, difference):
            finite = jnp.isfinite(square) & jnp.isfinite(difference)
            return jnp.where(finite, old + (1 - decay) * (new - old), old)

        return jax.tree.map(one, before, seen, squares, differences)

    signal = jax.tree.map(lambda s, d: s - (1 - fraction) * d, squares, differences)
    noise = jax.tree.map(lambda d: fraction * d, differences)
    state = PartState(running(state.signal, signal), running(state.noise, noise))

    def scaled(leaf, signal, noise):
        whole = signal + (1 / fraction - 1) * noise
        share = jnp.where(whole > 0, signal / jnp.where(whole > 0, whole, 1), 1)
        return leaf * jnp.sqrt(jnp.clip(share, fraction, 1)).astype(leaf.dtype)

    return jax.tree.map(scaled, sample, state.signal, state.noise), state


def _sum_of_squares(leaf: jax.Array) -> jax.Array:
    return jnp.sum(leaf.astype(zeros_for_average(leaf).dtype) ** 2)
