"""One evaluation seen operation by operation: values, gradients, and where in the code they are.

Private to :mod:`adahessian.curvature.diagnosis`.
"""

import contextlib
import inspect
import os
import re
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from adahessian import _torch
from adahessian.curvature.constants import tensors_in
from adahessian.curvature.gates import Gates
from adahessian.curvature.module_calls import after_each_call, before_each_call
from adahessian.curvature.torch_calls import name_of

Edge = tuple[Node | Tensor, int]  # an operation and the number of its output; or a leaf
Key = tuple[int, int]  # of a value: before which call it was seen, and as which

_NOT_THE_USERS = tuple(
    str(folder) + os.sep
    for folder in (Path(inspect.getfile(torch)).parent, Path(__file__).parents[1])
)
_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_BACKWARD = (Tensor.backward, torch.autograd.backward)


class Span(NamedTuple):
    """What autograd recorded while something ran: from one number on, up to another.

    Attributes:
        start, stop: the numbers.
        name: of the function, or of the module.
        place: where the user's code called it.
    """

    start: int
    stop: int
    name: str
    place: str = ""


class Operation(NamedTuple):
    """One that autograd has recorded, read at once: afterwards a user's Function can be gone.

    Attributes:
        number: autograd's.
        name: autograd's.
        taken: what it was computed from, as far as that has a graph.
        is_leaf: it only accumulates a leaf's gradient.
        place: the user's line that led to it, if that was asked for.
    """

    number: int
    name: str
    taken: list[Edge]
    is_leaf: bool
    place: str


class Trace(TorchFunctionMode, ABC):
    """Reads the operations of one evaluation, which a subclass compares with those of another.

    It is to be active within the gates: it then sees what the user calls, and what the gates make
    of it. The subclass's methods run without a graph, and the gates see nothing of them.

    Another evaluation has the same calls, unless it takes another path, and the same values; but
    what autograd records within a call may differ, where a gate has something to do.

    Args:
        gates: that are active.
        places: also find out where the user's code has called what is no function of torch.

    Attributes:
        calls: of torch functions.
        operations: that autograd has recorded, as far as they are on the way to the loss.
        values: the keys of what has been seen of it.
        is_whole: whether the present backward pass, if any, leaves no gradient out.
    """

    def __init__(self, gates: Gates, *, places: bool = False) -> None:
        super().__init__()
        self._gates, self._places = gates, places
        self._modules: list[Span] = []
        self._entered: list[tuple[nn.Module, int]] = []
        self.calls: list[Span] = []
        self.operations: dict[Node, Operation] = {}
        self.values: dict[Edge, Key] = {}
        self.is_whole = True

    @abstractmethod
    def read_value(self, key: Key, value: Tensor) -> None:
        """Take in what an operation has computed, or a leaf."""

    def read_constant(self, key: Key, value: Tensor | float) -> None:
        """Take in an argument that has no graph: the second number counts those of the call."""

    @abstractmethod
    def read_gradients(
        self, node: Node, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]
    ) -> None:
        """Take in what an operation's derivative has returned, and what it was given."""

    def __enter__(self) -> "Trace":
        self._stack = contextlib.ExitStack()
        for hook in (
            before_each_call(self._enter_module),
            after_each_call(self._leave_module),
        ):
            self._stack.callback(hook.remove)
        if self._places:  # autograd then keeps a traceback of each of its operations
            self._stack.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=False))
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self._stack.close()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        if not given or _torch.under_functorch():
            return func(*args, **kwargs)
        self._meet(given)
        if func is torch.autograd.grad or func in _BACKWARD and kwargs.get("inputs") is not None:
            self.is_whole = False
            try:
                return func(*args, **kwargs)
            finally:
                self.is_whole = True
        start = _torch.sequence_number()
        out = func(*args, **kwargs)
        outputs = [t for t in tensors_in(out) if t.grad_fn is not None]
        if outputs:
            with self._aside():
                for i, constant in enumerate(_constants((args, kwargs))):
                    self.read_constant((len(self.calls), i), constant)
            self.calls.append(Span(start, _torch.sequence_number(), _name(func), _place()))
            self._meet(outputs)
        return out

    def _meet(self, tensors: list[Tensor]) -> None:
        """Take in tensors, and the operations that have led to them."""
        for t in tensors:
            edge = (t, 0) if t.grad_fn is None else (t.grad_fn, t.output_nr)
            if edge not in self.values:
                with self._aside():
                    if t.grad_fn is not None:
                        self._follow(t.grad_fn)
                    self._read(edge, t)

    def _read(self, edge: Edge, t: Tensor) -> None:
        if edge not in self.values:
            key = self.values[edge] = (len(self.calls), len(self.values))
            self.read_value(key, t.detach())

    def _follow(self, node: Node) -> None:
        pending = [node]
        while pending:
            node = pending.pop()
            if node in self.operations:
                continue
            self.operations[node] = self._recorded(node)
            hook = node.register_hook(partial(self._see_gradients, node))
            self._stack.callback(hook.remove)
            if (leaf := _leaf(node)) is not None:
                self._read((leaf, 0), leaf)
            pending.extend(n for n, _ in node.next_functions if n is not None)

    def _recorded(self, node: Node) -> Operation:
        number = _torch.number_in_sequence(node)
        place = _place_in(_torch.traceback_of(node)) if self._places else ""
        return Operation(number, node.name(), _taken_by(node), _leaf(node) is not None, place)

    def _see_gradients(self, node: Node, inputs: Any, outputs: Any) -> None:
        with self._aside():
            self.read_gradients(node, inputs, outputs)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        kernels = self._gates.kernels
        with torch.no_grad(), _torch.below_torch_functions():
            with kernels.paused() if kernels is not None else contextlib.nullcontext():
                yield

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._entered.append((module, _torch.sequence_number()))

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        while self._entered:
            left, start = self._entered.pop()
            if left is module:
                break
        else:
            return
        root = self._entered[0][0] if self._entered else module
        name = next((name for name, m in _torch.named_modules(root) if m is module), "")
        name = name.replace("_orig_mod.", "")  # of a compiled module
        kind = type(module).__name__
        name = f"{name} ({kind})" if name else kind
        self._modules.append(Span(start, _torch.sequence_number(), name))

    def call_of(self, operation: Operation) -> int | None:
        """Return the number of the call within which an operation was recorded; None for none.

        That is what the user's own Function is.
        """
        number = operation.number
        at = bisect_right(self.calls, number, key=lambda call: call.start) - 1
        return at if at >= 0 and number < self.calls[at].stop else None

    def name(self, operation: Operation) -> str:
        """Return what messages call an operation, and where it is.

        Of the user's own Function the line is known if it was asked for.
        """
        if (at := self.call_of(operation)) is not None:
            return self.call(at)
        name = re.sub(r"Backward\d*$", "", operation.name)
        return self._described(operation.number, name, operation.place)

    def call(self, at: int) -> str:
        """Return what messages call the operation of a call, and where it is."""
        call = self.calls[at]
        return self._described(call.start, call.name, call.place)

    def _described(self, number: int, name: str, place: str) -> str:
        # A module is left before those around it.
        within = next((m.name for m in self._modules if m.start <= number < m.stop), "")
        where = ", ".join(w for w in (place, within and f"module {within}") if w)
        return f"{name} ({where})" if where else name


