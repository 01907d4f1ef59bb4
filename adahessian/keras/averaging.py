"""Averaging of curvature over blocks, in the layouts of Keras.

The rule is that of :mod:`adahessian.averaging` (torch), for the weights of Keras' layers:

===========  ================  ===================  ============================================
block_size   0-D, 1-D          2-D                  3-D, 4-D, 5-D
===========  ================  ===================  ============================================
"kernel"     each element      each element         mean over the spatial axes, which come first:
                               by itself            kernels are (*spatial, in, out), depthwise ones
                                                    (*spatial, in, multiplier), transposed ones
                                                    (*spatial, out, in)
"row"        each element      mean over the        as "kernel"
             by itself         inputs of each
                               output
int b        runs of b         mean over runs of b elements, counted in torch's order: the last two
             elements          axes first, as torch has them, then the spatial ones
None         each element by itself
===========  ================  ===================  ============================================

Dense kernels are (in, out), so a row is a column here; a weight that is named ``embeddings`` has
one row per token, and so has its LoRA, ``lora_embeddings_a``. Kernels of attention layers,
``.../query/kernel``, ``key``, ``value`` and ``attention_output``, and their ``lora_kernel_a``, have
three dims and nothing spatial: each element stands by itself. So do biases of any shape, and
``gamma``, ``beta`` and ``alpha``. A weight of 6 or more dims has no known layout and is left as it
is. What is laid out differently, such as the kernels of EinsumDense, is declared by its
``block_axes``.

A weight does not know its layer, so what its number of dims leaves open is decided by its path: a
``Conv1D`` within another layer passes for attention where it is named ``query``, and runs of a
depthwise kernel are counted as above where its layer has ``depthwise`` or ``dw`` in its name.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

BlockSize = int | str | None
BlockAxes = Callable[[str, tuple[int, ...]], Sequence[int] | None]

# By the default names, and by those of keras.applications: "block_1_depthwise", "conv_dw_1".
_DEPTHWISE = re.compile(
    r"(^|/)(depthwise_kernel|([^/]*depthwise|([^/]*_)?dw)[^/]*/kernel)$", re.IGNORECASE
)
_ATTENTION = re.compile(r"/(query|key|value|attention_output)/(kernel|lora_kernel_a)$")
_ROW_PER_TOKEN = ("embeddings", "lora_embeddings_a")
_ELEMENT_BY_ELEMENT = ("bias", "gamma", "beta", "alpha")


def check_block_size(block_size: BlockSize) -> None:
    """Raise ValueError unless ``block_size`` is "kernel", "row", None or a positive int."""
    if block_size is None or (isinstance(block_size, str) and block_size in ("kernel", "row")):
        return
    if isinstance(block_size, int) and not isinstance(block_size, bool) and block_size >= 1:
        return
    raise ValueError(
        f"block_size must be 'kernel', 'row', None or a positive int, got {block_size!r}"
    )


def block_average(
    array: Any, block_size: BlockSize, *, path: str = "", block_axes: Sequence[int] | None = None
) -> Any:
    """Replace every element of ``array`` by the mean of its block.

    Args:
        array: a tensor of the backend, of any shape.
        block_size: see the table at the top of this module.
        path: of the weight, as Keras has it: "conv2d/kernel".
        block_axes: the axes to average over, by "kernel" as by "row"; () leaves the array as it is.
            An int ``block_size`` counts its runs along these axes, the last one fastest. Default:
            those of the table.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ValueError: a bad ``block_size``, or axes that ``array`` does not have.
    """
    check_block_size(block_size)
    shape = tuple(array.shape)
    if block_size is None or 0 in shape:
        return array
    axes = _default_axes(path, len(shape)) if block_axes is None else _checked(block_axes, shape)
    if isinstance(block_size, int):
        return _average_runs(array, block_size, _order(path, len(shape), axes))
    declared = block_axes is not None
    if axes and (declared or len(shape) >= 3 or block_size == "row"):
        return ops.broadcast_to(mean(array, axes, keepdims=True), shape)
    return array


def mean(array: Any, axes: Sequence[int], keepdims: bool = False) -> Any:
    """Return the mean along axes; Keras' own takes float64 through float32 on JAX and torch."""
    count = math.prod(array.shape[axis] for axis in axes)
    return ops.sum(array, axis=tuple(axes), keepdims=keepdims) / count


def _default_axes(path: str, ndim: int) -> tuple[int, ...]:
    """Return the axes along which a row of a matrix or a kernel of a convolution lies."""
    name = path.split("/")[-1]
    if name in _ELEMENT_BY_ELEMENT or (ndim == 3 and _ATTENTION.search(path)):
        return ()
    if ndim == 2:
        return (1,) if name in _ROW_PER_TOKEN else (0,)
    return tuple(range(ndim - 2)) if 3 <= ndim <= 5 else ()


def _checked(axes: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        normal = tuple(range(len(shape))[axis] for axis in axes)
    except (IndexError, TypeError):
        normal = None
    if normal is None or len(set(normal)) < len(normal):
        raise ValueError(
            f"block_axes must be a tuple of different axes of the weight, got {axes!r} for the "
            f"shape {shape}"
        )
    return normal


def _order(path: str, ndim: int, axes: tuple[int, ...]) -> list[int]:
    """Return the axes in the order in which runs are counted, the last one fastest."""
    others = [axis for axis in range(ndim) if axis not in axes]
    # torch's depthwise output channels count the multiplier faster than the input.
    if axes and not _DEPTHWISE.search(path):
        others.reverse()
    return [*others, *axes]


def _average_runs(array: Any, length: int, order: list[int]) -> Any:
    """Average runs of ``length`` elements, counted in the ``order`` of axes."""
    ordered = ops.transpose(array, order)
    shape = tuple(ordered.shape)
    flat = ops.reshape(ordered, (-1,))
    whole = flat.shape[0] // length * length
    means = mean(ops.reshape(flat[:whole], (-1, length)), (1,)) if whole else flat[:0]
    means = ops.repeat(means, length)
    if whole < flat.shape[0]:
        rest = flat[whole:]
        means = ops.concatenate([means, ops.broadcast_to(mean(rest, (0,)), rest.shape)])
    averaged = ops.reshape(means, shape)
    return ops.transpose(averaged, [order.index(axis) for axis in range(len(order))])
