"""Exact Hessian-vector products, by differentiating the gradient once more."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.curvature.closures import call, gradients
from adahessian.curvature.constants import Storages, tensors_in, writes_values
from adahessian.curvature.graph import REENTRANT, has_node, leaves_below
from adahessian.curvature.hutchinson import Probes
from adahessian.curvature.module_calls import before_each_call
from adahessian.curvature.products import Vector
from adahessian.curvature.second_derivatives import (
    NO_SECOND_DERIVATIVE,
    CustomFunctions,
    SecondDerivatives,
    warn_of_a_constant,
)
from adahessian.curvature.snapshot import Snapshot
from adahessian.curvature.torch_calls import written_by
from adahessian.replicas import is_sharded


def double_backward(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    retain_graph: bool = False,
) -> list[Tensor]:
    """Return the exact product of the Hessian and a vector: the derivative of gradᵀ·vector.

    Args:
        grads: first derivatives of one scalar by ``params``, made with ``create_graph=True``. One
            without a graph is constant in every parameter: its rows of the Hessian are zero.
        params: the parameters.
        vectors: the vector, one tensor of each parameter's shape.
        retain_graph: keep the graph for a further product.

    Returns:
        The product, one detached tensor of each parameter's shape. A parameter on which no
        gradient depends gets zeros.
    """
    rows = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
    if not rows:
        return [torch.zeros_like(p) for p in params]
    # A hook changes a gradient, of which this is the derivative; it is not to change that, too.
    with _torch.without_hooks(params):
        products = torch.autograd.grad(
            outputs=[g for g, _ in rows],
            inputs=list(params),
            grad_outputs=[v for _, v in rows],
            retain_graph=retain_graph,
            allow_unused=True,
        )
    return [
        torch.zeros_like(p) if hz is None else hz for p, hz in zip(params, products, strict=True)
    ]


_MISSING_GRAPH = (
    "the curvature is due at this step, but no gradient has a graph: call "
    "loss.backward(create_graph=True) before optimizer.step(). In a closure use "
    "loss.backward(create_graph=optimizer.needs_graph), which builds the graph only for the steps "
    "that refresh the curvature. A trainer that lets you do neither can train with "
    "curvature_fraction below 1 and optimizer.curvature_closure. (The gradient of a linear loss "
    "has no graph either: a closure tells one from the other.)"
)
_NOT_UNDER_DDP = (
    "backward(create_graph=True) does not run under DistributedDataParallel, whose gradient "
    "buckets are filled in place. Train the bare module with AdaHessian(process_group=...), which "
    "averages gradient and H·z itself, or use curvature='finite_difference', which runs under "
    "DistributedDataParallel as it is."
)
_NOT_OF_DTENSORS = (
    "double backward does not run with parameters that are DTensors (fully_shard, tensor "
    "parallelism): use curvature='finite_difference', which does."
)
_REENTRANT = (
    "activation checkpointing with use_reentrant=True has no second derivative: the curvature of "
    "what is inside would be zero. Use checkpoint(..., use_reentrant=False), or "
    "curvature='finite_difference'."
)
_WRONG_SECOND_DERIVATIVE = (
    "torch's second derivative of weight_norm is wrong, by some tens of per cent: call "
    "optimizer.step(closure), where it is computed otherwise (not in activation checkpointing), or "
    "use curvature='finite_difference'."
)
_WITHIN_BACKWARD = (
    "step() within a backward pass (in a hook of a gradient) would free the graph that the pass "
    "still needs: step behind it, or take the curvature from a part of the batch "
    "(curvature_fraction below 1, optimizer.curvature_closure)"
)
_ONLY_SOME = (
    "some of the closure's backward passes were called with create_graph=True and others without, "
    "whose curvature would be missing: call backward(create_graph=optimizer.needs_graph) in all of "
    "them"
)
_WHILE_DIFFERENTIATING_TWICE = (
    "This was raised while torch differentiated the gradient once more. "
    "curvature='finite_difference' needs no second derivative."
)
# What torch and torchvision say of it.
_LACKS_ONE = ("is not implemented", "not supported", "is not differentiable")


class DoubleBackward:
    """Exact Hessian-vector products; a :class:`HessianProducts`.

    A closure may call backward several times, to accumulate the gradient over micro-batches. H is
    linear in the loss: before each further backward the products with the gradient so far are
    computed and its graph is dropped, so that one micro-batch's graph at a time is in memory. What
    is done to the gradients otherwise, as scaling or clipping them, does not reach the products.

    Args:
        closure: computes a loss, calls ``backward(create_graph=True)`` and returns the loss. None
            if the gradients and their graph are there already.
        params: the parameters whose gradients it fills.
        probes: the vectors of all products that will be asked for, in this order. With the last
            one the graph is freed.
        check: refuse or warn of second derivatives that torch has wrong.
        asks: the closure is known to ask for the graph, if not by calling ``backward``: gradients
            without one are constant.

    Raises:
        RuntimeError: a parameter is a DTensor.
    """

    def __init__(
        self,
        closure: Callable[[], Any] | None,
        params: Sequence[Tensor],
        probes: Probes,
        check: bool = False,
        asks: bool = False,
    ) -> None:
        if any(is_sharded(p) and p.requires_grad for p in params):
            raise RuntimeError(_NOT_OF_DTENSORS)
        self._closure = closure
        self._check = check  # what runs within a closure, and no checkpoint, was replaced
        self._params = params
        self._probes = probes
        # The products with earlier micro-batches, by parameter: one dict for each probe.
        self._sums: list[dict[Tensor, Tensor]] = [{} for _ in range(len(probes))]
        # An ordered set: whose gradients hold what a backward pass has brought without a graph.
        self._without: dict[Tensor, None] = {}
        # The gradients that we left without their graph, and how often each was changed in place.
        self._left: dict[Tensor, tuple[Tensor, int]] = {}
        self._num_products = 0
        self._asks = self._graph_was_asked_for = asks
        self._losses: list[Tensor] = []  # what it was asked of
        self._custom: list[CustomFunctions] = []  # of each backward pass
        self._doubt = ""  # of a hook

    def evaluate(self) -> Any:
        """Evaluate the closure; return what it returns.

        Raises:
            RuntimeError: under DistributedDataParallel, which does not support create_graph; or
                a function has no second derivative; or only some backward passes were asked for a
                graph.
        """
        # A compiled function has no second derivative.
        mode = _BeforeBackward(self._accumulate, self._note_without, self._check, self._params)
        with torch.compiler.set_stance("force_eager"), mode:
            try:
                value = call(self._closure)
                if mode.graph_was_asked_for and any(p.grad is not None for p in self._without):
                    raise RuntimeError(_ONLY_SOME)
                return value
            except RuntimeError as error:
                if "in-place operation" in str(error) and torch.distributed.is_initialized():
                    raise RuntimeError(_NOT_UNDER_DDP) from error
                if mode.graph_was_asked_for and lacks_a_second_derivative(error):
                    raise RuntimeError(f"{error}: {NO_SECOND_DERIVATIVE}") from error
                raise
            finally:
                self._graph_was_asked_for = self._asks or mode.graph_was_asked_for
                self._losses = mode.last
                self._custom, self._doubt = mode.custom, mode.doubt

    def product(self, z: Vector) -> dict[Tensor, Tensor]:
        """Return H·z for the parameters of ``z`` that have a gradient.

        Raises:
            RuntimeError: there is no graph of the gradient, or no second derivative.
        """
        if self._closure is None and _torch.in_backward():
            raise RuntimeError(_WITHIN_BACKWARD)
        params = [p for p in z if p.grad is not None]
        earlier = self._sums[self._num_products]
        self._num_products += 1
        if not earlier and not any(g.requires_grad for g in gradients(params)):
            others = (p.grad for p in self._params)
            has_graph = any(grad is not None and grad.requires_grad for grad in others)
            if not self._graph_was_asked_for and not has_graph:
                raise RuntimeError(_MISSING_GRAPH)
            if has_node(self._losses, REENTRANT):
                raise RuntimeError(_REENTRANT)
            # The loss is linear in them: their gradient is constant.
        if self._num_products == 1:
            for custom in self._custom:  # of this loss, which may be another than the first
                custom.check(gradients(params) if self._check else ())
            if self._check and not self._custom:
                CustomFunctions(()).check(gradients(params))
            self._custom = []
            if self._doubt:
                warn_of_a_constant(self._doubt)
            if self._check and has_node(gradients(params), "WeightNormInterfaceBackward0"):
                warnings.warn(_WRONG_SECOND_DERIVATIVE, stacklevel=2)
        self._losses = []
        last = self._num_products == len(self._probes)
        return {
            p: hz + earlier[p] if p in earlier else hz
            for p, hz in zip(params, _product(params, z, retain_graph=not last), strict=True)
        }

    def resolution(self) -> float:
        """Return 0: the products are exact."""
        return 0.0

    @torch.no_grad()
    def _accumulate(self) -> None:
        """Compute the products with the gradient that is there, and drop its graph."""
        for p in list(self._without):  # what was cleared is not in the step's gradient: SAM's first
            if p.grad is None or not p.grad.requires_grad and not p.grad.any():
                del self._without[p]
        for p in self._params if any(self._sums) else ():
            if self._was_cleared(p):
                for sums in self._sums:  # begin anew
                    sums.pop(p, None)
        if not any(p.grad is not None and p.grad.requires_grad for p in self._params):
            return
        for sums, z in zip(self._sums, self._probes.keep(), strict=True):
            params = [p for p in z if p.grad is not None]
            # The micro-batches' losses may share a graph, which is not ours to free.
            for p, hz in zip(params, _product(params, z, retain_graph=True), strict=True):
                sums[p] = sums[p] + hz if p in sums else hz
        for p in self._params:
            if p.grad is not None:
                p.grad = p.grad.detach()
                self._left[p] = p.grad, _torch.version(p.grad)

    def _note_without(self, reached: Iterable[Tensor]) -> None:
        """Note the leaves of a backward pass without a graph."""
        reached = set(reached)
        self._without |= {p: None for p in self._params if p in reached}

    def _was_cleared(self, p: Tensor) -> bool:
        """Whether the closure has cleared a gradient, which can be zero by itself."""
        if p.grad is None:
            return True
        if p in self._left:
            left, version = self._left[p]
            if p.grad is left and _torch.version(left) == version:
                return False
        return not p.grad.requires_grad and not p.grad.any()


class _BeforeBackward(SecondDerivatives):
    """Calls a function before each backward, beside giving functions their second derivatives.

    Args:
        before_backward: is called before each backward, and before parameters move behind one.
        without_graph: is called, then, with the leaves that one without a graph will reach.
        look: for custom functions.
        params: the parameters.

    Attributes:
        graph_was_asked_for: one was called with ``create_graph=True``.
        last: the tensors from which that one was called.
        custom: the custom functions below each.
    """

    def __init__(
        self,
        before_backward: Callable[[], None],
        without_graph: Callable[[Iterable[Tensor]], None],
        look: bool,
        params: Sequence[Tensor],
    ) -> None:
        super().__init__(look=look)
        self._before_backward, self._without_graph = before_backward, without_graph
        self._params, self._has_graph = params, False
        self.graph_was_asked_for = False
        self.last: list[Tensor] = []
        self.custom: list[CustomFunctions] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        is_backward = func is Tensor.backward or func is torch.autograd.backward
        if is_backward or self._has_graph and self._moves_parameters(func, args, kwargs or {}):
            self.last = []  # it holds its graph
            self._before_backward()
            self._has_graph = False
        if is_backward or func is torch.autograd.grad:
            given = dict(zip(_PARAMETERS[func], args, strict=False)) | (kwargs or {})
            tensors = tensors_in(given[_PARAMETERS[func][0]])
            if not given.get("create_graph") and is_backward:
                inputs = tensors_in(given.get("inputs"))
                self._without_graph(inputs or leaves_below(tensors))
            if given.get("create_graph"):
                computed = self.computed if self._look else None
                self.custom.append(CustomFunctions(tensors, computed))
                if is_backward:
                    self.graph_was_asked_for = self._has_graph = True
                    self.last = tensors
        return super().__torch_function__(func, types, args, kwargs)

    def _moves_parameters(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether a call writes to parameters: the graph of a gradient is that at their values.

        Another optimizer's are in it, too.
        """
        if not writes_values(func, kwargs):
            return False
        ours = Storages(p.detach() for p in self._params)
        written = tensors_in(written_by(args, kwargs))
        return any(t.is_leaf and t.requires_grad or t in ours for t in written)


