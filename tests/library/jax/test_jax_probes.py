# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""The probes of adahessian.jax are those of torch, under jit and without 64-bit types."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import torch

import adahessian.probes as torch_probes
from adahessian.jax import rademacher_like

SHAPES = [(), (1,), (31,), (32,), (33,), (3, 3, 2, 5), (0,), (2, 100)]


@pytest.mark.parametrize(
    ("seed", "step", "sample"), [(0, 0, 0), (1, 7, 0), (2**40 + 3, 2**31, 2), (2**63 - 1, 5, 1)]
)
def test_same_numbers_as_torch(seed, step, sample):
    ours = rademacher_like(
        [jnp.zeros(shape) for shape in SHAPES], seed=seed, step=step, sample=sample
    )
    theirs = torch_probes.rademacher_like(
        [torch.zeros(shape) for shape in SHAPES], seed=seed, step=step, sample=sample
    )
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our, their.numpy())


def test_seed_step_and_sample_may_be_traced():
    tree = {"a": jnp.zeros((5, 40)), "b": jnp.zeros(7)}
    traces = []

    @jax.jit
    def draw(seed, step, sample):
        traces.append(None)
        return rademacher_like(tree, seed=seed, step=step, sample=sample)

    for seed, step, sample in [(0, 0, 0), (3, 10**9, 1), (2**31 - 1, 4, 9)]:
        traced = draw(seed, step, sample)
        plain = rademacher_like(tree, seed=seed, step=step, sample=sample)
        jax.tree.map(np.testing.assert_array_equal, traced, plain)
    assert len(traces) == 1
    big = jnp.uint32(2**32 - 1)
    np.testing.assert_array_equal(
        draw(big, 0, 0)["a"], rademacher_like(tree, seed=2**32 - 1, step=0)["a"]
    )


def test_leaves_of_one_shape_differ_and_keep_their_probe_by_index():
    three = [jnp.zeros(200)] * 3
    a, b, c = rademacher_like(three, seed=0, step=0)
    assert abs(float(a @ b)) < 60 and abs(float(a @ c)) < 60  # standard deviation 14
    (alone,) = rademacher_like(three[2:], seed=0, step=0, tensor_indices=[2])
    np.testing.assert_array_equal(alone, c)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_dtype(dtype):
    (z,) = rademacher_like([jnp.zeros((3, 3), dtype)], seed=0, step=0)
    assert z.dtype == dtype
    assert set(np.unique(z.astype(np.float32))) == {-1.0, 1.0}


def test_refuses_numbers_that_are_none():
    with pytest.raises(ValueError, match="seed must be from 0"):
        rademacher_like([jnp.zeros(3)], seed=-1, step=0)
    for step in (1.5, jnp.ones(())):  # a share of an epoch: one probe for all of it
        with pytest.raises(TypeError, match="step must be an int or an integer array, got float32"):
            rademacher_like([jnp.zeros(3)], seed=0, step=step)


def test_where_ranks_are_not_promoted():
    with jax.numpy_rank_promotion("raise"):
        rademacher_like([jnp.zeros((3, 40))], seed=0, step=jnp.int32(1))


def test_a_seed_of_64_bits_within_jit():
    seeds = (5, 5 + 2**40)
    with jax.enable_x64(True):
        traced = jax.jit(lambda seed: rademacher_like(jnp.zeros(200), seed=seed, step=0))
        found = [traced(jnp.asarray(seed, jnp.int64)) for seed in seeds]
    for seed, z in zip(seeds, found, strict=True):
        np.testing.assert_array_equal(z, rademacher_like(jnp.zeros(200), seed=seed, step=0))
    assert (found[0] != found[1]).any()
