"""A loss evaluated beside the step: its gradients are taken, and nothing else is left of it.

The curvature may come from another loss than the step's gradient: that of a part of the batch. Such
a loss comes without a backward pass. What it needs of gradients is taken from its graph, so that
no ``grad`` is touched, no hook of an accumulated gradient is called (DistributedDataParallel's
buckets hang on them) and no other parameter's gradient is computed.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adahessian import _torch
from adahessian.curvature.earlier import Earlier
from adahessian.curvature.graph import REENTRANT, has_node
from adahessian.curvature.module_calls import before_each_call
from adahessian.curvature.snapshot import Snapshot


class NoPart(RuntimeError):
    """There is no part of this batch to take the curvature from; says why."""


# Examples in one evaluation through batch normalization: fewer are refused; with fewer than the
# second number its statistics are another function than the whole batch's (docs/curvature.md).
FEWEST, FEW = 8, 16


def filling_gradients(
    loss_function: Callable[[], Tensor],
    params: Sequence[Tensor],
    *,
    create_graph: bool,
    scale: Tensor | None = None,
) -> Callable[[], Tensor]:
    """Return a closure that fills ``grad`` with a loss's gradients, as a backward pass would.

    Args:
        loss_function: returns a scalar with its graph.
        params: whose ``grad`` is to be filled.
        create_graph: make the gradients differentiable.
        scale: a factor of the loss (a GradScaler's).

    Returns:
        The closure; it returns the loss, scaled. It raises NoPart where the function returns
        None, and RuntimeError for what else is no scalar with a graph, and where the function has
        called backward itself.
    """

    def closure() -> Tensor:
        with _torch.below_torch_functions():  # what only looks at tensors is seen by no gate
            before = [p.grad for p in params]
        loss = loss_function()
        with _torch.below_torch_functions():
            wanted = [p for p in params if p.requires_grad]
            filled = any(p.grad is not grad for p, grad in zip(params, before, strict=True))
        if loss is None:
            raise NoPart(
                "curvature_closure must return a loss with its graph, got None. If its part of the "
                "batch holds no example (some take half of curvature_fraction): make the fraction "
                "or the batch larger"
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise RuntimeError(f"curvature_closure must return a loss with its graph, got {loss!r}")
        if filled:
            raise RuntimeError(
                "curvature_closure has filled the gradients: it must return the loss and not call "
                "backward"
            )
        scaled = loss if scale is None else loss * scale.to(loss)
        try:
            if create_graph:
                grads = torch.autograd.grad(scaled, wanted, create_graph=True, allow_unused=True)
            else:
                grads = _torch.gradients(scaled, wanted)
        except RuntimeError:
            _refuse_reentrant(loss)
            raise
        if any(grad is None for grad in grads):
            _refuse_reentrant(loss)
        with _torch.below_torch_functions():
            for p, grad in zip(wanted, grads, strict=True):
                p.grad = grad
        return scaled

    return closure


def _refuse_reentrant(loss: Tensor) -> None:
    """Raise if a loss comes through a reentrant checkpoint.

    torch raises where gradients lead through it, and otherwise leaves out what is inside.
    """
    if has_node([loss], REENTRANT):
        raise RuntimeError(
            "activation checkpointing with use_reentrant=True fills gradients in a backward pass "
            "alone, and curvature_closure's are taken beside the step's: use checkpoint(..., "
            "use_reentrant=False), in transformers by gradient_checkpointing_kwargs"
        )


class Beside:
    """While active, evaluations leave gradients, random states and what modules keep alone.

    In the end these are what they were, bit for bit, also if something raises. Evaluations start
    without gradients.

    Args:
        params: parameters whose gradients an evaluation fills.
        earlier: what is known of the loss: compiled code shows none of its modules.
        look: warn of batch normalization over few examples; it is refused over ``FEWEST`` anyway.

    Attributes:
        wrappers: the DistributedDataParallel modules that ran.
    """

    def __init__(self, params: Sequence[Tensor], earlier: Earlier, *, look: bool) -> None:
        self._params, self._earlier = params, earlier
        self._few_is_said = not look
        self.wrappers: dict[DistributedDataParallel, None] = {}

    def __enter__(self) -> "Beside":
        self._grads = [p.grad for p in self._params]
        for p in self._params:
            p.grad = None
        modules = self._earlier.known_modules(self._params)
        devices = {p.device for p in self._params if p.device.type != "cpu"}
        self._before = Snapshot(devices, modules, dict.fromkeys(self._params), self._earlier.places)
        self._stack = contextlib.ExitStack()
        if self._earlier.is_smooth and not any(map(_normalizes_batches, modules)):
            for module in modules:
                self._note(module, ())
        else:
            hook = before_each_call(self._note)
            self._stack.callback(hook.remove)
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        for p, grad in zip(self._params, self._grads, strict=True):
            p.grad = grad
        self._before.restore()

    def process_group(self, missing: NoPart | None = None) -> Any:
        """Return that of the DistributedDataParallel module that ran, or None for one process.

        Args:
            missing: why there is no part. Its closure need not have come to the module: then the
                group is that of the last part.

        Raises:
            RuntimeError: there are several processes, and nothing says which share the model; or
                some may have run out of data.
        """
        if missing is not None and not self.wrappers:
            if self._earlier.part_wrappers is None:
                raise missing
            self.wrappers = self._earlier.part_wrappers
        self._earlier.part_wrappers = self.wrappers
        if any(map(_torch.is_within_join, self.wrappers)):
            raise RuntimeError(
                "within DistributedDataParallel's Join a process that has run out of data does not "
                "average H·z of a part of the batch: use curvature='finite_difference' of the "
                "whole batch, with check_interval=0"
            )
        groups = list(dict.fromkeys(w.process_group for w in self.wrappers))
        if len(groups) == 1:
            return groups[0]
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if groups or several and torch.distributed.get_world_size() > 1:
            raise RuntimeError(
                "H·z of a part of the batch must be averaged over the processes that share the "
                "model: call the DistributedDataParallel module itself in curvature_closure, or "
                "pass process_group= (of this process alone, if it trains for itself)"
            )
        return None

    def _note(self, module: nn.Module, args: tuple) -> None:
        self._before.add(module)
        if isinstance(module, DistributedDataParallel):
            self.wrappers[module] = None
        if _normalizes_batches(module) and args:
            self._check_batch(module, args[0])

    def _check_batch(self, module: nn.Module, x: Tensor) -> None:
        examples = x.shape[0] * _replicas(module)
        if examples < FEWEST:
            raise NoPart(
                f"batch normalization over {examples} examples: an evaluation of "
                f"curvature_closure needs at least {FEWEST}. Some take half of "
                "curvature_fraction of the batch: make the fraction or the batch larger"
            )
        if examples < FEW and not self._few_is_said:
            self._few_is_said = True
            warnings.warn(
                f"curvature_closure is evaluated on {examples} examples at a time: over fewer "
                f"than {FEW}, batch normalization's statistics make the curvature that of another "
                "function. Make curvature_fraction or the batch larger.",
                stacklevel=2,
            )


def _normalizes_batches(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training


def _replicas(module: nn.Module) -> int:
    """The processes over which a normalization takes its statistics."""
    if not isinstance(module, nn.SyncBatchNorm) or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size(module.process_group)
