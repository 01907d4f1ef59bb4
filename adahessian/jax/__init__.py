"""AdaHessian (arXiv:2006.00719) for JAX: an optax transformation and its curvature estimator.

Needs the extra: ``pip install adahessian[jax]``. torch is not imported. See docs/jax.md.
"""

from adahessian.jax.averaging import block_average
from adahessian.jax.functional import grad_and_hessian, value_grad_and_hessian
from adahessian.jax.multi_steps import multi_steps
from adahessian.jax.part import PartState, part_of_batch
from adahessian.jax.probes import rademacher_like
from adahessian.jax.transform import (
    ScaleByAdaHessianState,
    adahessian,
    needs_hessian,
    scale_by_adahessian,
)
from adahessian.jax.triple import adahessian_triple

__all__ = [
    "PartState",
    "ScaleByAdaHessianState",
    "adahessian",
    "adahessian_triple",
    "block_average",
    "grad_and_hessian",
    "multi_steps",
    "needs_hessian",
    "part_of_batch",
    "rademacher_like",
    "scale_by_adahessian",
    "value_grad_and_hessian",
]
