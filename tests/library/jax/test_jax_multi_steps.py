# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""Gradient accumulation."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adahessian.jax import adahessian, multi_steps, needs_hessian, value_grad_and_hessian

X = jax.random.normal(jax.random.key(0), (12, 3))
PARAMS = {"w": jnp.array([0.5, -0.3, 0.8]), "b": jnp.array(0.1)}


def loss(p, x):
    # The squares keep the curvature away from zero, where steps would magnify rounding.
    return jnp.mean(jnp.tanh(x @ p["w"] + p["b"]) ** 2) + jnp.sum(p["w"] ** 2) + p["b"] ** 2


def run(tx, batches, steps=3):
    """Return the parameters after ``steps`` passes over ``batches``, and all needs_hessian."""
    params, opt_state, due = PARAMS, tx.init(PARAMS), []

    @functools.partial(jax.jit, donate_argnums=1)
    def update(params, opt_state, batch, step):
        refresh = needs_hessian(opt_state)
        _, grads, hessian = value_grad_and_hessian(
            loss, (params, batch), 0, step=step, refresh=refresh
        )
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        return optax.apply_updates(params, updates), opt_state, refresh

    for step in range(steps):
        for batch in batches:
            params, opt_state, refresh = update(params, opt_state, batch, step)
            due.append(bool(refresh))
    return params, due


@pytest.mark.parametrize("update_interval", [1, 2])
def test_micro_batches_make_the_step_of_the_whole_batch(update_interval):
    optimizer = adahessian(0.1, update_interval=update_interval)
    whole, due = run(optimizer, [X])
    micro, micro_due = run(multi_steps(optimizer, 3), jnp.split(X, 3))
    for key in PARAMS:
        np.testing.assert_allclose(micro[key], whole[key], rtol=1e-4, atol=1e-6)
    assert micro_due == [d for d in due for _ in range(3)]
    # optax's own wrapper takes the last micro-batch's curvature: that it differs is why ours is.
    last, _ = run(optax.MultiSteps(optimizer, 3), jnp.split(X, 3))
    assert np.abs(last["w"] - whole["w"]).max() > 1e-3


def test_skipped_micro_batches_count_for_nothing():
    optimizer = adahessian(0.1)
    broken = jnp.full((4, 3), jnp.nan)
    whole, _ = run(optimizer, [X[:8]], steps=2)
    tx = multi_steps(optimizer, 2, should_skip_update_fn=optax.skip_not_finite)
    micro, _ = run(tx, [broken, X[:4], broken, broken, X[4:8]], steps=2)
    for key in PARAMS:
        np.testing.assert_allclose(micro[key], whole[key], rtol=1e-4, atol=1e-6)


def test_one_micro_batch_is_no_accumulation():
    plain, _ = run(adahessian(0.1), [X])
    wrapped, _ = run(multi_steps(adahessian(0.1), 1), [X])
    for key in PARAMS:
        np.testing.assert_allclose(wrapped[key], plain[key], rtol=1e-5, atol=1e-7)


def test_refuses_what_it_cannot_average():
    tx = multi_steps(adahessian(0.1), 2)
    opt_state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="value_grad_and_hessian"):
        tx.update(PARAMS, opt_state, PARAMS)
    with pytest.raises(ValueError, match="keep_samples=False"):
        samples = jax.tree.map(lambda p: p[None], PARAMS)
        tx.update(PARAMS, opt_state, PARAMS, hessian=samples)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_curvature_that_is_not_finite_costs_one_refresh(value):
    tx = multi_steps(adahessian(0.05), 2)
    plain = adahessian(0.05)
    params, opt_state = PARAMS, tx.init(PARAMS)
    others, other_state = PARAMS, plain.init(PARAMS)
    for i in range(8):
        hessian = jax.tree.map(lambda p: jnp.full_like(p, 2.0), params)
        if i == 2:  # in the second update
            hessian["w"] = hessian["w"].at[0].set(value)
        updates, opt_state = tx.update(params, opt_state, params, hessian=hessian)
        params = optax.apply_updates(params, updates)
        if i % 2:
            if i == 3:
                hessian["w"] = hessian["w"].at[0].set(value)
            updates, other_state = plain.update(others, other_state, others, hessian=hessian)
            others = optax.apply_updates(others, updates)
    for key in PARAMS:
        np.testing.assert_allclose(params[key], others[key], rtol=1e-5)


def test_sums_of_gradients_go_with_sums_of_curvature():
    whole, _ = run(adahessian(0.1, eps=0.0), [X])
    # A sum of three is three times the mean, and so is the curvature: the step is the same.
    summed, _ = run(multi_steps(adahessian(0.1, eps=0.0), 3, use_grad_mean=False), jnp.split(X, 3))
    for key in PARAMS:
        np.testing.assert_allclose(summed[key], whole[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked_too", [False, True])
def test_within_a_part_of_the_parameters(masked_too):
    """optax.masked hands on masked nodes, and by default the curvature whole."""
    label = {"w": True, "b": False}
    tx = optax.masked(multi_steps(adahessian(0.1), 2), label, mask_compatible_extra_args=masked_too)
    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        updates, opt_state = tx.update(PARAMS, opt_state, params, hessian=PARAMS)
    np.testing.assert_allclose(updates["w"], -0.1 * jnp.sign(PARAMS["w"]), rtol=1e-3)
