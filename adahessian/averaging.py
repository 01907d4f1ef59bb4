"""Averaging of curvature over blocks (the paper's "spatial averaging", Sec. III-B, Eq. 10).

The rule, one table for tensors of every rank:

===========  ===================  ===================  ==========================================
block_size   0-D, 1-D             2-D                  3-D, 4-D, 5-D, ...
===========  ===================  ===================  ==========================================
"kernel"     element by element   element by element   mean over all dims from the third on: the
                                                       k, kh × kw or kd × kh × kw kernel of each
                                                       (output, input) channel pair
"row"        element by element   mean over each row   as "kernel"
int b        mean over consecutive runs of b elements in row-major order, the last run shorter if
             b does not divide the size
None         element by element   element by element   element by element
===========  ===================  ===================  ==========================================

Convolutions of torch store (out, in / groups, *kernel), transposed ones (in, out / groups,
*kernel): in grouped, depthwise and transposed convolutions alike the kernel starts at the third
dim.
"""

import torch
from torch import Tensor

BlockSize = int | str | None


def check_block_size(block_size: BlockSize) -> None:
    """Raise ValueError unless ``block_size`` is "kernel", "row", None or a positive int."""
    if block_size in ("kernel", "row") or block_size is None:
        return
    if isinstance(block_size, int) and not isinstance(block_size, bool) and block_size >= 1:
        return
    raise ValueError(
        f"block_size must be 'kernel', 'row', None or a positive int, got {block_size!r}"
    )


def block_average(tensor: Tensor, block_size: BlockSize) -> Tensor:
    """Replace every element of ``tensor`` by the mean of its block.

    Args:
        tensor: any shape.
        block_size: see the table at the top of this module.

    Returns:
        A tensor of the same shape. It can be ``tensor`` itself, where nothing is to be averaged,
        or an expanded view, so it must not be changed in place.
    """
    check_block_size(block_size)
    if block_size is None or tensor.numel() == 0:
        return tensor
    if isinstance(block_size, int):
        return _average_runs(tensor, block_size)
    if tensor.ndim >= 3:
        return tensor.mean(dim=tuple(range(2, tensor.ndim)), keepdim=True).expand_as(tensor)
    if tensor.ndim == 2 and block_size == "row":
        return tensor.mean(dim=1, keepdim=True).expand_as(tensor)
    return tensor


def _average_runs(tensor: Tensor, length: int) -> Tensor:
    if length == 1:
        return tensor
    flat = tensor.reshape(-1)
    whole = flat.numel() // length * length
    means = flat[:whole].view(-1, length).mean(dim=1, keepdim=True).expand(-1, length).reshape(-1)
    if whole < flat.numel():
        rest = flat[whole:]
        means = torch.cat([means, rest.mean().expand_as(rest)])
    return means.view(tensor.shape)
