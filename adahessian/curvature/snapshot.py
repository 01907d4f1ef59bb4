"""What an evaluation changes beside gradients: what modules keep, and random states."""

import gc
import random
import sys
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adahessian import _torch
from adahessian.curvature.attributes import Attributes, Places, may_change, with_size_of
from adahessian.curvature.constants import Storages


class RandomStates(NamedTuple):
    """The states of all generators that a model may draw from without having one of its own.

    Attributes:
        torch: by device.
        python: of the module ``random``.
        numpy: of its global generator; None where numpy is not in use.
    """

    torch: dict[torch.device, Tensor]
    python: Any
    numpy: Any


def random_states(devices: Iterable[torch.device]) -> RandomStates:
    """Return the states of Python's and numpy's generators, and torch's: the CPU's and others."""
    states = {d: generator_state(d) for d in (torch.device("cpu"), *devices)}
    numpy = _numpy_random()
    return RandomStates(states, random.getstate(), None if numpy is None else numpy.get_state())


def set_random_states(states: RandomStates) -> None:
    """Go back to what :func:`random_states` returned."""
    for device, state in states.torch.items():
        set_generator_state(device, state)
    random.setstate(states.python)
    if states.numpy is not None:
        _numpy_random().set_state(states.numpy)


def generator_state(device: torch.device) -> Tensor:
    """Return the state of torch's generator of a device."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Go back to what :func:`generator_state` returned."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _numpy_random() -> Any:
    """Return numpy.random if somebody has imported it, as we have no need to."""
    return sys.modules.get("numpy.random")


class Snapshot:
    """Random states, and the buffers and attributes of modules, at one moment.

    Args:
        devices: whose random states belong to it, beside the CPU's.
        modules: those that are known; others join by :meth:`add` before they run.
        params: those that are optimized.
        places: which attributes are known to change; see :class:`Attributes`.

    Attributes:
        generators: the closure's own, with their states.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        modules: Iterable[nn.Module],
        params: Collection[Tensor],
        places: Places | None,
    ) -> None:
        self._random = random_states(devices)
        self.generators: dict[torch.Generator, Tensor] = {}
        self._attributes = Attributes(params, places)
        self._modules: dict[nn.Module, list[tuple[str, Tensor | None]]] = {}
        self._values: dict[Tensor, Tensor] = {}
        self._take(modules)

    @property
    def modules(self) -> Iterable[nn.Module]:
        return self._modules.keys()

    def add(self, module: nn.Module) -> bool:
        """Note a module's buffers; return False if they are noted already."""
        if module in self._modules:
            return False
        with _torch.below_torch_functions():  # it is no business of the gates
            self._take([module])
        return True

    def settle(self, written: Storages) -> Places:
        """Keep of attributes what has changed since, or was written to; return which they are."""
        return self._attributes.settle(written)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: the same buffers and attributes, with their values."""
        self._attributes.restore()
        for module, buffers in self._modules.items():
            for name, buffer in buffers:
                _torch.buffers(module)[name] = buffer
        # All of them: a kernel that writes to a buffer need not count up its version.
        for buffer, value in self._values.items():
            with_size_of(value, buffer)
        for buffers, values in _alike(self._values.items()):
            torch._foreach_copy_(buffers, values)
        set_random_states(self._random)
        for generator, state in self.generators.items():
            generator.set_state(state)

    @torch.no_grad()
    def _take(self, modules: Iterable[nn.Module]) -> None:
        taken: dict[Tensor, Tensor] = {}
        modules = list(modules)
        self._attributes.take(modules)
        for module in modules:
            self._modules[module] = list(_torch.buffers(module).items())
            found = (b for _, b in self._modules[module] if b is not None)
            new = (b for b in found if b not in self._values and may_change(b))
            taken |= {b: torch.empty_like(b) for b in new}
        # All at once: on a GPU a small network waits for launches, and for nothing else.
        for buffers, values in _alike(taken.items()):
            torch._foreach_copy_(values, buffers)
        self._values |= taken


def modules_around(params: Iterable[Tensor]) -> list[nn.Module]:
    """Return all modules of the models that have one of some parameters.

    A model's own ``forward`` need not be what a closure calls: it may be ``model.loss(...)``, or a
    trainer's ``training_step``. Then no hook shows it, its layers do not know it, and its buffers
    change all the same. So it is looked for among everything that Python's collector knows, which
    takes some hundredths of a second.
    """
    ours = {id(p) for p in params}
    found: dict[nn.Module, None] = {}
    # By type: isinstance asks a proxy for what it stands for, which may do anything.
    for module in [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]:
        below = [m for _, m in _torch.named_modules(module)]
        if any(id(p) in ours for m in below for p in _torch.parameters(m).values()):
            found |= dict.fromkeys(below)
    return list(found)


def _alike(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Return pairs of tensors as pairs of lists, one for each device and type."""
    kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for first, second in pairs:
        firsts, seconds = kinds.setdefault((first.device, first.dtype), ([], []))
        firsts.append(first)
        seconds.append(second)
    return kinds.values()
