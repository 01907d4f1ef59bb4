"""The pictures: each function takes what was computed and the file to write."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.landscapes import illustrations, quadratics
from experiments.landscapes.functions import Landscape, quadratic, ripples
from experiments.plots.canvas import pyplot, save

DPI = 100


def _values(function: Any, limits: tuple[float, ...], number: int = 300) -> tuple[Tensor, ...]:
    """A function on a grid: x, y and values, as contour plots take them."""
    x = torch.linspace(limits[0], limits[1], number, dtype=torch.float64)
    y = torch.linspace(limits[2], limits[3], number, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return x, y, function(grid)


def draw_bowl(paths: dict[str, Tensor], path: Path) -> None:
    """Fig. 1."""
    figure, axes = pyplot().subplots(figsize=(5.5, 5), layout="constrained")
    x, y, values = _values(quadratic(illustrations.BOWL), (-3, 9, -3, 9))
    axes.contour(x, y, values, levels=[1, 4, 16, 50, 120, 250, 450, 700], colors="0.8")
    for (label, points), marker in zip(paths.items(), ("o", "s"), strict=True):
        steps = len(points) - 1
        text = f"{label}, {steps} step{'s' if steps > 1 else ''}"
        axes.plot(points[:, 0], points[:, 1], f"{marker}-", markersize=4, label=text)
    axes.plot(0, 0, "k*", markersize=13, label="minimum")
    axes.set(xlabel="x", ylabel="y", title="Fig. 1: x² + 10 y² from (8, 8)", aspect="equal")
    axes.legend()
    save(figure, path, DPI)


def draw_ripples(paths: dict[str, Tensor], path: Path) -> None:
    """Fig. 3: on the curve, and step by step beside the points of the paper."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    x = torch.linspace(-1.6, 3.1, 2000, dtype=torch.float64)
    left.plot(x, ripples(x[:, None]), color="0.75", linewidth=1)
    published = torch.tensor(illustrations.PUBLISHED, dtype=torch.float64)
    for (label, points), marker in zip(paths.items(), ("o", "s", "^"), strict=True):
        shown = points[: len(published)]
        left.plot(shown, ripples(shown[:, None]), marker, markersize=5)
        right.plot(points[:31], f"{marker}-", markersize=3, linewidth=1, label=label)
    right.plot(published, "kx", markersize=9, label="the paper's points, with the average")
    rest = f"where the paper's rests without, {illustrations.PUBLISHED_REST}"
    right.axhline(illustrations.PUBLISHED_REST, color="k", linestyle=":", linewidth=1, label=rest)
    left.set(xlabel="x", ylabel="f", title="Fig. 3: x² + 0.1 x sin(20πx), the first 6 steps")
    right.set(xlabel="step", ylabel="x", title="30 steps; the global minimum is at 0")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save(figure, path, DPI)


def draw_descents(
    landscape: Landscape, paths: dict[str, Tensor], captions: dict[str, str], path: Path
) -> None:
    """Contours, the path of each optimizer in a panel of its own, the minimum.

    Args:
        paths: points (steps + 1, 2).
        captions: what stands above each panel, below the optimizer's name.
    """
    figure, panels = pyplot().subplots(
        1, len(paths), figsize=(4.4 * len(paths), 4.6), layout="constrained", sharey=True
    )
    x, y, values = _values(landscape.function, landscape.limits)
    for axes, (name, points) in zip(panels, paths.items(), strict=True):
        axes.contourf(x, y, values.clamp_min(1e-3).log10(), 24, cmap="Greys", alpha=0.6)
        axes.plot(points[:, 0], points[:, 1], "-", color="tab:red", linewidth=0.8)
        axes.plot(points[:, 0], points[:, 1], ".", color="tab:red", markersize=2.5)
        axes.plot(*points[0], "o", color="tab:blue", label="start")
        axes.plot(*points[-1], "D", color="tab:orange", label="end")
        axes.plot(*landscape.minimum, "*", color="tab:green", markersize=13, label="minimum")
        axes.set(xlim=landscape.limits[:2], ylim=landscape.limits[2:], xlabel="x")
        axes.set_title(f"{name}\n{captions[name]}", fontsize=9)
    panels[0].set_ylabel("y")
    panels[0].legend(loc="lower left", fontsize=8)
    save(figure, path, DPI)


def draw_quadratics(steps: dict[str, Tensor], path: Path) -> None:
    """Steps by angle and condition number, a panel for each method."""
    columns = 3
    rows = -(-len(steps) // columns)
    figure, panels = pyplot().subplots(
        rows, columns, figsize=(14, 3.1 * rows), layout="constrained", sharex=True, sharey=True
    )
    for axes, (label, table) in zip(panels.flat, steps.items(), strict=True):
        image = axes.imshow(
            table.T.clamp(max=quadratics.MAX_STEPS).numpy(), origin="lower", aspect="auto",
            cmap="viridis_r", norm="log", vmin=1, vmax=quadratics.MAX_STEPS,
        )  # fmt: skip
        for (i, j), value in zip(torch.cartesian_prod(*map(torch.arange, table.shape)),
                                 table.flatten().tolist(), strict=True):  # fmt: skip
            color = "white" if value > 25 else "black"
            axes.text(
                int(i), int(j), steps_text(value), ha="center", va="center", fontsize=8, color=color
            )
        axes.set_title(label, fontsize=10)
        axes.set_xticks(range(len(quadratics.ANGLES)), map(str, quadratics.ANGLES))
        axes.set_yticks(range(len(quadratics.CONDITIONS)), map(str, quadratics.CONDITIONS))
    figure.supxlabel("angle between the Hessian's axes and the coordinates (degrees)", fontsize=10)
    figure.supylabel("condition number", fontsize=10)
    label = f"steps to {quadratics.TOLERANCE:g} of the distance"
    figure.colorbar(image, ax=panels, label=label)
    save(figure, path, DPI)


def steps_text(steps: float) -> str:
    """A number of steps, infinite where they were not enough."""
    return f"{steps:.0f}" if steps <= quadratics.MAX_STEPS else f">{quadratics.MAX_STEPS}"
