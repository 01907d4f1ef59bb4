"""Rademacher probes: random trees of ±1 that are a pure function of where they are used.

The numbers are those of :mod:`adahessian.probes` (torch): element e of tensor number i is the same
sign in both for the same (seed, step, sample).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adahessian.hashing import random_words, stream_keys

_BITS = 32  # elements that share one random word: element e takes bit e % 32 of word e // 32


def rademacher_like(
    tree: Any,
    *,
    seed: int | jax.Array,
    step: int | jax.Array,
    sample: int | jax.Array = 0,
    tensor_indices: Sequence[int] | None = None,
) -> Any:
    """Return a tree of independent ±1 like ``tree``.

    Args:
        tree: a pytree of floating-point arrays. Elements are counted in row-major order, leaves in
            the order of ``jax.tree.leaves`` (dicts: sorted by key).
        seed: an int from 0 to 2⁶³ − 1, or a scalar integer array, which may be traced.
        step: which optimizer step the probe belongs to; may be traced.
        sample: which of several probes of the same step; may be traced.
        tensor_indices: the number of each leaf (default: its place in ``tree``). A leaf keeps its
            probe when others are left out.

    Returns:
        A tree of the same structure, shapes and dtypes: E[z] = 0 and E[z zᵀ] = I over the seeds,
        for all leaves together.

    Raises:
        TypeError: ``seed``, ``step`` or ``sample`` is no integer.
        ValueError: ``seed`` is an int out of range.
    """
    leaves, treedef = jax.tree.flatten(tree)
    if tensor_indices is None:
        tensor_indices = range(len(leaves))
    if isinstance(seed, int | np.integer) and not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    # The streams of all leaves at once: the scalar part of the hash is compiled once, not per leaf.
    indices = _Words(np.array(tensor_indices, dtype=np.uint32))
    first, second = stream_keys(
        _hashable("seed", seed), _hashable("step", step), _hashable("sample", sample), indices
    )
    probes = [_signs(leaf, (first.array[i], second.array[i])) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, probes)


def _signs(leaf: jax.Array, keys: tuple[jax.Array, jax.Array]) -> jax.Array:
    numel = int(np.prod(jnp.shape(leaf)))
    word_index = _Words(jnp.arange(-(-numel // _BITS), dtype=np.uint32))
    words = random_words(word_index, (_Words(keys[0]), _Words(keys[1]))).array
    bits = (words[:, None] >> np.arange(_BITS, dtype=np.uint32)[None]) & np.uint32(1)
    signs = jnp.where(bits.ravel()[:numel] == 1, 1, -1).reshape(jnp.shape(leaf))
    # Over the leaf's devices, and varying over the same of their axes.
    return jnp.ones_like(leaf) * signs.astype(jnp.result_type(leaf))


def _hashable(name: str, number: int | jax.Array) -> "int | _Words | _LongWords":
    if isinstance(number, int | np.integer):
        return int(number)
    number = jnp.asarray(number)
    if not jnp.issubdtype(number.dtype, jnp.integer):
        raise TypeError(f"{name} must be an int or an integer array, got {number.dtype}")
    if number.dtype.itemsize > 4:
        return _LongWords(number)
    return _Words(number.astype(np.uint32))


class _LongWords:
    """A scalar of 64 bits, as two words."""

    def __init__(self, array: jax.Array):
        self.array = array

    def __and__(self, low: int) -> "_Words":
        return _Words((self.array & low).astype(np.uint32))

    def __rshift__(self, bits: int) -> "_Words":
        return _Words((self.array >> bits).astype(np.uint32))


class _Words:
    """A uint32 array that :mod:`adahessian.hashing` can compute with.

    JAX refuses the hash's Python constants of more than 31 bits unless 64-bit types are enabled, so
    they are turned to uint32 here.
    """

    def __init__(self, array: jax.Array | np.ndarray):
        self.array = jnp.asarray(array)

    def __and__(self, other: "int | _Words") -> "_Words":
        return _Words(self.array & _as_uint32(other))

    def __mul__(self, other: "int | _Words") -> "_Words":
        return _Words(self.array * _as_uint32(other))

    def __rshift__(self, other: "int | _Words") -> "_Words":
        return _Words(self.array >> _as_uint32(other))

    def __xor__(self, other: "int | _Words") -> "_Words":
        return _Words(self.array ^ _as_uint32(other))

    __rxor__ = __xor__


def _as_uint32(number: int | _Words) -> jax.Array | np.uint32:
    return number.array if isinstance(number, _Words) else np.uint32(number)
