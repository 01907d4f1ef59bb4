"""Which operation a failed check is likely due to.

The check (:mod:`adahessian.curvature.check`) compares gradients and losses at θ, θ + h·z and
θ − 2h·z. Here the same is done with each operation on the way:

- :class:`_Jumps`: v(θ + h·z) + ½ v(θ − 2h·z) − 3/2 v(θ) is of second order in h for every value
  and every gradient v that depends smoothly on θ. Where a value jumps, or at a kink a gradient, an
  element of it has the size of v itself. The first one in the order of the computation is the
  cause, what follows is its consequence.
- :class:`_Balance`: over the step, an operation's outputs change, times their gradients, by what
  its inputs change, times theirs: that is what a derivative is. Where the books do not balance, an
  operation's derivative is not its own, or an argument has moved of which autograd knows nothing.

Nothing here is needed for a product. If anything goes wrong, there is no diagnosis, that is all.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F

from adahessian.curvature.gates import Gates
from adahessian.curvature.trace import Key, Trace, made_by
from adahessian.dtypes import widest
from adahessian.replicas import local

_SUMS = 1024  # that stand for a tensor
_ROUNDING = 64.0  # of values that many operations have led to, in units of eps
# What is smooth grows by the square of the step; rounding changes at once.
_LONGER, _GROWS = 8.0, 24.0
# On both sides of the first step: that one of them crosses another kink must not look like noise.
_NEARLY, _NOISE = (1 - 2.0**-6, 1 + 2.0**-6), 4.0
_SHARE = 0.1  # of what is unexplained, that makes an operation worth a name
_MOST_BYTES = 2**30  # of values that are kept at a time
_MOST_PARTS = 8  # in which an evaluation is looked at

Evaluate = Callable[[Trace, float], None]


def likely_cause(
    evaluate: Evaluate, gates: Gates, h: float, *, unexplained: float | None, eps: float
) -> str:
    """Return which operation a failed check is likely due to, and where it is; "" if none is.

    Args:
        evaluate: evaluates the closure at θ + h·z, for a given h, seen by a trace.
        gates: that replay its pieces.
        h: of the check.
        unexplained: how much of the loss's change from θ − 2h·z to θ + h·z its gradient does not
            explain; None if the gradient jumps.
        eps: of the precision in which the gradient is computed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.distributed.get_world_size() > 1:
            return ""  # one process that fails here would leave the others waiting
    try:
        traces = []
        steps = (1, -2, _LONGER, -2 * _LONGER, *_NEARLY)
        for step in (0.0, *(factor * h for factor in steps)):
            traces.append(_Jumps(gates, places=not traces))
            evaluate(traces[-1], step)
            if step:  # one graph is enough
                traces[-1].operations.clear()
                traces[-1].values.clear()
        found = _jump(traces, eps)
        if not found and unexplained is not None:
            found = _imbalance(evaluate, gates, h, traces[0], unexplained)
        return found
    except Exception:  # of whatever kind, for it is the user's code that runs: see above
        return ""


class _Reading(NamedTuple):
    """A value or a gradient.

    Attributes:
        shape: its own.
        sums: so many that an element cannot change unseen, and few enough to be kept.
        size: the root mean square of what is not zero.
    """

    shape: torch.Size
    sums: Tensor
    size: Tensor


