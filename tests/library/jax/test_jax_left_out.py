# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""A curvature that is not finite never reaches the parameters, also within jit."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adahessian.jax import adahessian, needs_hessian

START = {"a": jnp.arange(1.0, 4.0), "b": jnp.ones((2, 3))}


def train(spoiled_steps, steps=5, **options):
    tx = adahessian(0.05, **options)
    params, opt_state = START, tx.init(START)
    update = jax.jit(lambda g, s, p, h: tx.update(g, s, p, hessian=h))
    for step in range(steps):
        grads = jax.tree.map(lambda p: 3 * p**2, params)
        hessian = jax.tree.map(lambda p: 6 * p, params)
        if step in spoiled_steps:  # one element is enough: an array is left out as a whole
            hessian["a"] = hessian["a"].at[1].set(spoiled_steps[step])
        updates, opt_state = update(grads, opt_state, params, hessian)
        params = optax.apply_updates(params, updates)
    return params, opt_state[0]


def corrected(state, b2):
    return state.exp_hessian_diag_sq["a"] / (1 - b2 ** int(state.num_refreshes))


@pytest.mark.parametrize("b2", [0.999, 0.5, 0.0])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -1e30])
def test_the_average_stays(value, b2):
    _, before = train({}, steps=3, b2=b2)
    params, after = train({3: value}, steps=4, b2=b2)
    np.testing.assert_allclose(corrected(after, b2), corrected(before, b2), rtol=1e-3)
    np.testing.assert_array_equal(params["b"], train({}, steps=4, b2=b2)[0]["b"])
    assert jnp.isfinite(params["a"]).all() and (params["a"] != train({}, steps=3)[0]["a"]).all()


@pytest.mark.parametrize("b2", [0.999, 0.5, 0.0])
def test_an_array_begins_with_its_first_finite_curvature(b2):
    spoiled = {0: jnp.nan, 1: jnp.inf}
    params, state = train(spoiled, steps=2, b2=b2)
    np.testing.assert_array_equal(params["a"], START["a"])
    assert jnp.isinf(state.exp_hessian_diag_sq["a"]).all()
    params, state = train(spoiled, steps=3, b2=b2)
    np.testing.assert_allclose(corrected(state, b2), (6 * START["a"]) ** 2, rtol=1e-3)
    # m̂ is the gradient, which was constant, and d that of the start.
    np.testing.assert_allclose(params["a"], START["a"] * (1 - 0.05 / 2), rtol=1e-4)
    np.testing.assert_array_equal(params["b"], train({}, steps=3, b2=b2)[0]["b"])


@pytest.mark.parametrize("begun", [False, True])
def test_where_nothing_is_finite_the_refresh_stays_due(begun):
    """As where `refresh=False` comes at a step that needed the curvature."""
    tx = adahessian(0.05, update_interval=3)
    params, opt_state = START, tx.init(START)
    good = jax.tree.map(lambda p: 6 * p, START)
    nothing = jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), START)
    update = jax.jit(lambda s, p, h: tx.update(START, s, p, hessian=h))
    for _ in range(3 if begun else 0):
        _, opt_state = update(opt_state, params, good)
    average = opt_state[0].exp_hessian_diag_sq
    for _ in range(2):
        assert needs_hessian(opt_state)
        updates, opt_state = update(opt_state, params, nothing)
        assert all((u != 0).all() == begun for u in jax.tree.leaves(updates))
        assert opt_state[0].num_refreshes == begun
    assert needs_hessian(opt_state)
    if begun:
        jax.tree.map(np.testing.assert_array_equal, opt_state[0].exp_hessian_diag_sq, average)
    updates, opt_state = update(opt_state, params, good)
    assert not needs_hessian(opt_state) and opt_state[0].num_refreshes == begun + 1
    assert all((u != 0).all() for u in jax.tree.leaves(updates))


def test_a_sum_of_squares_may_overflow():
    tx = adahessian(0.05)
    params = {"a": jnp.ones(100)}
    hessian = {"a": jnp.full(100, 3e18)}  # its square is finite, and the sum of them is not
    _, opt_state = tx.update(params, tx.init(params), params, hessian=hessian)
    assert jnp.isfinite(opt_state[0].exp_hessian_diag_sq["a"]).all()
