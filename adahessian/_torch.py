"""Every private name of torch that the library uses, each with its reason.

Nothing else in the library touches one. ``tests/library/test_private_torch.py`` checks that each is
there and does what we need, and is run on the oldest and the newest torch that we support.
``torch._foreach_*`` are not among them: in spite of the underscore torch documents them.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._C._functorch import (
    TransformType,
    _add_batch_dim,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
)
from torch.autograd import _get_sequence_nr
from torch.autograd.graph import Node, _engine_run_backward
from torch.nn._reduction import legacy_get_string
from torch.nn.utils import parametrize

# Nested arguments and results; the public torch.utils.pytree has come and gone.
from torch.utils import _pytree as pytree

# The base class of modes below autograd: documented, but only in notes.
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "TorchDispatchMode",
    "batched",
    "below_torch_functions",
    "buffers",
    "communication_hook",
    "derivative_in_backward",
    "gradients",
    "has_saved_tensor_hooks",
    "in_backward",
    "in_function",
    "in_function_forward",
    "innermost",
    "is_any_autocast_enabled",
    "is_functorch_wrapped_tensor",
    "is_view",
    "is_within_join",
    "keeping_version",
    "kernel_arguments",
    "kernel_is_mutable",
    "kernel_name",
    "legacy_reduction",
    "local_shape_and_offset",
    "norm_except_dim",
    "named_modules",
    "not_compiled",
    "number_in_sequence",
    "parameters",
    "pytree",
    "register_first_hook",
    "run_backward",
    "run_backward_within",
    "sequence_number",
    "sharding_policy",
    "sparse_values",
    "traceback_of",
    "unbatched",
    "under_derivative_transform",
    "under_functorch",
    "version",
    "weight_norm",
    "without_dispatch_modes",
    "without_hooks",
    "without_known_parametrizations",
]

# A decorator: torch.compile leaves a function as it is, and compiles what is around its calls. The
# public torch.compiler.disable imports the compiler at once, which takes seconds.
not_compiled = torch._disable_dynamo

# What torch.nn.utils.weight_norm and the parametrization of that name call.
weight_norm = torch._weight_norm


def in_backward() -> bool:
    """Whether autograd's engine is running a backward pass on this thread.

    What runs then in Python is a checkpoint's second forward pass, or a hook.
    """
    return torch._C._current_graph_task_id() >= 0


def in_function_forward() -> bool:
    """Whether the forward method of a custom autograd Function is running.

    Nothing public says so. It runs without both kinds of gradient, as ``torch.no_grad`` does not.
    """
    gradients = torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled()
    return not gradients and not torch.is_inference_mode_enabled()


def in_function() -> bool:
    """Whether a custom autograd Function's own code is running, forward or backward.

    Not a reentrant checkpoint's, whose backward method runs the model's.
    """
    if in_function_forward():
        return True
    node = torch._C._current_autograd_node() if in_backward() else None
    return node is not None and hasattr(node, "_forward_cls") and "Checkpoint" not in node.name()


def run_backward_within(node: Node, context: AbstractContextManager[Any]) -> None:
    """Let a custom function's backward method run within a context, the next time that it runs.

    Autograd calls a method of the node that nothing documents, and hooks on both sides of it would
    leave a context open where it raises.
    """
    this = ref(node)  # or the node, and with it its graph, would hold itself

    def apply(*grads: Any) -> Any:
        node: Any = this()
        del node.apply
        with context:
            return node.apply(*grads)

    vars(node)["apply"] = apply


def derivative_in_backward() -> str:
    """Return the name of the derivative that autograd's engine is computing; "" for none."""
    node = torch._C._current_autograd_node()
    return "" if node is None else node.name()


def sequence_number() -> int:
    """Return the number that autograd gives to the next operation that it records."""
    return _get_sequence_nr()


def number_in_sequence(node: Node) -> int:
    """Return the number that autograd has given to a recorded operation."""
    return node._sequence_nr()


