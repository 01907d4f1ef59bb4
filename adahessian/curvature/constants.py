"""What autograd takes as constant although it depends on the parameters, and must not move.

``detach`` is one way to such a value, and has a gate. Others are whatever is computed under
``torch.no_grad`` (targets of the network itself, samples of a distribution, a power iteration),
``.data``, ``autograd.grad`` and ``backward`` without a graph (the gradient of an input, by which an
adversary moves it), and what Python and NumPy get (``loss.item()``). A
second evaluation at other parameters would compute other values. So values that came of a parameter
in such a way are marked, and where one meets the graph again, its recorded value is used.

Private to :mod:`adahessian.curvature.gates`.
"""

from collections.abc import Callable, Iterable
from inspect import getattr_static
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from adahessian import _torch
from adahessian.curvature.torch_calls import bind, name_of, writes

# They read the type or the shape of their second argument, and not its values.
_LIKE_SECOND = frozenset("to type_as expand_as view_as reshape_as".split())
# They do so with all of theirs.
_BY_SHAPE = ("_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "size")
# They return as many tensors as they take, each the values of one: data beside a value of the graph
# are no constant that depends on it.
_EACH_BY_ITSELF = frozenset(
    "broadcast_tensors meshgrid align_tensors atleast_1d atleast_2d atleast_3d".split()
)
_DATA = getattr_static(Tensor, "data")
_GRAD = getattr_static(Tensor, "grad")
_WRITE_NO_VALUES = frozenset("requires_grad_ detach_ share_memory_ rename_".split())
_REQUIRES_GRAD = getattr_static(Tensor, "requires_grad")
# They hand numbers to Python.
ARRAYS = frozenset("numpy __array__ tolist".split())
NUMBERS = ARRAYS | frozenset("item __float__ __int__ __index__ __bool__ __complex__".split())
# Normalizations: their parameters, the last of which says whether they take the statistics of their
# input and write the running ones, and what that is by default.
_RUNNING = ("running_mean", "running_var")
_NORMALIZATIONS: dict[Callable, tuple[tuple[str, ...], bool]] = {
    F.batch_norm: ((*_RUNNING, "weight", "bias", "training"), False),
    F.instance_norm: ((*_RUNNING, "weight", "bias", "use_input_stats"), True),
    torch.batch_norm: (("weight", "bias", *_RUNNING, "training"), False),
    torch.instance_norm: (("weight", "bias", *_RUNNING, "use_input_stats"), True),
}


class Storages:
    """A set of tensors. Whatever shares its memory with one of them belongs to it.

    For a tensor is written through its ``.data``, ``detach()`` and views, too.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._storages: dict[int, StorageWeakRef] = {}
        # What has no storage, by identity: tensors compare their elements.
        self._others: dict[int, ref[Tensor]] = {}
        self.add(tensors)

    def __bool__(self) -> bool:
        return bool(self._storages or self._others)

    def __contains__(self, t: Tensor) -> bool:
        if not self:
            return False
        if (storage := _storage(t)) is not None:
            return storage.cdata in self._storages
        other = self._others.get(id(t))
        return other is not None and other() is t

    def add(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            if (storage := _storage(t)) is None:
                self._others[id(t)] = ref(t)
            else:  # while this is held, no other storage has its number
                self._storages[storage.cdata] = storage


def _storage(t: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(in_memory(t).untyped_storage())
    except (NotImplementedError, RuntimeError):  # one of another library's
        return None


def in_memory(t: Tensor) -> Tensor:
    """Return what a tensor's values lie in: one within torch.func or a sparse one has another."""
    t = _torch.innermost(t)
    return t if t.layout is torch.strided else _torch.sparse_values(t.detach())


def requires_grad(t: Tensor) -> bool:
    """Whether autograd follows a tensor, also within torch.func's transforms."""
    return t.requires_grad or _torch.innermost(t).requires_grad


def is_leaf(t: Tensor) -> bool:
    """Whether autograd does not know where a tensor came from."""
    try:
        return _torch.innermost(t).is_leaf
    except RuntimeError:  # a view that was taken without autograd, and whose base has changed
        return False


class Constants:
    """Marks the tensors of one evaluation that depend on a parameter, though not for autograd.

    Args:
        is_moved: whether a leaf is a parameter by which the evaluations differ.
    """

    def __init__(self, is_moved: Callable[[Tensor], bool]) -> None:
        self._marked = Storages()
        self._is_moved = is_moved
        self._inputs: dict[int, ref[Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._marked)

    def depend(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of some tensors depends on a parameter, in autograd's eyes or not."""
        return any(requires_grad(t) or self.holds(t) for t in tensors)

    def holds(self, t: Tensor) -> bool:
        """Whether a tensor is a constant that depends on a parameter.

        A leaf is one, too, although its gradient is asked for: an ``nn.Parameter`` that the closure
        makes of such values, or writes them to.
        """
        return self._is_constant(t) and t in self._marked

    def _is_constant(self, t: Tensor) -> bool:
        if not requires_grad(t):
            return True
        return is_leaf(t) and not self._is_moved(t) and not self._is_input(t)

    def note_input(self, leaf: Tensor) -> None:
        """Note an input of a checkpoint that runs again: it is a leaf for it, and moves."""
        self._inputs[id(leaf)] = ref(leaf)

    def _is_input(self, t: Tensor) -> bool:
        found = self._inputs.get(id(t))
        return found is not None and found() is t

    def among(self, targets: Any) -> list[Tensor]:
        """Return those of the tensors that a call is about to write to that are constants.

        They may belong to the graph afterwards. What shares their memory does not.
        """
        return [t for t in tensors_in(targets) if t.is_floating_point() and self._is_constant(t)]

    def note(
        self, name: str, out: Any, args: tuple, kwargs: dict[str, Any],
        written: list[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Mark what a function has computed of a parameter without its graph, or written there."""
        if name in _EACH_BY_ITSELF:
            for one, given in zip(tensors_in(out), tensors_in(args), strict=False):
                self.note("", one, (given,), {})
            return
        outputs = written
        if outputs is None:
            outputs = [t for t in tensors_in(out) if t.is_floating_point() and not requires_grad(t)]
        if name in _LIKE_SECOND:
            args, kwargs = args[:1], {}
        if outputs and not name.endswith(_BY_SHAPE) and self.depend(tensors_in((args, kwargs))):
            self.mark(outputs)

    def mark(self, tensors: Iterable[Tensor]) -> None:
        """Mark tensors as constants that depend on a parameter."""
        self._marked.add(tensors)


def statistics_written(func: Callable, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the running statistics that a call writes to inside. It does not read them."""
    if func not in _NORMALIZATIONS:
        return []
    parameters, by_default = _NORMALIZATIONS[func]
    given = bind(parameters, args, kwargs)
    trains = given.get(parameters[-1], by_default)
    return [given[name] for name in _RUNNING if trains and given.get(name) is not None]


def is_data(func: Callable) -> bool:
    """Whether a call of ``__get__`` or ``__set__`` is that of ``Tensor.data``."""
    return getattr(func, "__self__", None) is _DATA


def writes_values(func: Callable, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes values of its first argument, or what lies in its memory."""
    name = name_of(func)
    if name == "__set__":
        return is_data(func)
    if name == "__setitem__" or writes(func, {}) and name not in _WRITE_NO_VALUES:
        return True
    return bool(kwargs.get("inplace")) and not torch.is_grad_enabled()


def is_grad(func: Callable) -> bool:
    """Whether a call of ``__get__`` or ``__set__`` is that of ``Tensor.grad``."""
    return getattr(func, "__self__", None) is _GRAD


def makes_a_leaf(func: Callable) -> bool:
    """Whether a call makes a tensor one whose gradient is asked for."""
    is_set = name_of(func) == "__set__" and getattr(func, "__self__", None) is _REQUIRES_GRAD
    return is_set or func is Tensor.requires_grad_


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an argument or a result: itself, or in lists, tuples and dicts."""
    found: list[Tensor] = []
    _collect((value,), found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def replaced(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Return an argument with each of its tensors replaced."""
    if isinstance(value, Tensor):
        return replace(value)
    if type(value) in (list, tuple):
        return type(value)(replaced(v, replace) for v in value)
    if type(value) is dict:
        return {k: replaced(v, replace) for k, v in value.items()}
    return value


def meets_the_graph(func: Callable, kwargs: dict[str, Any], given: Iterable[Tensor]) -> bool:
    """Whether a call brings its arguments, and the tensors among them, into the graph."""
    if not torch.is_grad_enabled() or name_of(func) == "__set__" or writes(func, kwargs):
        return False
    return any(map(requires_grad, given))
