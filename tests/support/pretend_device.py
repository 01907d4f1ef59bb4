"""A device that is none: its tensors lie on the host, and whatever would wait for it is counted.

A tensor of it is a wrapper around one on the CPU, so that code takes the ways that it takes on a
GPU. `in_use()` registers it with torch, for the whole process: tests `run` a process of their own.
"""

import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

NAME = "pretend"
DEVICE = f"{NAME}:0"
# What hands a value of the device to the host. Shapes that depend on values do, too.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.item.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_consecutive.default,
}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
has_float64 = True  # Apple's GPUs have none
waits: Counter = Counter()  # by the operation and the line that asked for it


class Pretended(torch.Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(),
            dtype=host.dtype, layout=host.layout, device=DEVICE, requires_grad=False,
        )  # fmt: skip

    def __init__(self, host):
        self.host = host

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        note("tolist")
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), named=None):
        return dispatch(operation, arguments, named or {})


class Factories(TorchDispatchMode):
    """Makes the tensors that are asked for on the device."""

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        return dispatch(operation, arguments, named or {})


def is_there(value):
    return isinstance(value, Pretended)


def dispatch(operation, arguments, named):
    asked = named.get("device")
    goes_there = asked is not None and torch.device(asked).type == NAME
    was_there = tree_any(is_there, (arguments, named))
    if not was_there and not goes_there:
        return operation(*arguments, **named)
    if operation in READS and was_there:
        note(operation)
    leaves = asked is not None and not goes_there
    if operation in COPIES:
        destination = arguments[0] if operation is torch.ops.aten.copy_.default else None
        source = arguments[1] if destination is not None else arguments[0]
        if destination is not None:
            leaves = is_there(source) and not is_there(destination)
            arrives = is_there(destination) and not is_there(source)
        else:
            leaves = leaves and is_there(source)
            arrives = goes_there and not is_there(source)
        if (leaves or arrives) and not non_blocking(operation, arguments, named):
            note(operation)
    given = (arguments, named)
    host_arguments, host_named = tree_map(lambda v: v.host if is_there(v) else v, given)
    if goes_there:
        host_named["device"] = torch.device("cpu")
    found = operation(*host_arguments, **host_named)
    # What was changed in place, or written to, is what was given.
    changed = {id(v.host): v for v in tree_leaves(given) if is_there(v)}

    def wrap(value):
        if not isinstance(value, torch.Tensor) or (leaves and operation in COPIES):
            return value
        if value.dtype == torch.float64 and not has_float64:
            raise TypeError(f"the device has no float64: {operation}")
        return changed[id(value)] if id(value) in changed else Pretended(value)

    return tree_map(wrap, found)


def non_blocking(operation, arguments, named):
    if operation is torch.ops.aten.copy_.default and len(arguments) > 2:
        return arguments[2]
    return named.get("non_blocking", False)


def note(operation):
    """Count a wait, by the innermost line that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_stack()):
        if "site-packages" not in frame.filename and frame.filename != __file__:
            waits[f"{operation} {Path(frame.filename).name}:{frame.lineno} {frame.name}"] += 1
            return


def tensor(data, *, device=None, _make=torch.tensor, **named):
    """`torch.tensor`, which copies from the host without asking any mode."""
    if device is None or torch.device(device).type != NAME:
        return _make(data, device=device, **named)
    note("torch.tensor")
    return Pretended(_make(data, **named))


class Event:
    """A moment in the device's queue; the device is up to a step behind (`step_done`)."""

    steps = 0

    def __init__(self, *_, **__):
        self.step = 0

    def record(self, *_):
        self.step = Event.steps

    def query(self):
        return self.step < Event.steps

    def synchronize(self):
        if self.step >= Event.steps - 1:
            note("Event.synchronize")

    def elapsed_time(self, other):
        return 1.0


class Module:
    """What `torch.get_device_module` finds."""

    @staticmethod
    def get_rng_state(device=None):
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state, device=None):
        torch.set_rng_state(state)

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def device_count():
        return 1

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork():
        return False

    @staticmethod
    def manual_seed_all(seed):
        pass


def step_done():
    """The host has sent the operations of a step."""
    Event.steps += 1


@contextmanager
def in_use():
    """Register the device with torch, for good, and let it make tensors."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    torch.Event, torch.tensor = Event, tensor
    torch.accelerator.synchronize = lambda *_: waits.update(["synchronize"])
    with Factories():
        yield torch.device(DEVICE)


def run(module):
    """What a module that uses the device prints as JSON; skips where torch cannot have it."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot register a device that is written in Python")
    tests = Path(__file__).parents[1]
    environment = {"PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", module],
        capture_output=True, text=True, cwd=tests.parent, env={**os.environ, **environment},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout)


def to_device(model):
    """Move a model's parameters and buffers, in place."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(Pretended(p.data), p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Pretended(buffer)
    return model
