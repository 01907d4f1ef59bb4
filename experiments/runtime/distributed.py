"""Several processes train one run: each computes a shard of every batch, rank 0 writes.

Whatever sets torch's variables (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ...) starts them: torchrun, or
`slurm.job` from Slurm's own. Without them there is one process, and every function here returns
what it was given.

The result is that of one process on the whole batch, up to the order of additions: each loss is
weighted by its shard's share of the batch, gradients (and H·z, by the optimizer) are averaged, and
sums are added up.
"""

import atexit
import datetime
import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adahessian.replicas import average_
from experiments.errors import UserError

# Rank 0 may wait for another process's lease on the run; Slurm's time limit ends that earlier.
TIMEOUT = datetime.timedelta(days=2)


def start(device: torch.device) -> None:
    """Join the other processes where there are any; a second call does nothing."""
    if world_size() > 1 and not dist.is_initialized():
        _check_launcher(device)
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        # Objects, such as whether to stop, travel between the hosts: no device is waited for.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(leave)


def _check_launcher(device: torch.device) -> None:
    """Refuse what some environment has left: `WORLD_SIZE` alone, a rank that there is not."""
    needed = ["RANK", "MASTER_ADDR", "MASTER_PORT", *["LOCAL_RANK"] * (device.type == "cuda")]
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise UserError(
            f"WORLD_SIZE = {world_size()} without {', '.join(missing)}: start the processes with "
            "torchrun, or unset WORLD_SIZE to train in one"
        )
    number("MASTER_PORT", 1)
    if rank() >= world_size():  # which would wait for ever
        raise UserError(f"RANK = {rank()} of WORLD_SIZE = {world_size()}: ranks count from 0")


def leave() -> None:
    """Leave the group, whatever the other processes are doing.

    It must happen before the interpreter exits: a communication thread of torch that frees a tensor
    during the exit aborts the process ("terminate called without an active exception").
    """
    if dist.is_initialized():
        gc.collect()  # the threads end with the last reference to the group
        dist.destroy_process_group()


def number(variable: str, least: int) -> int:
    """What a launcher has set a variable of the environment to; `least` where it is not there.

    Raises:
        UserError: it is no such number.
    """
    text = os.environ.get(variable) or str(least)
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"{variable} = '{text}': torchrun sets it, to {least} or more; unset it to train in "
            "one process"
        )
    return int(text)


def world_size() -> int:
    return number("WORLD_SIZE", 1)


def rank() -> int:
    return number("RANK", 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, the process that writes."""
    return rank() == 0


def world_group() -> Any:
    """The group of all processes, as an optimizer takes it; None before `start`."""
    return dist.group.WORLD if dist.is_initialized() else None


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank; waits for all of them."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def shard(indices: Tensor, parts: int = 1) -> Tensor:
    """This rank's indices of a batch: of each of its `parts` a contiguous piece."""
    if parts == 1:
        return indices.tensor_split(world_size())[rank()]
    return torch.cat([shard(part) for part in indices.tensor_split(parts)])


def rank_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """This rank's batches of a split: every `world_size()`-th one, whole."""
    return islice(batches, rank(), None, world_size())


def everywhere(condition: bool) -> bool:
    """Whether a condition holds on every rank; waits for all of them."""
    if world_size() == 1:
        return condition
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, condition)
    return all(found)


def weighted(loss: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
    """Scale this rank's mean loss so that the mean over ranks is the mean loss of the batch.

    Args:
        loss: the mean loss of the rank's shard, or of one of its micro-batches.
        weight: the weight of what `loss` is the mean of.
        share: the micro-batch's weight divided by that of the whole shard.
    """
    if world_size() == 1:
        return loss if share == 1 else loss * share
    whole = weight.detach().to(loss.device, loss.dtype, copy=True, non_blocking=True) / share
    dist.all_reduce(whole)
    return loss * (weight.to(whole) * world_size() / whole)


def average_gradients(params: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks."""
    if world_size() > 1:
        average_([p.grad for p in params if p.grad is not None], dist.group.WORLD)


def sum_over_ranks(sums: dict[str, float]) -> dict[str, float]:
    """Each sum added up over the ranks; a rank may lack any of them."""
    if world_size() == 1:
        return sums
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, sums)
    added: dict[str, float] = {}
    for one in gathered:
        for key, value in one.items():
            added[key] = added.get(key, 0) + value
    return added


def add_over_ranks(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each sum of a step, added up over the ranks in float64; no host waits for its device.

    Args:
        sums: one element each, the same names on every rank; on the device, or on the host where
            that knows them.
    """
    found = {name: value.detach().double() for name, value in sums.items()}
    if world_size() == 1:
        return found
    device = next((t.device for t in found.values() if t.device.type != "cpu"), torch.device("cpu"))
    # A copy from the host would wait for the device; a fill does not.
    values = [
        t if t.device == device else torch.full((), t.item(), dtype=t.dtype, device=device)
        for t in found.values()
    ]
    flat = torch.stack(values)
    dist.all_reduce(flat)
    return dict(zip(found, flat.unbind(), strict=True))


def prepare_model(model: nn.Module, needs_graph: bool) -> nn.Module:
    """Let batch normalization see the whole batch: torch's SyncBatchNorm.

    Args:
        model: on its device.
        needs_graph: whether the optimizer differentiates the gradient, which SyncBatchNorm forbids.

    Raises:
        UserError: SyncBatchNorm works neither on a CPU nor with `needs_graph`.
    """
    has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if world_size() == 1 or not has_batch_norm:
        return model
    if next(model.parameters()).device.type != "cuda":
        raise UserError(
            "batch normalization over several processes needs GPUs (torch's SyncBatchNorm); on "
            "CPUs use one process, or a network without it (model.name=convnet)"
        )
    if needs_graph:
        raise UserError(
            "torch's SyncBatchNorm has no second derivative: set curvature=finite_difference "
            "for this optimizer, or use one process"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
