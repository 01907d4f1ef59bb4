"""H·z on torch: by double backward, where Keras' training step scales the loss.

That is the last point at which the graph is there before ``loss.backward()``. The gradient is
computed with it, and handed out again by the backward pass of what the step gets for its loss.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from keras.src.backend.torch.core import CustomGradientFunction

from adahessian.curvature.constants import tensors_in
from adahessian.curvature.double_backward import double_backward, lacks_a_second_derivative
from adahessian.curvature.graph import leaves_below, nodes_below
from adahessian.curvature.second_derivatives import CustomFunctions
from adahessian.probes import rademacher_like

_NOT_BUILT = (
    "AdaHessian does not know its weights yet: call optimizer.build(model.trainable_variables) "
    "before the first optimizer.scale_loss(loss)"
)
_NOT_SCALED = (
    "the curvature is due at this step, but the loss has not come through optimizer.scale_loss. A "
    "training step of your own calls optimizer.scale_loss(loss).backward(). A LossScaleOptimizer "
    "(policy mixed_float16) does not call it either: use mixed_bfloat16, or "
    "AdaHessian(loss_scale_factor=...)"
)

_TWICE = (
    "this loss has been through the scale_loss of an AdaHessian, and has no second derivative any "
    "more: let one AdaHessian train all the weights, or compute the loss anew for the other one"
)
_NOT_REPEATABLE = (
    "a function of keras.ops.custom_gradient computes something else when it is called again (it "
    "may be random), and so has no second derivative on torch: draw before it, and pass it the draw"
)
_WEIGHT_NORM = (
    "torch's second derivative of weight_norm is wrong, by some tens of per cent: compute the "
    "weight in the module itself, v * (g / norm(v))"
)


def scale_loss(optimizer: Any, loss: torch.Tensor) -> torch.Tensor:
    """Return the loss; where a refresh is due, one whose gradient is computed already.

    Raises:
        RuntimeError: the optimizer is not built, or there is no second derivative.
    """
    if not optimizer.built:
        raise RuntimeError(_NOT_BUILT)
    if not optimizer.refresh_is_due():
        return loss
    leaves = leaves_below([loss])
    members = [
        (index, v.value)
        for index, v in enumerate(optimizer._trainable_variables)
        if v.value in leaves
    ]
    if not members:  # all are frozen, or of another model: Keras says so
        return loss
    # What others train, and an input whose gradient is asked for, get theirs, too.
    params = [p for _, p in members]
    params += leaves.keys() - set(params)
    grads = _gradients(optimizer, loss, params)
    given = {p: g for p, g in zip(params, grads, strict=True) if g is not None}
    members = [(index, p) for index, p in members if p in given]
    held = optimizer.held
    if held.samples is None or _was_given_up(optimizer):
        held.samples = {}
    samples = _samples(optimizer, members, [given[p] for _, p in members])
    return _WithGradient.apply(
        loss.detach(), [g.detach() for g in given.values()], samples, held.samples, *given
    )


def _gradients(
    optimizer: Any, loss: torch.Tensor, params: list[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients with their graph, after a look at the functions that were not there."""
    nodes: list[Any] = list(nodes_below([loss]))
    for node in nodes:
        if getattr(node, "_forward_cls", None) is CustomGradientFunction:
            node.grad_fn = partial(_of_custom_gradient, node.forward_fn, node.grad_fn)
    functions = frozenset(map(type, nodes))
    are_known = functions == optimizer.held.functions
    custom = CustomFunctions([] if are_known else [loss])
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    if not are_known:
        if fault := custom.fault(grads):
            raise RuntimeError(f"{fault}, and so has no second derivative. Replace the layer")
        if any(node.name() == "WeightNormInterfaceBackward0" for node in nodes):
            warnings.warn(_WEIGHT_NORM, stacklevel=4)
        optimizer.held.functions = functions
    return grads


