# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""Block averaging in JAX's layouts is torch's averaging of the transposed tensor."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax.numpy as jnp
import numpy as np
import torch

import adahessian.averaging as torch_averaging
from adahessian.jax import block_average

# (shape in JAX, permutation to torch's layout)
LAYOUTS = [
    ((), ()),
    ((10,), (0,)),
    ((3, 4), (1, 0)),  # dense: in, out
    ((5, 2, 3), (2, 1, 0)),  # convolution: spatial, in, out
    ((2, 3, 4, 5), (3, 2, 0, 1)),
    ((2, 3, 2, 3, 4), (4, 3, 0, 1, 2)),
    ((0, 3), (1, 0)),
]


@pytest.mark.parametrize("block_size", ["kernel", "row", None, 1, 2, 7, 1000])
@pytest.mark.parametrize(("shape", "to_torch"), LAYOUTS)
def test_same_as_torch_in_its_layout(shape, to_torch, block_size):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = np.asarray(block_average(jnp.asarray(array), block_size))
    theirs = torch_averaging.block_average(
        torch.tensor(np.ascontiguousarray(array.transpose(to_torch))), block_size
    )
    assert ours.shape == shape
    np.testing.assert_allclose(ours.transpose(to_torch), theirs.numpy(), rtol=2e-6, atol=1e-7)


def test_rows_of_an_embedding_are_its_tokens():
    table = jnp.arange(12.0).reshape(4, 3)
    rows = np.broadcast_to(np.array([[1.0], [4.0], [7.0], [10.0]]), (4, 3))
    np.testing.assert_allclose(block_average(table, "row", name="encoder/embedding"), rows)
    np.testing.assert_allclose(block_average(table, 3, name="encoder/embedding"), rows)
    columns = block_average(table, "row", name="embedding/kernel")
    np.testing.assert_allclose(columns[0], [4.5, 5.5, 6.5])


def test_declared_axes():
    array = jnp.arange(24.0).reshape(2, 3, 4)
    for block_size in ("kernel", "row"):
        np.testing.assert_array_equal(block_average(array, block_size, block_axes=()), array)
        ours = block_average(array, block_size, block_axes=(-1,))
        np.testing.assert_allclose(ours, np.broadcast_to(array.mean(2, keepdims=True), array.shape))
    np.testing.assert_allclose(
        block_average(array, 4, block_axes=(-1,)), block_average(array, "row", block_axes=(2,))
    )
    np.testing.assert_array_equal(block_average(array, None, block_axes=(0,)), array)
    six = jnp.arange(64.0).reshape((2,) * 6)
    np.testing.assert_array_equal(block_average(six, "kernel"), six)


@pytest.mark.parametrize("axes", [(3,), (0, 0), (0, -3), "ab", 1])
def test_refuses_axes_that_are_not_there(axes):
    with pytest.raises(ValueError, match="block_axes must be a tuple of different axes"):
        block_average(jnp.zeros((2, 3, 4)), "kernel", block_axes=axes)


@pytest.mark.parametrize("block_size", [0, -1, 2.0, True, "kernels"])
def test_refuses_a_bad_block_size(block_size):
    with pytest.raises(ValueError, match="block_size must be"):
        block_average(jnp.zeros(3), block_size)