# Names of arguments, in their order.
_PARAMETERS: dict[Callable, tuple[str, ...]] = {
    Tensor.backward: ("self", "gradient", "retain_graph", "create_graph", "inputs"),
    torch.autograd.backward: (
        "tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs",
    ),
    torch.autograd.grad: ("outputs", "inputs", "grad_outputs", "retain_graph", "create_graph"),
}  # fmt: skip


def _product(params: Sequence[Tensor], z: Vector, *, retain_graph: bool) -> list[Tensor]:
    """Return the product by the graph of the gradients; say what to do where there is none."""
    grads = gradients(params)
    if not all(g.requires_grad for g in grads) and has_node(grads, REENTRANT):
        raise RuntimeError(_REENTRANT)
    # A checkpoint runs its part of the model again. That is no further evaluation of the closure.
    kept = Snapshot((), (), (), places={})
    hook = before_each_call(lambda module, _: kept.add(module))
    try:
        return double_backward(grads, params, [z[p] for p in params], retain_graph=retain_graph)
    except RuntimeError as error:
        if lacks_a_second_derivative(error):
            raise RuntimeError(f"{error}: {NO_SECOND_DERIVATIVE}") from error
        error.add_note(_WHILE_DIFFERENTIATING_TWICE)
        if torch.distributed.is_initialized():
            error.add_note(_NOT_UNDER_DDP)
        raise
    finally:
        hook.remove()
        kept.restore()


def lacks_a_second_derivative(error: RuntimeError) -> bool:
    """Whether torch or torchvision says so with this error."""
    return any(words in str(error) for words in _LACKS_ONE)