def traceback_of(node: Node) -> list[str]:
    """Return the lines that led to an operation, recorded while anomalies are detected."""
    metadata: Any = node.metadata  # declared as a method
    return metadata.get("traceback_", [])


def run_backward(
    tensors: Sequence[Tensor],
    grad_tensors: Sequence[Tensor | None],
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor],
) -> None:
    """Run autograd's engine, as ``torch.autograd.backward`` does after its handling of modes.

    A ``TorchFunctionMode`` is off within its own handler, and the public function calls that
    handler again: this one can be called with the mode on.
    """
    _engine_run_backward(
        tuple(tensors), tuple(grad_tensors), retain_graph, create_graph, tuple(inputs),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return a scalar's derivatives, as ``torch.autograd.grad`` does after its handling of modes.

    The reason is that of :func:`run_backward`. None for an input on which the scalar does not
    depend.
    """
    return _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, tuple(inputs),
        allow_unreachable=True, accumulate_grad=False,
    )  # fmt: skip


def under_functorch() -> bool:
    """Whether ``torch.func``'s transforms are active: they need rules of their own."""
    return torch._C._are_functorch_transforms_active()


def under_derivative_transform() -> bool:
    """Whether a transform of ``torch.func`` is active that differentiates, and is no ``vmap``."""
    return any(level.key() != TransformType.Vmap for level in get_interpreter_stack() or ())


def unbatched(t: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return what ``vmap`` has batched as t, its dims first, and where they were, level by level.

    Without ``vmap`` that is t itself, and nothing.
    """
    places = []
    while is_batchedtensor(t):
        places.append((maybe_get_bdim(t), maybe_get_level(t)))
        t = get_unwrapped(t).movedim(places[-1][0], 0)
    return t, places


def batched(t: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """Return t as ``vmap`` batches it: the inverse of :func:`unbatched`."""
    for dim, level in reversed(places):
        t = _add_batch_dim(t.movedim(0, dim), dim, level)
    return t


def innermost(t: Tensor) -> Tensor:
    """Return the tensor that ``torch.func``'s transforms have wrapped, which autograd knows.

    Within ``vmap`` a tensor does not say that it requires a gradient.
    """
    while is_functorch_wrapped_tensor(t):
        t = get_unwrapped(t)
    return t


def keeping_version(t: Tensor) -> AbstractContextManager[None]:
    """Return a context in which autograd does not count what is written to a tensor."""
    return torch.autograd._unsafe_preserve_version_counter(t)


def sparse_values(t: Tensor) -> Tensor:
    """Return the values of a sparse tensor, in its memory; the public way wants a coalesced one."""
    return t._values() if t.layout is torch.sparse_coo else t.values()


def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """The ``reduction`` that a loss's two old arguments stand for."""
    return legacy_get_string(size_average, reduce, emit_warning=False)


def norm_except_dim(v: Tensor, p: int, dim: int) -> Tensor:
    """Return the norms over all dims but one: weight_norm's, which no stub declares."""
    return torch.norm_except_dim(v, p, dim)  # pyrefly: ignore


def has_saved_tensor_hooks() -> bool:
    """Whether what autograd saves goes through hooks, as in a checkpoint's forward pass."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def below_torch_functions() -> AbstractContextManager[None]:
    """Return a context in which no ``TorchFunctionMode`` sees the calls.

    A dispatch mode's handler calls torch again, for what such a mode has seen already.
    """
    return torch._C.DisableTorchFunction()


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Return a context without modes below autograd, in whose presence some functions differ."""
    return _disable_current_modes()


@contextlib.contextmanager
def without_known_parametrizations() -> Iterator[None]:
    """Let parametrizations be computed anew within; afterwards those cached before are there again.

    Within ``torch.nn.utils.parametrize.cached()`` they are those of other values of the parameters.
    """
    known = parametrize._cache
    parametrize._cache = {}
    try:
        yield
    finally:
        # Not where the context that caches has ended meanwhile, which forgets them.
        parametrize._cache = known if parametrize._cache_enabled else {}


def kernel_name(operator: Any) -> str:
    """Return the name of an operator that a dispatch mode sees, one of torch's without "aten::"."""
    return operator._schema.name.removeprefix("aten::")


def kernel_arguments(operator: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by their names, with its defaults."""
    schema = operator._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    return given | {a.name: v for a, v in zip(schema, args, strict=False)} | kwargs


def kernel_is_mutable(operator: Any) -> bool:
    """Whether an operator writes to one of its arguments."""
    return operator._schema.is_mutable


def is_any_autocast_enabled() -> bool:
    """Whether autocast is on for any kind of device: one call for each function of a network."""
    return torch._C._is_any_autocast_enabled()


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another, as a gradient in a communication buffer is."""
    return tensor._is_view()


def is_without_memory(tensor: Tensor) -> bool:
    """Whether a tensor is one of the zeros that some derivatives return instead of a tensor."""
    return tensor._is_zerotensor()


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place: autograd's own count.

    Of tensors made in inference mode nobody keeps one.
    """
    return 0 if tensor.is_inference() else tensor._version


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own buffers, to be read and to be replaced.

    The public ways to replace one call the module's ``__setattr__``, which it may have overridden.
    """
    return module._buffers


def communication_hook(module: "DistributedDataParallel") -> str:
    """Return what DistributedDataParallel reduces gradients by, other than a plain mean; or "".

    Nothing public tells which hook was registered, of the two kinds of hooks.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    if module._comm_hooks:
        hooks = [hook for hook, _ in module._comm_hooks if hook is not allreduce_hook]
        return getattr(hooks[0], "__qualname__", repr(hooks[0])) if hooks else ""
    builtin = str(module._get_ddp_logging_data().get("comm_hook") or "")
    return "" if builtin.endswith(".ALLREDUCE") else builtin


def is_within_join(module: "DistributedDataParallel") -> bool:
    """Whether a process that has run out of data may be answering the module's messages alone."""
    return module._join_config.enable


def register_first_hook(t: Tensor, hook: Callable[[Tensor], Any]) -> RemovableHandle:
    """Register a hook of a tensor that is called before those that it has.

    In public it can only be added behind them, where it sees what they have made of a gradient.
    """
    handle = t.register_hook(hook)
    hooks: Any = t._backward_hooks
    *others, last = hooks.items()
    hooks.clear()  # torch calls them in the order in which they entered the dict
    hooks.update([last, *others])
    return handle


@contextlib.contextmanager
def without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Return a context in which hooks of tensors (``Tensor.register_hook``) are not called.

    They can be added and removed in public, but not set aside.
    """
    kept = [(t, hooks) for t in tensors if (hooks := t._backward_hooks)]
    try:
        for t, _ in kept:
            t._backward_hooks = None
        yield
    finally:
        for t, hooks in kept:
            t._backward_hooks = hooks


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's own parameters; none of one that is under construction.

    The public ways call methods by names that a module may use for something else.
    """
    own = vars(module).get("_parameters") or {}
    return {name: p for name, p in own.items() if p is not None}


def named_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all below it, each once, by their names; see :func:`parameters`."""
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        below = list((vars(module).get("_modules") or {}).items())
        waiting += [(f"{name}.{k}" if name else k, m) for k, m in below[::-1] if m is not None]


def sharding_policy(module: nn.Module) -> "MixedPrecisionPolicy | None":
    """Return in which types ``fully_shard`` computes and reduces a module; None for others.

    The policy is public where it is given, and nowhere else.
    """
    from torch.distributed.fsdp import FSDPModule

    return module._get_fsdp_state()._mp_policy if isinstance(module, FSDPModule) else None


def local_shape_and_offset(tensor: "DTensor") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of this process's part of a DTensor, and where in the whole it begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple(shape), tuple(offset)
