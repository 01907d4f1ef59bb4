"""Record and replay what makes a loss piecewise or random (private to the finite difference).

A ReLU network's gradient jumps wherever an activation changes its sign. A difference of gradients
over a step h sees some of these jumps, and divides them by h: no step is small enough. So the
second evaluation replays the first one's pieces: the same activations pass, the same pixels win
their pooling window, and the gradient becomes a smooth function of the parameters with the same
Hessian (the one that double backward computes too: it also takes the pieces as given).

A replay at unchanged parameters is bit for bit the recorded evaluation, in every precision and
memory layout: outputs, their strides, and gradients with theirs. What a replay does otherwise than
the recorded evaluation, be it a rounding, is divided by h. So a gate computes values and gradients
as torch's own kernels do (:mod:`adahessian.curvature.piecewise`), and lays them out as they did
(:mod:`adahessian.curvature.layouts`).

The interception is a ``TorchFunctionMode``: it sees every call of a torch function from Python,
above autograd, so that a replayed piece is differentiated like any other operation. What runs
inside a C++ function (``nn.RNN(nonlinearity="relu")``, a TorchScript function, a fused margin loss)
is out of its reach; :mod:`adahessian.curvature.hidden_kinks` finds it, and
:mod:`adahessian.curvature.kernels` takes over.

Randomness needs no gates: the finite difference rewinds the generators. What autograd takes as
constant, although it was computed from the parameters, is kept as it was
(:mod:`adahessian.curvature.constants`), and what is written behind its back is added again
(:mod:`adahessian.curvature.shifts`).
"""

import contextlib
import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache, partial
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adahessian import _torch
from adahessian.curvature.closures import held_weakly, not_repeatable
from adahessian.curvature.constants import (
    NUMBERS,
    Constants,
    Storages,
    is_data,
    is_grad,
    is_leaf,
    makes_a_leaf,
    meets_the_graph,
    replaced,
    requires_grad,
    statistics_written,
    tensors_in,
    writes_values,
)
from adahessian.curvature.graph import leaves_below
from adahessian.curvature.kernels import Kernels
from adahessian.curvature.layouts import Layouts, copy_of
from adahessian.curvature.moves import Move, Moves
from adahessian.curvature.piecewise import ABOVE_AUTOGRAD, ELEMENTWISE, GATES, Detached
from adahessian.curvature.ragged import on_values
from adahessian.curvature.searches import Searches
from adahessian.curvature.second_derivatives import HINGES
from adahessian.curvature.shifts import Shifts, is_of_the_graph
from adahessian.curvature.torch_calls import in_torchs_words, name_of, written_by
from adahessian.curvature.unfolding import unfolded
from adahessian.replicas import local

# What computes nothing: a third of a network's calls, and each comes through here.
_ATTRIBUTES = frozenset(
    "__get__ __set__ dim size stride numel is_floating_point is_complex".split()
)
# Attributes, too, but functions of the values.
_TRANSPOSED = frozenset(getattr_static(Tensor, name) for name in ("T", "mT", "H", "mH"))
_RENORMALIZE = (F.embedding_bag,)  # with max_norm as its fourth argument


@lru_cache(maxsize=1000)
def _is_no_value(func: Callable) -> bool:
    """Whether a call tells what a tensor is, and no value of it: most calls are such."""
    is_value = is_data(func) or is_grad(func) or getattr(func, "__self__", None) in _TRANSPOSED
    return name_of(func) in _ATTRIBUTES and not is_value and not makes_a_leaf(func)


