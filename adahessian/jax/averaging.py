"""Averaging of curvature over blocks, in the layouts of JAX.

The rule is that of :mod:`adahessian.averaging` (torch), for the arrays of flax:

===========  ================  ===================  ============================================
block_size   0-D, 1-D          2-D                  3-D, 4-D, 5-D
===========  ================  ===================  ============================================
"kernel"     each element      each element         mean over the spatial axes, which come first:
                               by itself            kernels are (*spatial, in, out), HWIO in 4-D
"row"        each element      mean over the        as "kernel"
             by itself         inputs of each
                               output
int b        runs of b         mean over runs of b elements, counted in the order (out, in,
             elements          *spatial), so that the blocks are those of torch
None         each element by itself
===========  ================  ===================  ============================================

Dense kernels are (in, out), so a row is a column here; an array that is named ``embedding``, as
flax does, holds one row per token. Kernels of flax's attention layers, (features, heads, head
features), have nothing spatial: each element stands by itself, and so it does in a ``bias`` of any
shape. An array of 6 or more dims has no known layout and is left as it is. What is laid out
differently, as what ``DenseGeneral`` or ``Einsum`` makes, is declared by its ``block_axes``.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

BlockSize = int | str | None
BlockAxes = Any | Callable[[str, jax.Array], tuple[int, ...] | None] | None


def check_block_size(block_size: BlockSize) -> None:
    """Raise ValueError unless ``block_size`` is "kernel", "row", None or a positive int."""
    if block_size is None or (isinstance(block_size, str) and block_size in ("kernel", "row")):
        return
    if isinstance(block_size, int) and not isinstance(block_size, bool) and block_size >= 1:
        return
    hint = ""
    if isinstance(block_size, jax.Array):
        hint = " (inject_hyperparams needs static_args=('block_size',) for an int)"
    raise ValueError(
        f"block_size must be 'kernel', 'row', None or a positive int, got {block_size!r}{hint}"
    )


def block_average(
    array: jax.Array,
    block_size: BlockSize,
    *,
    name: str = "",
    block_axes: tuple[int, ...] | None = None,
) -> jax.Array:
    """Replace every element of ``array`` by the mean of its block.

    Args:
        array: any shape.
        block_size: see the table at the top of this module.
        name: where the array stands in its tree, as "block/conv/kernel".
        block_axes: the axes to average over, by "kernel" as by "row"; () leaves the array as it is.
            An int ``block_size`` counts its runs along these axes, the last one fastest. Default:
            those of the table.

    Returns:
        An array of the same shape and dtype.

    Raises:
        ValueError: a bad ``block_size``, or axes that ``array`` does not have.
    """
    check_block_size(block_size)
    if block_size is None or array.size == 0:
        return array
    axes = _default_axes(name, array.ndim) if block_axes is None else _checked(block_axes, array)
    if isinstance(block_size, int):
        return _average_runs(array, block_size, axes)
    declared = block_axes is not None
    if axes and (declared or array.ndim >= 3 or block_size == "row"):
        return _laid_out_as(array, array.mean(axes, keepdims=True))
    return array


def _laid_out_as(array: jax.Array, means: jax.Array) -> jax.Array:
    """Return ``means`` in the shape of ``array``, over its devices (explicit sharding)."""
    return jnp.zeros_like(array) + means


def _default_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Return the axes along which a row of a matrix or a kernel of a convolution lies."""
    last = name.split("/")[-1]
    if last == "bias":
        return ()
    if ndim == 2:
        return (1,) if last == "embedding" else (0,)
    return tuple(range(ndim - 2)) if 3 <= ndim <= 5 else ()


def attention_kernels(names: Collection[str]) -> set[str]:
    """Return which of the arrays of a tree are kernels of flax's attention layers.

    Of all that a tree may name ``query`` or ``out``, those that have all three beside them.
    """
    layers = {name.removesuffix("query/kernel") for name in names if name.endswith("query/kernel")}
    return {
        f"{layer}{part}/kernel"
        for layer in layers
        if all(f"{layer}{part}/kernel" in names for part in ("key", "value"))
        for part in ("query", "key", "value", "out")
    }


def _checked(axes: tuple[int, ...], array: jax.Array) -> tuple[int, ...]:
    try:
        normal = tuple(range(array.ndim)[axis] for axis in axes)
    except (IndexError, TypeError):
        normal = None
    if normal is None or len(set(normal)) < len(normal):
        raise ValueError(
            f"block_axes must be a tuple of different axes of the array, got {axes!r} for an array "
            f"of shape {array.shape}"
        )
    return normal


def _average_runs(array: jax.Array, length: int, axes: tuple[int, ...]) -> jax.Array:
    """Average runs of ``length`` elements along ``axes``; outputs vary slower than inputs."""
    others = [axis for axis in range(array.ndim) if axis not in axes]
    order = [*reversed(others), *axes] if axes else others
    # Runs go across the pieces of an array that is laid out over devices by its type.
    is_in_pieces = any(jax.typeof(array).sharding.spec)
    whole_array = jax.sharding.reshard(array, PartitionSpec()) if is_in_pieces else array
    ordered = whole_array.transpose(order)
    flat = ordered.ravel()
    short = flat.size % length
    whole = flat[: flat.size - short].reshape(-1, length)
    means = jnp.broadcast_to(whole.mean(1, keepdims=True), whole.shape).ravel()
    if short:
        rest = jnp.broadcast_to(flat[-short:].mean(), (short,))
        means = jnp.concatenate([means, rest])
    means = means.reshape(ordered.shape)
    return _laid_out_as(array, means.transpose([order.index(axis) for axis in range(array.ndim)]))