class _Jumps(Trace):
    """Keeps what tells of an evaluation's values and gradients whether they jump.

    Attributes:
        readings: by what was read, and for which time, in the order of the computation.
        sizes: of the values, in bytes.
    """

    def __init__(self, gates: Gates, *, places: bool) -> None:
        super().__init__(gates, places=places)
        self.readings: dict[tuple[str, Key, int], _Reading] = {}
        self._times: Counter[tuple[str, Key]] = Counter()
        self.sizes: dict[Key, int] = {}
        self._differentiated: dict[Node, None] = {}

    def read_value(self, key: Key, value: Tensor) -> None:
        self.sizes[key] = value.numel() * value.element_size()
        self._keep("value", key, value)

    def read_constant(self, key: Key, value: Tensor | float) -> None:
        if not isinstance(value, Tensor):
            value = torch.tensor([float(value)], dtype=torch.float64, device="cpu")
        self._keep("constant", key, value)

    def read_gradients(self, node, inputs, outputs) -> None:
        self._differentiated[node] = None
        for edge, grad in zip(made_by(node, len(outputs)), outputs, strict=False):
            if grad is not None and edge in self.values:
                self._keep("gradient", self.values[edge], grad)

    def _keep(self, kind: str, key: Key, value: Tensor) -> None:
        value = local(value)
        if not value.numel() or value.layout != torch.strided or value.is_quantized:
            return
        flat = (torch.view_as_real(value) if value.is_complex() else value).flatten()
        wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
        flat = flat.to(wide).nan_to_num(0.0, 0.0, 0.0)
        width = min(_SUMS, flat.numel())
        sums = F.pad(flat, (0, -flat.numel() % width)).view(-1, width).sum(0)
        size = flat.norm() / flat.count_nonzero().clamp(min=1).sqrt()
        self._times[kind, key] += 1  # a leaf has a gradient in each backward pass
        reading = _Reading(value.shape, sums, size)
        self.readings[kind, key, self._times[kind, key]] = reading

    def causes(self, kind: str, key: Key) -> str:
        """Return the operations that a reading is the result of."""
        if kind == "constant":
            return self.call(key[0])
        (edge,) = (edge for edge, found in self.values.items() if found == key)
        if kind == "value":
            nodes = [edge[0]] if isinstance(edge[0], Node) else []
        else:  # no gradient comes from what has only taken a value; checkpoints of torch 2.11 do so
            taken = {n: set(self.operations[n].taken) for n in self._differentiated}
            nodes = [n for n, edges in taken.items() if edge in edges]  # in lists == is of tensors
        return " or ".join(dict.fromkeys(self.name(self.operations[n]) for n in nodes))


def _jump(traces: Sequence[_Jumps], eps: float) -> str:
    """Return the first operation whose result jumps, or which one evaluation has and another not.

    Args:
        traces: at θ, over the steps of the check, over longer ones, and beside the first step.
        eps: of the precision.
    """
    now = traces[0]
    paths = list(zip(*([call.name for call in t.calls] for t in traces), strict=False))
    for at, names in enumerate(paths):
        if len(set(names)) > 1:
            return f"the closure takes another path at {now.call(at)}"
    for kind, key, time in now.readings:
        row = [r for t in traces if (r := t.readings.get((kind, key, time))) is not None]
        if len(row) < len(traces):
            continue
        first, after, before, longer_after, longer_before, *nearly = row
        if len({r.shape for r in row}) > 1:
            return now.causes(kind, key)
        gap, longer = _gap(first, after, before), _gap(first, longer_after, longer_before)
        size = max(float(r.size) for r in (first, after, before))
        change = float(gap.norm())
        noise = min(float((after.sums - r.sums).norm()) for r in nearly)
        if change <= max(_ROUNDING * eps * size, _NOISE * noise):
            continue
        at = gap.argmax()
        if longer[at] < _GROWS * gap[at]:  # further on, there may be other jumps
            return now.causes(kind, key)
    return ""


def _gap(now: _Reading, after: _Reading, before: _Reading) -> Tensor:
    return (after.sums + before.sums / 2 - 1.5 * now.sums).abs()


class _Books(NamedTuple):
    """Sums of gains: how a value changes, times its gradient.

    Attributes:
        operations: by operation (see :func:`_numbers`), its outputs' gains without its inputs'.
        made, taken: by value, what the derivative of the operation that has made it was given, and
            what the derivatives of those that have taken it have returned.
    """

    operations: dict[int, float]
    made: dict[Key, float]
    taken: dict[Key, float]