def _of_custom_gradient(
    forward: Callable, gradient: Callable, *args: torch.Tensor, upstream: torch.Tensor
) -> Any:
    """Return what a function of ``keras.ops.custom_gradient`` gives as its gradient.

    What its forward computes, torch takes for a constant. Computed again with a graph, it is not.
    """
    found = gradient(*args, upstream=upstream)
    if not torch.is_grad_enabled():
        return found
    again = forward(*args)[1](*args, upstream=upstream)
    pairs = zip(tensors_in(found), tensors_in(again), strict=True)
    if not all(torch.allclose(a, b, equal_nan=True) for a, b in pairs):
        raise RuntimeError(_NOT_REPEATABLE)
    return again


def _was_given_up(optimizer: Any) -> bool:
    """Whether the gradients of what is held were cleared, as where they were not finite."""
    grads = [optimizer._trainable_variables[index].value.grad for index in optimizer.held.samples]
    return all(grad is None or not grad.any() for grad in grads) and bool(grads)


def _samples(
    optimizer: Any, members: list[tuple[int, torch.Tensor]], grads: list[torch.Tensor]
) -> dict[int, torch.Tensor]:
    """Return z · Hz of the unscaled loss by number of weight, one for each probe."""
    params = [p for _, p in members]
    drawn = []
    for sample in range(optimizer.num_samples):
        probe = rademacher_like(
            params,
            seed=optimizer.seed,
            step=number(optimizer.iterations),
            sample=sample,
            tensor_indices=[index for index, _ in members],
        )
        # z is scaled, not the product: in float16 the product may be too large.
        scale = optimizer.loss_scale_factor or 1.0
        vectors = probe if scale == 1 else [z / scale for z in probe]
        more = sample + 1 < optimizer.num_samples
        try:
            hz = double_backward(grads, params, vectors, retain_graph=more)
        except RuntimeError as error:
            if not lacks_a_second_derivative(error):
                raise
            raise RuntimeError(
                f"{error}: torch has no second derivative of this kernel. Replace the layer; for "
                "attention there is a slower one: torch.nn.attention.sdpa_kernel("
                "torch.nn.attention.SDPBackend.MATH) around model.fit"
            ) from error
        drawn.append([z * h for z, h in zip(probe, hz, strict=True)])
    stacked = [torch.stack(of_weight) for of_weight in zip(*drawn, strict=True)]
    return {index: s for (index, _), s in zip(members, stacked, strict=True)}


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradient by some tensors is given.

    Where torch adds that gradient to those of other losses, ``samples`` are added to ``totals``:
    the Hessian is linear in the loss, too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        grads: list[torch.Tensor],
        samples: dict[int, torch.Tensor],
        totals: dict[int, torch.Tensor],
        *params: Any,
    ) -> Any:
        ctx.grads, ctx.samples, ctx.totals = grads, samples, totals
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(_TWICE)
        (factor,) = outer
        for index, sample in ctx.samples.items():
            sample = sample * factor
            total = ctx.totals.get(index)
            ctx.totals[index] = sample if total is None else total + sample
        return None, None, None, None, *(g * factor for g in ctx.grads)


def second_order(model: Any) -> Any:
    """Return the model, which needs nothing."""
    return model


def number(scalar: Any) -> int:
    """Return an integer variable's value."""
    return int(scalar)


def where(condition: Any, this: Any, other: Any) -> Any:
    """Return ``this`` where the condition holds; Keras' own turns float64 to float32."""
    if isinstance(condition, bool):
        return this if condition else other
    return torch.where(condition, this, other)


def samples(
    optimizer: Any, grads: Sequence[Any], variables: Sequence[Any]
) -> tuple[list[Any], dict[int, torch.Tensor] | None]:
    """Return the gradients, and what :func:`scale_loss` gave with them; None between refreshes.

    Raises:
        RuntimeError: a gradient came without.
    """
    held, optimizer.held.samples = optimizer.held.samples or {}, None
    if not optimizer.refresh_is_due():
        return list(grads), None
    for grad, variable in zip(grads, variables, strict=True):
        if grad is not None and optimizer._get_variable_index(variable) not in held:
            raise RuntimeError(_NOT_SCALED)
    return list(grads), held
