"""Second derivatives that TensorFlow has not, or takes for zero without a word.

Each is registered under a name of its own, which the operations of a graph bear while that graph is
differentiated once more, and only then.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

_GRADIENT_OF = "_gradient_op_type"
_NAMES: dict[str, str] = {}


def _of(kind: str) -> Callable[[Callable], Callable]:
    """Register what a function returns as the gradient of a kind of operation."""

    def register(function: Callable) -> Callable:
        _NAMES[kind] = f"AdaHessianOf{kind}"
        tf.RegisterGradient(_NAMES[kind])(function)
        return function

    return register


@_of("StopGradient")
def _identity(op: Any, grad: tf.Tensor) -> tf.Tensor:
    """Only where :func:`_is_of_moments` says so: what others stop is meant to be constant."""
    return grad


# Resizing is linear, so the derivative of its gradient is resizing. TensorFlow takes the bilinear
# one's for a constant, and refuses the others.


@_of("ResizeBilinearGrad")
@_of("ResizeBicubicGrad")
@_of("ResizeNearestNeighborGrad")
def _resized(op: Any, grad: tf.Tensor) -> tuple[tf.Tensor, None]:
    resize = getattr(tf.raw_ops, op.type.removesuffix("Grad"))
    options = {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}
    return resize(images=grad, size=tf.shape(op.inputs[0])[1:3], **options), None


@_of("ScaleAndTranslateGrad")
def _resized_by_kernel(op: Any, grad: tf.Tensor) -> tuple[tf.Tensor, None, None, None]:
    upstream, _, scale, translation = op.inputs
    resized = tf.raw_ops.ScaleAndTranslate(
        images=grad,
        size=tf.shape(upstream)[1:3],
        scale=scale,
        translation=translation,
        kernel_type=op.get_attr("kernel_type"),
        antialias=op.get_attr("antialias"),
    )
    return resized, None, None, None


# The gradient of fake quantization is that of clipping, which is linear in what comes from above.
# TensorFlow takes it for a constant: the curvature of quantized weights would be zero.


@_of("FakeQuantWithMinMaxArgsGradient")
def _quantized(op: Any, grad: tf.Tensor) -> tuple[tf.Tensor, None]:
    (within,) = _clipped(op, grad)
    return within, None


@_of("FakeQuantWithMinMaxVarsGradient")
@_of("FakeQuantWithMinMaxVarsPerChannelGradient")
def _quantized_by_variables(
    op: Any, grad: tf.Tensor, of_min: tf.Tensor, of_max: tf.Tensor
) -> tuple[tf.Tensor, None, None, None]:
    inputs = op.inputs[1]
    outside = 1 - _clipped(op, tf.ones_like(inputs))[0]
    # Zero is always in range.
    return (
        _clipped(op, grad)[0] + outside * tf.where(inputs < 0, of_min, of_max),
        None,
        None,
        None,
    )


def _clipped(op: Any, grad: tf.Tensor) -> Any:
    """Return what the operation makes of another gradient."""
    _, *others = op.inputs
    names = [argument.name for argument in op.op_def.input_arg]
    options = {name.name: op.get_attr(name.name) for name in op.op_def.attr}
    return tf.nest.flatten(
        getattr(tf.raw_ops, op.type)(**dict(zip(names, [grad, *others], strict=True)), **options)
    )


@_of("SoftsignGrad")
def _softsigned(op: Any, grad: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    upstream, x = op.inputs
    slope = tf.raw_ops.SoftsignGrad(gradients=grad, features=x)  # grad / (1 + |x|)²
    return slope, -2 * upstream * slope * tf.sign(x) / (1 + tf.abs(x))


# Python code. TensorFlow takes what it returns for a constant; `tf.py_function` has a gradient,
# but that one's fails where the graph runs.


@_of("PyFunc")
@_of("PyFuncStateless")
@_of("EagerPyFunc")
def _refused(op: Any, *_: tf.Tensor) -> None:
    raise LookupError(f"no gradient of operation '{op.name}' (op type: {op.type})")


@contextmanager
def opened(graphs: list[Any]) -> Iterator[None]:
    """Let second derivatives pass in these graphs and in what they call."""
    chosen = [
        op
        for graph in _with_called(graphs)
        for op in graph.get_operations()
        if op.type in _NAMES
        and (op.type != "StopGradient" or _is_of_moments(op))
        and _GRADIENT_OF not in op.node_def.attr  # the model's author has given another
    ]
    for op in chosen:
        name = attr_value_pb2.AttrValue(s=_NAMES[op.type].encode())
        op._set_attr(_GRADIENT_OF, name)
    try:
        yield
    finally:
        for op in chosen:
            op._clear_attr(_GRADIENT_OF)


def late_derivatives(graphs: list[Any]) -> list[str]:
    """Return the names of derivatives that TensorFlow makes where the graphs run.

    Those of functions of the old kind (``Defun``), as in ``tf.nn.ctc_loss``. Of their operations
    few have a second one, and the message then names none.
    """
    return [
        op.name
        for graph in _with_called(graphs)
        for op in graph.get_operations()
        if op.type == "SymbolicGradient"
    ]


def _with_called(graphs: list[Any]) -> list[Any]:
    """Return the graphs with those of the functions, loops and branches that they call."""
    found: dict[int, Any] = {}
    todo = list(graphs)
    while todo:
        graph = todo.pop()
        if id(graph) not in found:
            found[id(graph)] = graph
            functions = graph._functions.values()
            todo += [function.graph for function in functions if hasattr(function, "graph")]
    return list(found.values())


def _is_of_moments(op: Any) -> bool:
    """Whether this is the mean that a variance is centred by: stopped, of the same tensor.

    ``tf.nn.moments`` stops the gradient of the mean within the variance, because it is zero. Its
    derivative is not.
    """
    if op.inputs[0].op.type != "Mean":
        return False
    centred = op.inputs[0].op.inputs[0]
    return any(
        user.type == "SquaredDifference" and user.inputs[0] is centred
        for user in op.outputs[0].consumers()
    )
