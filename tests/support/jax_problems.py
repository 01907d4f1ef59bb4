"""A small problem with leaves of several ranks, and jitted training on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adahessian.jax import value_grad_and_hessian

PARAMS = {
    "conv": {"kernel": jnp.linspace(-1, 1, 24).reshape(2, 3, 2, 2), "bias": jnp.array([0.1, -0.2])},
    "dense": {"kernel": jnp.linspace(1, -1, 12).reshape(3, 4)},
}


def loss(p, x=1.0):
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(p)])
    return jnp.mean(jnp.cos(flat * x) + 0.1 * flat * jnp.roll(flat, 1)) + jnp.mean(flat**4)


def derivatives(params, step=0, **options):
    _, grads, hessian = value_grad_and_hessian(loss, (params,), 0, step=step, **options)
    return grads, hessian


def train(tx, params, steps, **options):
    """Return parameters and state after ``steps`` jitted steps, and how often they were traced."""
    traces = []

    @jax.jit
    def step(params, opt_state, i):
        traces.append(None)
        grads, hessian = derivatives(params, i, **options)
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for i in range(steps):
        params, opt_state = step(params, opt_state, i)
    return params, opt_state, len(traces)


def assert_trees_close(a, b, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)
