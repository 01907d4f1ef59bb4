"""Gradient accumulation that accumulates the curvature too."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adahessian.jax.transform import MISSING_HESSIAN, zeros_for_average


class MultiStepsHessianState(NamedTuple):
    """State of :func:`multi_steps`."""

    hessian: optax.Updates  # mean over the micro-batches since the last update
    multi_steps: optax.MultiStepsState


def multi_steps(
    opt: optax.GradientTransformation, every_k_schedule: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Return ``optax.MultiSteps`` for an optimizer that takes ``hessian=``.

    optax averages the gradients over the micro-batches but hands only the last one's further
    arguments on. Here the optimizer gets the mean of the signed estimates, which is the whole
    batch's estimate if the micro-batches share a probe (the same ``rng`` and ``step``), and an
    unbiased one otherwise.

    Args:
        opt, every_k_schedule, options: those of ``optax.MultiSteps``. A micro-batch that is skipped
            (``should_skip_update_fn``) does not count in the curvature either.

    Returns:
        A transformation with ``update(grads, state, params, *, hessian)``, ``hessian`` without a
        sample axis.

    Raises:
        ValueError: on updating: ``hessian`` is missing or a shape does not fit.
    """
    accumulator = optax.MultiSteps(opt, every_k_schedule, **options)

    def init(params: optax.Params) -> MultiStepsHessianState:
        zeros = jax.tree.map(zeros_for_average, params)
        return MultiStepsHessianState(zeros, accumulator.init(params))

    def update(updates, state, params=None, *, hessian=None, **extra_args):
        if hessian is None:
            raise ValueError(MISSING_HESSIAN)
        before = state.multi_steps.mini_step

        def running_mean(mean, new):
            if mean.shape != new.shape:
                raise ValueError(
                    f"hessian has shape {new.shape} where the parameter has {mean.shape}; "
                    "multi_steps takes the mean over samples (keep_samples=False)"
                )
            return (mean * before + new) / (before + 1)

        mean = jax.tree.map(running_mean, state.hessian, hessian)
        updates, inner = accumulator.update(
            updates, state.multi_steps, params, hessian=mean, **extra_args
        )
        counted = (inner.mini_step != before) | (
            inner.gradient_step != state.multi_steps.gradient_step
        )
        kept = jax.tree.map(lambda new, old: jnp.where(counted, new, old), mean, state.hessian)
        return updates, MultiStepsHessianState(kept, inner)

    return optax.GradientTransformationExtraArgs(init, update)
