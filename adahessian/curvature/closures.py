"""What ``optimizer.step(closure)`` asks of a closure.

It clears the gradients, computes the loss of one fixed batch, calls
``loss.backward(create_graph=optimizer.needs_graph)`` and returns the loss. It may do so for several
micro-batches, and then scales their losses, not the gradients.

With ``curvature="finite_difference"`` it is evaluated twice at a step that refreshes the curvature.
At the first one it is evaluated again to see whether it is repeatable, and there and now and then
to check the product (:mod:`adahessian.curvature.check`). It must then compute the same
function of the parameters each time: it may not draw a new batch, clip or otherwise change the
gradients (there is ``max_grad_norm``), or depend on anything that it changes itself other than
gradients, buffers of modules, and the global random states of torch, Python and numpy.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def call(closure: Callable[[], Any] | None) -> Any:
    """Return what ``closure`` returns; None without one."""
    if closure is None:
        return None
    # torch warns of a reference cycle between a parameter and its gradient: the step breaks it.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph")
        # A replay notes by such a hook which modules run; to be called twice does no harm.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there")
        return closure()


def refuse_capture(params: Sequence[Tensor]) -> None:
    """Raise RuntimeError while a CUDA graph is captured.

    A step's probe and bias corrections are functions of counters that Python holds: each replay of
    the graph would repeat those of the captured step.
    """
    if any(p.is_cuda for p in params) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "AdaHessian.step cannot be captured in a CUDA graph: every replay would repeat the "
            "captured step's probe and bias corrections. Capture the model instead, for the steps "
            "that do not refresh the curvature"
        )


def refuse_uninitialized(params: Iterable[Tensor]) -> None:
    """Raise ValueError if a parameter has no shape yet, where a probe has to have it."""
    if any(map(is_lazy, params)):
        raise ValueError(
            "a parameter of a lazy module (nn.LazyLinear, say) has no shape before the module has "
            "seen a batch: call the model once, under torch.no_grad(), before the first step"
        )


def gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of parameters that have one."""
    return cast(list[Tensor], [p.grad for p in params])


def not_repeatable(found: str) -> RuntimeError:
    """Return the error for a closure that computes something else the second time."""
    return RuntimeError(
        f"the second evaluation of the closure is not the first one's computation: {found}. "
        "curvature='finite_difference' needs a closure that computes the same function of the "
        "parameters each time: one fixed batch, drawn outside of it."
    )


def held_weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls an object's method, as long as there is the object.

    Two objects that held each other would live, with the tensors of a record, until Python's
    collector finds them.
    """
    found = WeakMethod(method)

    def call(*args: Any) -> Any:
        alive = found()
        assert alive is not None
        return alive(*args)

    return call
