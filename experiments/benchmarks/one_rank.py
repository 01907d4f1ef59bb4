"""What needs a process group, with one process: `python -m experiments.benchmarks.one_rank`.

NCCL on a GPU, gloo on a CPU. One process trains ResNet-20 alone, with `process_group=`, under
DistributedDataParallel and under fully_shard: parameters must be the same, and what the wrapping
costs without anybody to talk to is shown.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adahessian import AdaHessian
from experiments.benchmarks import step, zoo
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

CURVATURES = {"exact": "double_backward", "finite difference": "finite_difference"}


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """A group of one process, which talks through a file."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device == "cuda" else "gloo"
        more: dict[str, Any] = {}
        if device == "cuda":
            more["device_id"] = torch.device("cuda", 0)
        dist.init_process_group(
            backend, f"file://{folder}/store", rank=0, world_size=1, **more
        )  # fmt: skip
        try:
            yield
        finally:
            dist.destroy_process_group()


def _alone(model: nn.Module) -> nn.Module:
    return model


def _ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def _fsdp(model: nn.Module) -> nn.Module:
    device = next(model.parameters()).device.type
    return fully_shard(model, mesh=dist.init_device_mesh(device, (1,)))


# Double backward needs process_group=: the wrappers do not support it.
WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], str, bool]] = {
    "exact": (_alone, "exact", False),
    "exact, process_group": (_alone, "exact", True),
    "finite difference": (_alone, "finite difference", False),
    "finite difference, process_group": (_alone, "finite difference", True),
    "finite difference, DDP": (_ddp, "finite difference", False),
    "finite difference, fully_shard": (_fsdp, "finite difference", False),
}


def train(way: str, quick: bool, device: str, steps: int) -> tuple[list[float], list[Tensor]]:
    """Return the seconds of each step and the parameters after them."""
    wrap, curvature, grouped = WAYS[way]
    problem: zoo.Problem = step.problem("resnet20", quick, device)
    model = wrap(problem.model)
    optimizer = AdaHessian(
        model.parameters(), lr=0.01, curvature=CURVATURES[curvature],
        process_group=dist.group.WORLD if grouped else None,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss(model, problem.batches[0])
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        float(optimizer.step(closure))  # waits for the device
        seconds.append(time.perf_counter() - start)
    optimizer.check_replicas()
    full = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return seconds, [p.detach() for p in full]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """‖found − expected‖ / ‖expected‖ over all parameters."""
    apart = torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)]).norm()
    return float(apart / torch.stack([b.norm() for b in expected]).norm())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.one_rank", description=__doc__.splitlines()[0]
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose tables to replace")
    options = parser.parse_args(arguments)
    steps = 4 if options.quick else options.steps
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    rows, data = [], {}
    with process_group(options.device):
        for way, (_, curvature, _) in WAYS.items():
            seconds, params = train(way, options.quick, options.device, steps)
            if way == curvature:
                unit, expected = median(seconds[3:]), params
            own, apart = median(seconds[3:]), difference(params, expected)
            rows.append((way, f"{1000 * own:.1f}", f"{own / unit:.2f}", f"{apart:.1e}"))
            data[way] = {"seconds": seconds, "difference": apart}
    backend = "NCCL" if options.device == "cuda" else "gloo"
    note = (
        f"{backend}, one process, ResNet-20, float32 without TF32, deterministic kernels: median "
        f"time of n = {steps - 3} steps after three, one way after the other; its ratio to the "
        f"same curvature alone; the relative difference of all parameters after {steps} steps."
    )
    grid = Grid("Process groups of one", ("way", "ms", "x alone", "difference"), rows, note)
    publish("bench-one-rank", [grid], provenance(options.device), data, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
