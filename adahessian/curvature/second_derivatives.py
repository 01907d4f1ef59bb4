"""torch functions whose second derivative is missing, wrong or slow, in a form with a good one.

Which ones are missing or wrong, a comparison with differences of gradients over torch's registry
has shown (``tests/library/curvature/test_operators.py``). Private to double backward; the finite
difference takes the margin losses from here, whose kernels it could not freeze.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adahessian import _torch
from adahessian.curvature.batch_norm import batch_norm
from adahessian.curvature.constants import (
    ARRAYS,
    Constants,
    meets_the_graph,
    requires_grad,
    tensors_in,
)
from adahessian.curvature.graph import nodes_below
from adahessian.curvature.torch_calls import name_of

NO_SECOND_DERIVATIVE = (
    "this model uses a kernel without a second derivative. Use "
    "curvature='finite_difference', which needs none; or, for attention, its slower kernel: "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH) around the forward pass."
)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """v · g / ‖v‖. The fused kernel's second derivative is off by some tens of per cent."""
    return v * (g / _torch.norm_except_dim(v, 2, dim))


def _prelu(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    """At zero the kernel's first derivative is of one piece, and its second of the other."""
    shape = [-1] + [1] * (input.ndim - 2) if weight.numel() > 1 else []
    return torch.where(input > 0, input, weight.reshape(shape) * input)


class _PiecewiseLinear(Function):
    """A function whose slope is constant near each element."""

    @staticmethod
    def forward(ctx, x, function, slope):
        ctx.save_for_backward(slope(x))
        return function(x)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002 (torch's name)
    backward = torch.ops.aten.hardsigmoid_backward
    if _torch.under_functorch():
        return F.hardsigmoid(input, inplace)
    out = _PiecewiseLinear.apply(input, F.hardsigmoid, lambda x: backward(torch.ones_like(x), x))
    return input.copy_(out) if inplace else out


def _linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """In one piece: computed by chunks, its gradient is a constant to autograd."""
    return F.linear_cross_entropy(*args, **kwargs)


def _reduced(loss: Tensor, reduction: str, legacy: tuple[Any, Any]) -> Tensor:
    if legacy != (None, None):
        reduction = _torch.legacy_reduction(*legacy)
    return loss if reduction == "none" else getattr(loss, reduction)()


def _multi_margin_loss(
    input, target, p=1, margin=1.0, weight=None, size_average=None, reduce=None, reduction="mean"
):  # noqa: A002
    """Σ_{i ≠ y} max(0, margin − x_y + x_i)^p / C."""
    x = input.reshape(-1, input.shape[-1] if input.ndim else 1)
    y = target.reshape(-1, 1)
    gaps = F.relu(margin - x.gather(1, y) + x) ** p
    if weight is not None:
        gaps = gaps * weight[y]
    others = torch.arange(x.shape[1], device=x.device) != y
    loss = (gaps * others).sum(1) / x.shape[1]
    return _reduced(loss.view(target.shape), reduction, (size_average, reduce))


def _multilabel_margin_loss(input, target, size_average=None, reduce=None, reduction="mean"):  # noqa: A002
    """Σ_{j in the labels} Σ_{i not in them} max(0, 1 − x_j + x_i) / C; −1 ends the labels."""
    x = input.reshape(-1, input.shape[-1] if input.ndim else 1)
    y = target.reshape(x.shape)
    given = (y >= 0).cumprod(1).bool()
    labels = y.clamp(min=0)
    is_label = torch.zeros_like(y).scatter_add(1, labels, given.to(y)) > 0
    gaps = F.relu(1 - x.gather(1, labels).unsqueeze(2) + x.unsqueeze(1))
    loss = (gaps * (given.unsqueeze(2) & ~is_label.unsqueeze(1))).sum((1, 2)) / x.shape[1]
    return _reduced(loss.view(target.shape[:-1]), reduction, (size_average, reduce))


# Hinges that torch has in one kernel each, backward too.
HINGES: dict[Callable, Callable] = {
    F.multi_margin_loss: _multi_margin_loss,
    F.multilabel_margin_loss: _multilabel_margin_loss,
}

_STAND_INS: dict[Callable, Callable] = {
    **HINGES,
    F.batch_norm: batch_norm,
    F.hardsigmoid: _hardsigmoid,
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
    _torch.weight_norm: _weight_norm,
}
if hasattr(F, "linear_cross_entropy"):  # newer than torch 2.11
    _STAND_INS[F.linear_cross_entropy] = _linear_cross_entropy


_USES_COMPUTED = "uses a value that its forward method has computed"
_LEAVES = "takes a value out of the graph (detach, no_grad, NumPy)"
_IS_A_CONSTANT = (
    "Double backward takes it for a constant, "
    "so where it moves with the parameters a part of the second derivative is missing: "
    "optimizer.curvature_error(closure) tells how much, and curvature='finite_difference' has it"
)
# What they return moves with nothing.
_STEPS = frozenset("sign sgn round floor ceil trunc heaviside".split())
_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__


class CustomFunctions:
    """Custom functions below a loss, watched in a backward pass that builds a graph.

    torch means to refuse one that is ``once_differentiable`` itself, when the second derivative
    comes to it. But it cuts it out of the graph, so that ``autograd.grad`` never does: what is
    behind it counts as constant, and so it does behind one whose backward builds no graph. Where a
    backward uses what its forward has computed, or what it takes out of the graph by itself, that
    value counts as constant.

    Args:
        tensors: the loss, before that pass.
        computed: see :class:`SecondDerivatives`. None to look for functions without a second
            derivative alone.
    """

    def __init__(self, tensors: Iterable[Tensor], computed: Constants | None = None) -> None:
        self._fault = self._doubt = ""
        for node in nodes_below(tensors):
            function = getattr(node, "_forward_cls", None)
            if function is None or "Checkpoint" in node.name():
                continue
            name = node.name().removesuffix("Backward")
            if _is_once(function.backward) or _is_once(function.vjp):
                self._fault = f"{name} is once_differentiable"
                continue
            uses_computed = bool(computed) and any(map(computed.holds, _held_by(node)))
            leaving = _Leaving()
            if computed is not None:
                _torch.run_backward_within(node, leaving)
            node.register_hook(partial(self._look, name, uses_computed, leaving))

    def _look(
        self,
        name: str,
        uses_computed: bool,
        leaving: "_Leaving",
        grads: Sequence[Tensor | None],
        incoming: Sequence[Tensor | None],
    ) -> None:
        with _torch.below_torch_functions():
            found = [g for g in grads if g is not None]
            if found and _have_graph(incoming) and not _have_graph(grads):
                self._fault = f"the backward method of {name} builds no graph"
            # Where that is a custom function too, its author has thought of second derivatives.
            elif not any(hasattr(g.grad_fn, "_forward_cls") for g in found):
                if uses_computed or leaving.found or any(map(leaving.holds, found)):
                    self._doubt = f"{name} {_USES_COMPUTED if uses_computed else _LEAVES}"

    def fault(self, grads: Iterable[Tensor | None]) -> str:
        """Return which function has no second derivative, and why; "" for none.

        Args:
            grads: the gradients, with their graph.
        """
        found = [g for g in grads if g is not None]
        if any(node.name().endswith("::Error") for node in nodes_below(found)):
            return self._fault or "a custom function is once_differentiable"
        return self._fault

    def check(self, grads: Iterable[Tensor | None]) -> None:
        """Raise a RuntimeError that names such a function, if there is one.

        Warns of one whose second derivative may lack something.
        """
        if fault := self.fault(grads):
            raise RuntimeError(f"{fault}: {NO_SECOND_DERIVATIVE}")
        if self._doubt:
            warn_of_a_constant(f"the backward method of {self._doubt}")


def warn_of_a_constant(doubt: str) -> None:
    """Warn of what makes a value a constant that may move."""
    warnings.warn(f"{doubt}. {_IS_A_CONSTANT}", stacklevel=4)


class _Leaving(TorchFunctionMode):
    """Sees whether a backward method goes on with a value that it has taken out of the graph.

    Attributes:
        found: it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants = Constants(is_moved=lambda leaf: True)
        self.found = False

    def holds(self, t: Tensor) -> bool:
        """Whether a tensor was computed of such a value alone."""
        return self._constants.holds(t)

    def __torch_function__(self, func, types, args: tuple[Any, ...] = (), kwargs=None):
        kwargs = kwargs or {}
        name, constants = name_of(func), self._constants
        given = tensors_in((args, kwargs))
        if name in ARRAYS and constants.depend(given):
            self.found = True
        if constants and meets_the_graph(func, kwargs, given):
            self.found |= any(map(constants.holds, given))
        out = func(*args, **kwargs)
        # Within another function's forward all is without a graph, and that one is looked at.
        if name.removesuffix("_") not in _STEPS and not _torch.in_function_forward():
            constants.note(name, out, args, kwargs)
        return out


def _is_once(backward: Any) -> bool:
    """Whether a method is marked, also below other decorators, as ``torch.amp.custom_bwd``."""
    while backward is not None:
        if getattr(backward, "__code__", None) is _ONCE_DIFFERENTIABLE:
            return True
        backward = getattr(backward, "__wrapped__", None)
    return False


def _held_by(context: Any) -> list[Tensor]:
    """Return what a custom function has saved for its backward, in either way."""
    return tensors_in((context.saved_tensors, vars(context)))


def _is_another(views: dict[int, ref[Tensor]], leaf: Tensor) -> bool:
    found = views.get(id(leaf))
    return found is None or found() is not leaf


def _is_among(t: Tensor, args: tuple) -> bool:
    return any(t is given for given in tensors_in(args))


def _have_graph(grads: Sequence[Tensor | None]) -> bool:
    return any(g is not None and g.requires_grad for g in grads)


class SecondDerivatives(TorchFunctionMode):
    """While active, these functions have their second derivative. Models need no change.

    Args:
        look: note what the forward methods of custom functions compute, and what hooks return.

    Attributes:
        computed: these values, if they come of one with a gradient, and can move with it.
        doubt: a hook that takes a gradient out of the graph, in words; "" for none.
    """

    doubt = ""

    def __init__(self, *, look: bool = False) -> None:
        super().__init__()
        self._look = look
        # A view that a forward method takes requires a gradient, and is a leaf.
        self._views: dict[int, ref[Tensor]] = {}
        self.computed = Constants(is_moved=partial(_is_another, self._views))

    def __torch_function__(self, func, types, args: tuple[Any, ...] = (), kwargs=None):
        kwargs = kwargs or {}
        # Checkpointing runs the forward again within backward, where this mode is off: what is
        # saved under its hooks must be what torch itself saves.
        if func in _STAND_INS and not _torch.has_saved_tensor_hooks():
            return _STAND_INS[func](*args, **kwargs)
        if self._look and func is Tensor.register_hook:
            return self._register_hook(*args, **kwargs)
        out = func(*args, **kwargs)
        if self._look and _torch.in_function_forward():
            name = name_of(func)
            written = tensors_in(args[0]) if func is Tensor.__setitem__ else None
            if name.removesuffix("_") not in _STEPS:
                self.computed.note(name, out, args, kwargs, written)
            views = [t for t in tensors_in(out) if requires_grad(t) and not _is_among(t, args)]
            self._views |= {id(t): ref(t) for t in views}
            self.computed.mark(views)
        return out

    def _register_hook(self, tensor: Tensor, hook: Callable[[Tensor], Any]) -> Any:
        """Register a hook, and see what it does to gradients that have a graph."""

        def watched(grad: Tensor) -> Any:
            leaving = _Leaving()
            with leaving:
                new = hook(grad)
            if isinstance(new, Tensor) and grad.requires_grad:  # others only look
                if leaving.found or leaving.holds(new):
                    name = getattr(hook, "__qualname__", type(hook).__name__)
                    self.doubt = f"the hook {name} of a tensor {_LEAVES}"
            return new

        return tensor.register_hook(watched)
