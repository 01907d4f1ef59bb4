"""Several processes: averages over replicas, and tensors of which each process holds a part.

``torch.distributed`` is only touched where a process group or a ``DTensor`` is given.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.averaging import BlockSize, block_average
from adahessian.dtypes import widest

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def average_(tensors: Sequence[Tensor], process_group: Any) -> None:
    """Replace each of ``tensors``, in place, by its mean over the processes of a group.

    All tensors of a kind travel in one message.
    """
    kinds: dict[tuple, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault((t.device, t.dtype), []).append(t)
    world_size = torch.distributed.get_world_size(process_group)
    for members in kinds.values():
        flat = torch.cat([t.reshape(-1) for t in members])
        torch.distributed.all_reduce(flat, group=process_group)
        flat.div_(world_size)
        parts = flat.split([t.numel() for t in members])
        torch._foreach_copy_(
            members, [p.view(t.shape) for p, t in zip(parts, members, strict=True)]
        )


def mesh_groups(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the process groups of the meshes on which DTensors lie."""
    meshes = dict.fromkeys(t.device_mesh for t in tensors if is_sharded(t))
    return [group for mesh in meshes for group in mesh.get_all_groups()]


def over_all(found: Tensor, process_groups: Iterable[Any], operation: str = "SUM") -> Tensor:
    """Return what processes have found, put together over some groups; changed in place."""
    for group in process_groups:
        operator = getattr(torch.distributed.ReduceOp, operation)
        torch.distributed.all_reduce(found, operator, group=group)
    return found


def any_of(condition: bool, process_groups: Sequence[Any], device: torch.device) -> bool:
    """Whether a condition holds in any process of some groups, or in this one."""
    if not process_groups:
        return condition
    return bool(over_all(torch.tensor(float(condition), device=device), process_groups, "MAX"))


@dataclass(frozen=True)
class Reduction:
    """What makes gradients, and H·z alike, those of the unscaled loss over all processes.

    Attributes:
        scale: a GradScaler's factor of the loss, one element; None without one.
        process_group: over which to average; None for one process.
    """

    scale: Tensor | None = None
    process_group: Any = None

    def apply_(self, tensors: list[Tensor]) -> None:
        """Unscale tensors and average them over the processes, in place."""
        if self.scale is not None:
            torch._foreach_div_(tensors, self.scale)
        if self.process_group is not None:
            average_(tensors, self.process_group)


def check_same(facts: Any, process_group: Any, device: torch.device) -> None:
    """Raise unless the processes of a group are to compute the same products.

    Args:
        facts: what they must have in common; something with a ``repr`` of its own.
        process_group: over which H·z is averaged, or the gradients of which it is the difference.
        device: for the message.

    Raises:
        RuntimeError: on all processes alike.
    """
    number = zlib.crc32(repr(facts).encode())
    both = torch.tensor([number, -number], device=device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=process_group)
    if int(both.sum()):  # the largest and the smallest are not the same
        raise RuntimeError(
            "the optimizers of the processes that train one model differ: H·z is averaged over "
            "them, so that each needs the same parameters in the same order, the same seed and "
            "step. ZeroRedundancyOptimizer gives each process parameters of its own: use "
            "fully_shard, which divides them, with curvature='finite_difference'"
        )


def check_replicas(tensors: Sequence[Tensor], process_group: Any = None) -> None:
    """Raise unless every process of a group holds the same values.

    A DTensor is compared where its mesh replicates it; of one that is divided over all processes
    there is nothing to compare.

    Raises:
        RuntimeError: on all processes alike, naming the first tensor that differs.
    """
    replicas: dict[Any, list[int]] = {}
    for index, t in enumerate(tensors):
        for group in _groups_that_replicate(t) if is_sharded(t) else [process_group]:
            replicas.setdefault(group, []).append(index)
    differs = torch.zeros(len(tensors), device=local(tensors[0]).device)
    for group, members in replicas.items():
        differs[members] += _differ([local(tensors[i]) for i in members], group).to(differs)
    over_all(differs, [*mesh_groups(tensors), *replicas], "MAX")
    differing = differs.nonzero()
    if len(differing):
        index = int(differing[0])
        raise RuntimeError(
            f"the replicas have drifted apart: parameter {index} of the optimizer, of shape "
            f"{tuple(tensors[index].shape)}, is not the same on all processes. Were they equal at "
            "the start, and is every gradient reduced (process_group=, DistributedDataParallel)?"
        )


def _groups_that_replicate(tensor: "DTensor") -> list[Any]:
    mesh = tensor.device_mesh
    return [mesh.get_group(i) for i, p in enumerate(tensor.placements) if p.is_replicate()]


def _differ(tensors: Sequence[Tensor], process_group: Any) -> Tensor:
    """Return whether each of some tensors is not the same in all processes of a group."""
    norms = torch.stack([t.to(widest(t.device)).norm() for t in tensors])
    # The position-dependent weights tell permuted values apart, which a norm does not.
    weighted = [t.to(widest(t.device)).reshape(-1) for t in tensors]
    sums = torch.stack([(w * torch.arange(1, len(w) + 1, device=w.device)).sum() for w in weighted])
    seen = torch.stack([norms, sums])
    low, high = (over_all(seen.clone(), [process_group], kind) for kind in ("MIN", "MAX"))
    return (low != high).any(0)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether ``tensor`` is a DTensor, of which this process may hold a part."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def as_placed(grad: Tensor, param: Tensor) -> Tensor:
    """Return a gradient that lies on the processes as its parameter does.

    Autograd leaves that of a replicated DTensor as a sum, of which each process holds a summand.
    """
    if is_sharded(param) and is_sharded(grad) and grad.placements != param.placements:
        return grad.redistribute(param.device_mesh, param.placements)
    return grad


def place_gradients(params: Iterable[Tensor]) -> None:
    """Let each gradient lie on the processes as its parameter does."""
    for p in params:
        if p.grad is not None:
            placed = as_placed(p.grad, p)
            if placed is not p.grad:
                p.grad = placed


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, over the same memory; other tensors as they are."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(value: Any) -> Any:
    """Return all of a DTensor, as a tensor; anything else as it is."""
    return value.full_tensor() if isinstance(value, Tensor) and is_sharded(value) else value


def local_block_average(part: Tensor, whole: Tensor, block_size: BlockSize) -> Tensor:
    """Return this process's part of a block average.

    Args:
        part: this process's part of the values.
        whole: the parameter they belong to.
        block_size: see :mod:`adahessian.averaging`.
    """
    if not is_sharded(whole) or block_size is None:
        return block_average(part, block_size)
    shape, offset = _torch.local_shape_and_offset(whole)
    # The leading dims that tell blocks apart; 0 where blocks are runs of elements.
    kept = 0 if isinstance(block_size, int) else 1 if (block_size, whole.ndim) == ("row", 2) else 2
    if kept and shape[kept:] == tuple(whole.shape[kept:]):
        return block_average(part, block_size)  # no block crosses the border of a part
    from torch.distributed.tensor import DTensor

    values = DTensor.from_local(
        part, whole.device_mesh, whole.placements, shape=whole.shape, stride=whole.stride()
    )
    averaged = block_average(values.full_tensor(), block_size)
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        averaged = averaged.narrow(dim, start, length)
    return averaged
