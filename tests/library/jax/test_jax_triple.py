# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""The triple of functions is the optax optimizer in other clothes."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adahessian.jax import adahessian, adahessian_triple, grad_and_hessian


def loss(p, x):
    return jnp.mean((jnp.tanh(x @ p["w"]) - 0.5) ** 2)


@pytest.mark.parametrize("step_size", [0.1, lambda i: 0.1 / (1 + i)], ids=["number", "schedule"])
def test_same_as_optax(step_size):
    x = jax.random.normal(jax.random.key(0), (8, 3))
    start = {"w": jnp.array([0.5, -0.3, 0.8])}
    options = {"weight_decay": 0.1, "hessian_power": 0.5, "update_interval": 2}
    opt_init, opt_update, get_params = adahessian_triple(step_size, **options)

    @jax.jit
    def update(i, opt_state, rng):
        gradient, hessian = grad_and_hessian(loss, (get_params(opt_state), x), rng)
        return opt_update(i, gradient, hessian, opt_state)

    tx = adahessian(step_size, **options)
    params, optax_state = start, tx.init(start)
    opt_state = opt_init(start)
    rng = jax.random.key(1)
    for i in range(4):
        rng, rng_step = jax.random.split(rng)
        opt_state = update(i, opt_state, rng_step)
        grads, hessian = grad_and_hessian(loss, (params, x), rng_step)
        updates, optax_state = tx.update(grads, optax_state, params, hessian=hessian)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(get_params(opt_state)["w"], params["w"], rtol=1e-5)
