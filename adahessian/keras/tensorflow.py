"""H·z on TensorFlow: the gradient's graph is differentiated once more, where it is applied.

Where TensorFlow's second derivatives are wrong without a word, as through batch, layer and group
normalization, the second pass takes those of :mod:`adahessian.keras.tensorflow_derivatives`.
"""

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from adahessian.keras.probes import rademacher
from adahessian.keras.tensorflow_derivatives import late_derivatives, opened

_EAGER = (
    "AdaHessian differentiates the gradient's graph, and this is eager TensorFlow: compile without "
    "run_eagerly=True, or decorate the training step of a loop of your own with @tf.function"
)
_NO_GRAPH = (
    "AdaHessian found no graph from the weights {names} to their gradients: compute the gradient "
    "and apply it within one tf.function"
)
_ACCUMULATED = (
    "Keras cannot accumulate gradients under a strategy with several replicas, whatever the "
    "optimizer: leave gradient_accumulation_steps out, and take larger batches"
)
_SYNCHRONIZED = (
    "what synchronizes the replicas of a strategy, as BatchNormalization(synchronized=True) does, "
    "cannot be skipped between refreshes: take update_interval=1, or statistics of each replica"
)
_NO_DERIVATIVE = (
    "TensorFlow has no derivative of {kind} ({name}), which AdaHessian needs: replace the layer or "
    "the loss, or train with another optimizer"
)
_RECOMPUTED = (
    "what is computed again for the gradient (keras.remat, keras.RematScope, tf.recompute_grad) "
    "has no second derivative in TensorFlow: leave it out, and take smaller batches"
)
# What TensorFlow says of a missing gradient.
_OPERATION = re.compile(r"operation\s*'(.*?)' \(op type: (\w+)\)")


def scale_loss(optimizer: Any, loss: Any) -> Any:
    """Return the loss: the graph is still there when its gradient is applied."""
    return loss


def second_order(model: Any) -> Any:
    """Return the model, which needs nothing."""
    return model


def number(scalar: Any) -> tf.Tensor:
    """Return an integer variable's value in the graph."""
    return tf.convert_to_tensor(scalar)


def where(condition: Any, this: Any, other: Any) -> tf.Tensor:
    """Return ``this`` where the condition holds; Keras' own may turn float64 to float32."""
    return tf.where(condition, this, other)


def samples(
    optimizer: Any, grads: Sequence[Any], variables: Sequence[Any]
) -> tuple[list[Any], dict[int, tf.Tensor]]:
    """Return the gradients, dense, and z · Hz by number of weight (zeros between refreshes).

    Raises:
        RuntimeError: there is no graph, an operation has no second derivative, or a strategy does
            not allow it.
    """
    if tf.executing_eagerly():
        raise RuntimeError(_EAGER)
    if (
        optimizer.gradient_accumulation_steps
        and tf.distribute.get_strategy().num_replicas_in_sync > 1
    ):
        raise RuntimeError(_ACCUMULATED)
    grads = [None if g is None else tf.convert_to_tensor(g) for g in grads]
    members = [
        (optimizer._get_variable_index(v), v, g)
        for g, v in zip(grads, variables, strict=True)
        if g is not None
    ]
    graphs = _graphs()
    places = [_places(v, graphs) for _, v, _ in members]
    if lost := [v.path for (_, v, _), found in zip(members, places, strict=True) if not found]:
        raise RuntimeError(_NO_GRAPH.format(names=", ".join(lost)))
    scale = optimizer.loss_scale_factor or 1.0
    step = number(optimizer.iterations)

    def products() -> list[tf.Tensor]:
        drawn = []
        for sample in range(optimizer.num_samples):
            probe = rademacher(
                [tuple(v.shape) for _, v, _ in members],  # TensorFlow may not know the gradient's
                [g.dtype.name for _, _, g in members],
                seed=optimizer.seed,
                step=step,
                sample=sample,
                tensor_indices=[index for index, _, _ in members],
            )
            hz = _product([g for _, _, g in members], places, probe, scale)
            drawn.append([z * h for z, h in zip(probe, hz, strict=True)])
        return [tf.stack(of_weight) for of_weight in zip(*drawn, strict=True)]

    def zeros() -> list[tf.Tensor]:
        return [tf.zeros((optimizer.num_samples, *v.shape), g.dtype) for _, v, g in members]

    due = optimizer.refresh_is_due()
    with opened(graphs):
        try:
            found = products() if due is True else tf.cond(due, products, zeros)
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            raise RuntimeError(_SYNCHRONIZED) from error
    return grads, {index: s for (index, _, _), s in zip(members, found, strict=True)}


def _product(
    grads: list[tf.Tensor], places: list[list[tf.Tensor]], probe: list[tf.Tensor], scale: float
) -> list[tf.Tensor]:
    """Return H·z: the derivative of gradᵀ·z, for a loss that is scaled by ``scale``."""
    flat = [handle for handles in places for handle in handles]
    before = set(late_derivatives(_graphs()))
    try:
        # z is scaled, not the product: in float16 the product may be too large.
        found = iter(tf.gradients(grads, flat, [z / scale for z in probe]))
    except LookupError as error:
        found = _OPERATION.search(str(error))
        name, kind = found.groups() if found else (str(error), "this operation")
        raise RuntimeError(_NO_DERIVATIVE.format(kind=kind, name=name)) from error
    except NotImplementedError as error:
        if "recompute_grad" not in str(error):
            raise
        raise RuntimeError(_RECOMPUTED) from error
    if late := [name for name in late_derivatives(_graphs()) if name not in before]:
        raise RuntimeError(_NO_DERIVATIVE.format(kind="a function of the old kind", name=late[0]))
    products = []
    for handles, g in zip(places, grads, strict=True):
        parts = [next(found) for _ in handles]
        parts = [tf.convert_to_tensor(part) for part in parts if part is not None]
        # None: no gradient depends on the weight, as where the loss is linear in it.
        products.append(tf.add_n(parts) if parts else tf.zeros_like(g))
    return products


def _graphs() -> list[Any]:
    """Return the graph that is being made and those around it."""
    graph, found = tf.compat.v1.get_default_graph(), []
    while graph is not None:
        found.append(graph)
        graph = getattr(graph, "outer_graph", None)
    return found


def _places(variable: Any, graphs: list[Any]) -> list[tf.Tensor]:
    """Return what stands for a weight in each of the graphs that use it.

    Within ``tf.cond`` a weight itself would be captured anew, and the derivative by that is zero.
    """
    handle = variable.handle
    return [
        inner
        for graph in graphs
        if hasattr(graph, "captures")
        for outer, inner in graph.captures
        if outer is handle
    ]
