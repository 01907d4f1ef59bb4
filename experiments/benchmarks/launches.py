"""What a step asks of a device: operations that torch dispatches and, on a GPU, its kernels.

A GPU that computes faster than Python can ask waits for the next launch. So there the number of
launches decides about small networks, and the time in kernels says what would be left without them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

LARGEST = 8  # kernels that are named
SYNCHRONIZING = ("cudaStreamSynchronize", "cudaEventSynchronize")


class _Operations(TorchDispatchMode):
    """Counts operations, but not those that compute nothing: views, and memory to be filled."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        memory = func._schema.name.removeprefix("aten::").startswith(("empty", "new_empty"))
        self.count += not (func.is_view or memory)
        return func(*args, **(kwargs or {}))


def launches(step: Callable[[], None], device: str) -> dict[str, Any]:
    """Count what one step launches.

    Args:
        step: takes the same kind of step at each call; it has been called before.
        device: where it computes.

    Returns:
        ``operations`` that torch dispatches; on a GPU also ``kernels``, ``copies`` (of memory, and
        fills), ``waits`` of the host for the device, ``kernel_ms`` in kernels, and of the
        ``largest`` kernels name, calls and milliseconds.
    """
    with _Operations() as operations:
        step()
    found: dict[str, Any] = {"operations": operations.count}
    return {**found, **_on_gpu(step)} if device == "cuda" else found


def _on_gpu(step: Callable[[], None]) -> dict[str, Any]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    counts, seconds, calls = Counter(), defaultdict(float), Counter()
    for event in recorded.profiler.kineto_results.events():
        name = event.name()
        if event.device_type() != torch.autograd.DeviceType.CUDA:
            counts["kernels"] += "LaunchKernel" in name
            counts["waits"] += name in SYNCHRONIZING
        elif name.startswith(("Memcpy", "Memset")):
            counts["copies"] += 1
        elif not name.startswith(("Optimizer.", "ProfilerStep")):  # spans, not kernels
            seconds[name] += event.duration_ns() / 1e9
            calls[name] += 1
    largest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:LARGEST]
    return {
        **{name: counts[name] for name in ("kernels", "copies", "waits")},
        "kernel_ms": 1000 * sum(seconds.values()),
        "largest": [(name[:100], calls[name], 1000 * seconds[name]) for name in largest],
    }
