"""Gradient accumulation that accumulates the curvature too."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adahessian.jax.transform import (
    MISSING_HESSIAN,
    flatten_hessian,
    flatten_with_names,
    is_masked,
    zeros_for_average,
)


class MultiStepsHessianState(NamedTuple):
    """State of :func:`multi_steps`."""

    hessian: optax.Updates  # mean (or sum) over the micro-batches since the last update
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
            (``should_skip_update_fn``) does not count in the curvature either. With
            ``use_grad_mean=False`` the estimates are summed as the gradients are.

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

        def running(average, new):
            if average.shape != jnp.shape(new):
                raise ValueError(
                    f"hessian has shape {jnp.shape(new)} where the parameter has {average.shape}; "
                    "multi_steps takes the mean over samples (keep_samples=False)"
                )
            # What is left of the update before may not be finite: 0 times it is no zero.
            average = jnp.where(before > 0, average, 0)
            new = jnp.asarray(new, average.dtype)
            if not options.get("use_grad_mean", True):
                return average + new
            count = before.astype(average.dtype)
            return (average * count + new) / (count + 1)

        named, treedef = flatten_with_names(updates)
        averages = treedef.flatten_up_to(state.hessian)
        hessians = flatten_hessian(hessian, named, treedef)
        mean = treedef.unflatten(
            average if is_masked(grad) else running(average, new)
            for average, new, (_, grad) in zip(averages, hessians, named, strict=True)
        )
        updates, inner = accumulator.update(
            updates, state.multi_steps, params, hessian=mean, **extra_args
        )
        counted = (inner.mini_step != before) | (
            inner.gradient_step != state.multi_steps.gradient_step
        )
        kept = jax.tree.map(lambda new, old: jnp.where(counted, new, old), mean, state.hessian)
        return updates, MultiStepsHessianState(kept, inner)

    return optax.GradientTransformationExtraArgs(init, update)
