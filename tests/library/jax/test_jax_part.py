# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""The curvature of a part of the batch in JAX: torch's factors, on the same halves."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from adahessian.jax import PartState, adahessian, grad_and_hessian, part_of_batch
from adahessian.part_correction import remember, scale_factors


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_the_factors_are_torchs(fraction):
    random = np.random.default_rng(0)
    state, states = None, [{}, {}, {}]
    for _ in range(5):
        halves = [
            [random.normal(size=shape).astype(np.float32) for shape in ((3, 2), (4,), ())]
            for _ in range(2)
        ]
        halves[0][2] = halves[1][2] = np.zeros((), np.float32)  # no curvature at all
        found, state = part_of_batch(*halves, state, fraction=fraction)
        first, second = ([torch.as_tensor(t) for t in half] for half in halves)
        samples = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        noises = [(a - b) / 2 for a, b in zip(first, second, strict=True)]
        remember(states, [samples], [noises], fraction=fraction, beta2=0.999)
        factors = scale_factors(states, fraction)
        for ours, sample, factor in zip(found, samples, factors, strict=True):
            np.testing.assert_allclose(ours, (sample * factor).numpy(), rtol=1e-5, atol=1e-7)


def test_within_jit_and_with_a_loss():
    x, y = jnp.arange(32.0).reshape(16, 2) / 16, jnp.arange(16) % 2.0
    params = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)

    @jax.jit
    def step(params, state, seed):
        first, second = (
            grad_and_hessian(loss, (params, x[rows], y[rows]), seed)[1]
            for rows in (slice(0, 4), slice(4, 8))
        )
        return part_of_batch(first, second, state, fraction=0.5)

    zeros = jax.tree.map(lambda p: jnp.zeros((), p.dtype), params)
    hessian, state = step(params, PartState(zeros, zeros), 0)
    again, _ = step(params, state, 0)
    assert jax.tree.structure(hessian) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(hessian), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # the same halves: the same factor


def test_what_is_not_finite_is_not_remembered():
    good, bad = [jnp.array([2.0, 1.0])], [jnp.array([jnp.inf, 1.0])]
    _, before = part_of_batch(good, [good[0] * 2], fraction=0.5)
    _, after = part_of_batch(good, bad, before, fraction=0.5)
    assert before == after


@pytest.mark.parametrize("fraction", [0, -1, 1.5])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
        part_of_batch([jnp.ones(2)], [jnp.ones(2)], fraction=fraction)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_summed_in_float32(dtype):
    first, second = [jnp.full((100,), 300.0, dtype)], [jnp.full((100,), 100.0, dtype)]
    state = None
    for _ in range(50):
        found, state = part_of_batch(first, second, state, fraction=0.5)
    assert state.noise[0].dtype == jnp.float32 and found[0].dtype == dtype
    wide = None
    for _ in range(50):
        _, wide = part_of_batch(
            [first[0].astype(jnp.float32)], [second[0].astype(jnp.float32)], wide, fraction=0.5
        )
    np.testing.assert_allclose(state.noise[0], wide.noise[0], rtol=1e-3)


def test_an_element_without_curvature_waits():
    """A token of the batch that is in no part has a gradient and no curvature."""
    ids = np.array([0, 1, 0, 1, 2, 3, 4, 5])

    def loss(p, ids):
        return jnp.mean((p["embedding"][ids] - 1) ** 2)

    params = {"embedding": jnp.full((6, 2), 0.3)}
    moved = {}
    for wait in (False, True):
        tx = adahessian(0.1, weight_decay=0.5, wait=wait)
        grads = jax.grad(loss)(params, ids)
        halves = [grad_and_hessian(loss, (params, ids[rows]), 0)[1] for rows in ([0, 1], [2, 3])]
        hessian, _ = part_of_batch(*halves, fraction=0.5)
        updates, _ = tx.update(grads, tx.init(params), params, hessian=hessian)
        moved[wait] = np.abs(np.asarray(updates["embedding"])).max(1)
    assert (moved[False][2:] > 10).all()
    np.testing.assert_allclose(moved[True][2:], 0.1 * 0.5 * 0.3, rtol=1e-5)  # the decay alone
    np.testing.assert_array_equal(moved[True][:2], moved[False][:2])
