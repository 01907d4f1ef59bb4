"""What a model keeps elsewhere than in buffers: attributes, and parameters that nobody optimizes.

A closure may move a momentum encoder, count its calls to anneal a weight, or add to a list of
features. Its second evaluation has to find them as the first did, and to leave them as that left
them. Which they are is found by comparison, once.
"""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adahessian import _torch
from adahessian.curvature.constants import Storages

Places = dict[nn.Module, set[str]]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
_TENSORS = " and the tensors within"  # of an attribute's name
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


class _Entry(NamedTuple):
    """One attribute: the object, and what to fill it with again, where that can change.

    Or what lies within one: whether it still does, its container's entry knows.
    """

    module: nn.Module
    name: str
    value: Any
    contents: Any
    is_within: bool

    def now(self) -> Any:
        if self.is_within or isinstance(self.value, nn.Parameter):
            return self.value
        return vars(self.module).get(self.name)

    def has_changed(self, written: Storages) -> bool:
        now, value = self.now(), self.value
        if isinstance(value, _PLAIN):
            return type(now) is not type(value) or now != value
        if now is not value:
            return True
        if isinstance(value, Tensor):
            if self.contents is None:
                return False
            # A slow copy may happen to have moved by nothing yet.
            return value in written or not torch.equal(value, self.contents)
        if type(value) not in _CONTAINERS:
            return False  # an object of its own kind; only whether it is another one is seen
        before, after = _elements(self.contents), _elements(value)
        return len(before) != len(after) or any(
            a is not b for a, b in zip(before, after, strict=True)
        )

    def restore(self) -> None:
        if not self.is_within and not isinstance(self.value, nn.Parameter):
            vars(self.module)[self.name] = self.value
        if self.contents is None:
            return
        if isinstance(self.value, Tensor):
            with_size_of(self.contents, self.value).copy_(self.contents)
        else:
            self.value.clear()
            add = self.value.extend if isinstance(self.value, list | deque) else self.value.update
            add(self.contents)


class Attributes:
    """The values of modules' attributes at one moment.

    Args:
        ours: the parameters that are optimized, which are somebody else's business.
        places: the attributes that are known to change; None to look at all, of tensors as many
            as fit into twice the parameters' size.
    """

    def __init__(self, ours: Collection[Tensor], places: Places | None) -> None:
        self._ours, self._places = ours, places
        self._entries: list[_Entry] = []
        self._room = 2 * sum(p.numel() for p in ours) + 2**20  # numbers

    @torch.no_grad()
    def take(self, modules: Iterable[nn.Module]) -> None:
        """Add the attributes of further modules."""
        for module in modules:
            names = None if self._places is None else self._places.get(module, ())
            for name, value in _candidates(module) if names is None or names else ():
                if (names is None or name in names) and not self._is_ours(value):
                    self._entries.append(_Entry(module, name, value, self._copy(value), False))
                    # Tensors of a long queue stay as they are, if none was written to.
                    tensors_too = names is None or name + _TENSORS in names
                    for part in _parts(value, {id(value)}):
                        if not isinstance(part, Tensor) or tensors_too and not self._is_ours(part):
                            entry = _Entry(module, name, part, self._copy(part), True)
                            self._entries.append(entry)

    def settle(self, written: Storages) -> Places:
        """Keep those that have changed since, or were written to; return which they are."""
        self._entries = [entry for entry in self._entries if entry.has_changed(written)]
        self._places = {}
        for entry in self._entries:
            names = self._places.setdefault(entry.module, set())
            names.add(entry.name)
            if entry.is_within and isinstance(entry.value, Tensor):
                names.add(entry.name + _TENSORS)
        return self._places

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back, without looking which have changed: a device is not waited for."""
        for entry in self._entries:
            entry.restore()

    def _is_ours(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.requires_grad and value in self._ours

    def _copy(self, value: Any) -> Any:
        if type(value) in _CONTAINERS:
            return value.copy()
        if type(value) not in (Tensor, nn.Parameter):
            return None
        if value.grad_fn is not None or not may_change(value):
            return None
        if self._places is None:
            if value.numel() > self._room:
                return None
            self._room -= value.numel()
        return value.detach().clone()


def may_change(tensor: Tensor) -> bool:
    """Whether torch lets anybody write to a tensor.

    Not if it is expanded, of inference mode, or zeros without memory.
    """
    if tensor.is_inference() or tensor.is_meta or _torch.is_without_memory(tensor):
        return False
    if tensor.layout is not torch.strided:
        return True
    return not any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def with_size_of(before: Tensor, now: Tensor) -> Tensor:
    """Give a tensor the size that it had before, as an observer's that a first batch has given one.

    Returns:
        The tensor.
    """
    return now if now.shape == before.shape else now.resize_(before.shape)


def _candidates(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, p in _torch.parameters(module).items():
        if type(p) is nn.Parameter:
            yield name, p
    if type(module).__module__.partition(".")[0] == "torch":  # its layers have buffers
        return
    for name, value in vars(module).items():
        if name not in _OF_EVERY_MODULE:
            yield name, value


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the containers and tensors within a container or a dataclass, each once."""
    parts: list[Any] = []
    if type(value) in _CONTAINERS:
        parts = list(value.values() if isinstance(value, dict) else value)
    elif is_dataclass(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        parts = [vars(value)]
    for part in parts:
        if not isinstance(part, _PLAIN) and id(part) not in seen:
            seen.add(id(part))
            if type(part) in _CONTAINERS or isinstance(part, Tensor):
                yield part
            yield from _parts(part, seen)


def _elements(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [part for item in container.items() for part in item]
    return list(container)