class Gates(TorchFunctionMode):
    """Records the pieces of one evaluation, and replays them in any number of further ones.

    Use as ``with gates: closure()`` for the recording, then ``gates.rewind()`` before each further
    ``with gates: closure()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.params: Collection[Tensor] = ()  # what the evaluations differ by
        self.inside: str | None = None  # the torch function that is running, for hidden_kinks
        self.autocast_dtype: torch.dtype | None = None  # in which the evaluation computes
        self.called: set[str] = set()  # names of the torch functions that it came through
        self.dtypes: set[torch.dtype] = set()  # of what has a gradient
        self.leaves: dict[Tensor, None] = {}  # whose gradients its backward passes accumulate
        self._tape: list[tuple[str, Any, Layouts]] = []
        self._next: int | None = None  # position on the tape; None while recording
        self.kernels: Kernels | None = None  # what takes the place of most gates
        self.searches = Searches()
        self.backward_scale: float | None = None  # of the loss; None until a backward is seen
        self.losses: list[Tensor] = []  # what its backward passes start from
        self.written = Storages()  # what the recorded evaluation has changed in place
        self._ours: Storages | None = None
        self._own_passes: list[bool] = []  # of the recorded backward passes: is one for params?
        self._moves = Moves()
        # The closure's own, with their states before it drew from them.
        self.generators: dict[torch.Generator, Tensor] = {}
        self._begin()

    def _begin(self) -> None:
        self.losses = []
        self._constants = Constants(held_weakly(self._is_moved))
        self._behind_the_graph = Storages()  # values of the graph that were handed out without it
        self._passes = 0

    def record_anew(self, *, kernels: bool) -> None:
        """Record from the beginning.

        Args:
            kernels: below autograd, too: there are pieces that no gate can reach.
        """
        self._tape.clear()
        self._own_passes.clear()
        self._moves = Moves()
        self._next = None
        self._begin()
        self.kernels = Kernels(self.searches) if kernels else None

    def active(self) -> contextlib.ExitStack:
        """Return a context in which an evaluation is recorded or replayed."""
        stack = contextlib.ExitStack()
        is_first = self._next is None
        stack.enter_context(self._moves.within_evaluation(self.params, is_first=is_first))
        if self.kernels is not None:
            stack.enter_context(self.kernels)
        stack.enter_context(self)
        return stack

    def rewind(self) -> None:
        """Replay from the beginning."""
        self._next = 0
        self._begin()
        if self.kernels is not None:
            self.kernels.rewind()

    @property
    def met_pieces(self) -> bool:
        """Whether the recorded evaluation came through anything that is to be frozen."""
        if self.generators or self.kernels is not None and self.kernels.met_pieces:
            return True
        return any(pattern is not None for _, pattern, _ in self._tape)

    def check_complete(self) -> None:
        """Raise unless the replayed evaluation came through all the gates of the recorded one."""
        if self._next != len(self._tape):
            raise not_repeatable(f"{self._next} gates instead of {len(self._tape)}")
        if self.kernels is not None:
            self.kernels.check_complete()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_no_value(func):
            return func(*args, **kwargs)
        name = name_of(func)
        is_write = writes_values(func, kwargs)
        if makes_a_leaf(func) and args[0] in self.params:
            return self._freeze_or_thaw(func, args, kwargs)
        if self._constants and makes_a_leaf(func):
            (self._constants.note_input if _torch.in_backward() else self._hold_still)(args[0])
        is_attribute = name in _ATTRIBUTES and getattr(func, "__self__", None) not in _TRANSPOSED
        if is_attribute and not is_write:
            out = func(*args, **kwargs)
            if name == "__get__" and is_data(func):
                self._constants.note(name, out, args, kwargs)
                self._behind_the_graph.add(filter(is_of_the_graph, args))
            elif name == "__get__" and self._passes and is_grad(func):
                self._note_gradient(args[0], out)
            return out
        if func is Tensor.backward or func is torch.autograd.backward:
            return self._backward(*args, **kwargs)
        if self._next is None:
            self._note(name, args, kwargs)
        is_model = not _torch.in_function()  # what computes a derivative by itself comes with it
        statistics = statistics_written(func, args, kwargs)
        given = tensors_in((args, kwargs))
        if is_model and self._constants and meets_the_graph(func, kwargs, given):
            if any(map(self._constants.holds, given)):
                hold = partial(self._held_still, besides=statistics)
                args, kwargs = (replaced(value, hold) for value in (args, kwargs))
        if func in _RENORMALIZE:
            args, kwargs = self._renormalized_once(func, args, kwargs)
        written = self._constants.among(written_by(args, kwargs)) if is_write else None
        out = (self._write if is_write else self._call)(name, func, args, kwargs)
        if is_model and name in NUMBERS and self._constants.depend(given):
            return self._number(func, out)
        # An empty one is no part of the model: torch 2.11's checkpointing makes some, in float32.
        if self._next is None and isinstance(out, Tensor) and requires_grad(out) and out.numel():
            self.dtypes.add(out.dtype)
        if name == "_values":  # of a sparse tensor
            self._behind_the_graph.add(filter(is_of_the_graph, args))
        if is_model or not _torch.in_backward():
            self._constants.note(name, out, args, kwargs, written)
            if statistics and self._constants.depend(tensors_in(written_by(args, kwargs))):
                self._constants.mark(statistics)
        return out

    def _call(self, name: str, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        given = tensors_in((args, kwargs))
        if self.searches.is_running or self._is_of_data(given):
            with self._below_gates():
                return func(*args, **kwargs)
        gate = GATES.get(func)
        if func in HINGES:
            with self:
                return HINGES[func](*args, **kwargs)
        # A bag with max_norm changes its parameter inside, which is no part of its pieces.
        if gate is None and func not in _RENORMALIZE and (inner := unfolded(func)) is not None:
            with self:
                return inner(*args, **kwargs)
        if self.kernels is not None and not isinstance(gate, ABOVE_AUTOGRAD):
            return func(*args, **kwargs)
        if gate is not None and _freezes(gate, _tensors(args, kwargs)):
            if any(t.is_nested for t in given):
                by_element = isinstance(gate, ELEMENTWISE)
                with self:
                    return on_values(func, args, kwargs, is_elementwise=by_element)
            kwargs = in_torchs_words(kwargs)
            with self._below_gates():
                if self._next is None:
                    return self._record(gate, func, args, kwargs)
                return self._replay(gate, func, args, kwargs)
        self.inside = name
        out = func(*args, **kwargs)
        self.inside = None
        # Comparisons, argmax, argsort, bucketize, ...: whatever says where a value lies.
        if torch.is_tensor(out) and not out.is_floating_point() and not out.is_complex():
            if any(t.is_floating_point() for t in _tensors(args, kwargs)):
                if self._next is None:
                    layouts = Layouts()
                    layouts.note_outputs(out)
                    self._tape.append((name_of(func), out.clone(), layouts))
                else:
                    value, layouts = self._recorded(func)
                    self.searches.note(value, out)
                    out = layouts.lay_out_outputs(value.clone())
        return out

    def _is_of_data(self, given: list[Tensor]) -> bool:
        """Whether a call's arguments do not depend on parameters: it has no pieces to freeze.

        The closure may keep what it returns (a mask, positions) outside of any module, and compute
        it in the first evaluation only. Gradients do not tell, in a backward pass and behind it.
        """
        has_gradients = self._passes > 0 or _torch.in_backward()
        return not (has_gradients or self._constants.depend(given))

    def _write(self, name: str, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call what writes to tensors in place; to parameters, as :class:`Moves` says.

        What is written to a value of the graph without autograd's knowledge adds a constant.
        """
        # Of what requires a gradient, autograd lets nobody write to a parameter.
        target = written_by(args, kwargs)
        targets = [t for t in tensors_in(target) if not requires_grad(t) or is_leaf(t)]
        self.written.add(targets)
        if self._next is not None:  # there a detached parameter is one that was recorded
            coming = self._tape[self._next][:2] if self._next < len(self._tape) else ("", None)
            is_move = coming[0] == name and isinstance(coming[1], Move)
            is_shift = coming[0] == name and isinstance(coming[1], Shifts)
        else:
            is_move = any(t in self._memory_of_params() for t in targets)
            is_shift = not is_move and self._is_unseen(name, tensors_in(target))
        if is_shift:
            out = self._shifted(name, func, args, kwargs)
        elif not is_move:
            out = self._call(name, func, args, kwargs)
        elif self._next is None:
            with self._below_gates():
                out, move = self._moves.record(self.params, func, args, kwargs)
            self._tape.append((name, move, Layouts()))
        else:
            move, _ = self._recorded(func)
            with self._below_gates():
                self._moves.repeat(move, tensors_in(target))
            out = target
        if name == "__set__":  # ``.data = `` brings another storage
            self.written.add(targets)
            self._ours = None
        return out

    def _is_unseen(self, name: str, targets: Iterable[Tensor]) -> bool:
        """Whether a write changes values of the graph, and autograd takes them for unchanged."""
        if _torch.in_function():  # what it returns has the derivative that it comes with
            return False
        is_hidden = not torch.is_grad_enabled() or name == "__set__"
        return any(
            is_hidden and is_of_the_graph(t) or not requires_grad(t) and t in self._behind_the_graph
            for t in targets
        )

    def _shifted(self, name: str, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Change values of the graph by as much as the recorded evaluation has changed them."""
        target = written_by(args, kwargs)
        with self._below_gates():
            if self._next is not None:
                self._recorded(func)[0].repeat(tensors_in(target))
                return target
            out, shifts = Shifts.record(func, args, kwargs)
        if shifts is not None:
            self._tape.append((name, shifts, Layouts()))
        return out

    @contextlib.contextmanager
    def _below_gates(self) -> Iterator[None]:
        """Return a context in which nothing is recorded or replayed, nor looked for."""
        self.inside = "a gate"
        try:
            with self.kernels.paused() if self.kernels is not None else contextlib.nullcontext():
                yield
        finally:
            self.inside = None

    def _memory_of_params(self) -> Storages:
        if self._ours is None:
            self._ours = Storages(local(p.detach()) for p in self.params)
        return self._ours

    def _is_moved(self, leaf: Tensor) -> bool:
        return leaf in self.params or local(leaf) in self._memory_of_params()

    def _note_gradient(self, t: Tensor, grad: Tensor | None) -> None:
        """Mark what a backward pass of this evaluation has brought to an input, say.

        What it has brought to a parameter is the closure's result.
        """
        if grad is not None and not requires_grad(grad) and t not in self.params:
            self._constants.mark([grad])

    def _renormalized_once(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Let a bag's ``max_norm`` change the parameter in the recorded evaluation only."""
        given = args[3] if len(args) > 3 else kwargs.get("max_norm")
        if given is None:
            return args, kwargs
        if self._next is None:
            self._tape.append((name_of(func), True, Layouts()))
            return args, kwargs
        self._recorded(func)
        if len(args) > 3:
            return (*args[:3], None, *args[4:]), kwargs
        return args, {**kwargs, "max_norm": None}

    def _freeze_or_thaw(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Set whether a parameter's gradient is asked for: it is a constant where it is not."""
        out = func(*args, **kwargs)
        if not args[0].requires_grad:
            self._constants.mark(args[:1])
        return out

    def _held_still(self, t: Tensor, besides: Iterable[Tensor] = ()) -> Tensor:
        """Return a constant that depends on parameters, as it was in the recorded evaluation."""
        if any(t is other for other in besides) or not self._constants.holds(t):
            return t
        if self._next is not None:
            value, layouts = self._recorded(Constants)
            held = layouts.lay_out_outputs(value)
            if requires_grad(t):  # a leaf, whose gradient is asked for
                self._give_values(t, held)
                return t
            # It may meet the graph again, inside of the function that it is handed to.
            self._constants.mark([held])
            return held
        layouts = Layouts()
        layouts.note_outputs(t)
        self._tape.append((name_of(Constants), copy_of(t.detach()), layouts))
        return t

    def _hold_still(self, t: Tensor) -> None:
        """Give a constant that depends on parameters its recorded value, where it is."""
        held = self._held_still(t)
        if held is not t:
            self._give_values(t, held)

    def _give_values(self, leaf: Tensor, values: Tensor) -> None:
        """Give a leaf the recorded values, which the closure may change in their turn."""
        if values.layout is torch.strided and 0 in values.stride():
            leaf.data = values.clone()  # nobody can write to an expanded one
        else:
            with _torch.keeping_version(leaf):
                leaf.detach().copy_(values)
        self._constants.mark([leaf])

    def _number(self, func: Callable, number: Any) -> Any:
        """Return numbers that Python gets of a tensor, as they were in the recorded evaluation."""
        if self._next is not None:
            return copy.deepcopy(self._recorded(func)[0])
        # An array shares the tensor's memory, and a list can be written to.
        self._tape.append((name_of(func), copy.deepcopy(number), Layouts()))
        return number

    def _record(self, gate, func, args, kwargs) -> Any:
        layouts = Layouts()
        layouts.note_gradients(_tensors(args, kwargs))
        out, pattern = gate.record(func, args, kwargs)
        layouts.note_outputs(out)
        self._tape.append((name_of(func), pattern, layouts))
        return out

    def _replay(self, gate, func, args, kwargs) -> Any:
        pattern, layouts = self._recorded(func)
        layouts.lay_out_gradients(_tensors(args, kwargs))
        return layouts.lay_out_outputs(gate.replay(pattern, func, args, kwargs))

    def _note(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """Note in which precision the recorded evaluation computes, and where it draws from."""
        self.called.add(name)
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and generator not in self.generators:
            self.generators[generator] = generator.get_state()
        if self.autocast_dtype is None and _torch.is_any_autocast_enabled():
            kind = args[0].device.type if args and torch.is_tensor(args[0]) else None
            if kind and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                self.autocast_dtype = torch.get_autocast_dtype(kind)

    def _backward(
        self, tensors, grad_tensors=None, retain_graph=None, create_graph=False, inputs=None,
        gradient=None,
    ):  # fmt: skip
        """Run the backward pass with the gates active.

        Activation checkpointing runs parts of the forward again within backward. A mode is off
        inside its own handler, and torch.autograd.backward would call the handler again: only the
        engine below it can be called with the mode on.
        """
        tensors = (tensors,) if torch.is_tensor(tensors) else tuple(tensors)
        if gradient is None and grad_tensors is None and any(t.numel() != 1 for t in tensors):
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        grads = gradient if gradient is not None else grad_tensors
        grads = (grads,) if torch.is_tensor(grads) or grads is None else tuple(grads)
        if len(grads) < len(tensors):
            grads = grads * len(tensors)
        grads = tuple(
            torch.ones_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)
        )
        inputs = (inputs,) if torch.is_tensor(inputs) else tuple(inputs or ())
        is_own = not _torch.in_backward() and self._is_own_pass(tensors, inputs)
        if is_own:
            if self.backward_scale is None:
                self.backward_scale = 1.0
            self.losses += [(t.detach() * g).sum() for t, g in zip(tensors, grads, strict=True)]
            if self.backward_scale != 1:
                grads = tuple(g * self.backward_scale for g in grads)
        retain_graph = create_graph if retain_graph is None else retain_graph
        with self:
            _torch.run_backward(tensors, grads, retain_graph, create_graph, inputs)

    def _is_own_pass(self, tensors: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> bool:
        """Whether a backward pass is for the parameters, and not a training within the closure."""
        if self._next is None:
            with _torch.below_torch_functions():
                wanted = {t: None for t in inputs if t.is_leaf}
                leaves = wanted if inputs else leaves_below(tensors)
            self.leaves |= leaves
            self._own_passes.append(any(p in self.params for p in leaves))
        self._passes += 1
        # More passes than recorded are another computation, which the gates or the check say.
        return self._passes > len(self._own_passes) or self._own_passes[self._passes - 1]

    def _recorded(self, func: Callable) -> tuple[Any, Layouts]:
        if self._next >= len(self._tape):
            raise not_repeatable(f"more than {len(self._tape)} gates, the first is {name_of(func)}")
        name, pattern, layouts = self._tape[self._next]
        if name != name_of(func):
            raise not_repeatable(f"{name_of(func)} where there was {name}")
        self._next += 1
        return pattern, layouts


def _tensors(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    return [a for a in (*args, *kwargs.values()) if torch.is_tensor(a)]


def _freezes(gate: Any, tensors: list[Tensor]) -> bool:
    """Whether a gated function has something to freeze in these arguments."""
    if not tensors:
        return False
    if isinstance(gate, Detached):
        # Checkpointing detaches what it runs again: those values do move. And what has no gradient
        # is no concern of the loss: trainers' logging comes and goes.
        # And what a custom Function computes by itself has the derivative that it comes with.
        is_constant = requires_grad(tensors[0]) and not _torch.in_backward()
        return is_constant and not _torch.in_function_forward()
    # Integers, as lengths and positions, do not move with the parameters, or are frozen as what
    # came of a comparison. Complex numbers have no order: their abs and sgn are smooth.
    return any(t.is_floating_point() for t in tensors) and not tensors[0].is_complex()
