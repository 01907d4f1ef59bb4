"""A run's spectral density beside curvlinops'.

`python -m experiments.benchmarks.density RUN_DIR PNG`.

At initialization and at the checkpoint, over the first batch of the first epoch, in training mode:
the same number of Lanczos steps and random vectors for both. Printed are the outermost nodes, and
how far the two densities are from each other (half the integral of the absolute difference: 0 for
equal ones, 1 for ones apart), beside how far our own ones from different random vectors are.

Needs curvlinops-for-pytorch beside the harness.
"""

import argparse
import time
import warnings
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adahessian import spectrum
from experiments.plots.canvas import panels, save
from experiments.spectrum import Settings
from experiments.tasks.task import Task
from experiments.training.loop import _model_seed
from experiments.training.restore import name_of, restore


class WrittenOut(nn.Module):
    """Batch normalization in training mode, by elementary operations.

    curvlinops takes derivatives by torch.func, which cannot pass an update of running statistics,
    and whose forward derivative of torch's batch normalization is off: without this, its products
    here differ by 0.5 to 3 % from ours, which agree with differences of gradients in float64.
    """

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean((0, 2, 3), keepdim=True)
        scale = (centered.square().mean((0, 2, 3), keepdim=True) + self.eps).rsqrt()
        return centered * scale * self.weight[:, None, None] + self.bias[:, None, None]


def ours(task: Task, model: nn.Module, batch: Any) -> spectrum.Hessian:
    return spectrum.Hessian(lambda: task.loss(model, batch)[0], model)


def theirs(model: nn.Module, batch: Any) -> Any:
    from curvlinops import HessianLinearOperator

    model = deepcopy(model)
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.BatchNorm2d):
                setattr(parent, name, WrittenOut(module))
    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(batch.inputs, batch.labels)],
        check_deterministic=False,
    )  # fmt: skip


def their_quadrature(operator: Any, steps: int, repeats: int) -> spectrum.Quadrature:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    pairs = [fast_lanczos(operator, steps) for _ in range(repeats)]
    return spectrum.Quadrature(
        torch.stack([values for values, _ in pairs]).double(),
        torch.stack([vectors[0] ** 2 for _, vectors in pairs]).double(),
    )


def distance(one: spectrum.Quadrature, other: spectrum.Quadrature, width: float) -> float:
    """Half the integral of the absolute difference of two densities that are smoothed alike."""
    low = min(float(q.nodes.min()) for q in (one, other)) - 6 * width
    high = max(float(q.nodes.max()) for q in (one, other)) + 6 * width
    grid = torch.linspace(low, high, 20_000, dtype=torch.float64)
    difference = spread(grid, one, width) - spread(grid, other, width)
    return 0.5 * float(torch.trapezoid(difference.abs(), grid))


def spread(grid: Tensor, quadrature: spectrum.Quadrature, width: float) -> Tensor:
    """The density on a given grid, which two of them can share."""
    density = torch.zeros_like(grid)
    for node, weight in zip(quadrature.nodes.flatten(), quadrature.weights.flatten(), strict=True):
        density += weight * torch.exp(-0.5 * ((grid - node) / width) ** 2)
    return density / (len(quadrature.nodes) * width * (2 * torch.pi) ** 0.5)


def row(quadrature: spectrum.Quadrature, repeat: int) -> spectrum.Quadrature:
    return spectrum.Quadrature(*(part[repeat : repeat + 1] for part in quadrature))


def compare(name: str, mine: spectrum.Quadrature, other: spectrum.Quadrature) -> None:
    for label, found in (("ours", mine), ("curvlinops", other)):
        nodes = found.nodes
        print(
            f"{name}: {label:10s} largest nodes {nodes.max(1).values.tolist()}, smallest "
            f"{nodes.min(1).values.tolist()}, mean {(found.nodes * found.weights).sum(1).tolist()}"
        )
    width = float(mine.nodes.max() - mine.nodes.min()) / 100
    own = [
        distance(row(mine, i), row(mine, j), width)
        for i, j in combinations(range(len(mine.nodes)), 2)
    ]
    print(f"{name}: distance of the densities {distance(mine, other, width):.4f}; of our own ones "
          f"from single vectors {[round(value, 4) for value in own]}", flush=True)  # fmt: skip


def draw(found: dict[str, tuple], num_params: int, title: str, path: Path) -> None:
    figure, all_axes = panels(len(found), (11, 4))
    for axes, (name, (mine, other)) in zip(all_axes, found.items(), strict=True):
        low, high = float(mine.nodes.min()), float(mine.nodes.max())
        width = (high - low) / 100
        grid = torch.linspace(low - 6 * width, high + 6 * width, 2000, dtype=torch.float64)
        axes.semilogy(grid, spread(grid, mine, width), label="adahessian.spectrum", linewidth=1.6)
        axes.semilogy(grid, spread(grid, other, width), "--", label="curvlinops", linewidth=1.2)
        # A single eigenvalue's bump: two decades below it is nothing.
        axes.set_ylim(0.01 / (num_params * 2.5 * width))
        axes.set(xlabel="eigenvalue", ylabel="density", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize=10)
    save(figure, path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--images", type=int, default=128, help="the first ones of the batch")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of curvlinops' use of torch
    task, trained, epoch = restore(arguments.run, Settings(device="cpu"))
    first = next(task.training_batches(0, 0))
    batch = replace(first, inputs=first.inputs[: arguments.images],
                    labels=first.labels[: arguments.images])  # fmt: skip
    torch.manual_seed(_model_seed(task.config.seed))
    models = {"at initialization": task.build_model(), f"after epoch {epoch}": trained}
    found = {}
    for name, model in models.items():
        start = time.perf_counter()
        torch.manual_seed(0)  # of curvlinops' random vectors
        hessian, operator = ours(task, model.train(), batch), theirs(model, batch)
        vector = torch.randn(hessian.size)
        product, other = hessian(vector), operator @ vector
        error = float((product - other).norm() / other.norm())
        print(f"{name}: relative difference of a product {error:.1e}", flush=True)
        found[name] = (
            spectrum.lanczos_quadrature(hessian, arguments.steps, arguments.repeats),
            their_quadrature(operator, arguments.steps, arguments.repeats),
        )
        compare(name, *found[name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    num_params = sum(p.numel() for p in trained.parameters())
    title = (
        f"{name_of(arguments.run)}: {num_params} parameters, {len(batch.labels)} images, "
        f"{arguments.steps} Lanczos steps from {arguments.repeats} random vectors each"
    )
    draw(found, num_params, title, arguments.picture)


if __name__ == "__main__":
    main()