def made_by(node: Node, count: int) -> list[Edge]:
    """Return what an operation has computed: so many outputs."""
    leaf = _leaf(node)
    return [(node, i) for i in range(count)] if leaf is None else [(leaf, 0)]


def _taken_by(node: Node) -> list[Edge]:
    """Return what an operation was computed from, as far as it has a graph."""
    edges: list[Edge] = []
    for following, output in node.next_functions:
        leaf = None if following is None else _leaf(following)
        edges.append((following, output) if leaf is None else (leaf, 0))  # pyrefly: ignore
    return edges


def _leaf(node: Node) -> Tensor | None:
    """Return the tensor whose gradient an operation accumulates; None for other operations."""
    return getattr(node, "variable", None)


def _name(func: Any) -> str:
    name = name_of(func).removesuffix(".default")
    return name.strip("_") if name.startswith("__") else name


def _place() -> str:
    """Return the user's line that is being executed."""
    frame = sys._getframe(1)
    while frame is not None:
        if _is_the_users(frame.f_code.co_filename):
            return _line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def _place_in(traceback: list[str]) -> str:
    """Return the user's last line in a traceback."""
    for entry in reversed(traceback):
        found = _FRAME.search(entry)
        if found and _is_the_users(found[1]):
            return _line(found[1], int(found[2]))
    return ""


def _is_the_users(file: str) -> bool:
    return not file.startswith(("<", *_NOT_THE_USERS))


def _line(file: str, number: int) -> str:
    folder = os.getcwd() + os.sep
    return f"{file.removeprefix(folder)}:{number}"


def _constants(value: Any) -> Iterator[Tensor | float]:
    """Yield the tensors without a graph and the numbers in a call's arguments."""
    if isinstance(value, Tensor):
        if not value.requires_grad:
            yield value
    elif isinstance(value, float | int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _constants(v)
    elif isinstance(value, dict):
        yield from _constants(list(value.values()))
