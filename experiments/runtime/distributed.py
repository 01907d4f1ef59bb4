"""Several processes that train one run: each has a share of every batch, the first one writes.

Started by anything that sets torch's variables (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ...): by
torchrun, or by `slurm.job` from Slurm's. Without them every function here does nothing.

What is computed is what one process computes on the whole batch: each loss is weighted by its share
of the batch, gradients (and H·z, by the optimizer) are averaged, sums are added up. It differs by
the order of additions.
"""

import atexit
import datetime
import gc
import inspect
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adahessian.replicas import average_
from experiments.errors import UserError

# One process may have to wait for another run's lease; Slurm's time limit ends it before this.
PATIENCE = datetime.timedelta(days=2)


def start(device: torch.device) -> None:
    """Join the other processes, if there are any; a second call does nothing."""
    if world_size() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(leave)


def leave() -> None:
    """Stop talking to the other processes, whatever they are doing.

    Before the interpreter ends: a communication thread of torch's that gives back a tensor while it
    ends would take the whole process with it ("terminate called without an active exception").
    """
    if dist.is_initialized():
        gc.collect()  # the threads end with the last reference to the group
        dist.destroy_process_group()


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def everybody() -> Any:
    """The group of all processes, as an optimizer takes it; None before they have met."""
    return dist.group.WORLD if dist.is_initialized() else None


def agree(value: Any) -> Any:
    """The first process's value, on all of them; waits for all of them."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def share(indices: Tensor, parts: int = 1) -> Tensor:
    """This process's part of the indices of a batch: a contiguous one of each of its `parts`."""
    if parts == 1:
        return indices.tensor_split(world_size())[rank()]
    return torch.cat([share(part) for part in indices.tensor_split(parts)])


def own(batches: Iterable[Any]) -> Iterator[Any]:
    """This process's part of many batches: every so manieth whole one."""
    return islice(batches, rank(), None, world_size())


def weighted(loss: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
    """The mean loss of this process's share, such that the mean over processes is the batch's.

    Args:
        loss: of the share, or of a part of it whose losses are to be added up.
        weight: of what the loss is of.
        share: the part's weight relative to that of the process's whole share.
    """
    if world_size() == 1:
        return loss if share == 1 else loss * share
    whole = weight.detach().to(loss.device, loss.dtype, copy=True) / share
    dist.all_reduce(whole)
    return loss * (weight.to(whole) * world_size() / whole)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients, unless the optimizer does it, which has `process_group` then."""
    if world_size() > 1 and not averages_itself(type(optimizer)):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        average_([grad for grad in grads if grad is not None], dist.group.WORLD)


def averages_itself(constructor: type) -> bool:
    """Whether an optimizer declares that it averages what it needs over processes."""
    return "process_group" in inspect.signature(constructor).parameters


def total(sums: dict[str, float]) -> dict[str, float]:
    """Sums over all processes, also of those that had nothing to add up."""
    if world_size() == 1:
        return sums
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, sums)
    added: dict[str, float] = {}
    for one in gathered:
        for key, value in one.items():
            added[key] = added.get(key, 0) + value
    return added


def prepare_model(model: nn.Module, optimizer_needs_graph: bool) -> nn.Module:
    """Let batch normalization see the whole batch.

    Raises:
        UserError: where that cannot be done.
    """
    has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if world_size() == 1 or not has_batch_norm:
        return model
    if next(model.parameters()).device.type != "cuda":
        raise UserError(
            "batch normalization over several processes needs GPUs (torch's SyncBatchNorm); on "
            "CPUs use one process, or a network without it (model.name=convnet)"
        )
    if optimizer_needs_graph:
        raise UserError(
            "torch's SyncBatchNorm has no second derivative: set curvature=finite_difference "
            "for this optimizer, or use one process"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
