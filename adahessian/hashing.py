"""The integer hash behind the probes, in arithmetic that every array library shares.

Everything here works on plain ints, on torch int64 tensors and on numpy uint32 arrays (JAX's by the
wrapper in :mod:`adahessian.jax.probes`: it refuses Python ints above 2³¹ − 1), and gives the same
numbers on all of them: products are reduced to 32 bits by a mask, so that neither wrap-around at 64
bits (torch) nor at 32 (numpy, JAX) nor exact integers (Python) makes a difference.
"""

from typing import Any

_LOW_32_BITS = 0xFFFFFFFF


def mix(x: Any) -> Any:
    """Return a bijective scramble of the 32-bit unsigned integers in ``x``.

    Every output bit depends on every input bit with a probability close to one half. The constants
    are the two-round multiply-xorshift ones found by Chris Wellons' search ("lowbias32", public
    domain).
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW_32_BITS
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW_32_BITS
    return x ^ (x >> 16)


def stream_keys(seed: Any, step: Any, sample: Any, tensor_index: Any) -> tuple[Any, Any]:
    """Return the two 32-bit keys of one stream of random words.

    The arguments are absorbed one after another, each behind a full scramble, twice from different
    starting values: 64 bits of key, so that streams of different tensors, steps or seeds are
    unrelated. ``seed`` may have up to 64 bits; the others are taken modulo 2**32, and any of them
    may be an array.
    """
    words = (seed & _LOW_32_BITS, (seed >> 32) & _LOW_32_BITS, step, sample, tensor_index)
    keys = []
    for key in (
        0x9E3779B9,
        0x3C6EF372,
    ):  # multiples of the golden ratio: any two constants would do
        for word in words:
            key = mix((word & _LOW_32_BITS) ^ key)
        keys.append(key)
    return keys[0], keys[1]


def random_words(word_index: Any, keys: tuple[Any, ...]) -> Any:
    """Return the 32 random bits of each ``word_index`` in the stream of ``keys``.

    Args:
        word_index: unsigned integers below 2**32, an int or an array.
        keys: the pair from :func:`stream_keys`, ints or arrays that broadcast with ``word_index``.
    """
    first, second = keys
    return mix(mix((word_index & _LOW_32_BITS) ^ first) ^ second)