class _Balance(Trace):
    """Keeps the gains of one evaluation.

    Args:
        gates: that are active.
        take: is given the values.
        changes: of some of them.
    """

    def __init__(
        self, gates: Gates, take: Callable[[Key, Tensor], None], changes: dict[Key, Tensor]
    ) -> None:
        super().__init__(gates)
        self._take, self._changes = take, changes
        self._gains: list[tuple[Node, Key, bool, float]] = []

    def read_value(self, key: Key, value: Tensor) -> None:
        self._take(key, value)

    def read_gradients(self, node, inputs, outputs) -> None:
        if not self.is_whole:  # what is left out would look like a wrong derivative
            return
        made = zip(made_by(node, len(outputs)), outputs, strict=False)
        taken = zip(self.operations[node].taken, inputs, strict=False)
        for pairs, is_made in ((made, True), (taken, False)):
            for edge, grad in pairs:
                key = self.values.get(edge)
                if grad is not None and key in self._changes:
                    self._gains.append((node, key, is_made, _dot(grad, self._changes[key])))

    def enter(self, books: _Books) -> None:
        """Write the gains to the books."""
        numbers = _numbers(self)
        for node, key, is_made, gain in self._gains:
            (books.made if is_made else books.taken)[key] += gain
            if node in numbers:
                books.operations[numbers[node]] += gain if is_made else -gain


def _imbalance(evaluate: Evaluate, gates: Gates, h: float, found: _Jumps, least: float) -> str:
    """Return the operations whose derivative does not account for how their values change."""
    parts = _parts(found.sizes)
    if len(parts) > _MOST_PARTS:
        return ""
    books = _Books(defaultdict(float), defaultdict(float), defaultdict(float))
    for part in parts:
        changes: dict[Key, Tensor] = {}

        def keep(key: Key, value: Tensor, part=part, changes=changes) -> None:
            if key in part:
                changes[key] = value.clone()

        def subtract(key: Key, value: Tensor, part=part, changes=changes) -> None:
            if key in part:
                changes[key] = value - changes[key]

        evaluate(_Balance(gates, keep, {}), -2 * h)
        # By the trapezoidal rule: with the gradients of both ends.
        for take, step in ((subtract, h), (_nothing, -2 * h)):
            balance = _Balance(gates, take, changes)
            evaluate(balance, step)
            balance.enter(books)
    named = {at: found.operations[node] for node, at in reversed(_numbers(found).items())}
    gaps: dict[str, float] = defaultdict(float)
    for at, gain in books.operations.items():
        gaps[found.name(named[at])] += gain
    makers = {key: edge[0] for edge, key in found.values.items()}
    for key in books.made.keys() & books.taken.keys():  # they differ where a hook has changed it
        maker = makers[key]
        known = isinstance(maker, Node)
        name = found.name(found.operations[maker]) if known else "a parameter"
        gaps[f"a hook on the gradient of {name}"] += books.taken[key] - books.made[key]
    most = max(map(abs, gaps.values()), default=0.0)
    # Each gain was taken at both ends.
    if most / 2 <= _SHARE * least:
        return ""
    causes = [name for name, gap in gaps.items() if abs(gap) >= most / 2]
    return causes[0] + (f" and {len(causes) - 1} more" if len(causes) > 1 else "")


def _nothing(key: Key, value: Tensor) -> None:
    """Take no value."""


def _parts(sizes: Mapping[Key, int]) -> list[set[Key]]:
    """Return sets of values that together are not too large."""
    parts: list[set[Key]] = [set()]
    total = 0
    for key, size in sizes.items():
        if parts[-1] and total + size > _MOST_BYTES:
            parts.append(set())
            total = 0
        parts[-1].add(key)
        total += size
    return parts


def _numbers(trace: Trace) -> dict[Node, int]:
    """Return a number for what autograd has recorded: of the call; below zero of a user's Function.

    Functions that hand each other values that nobody has seen are one.
    """
    numbers: dict[Node, int] = {}
    own = 0
    for node, operation in trace.operations.items():
        if not operation.is_leaf:
            at = trace.call_of(operation)
            own += at is None
            numbers[node] = -own if at is None else at
    one = {number: number for number in numbers.values()}
    for node, number in numbers.items():
        for edge in trace.operations[node].taken:
            if edge not in trace.values and edge[0] in numbers:
                joined, into = one[numbers[edge[0]]], one[number]
                one = {a: into if b == joined else b for a, b in one.items()}
    return {node: one[number] for node, number in numbers.items()}


def _dot(grad: Tensor, change: Tensor) -> float:
    wide = widest(grad.device)
    pair = [local(t) for t in (grad, change)]
    if change.is_complex():
        pair = [torch.view_as_real(t.resolve_conj()) for t in pair]
    return float(torch.dot(*(t.to(wide).flatten() for t in pair)))
