"""Rademacher probes: random ±1 that are a pure function of where they are used.

The numbers are those of :mod:`adahessian.probes` (torch) and :mod:`adahessian.jax.probes`: element
e of tensor number i is the same sign for the same (seed, step, sample).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from adahessian.hashing import random_words, stream_keys

_BITS = 32  # elements that share one random word: element e takes bit e % 32 of word e // 32
# JAX has no int64 by default; TensorFlow's kernels for uint32 are not everywhere.
_WORD = "uint32" if keras.backend.backend() == "jax" else "int64"


def rademacher(
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    *,
    seed: int,
    step: Any,
    sample: int,
    tensor_indices: Sequence[int],
) -> list[Any]:
    """Return one tensor of independent ±1 for each of ``shapes``.

    Args:
        shapes, dtypes: of the probes. Elements are counted in row-major order.
        seed: from 0 to 2⁶³ − 1.
        step: which optimizer step the probe belongs to, an int or an integer scalar.
        sample: which of several probes of the same step.
        tensor_indices: the number of each tensor in its optimizer.

    Returns:
        Tensors with E[z] = 0 and E[z zᵀ] = I over the seeds, for all tensors together.
    """
    if not isinstance(step, int):
        step = _Words(ops.cast(step, _WORD))
    # The streams of all tensors at once: the scalar part of the hash is made once.
    indices = _Words(_constant(np.array(tensor_indices)))
    first, second = stream_keys(seed, step, sample, indices)
    return [
        _signs(shape, dtype, (_Words(first.array[i]), _Words(second.array[i])))
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]


def _signs(shape: tuple[int, ...], dtype: str, keys: tuple["_Words", "_Words"]) -> Any:
    numel = int(np.prod(shape))
    word_index = _Words(_constant(np.arange(-(-numel // _BITS))))
    words = random_words(word_index, keys).array
    shifts = _constant(np.arange(_BITS))
    bits = ops.bitwise_and(ops.right_shift(ops.expand_dims(words, 1), shifts), _constant(1))
    bits = ops.cast(ops.reshape(bits, (-1,))[:numel], dtype)
    return ops.reshape(2 * bits - 1, shape)


class _Words:
    """32-bit unsigned integers that :mod:`adahessian.hashing` can compute with."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __and__(self, other: "int | _Words") -> "_Words":
        return _Words(ops.bitwise_and(self.array, _constant(other)))

    def __mul__(self, other: "int | _Words") -> "_Words":
        return _Words(ops.multiply(self.array, _constant(other)))

    def __rshift__(self, other: "int | _Words") -> "_Words":
        return _Words(ops.right_shift(self.array, _constant(other)))

    def __xor__(self, other: "int | _Words") -> "_Words":
        return _Words(ops.bitwise_xor(self.array, _constant(other)))

    __rxor__ = __xor__


def _constant(value: "int | np.ndarray | _Words") -> Any:
    if isinstance(value, _Words):
        return value.array
    return ops.convert_to_tensor(np.asarray(value, dtype=_WORD))
