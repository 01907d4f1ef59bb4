"""What the curvature statistics cost: `python -m experiments.benchmarks.statistics [--batch 128]`.

Two copies of ResNet-20 on one batch of random images take steps in turn, one of them watched by
`CurvatureStatistics`, so that load on the machine falls on both; printed are the ratio of the
medians of their times, and the time inside of the hook as a share of the watched step. The clock
counts the process's own CPU time: on a busy machine the wall's says little about 1 %.
"""

import argparse
import time
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from adahessian import AdaHessian, CurvatureStatistics
from adahessian.spectrum import layers
from experiments.models.resnet_cifar import ResNetCifar


def make(watch: bool, curvature: str) -> tuple[nn.Module, AdaHessian, list[float]]:
    """A model, its optimizer, and the seconds that each call of the statistics takes."""
    torch.manual_seed(0)
    model, seconds = ResNetCifar(20, 10), []
    optimizer = AdaHessian(model.parameters(), lr=0.01, curvature=curvature)
    statistics = CurvatureStatistics(layers(model))

    def timed(*arguments: Any) -> None:
        start = time.process_time()
        statistics(*arguments)
        seconds.append(time.process_time() - start)

    if watch:
        optimizer.register_curvature_hook(timed)
    return model, optimizer, seconds


def step(model: nn.Module, optimizer: AdaHessian, images: torch.Tensor, labels: torch.Tensor):
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    start = time.process_time()
    optimizer.step(closure)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--steps", type=int, default=20, help="of each, at least 2")
    arguments = parser.parse_args()
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(10, (arguments.batch,))
    print(
        f"ResNet-20, batch {arguments.batch}, {arguments.size} x {arguments.size}; torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s), n = {arguments.steps}"
    )
    for curvature in ("double_backward", "finite_difference"):
        plain, watched = make(False, curvature), make(True, curvature)
        times = [
            [step(model, optimizer, images, labels) for model, optimizer, _ in (plain, watched)]
            for _ in range(arguments.steps + 2)  # two to warm up
        ][2:]
        without, with_ = (median(column) for column in zip(*times, strict=True))
        low, _, high = quantiles((with_ / without for without, with_ in times), n=4)
        inside = median(watched[2])
        print(
            f"{curvature:18s} {without:.3f} s without, {with_:.3f} s with: ratio "
            f"{with_ / without:.4f} (middle half of the pairs {low:.4f} to {high:.4f}); inside the "
            f"statistics {1e3 * inside:.2f} ms, {100 * inside / with_:.2f} % of the step",
            flush=True,
        )


if __name__ == "__main__":
    main()
