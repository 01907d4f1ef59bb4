"""AdaHessian as a triple of functions, in the manner of ``jax.example_libraries.optimizers``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from adahessian.jax.transform import scale_by_adahessian


class TripleState(NamedTuple):
    """State of :func:`adahessian_triple`."""

    params: optax.Params
    opt_state: optax.OptState


def adahessian_triple(
    step_size: float | Callable[[int | jax.Array], Any] = 0.15,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    hessian_power: float = 1.0,
    **options: Any,
) -> tuple[Callable, Callable, Callable]:
    """Return AdaHessian's ``(opt_init, opt_update, get_params)``, which AdaHessianJax offered.

    Args:
        step_size: a number, or a function of the step index.
        b1, b2, eps, weight_decay, hessian_power, options: see :func:`adahessian.jax.adahessian`.

    Returns:
        ``opt_init(params)`` to the state, ``opt_update(i, gradient, hessian, opt_state)`` to the
        state after step i, and ``get_params(opt_state)``. The step index is for ``step_size``
        alone; the state counts its steps itself. All three can be used under jit.
    """
    tx = optax.chain(
        scale_by_adahessian(b1, b2, eps, hessian_power, **options),
        optax.add_decayed_weights(weight_decay),
    )

    def opt_init(params: optax.Params) -> TripleState:
        return TripleState(params, tx.init(params))

    def opt_update(
        i: int | jax.Array, gradient: optax.Updates, hessian: optax.Updates, state: TripleState
    ) -> TripleState:
        lr = step_size(i) if callable(step_size) else step_size
        updates, opt_state = tx.update(gradient, state.opt_state, state.params, hessian=hessian)
        updates = jax.tree.map(lambda u: -lr * u, updates)
        return TripleState(optax.apply_updates(state.params, updates), opt_state)

    def get_params(state: TripleState) -> optax.Params:
        return state.params

    return opt_init, opt_update, get_params
