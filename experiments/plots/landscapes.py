"""Functions of one and two variables, with the paths of optimizers on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from experiments.plots.canvas import pyplot, save

DPI = 100
Array = numpy.ndarray


@dataclass(frozen=True)
class Surface:
    """A function on a grid: x (m,), y (n,) and values (n, m), as contour plots take them."""

    x: Array
    y: Array
    values: Array


def draw_bowl(surface: Surface, paths: Mapping[str, Array], path: Path) -> None:
    """The paper's Fig. 1.

    Args:
        paths: points (steps + 1, 2) by label.
    """
    figure, axes = pyplot().subplots(figsize=(5.5, 5), layout="constrained")
    axes.contour(
        surface.x,
        surface.y,
        surface.values,
        levels=[1, 4, 16, 50, 120, 250, 450, 700],
        colors="0.8",
    )
    for (label, points), marker in zip(paths.items(), ("o", "s"), strict=True):
        steps = len(points) - 1
        text = f"{label}, {steps} step{'s' if steps > 1 else ''}"
        axes.plot(points[:, 0], points[:, 1], f"{marker}-", markersize=4, label=text)
    axes.plot(0, 0, "k*", markersize=13, label="minimum")
    axes.set(xlabel="x", ylabel="y", title="Fig. 1: x² + 10 y² from (8, 8)", aspect="equal")
    axes.legend()
    save(figure, path, DPI)


def draw_ripples(
    curve: tuple[Array, Array],
    paths: Mapping[str, tuple[Array, Array]],
    published: Sequence[float],
    rest: float,
    path: Path,
) -> None:
    """The paper's Fig. 3: on the curve, and step by step beside the points of the paper.

    Args:
        curve: x and the function's values.
        paths: points and the function's values there, by label.
        published: the paper's points; as many of each path are shown on the curve.
        rest: where the paper's path without the average ends.
    """
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    left.plot(*curve, color="0.75", linewidth=1)
    shown = len(published)
    for (label, (points, values)), marker in zip(paths.items(), ("o", "s", "^"), strict=True):
        left.plot(points[:shown], values[:shown], marker, markersize=5)
        right.plot(points[:31], f"{marker}-", markersize=3, linewidth=1, label=label)
    right.plot(published, "kx", markersize=9, label="the paper's points, with the average")
    label = f"where the paper's rests without, {rest}"
    right.axhline(rest, color="k", linestyle=":", linewidth=1, label=label)
    left.set(xlabel="x", ylabel="f", title="Fig. 3: x² + 0.1 x sin(20πx), the first 6 steps")
    right.set(xlabel="step", ylabel="x", title="30 steps; the global minimum is at 0")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save(figure, path, DPI)


def draw_descents(
    surface: Surface,
    minimum: tuple[float, float],
    paths: Mapping[str, Array],
    captions: Mapping[str, str],
    path: Path,
) -> None:
    """Contours, the path of each optimizer in a panel of its own, the minimum.

    Args:
        surface: of positive values, which are shown by their logarithm.
        paths: points (steps + 1, 2) by optimizer.
        captions: what stands above each panel, below the optimizer's name.
    """
    figure, panels = pyplot().subplots(
        1, len(paths), figsize=(4.4 * len(paths), 4.8), layout="constrained", sharey=True
    )
    heights = numpy.log10(surface.values.clip(1e-3))
    for axes, (name, points) in zip(panels, paths.items(), strict=True):
        axes.contourf(surface.x, surface.y, heights, 24, cmap="Greys", alpha=0.6)
        axes.plot(points[:, 0], points[:, 1], "-", color="tab:red", linewidth=0.8)
        axes.plot(points[:, 0], points[:, 1], ".", color="tab:red", markersize=2.5)
        axes.plot(*points[0], "o", color="tab:blue", label="start")
        axes.plot(*points[-1], "D", color="tab:orange", label="end")
        axes.plot(*minimum, "*", color="tab:green", markersize=13, label="minimum")
        axes.set(xlim=surface.x[[0, -1]], ylim=surface.y[[0, -1]], xlabel="x")
        axes.set_title(f"{name}\n{captions[name]}", fontsize=9)
    panels[0].set_ylabel("y")
    panels[0].legend(loc="lower left", fontsize=8)
    save(figure, path, DPI)


def draw_quadratics(
    steps: Mapping[str, Array],
    angles: Sequence[int],
    conditions: Sequence[int],
    most: int,
    tolerance: float,
    path: Path,
) -> None:
    """Steps by angle and condition number, a panel for each method.

    Args:
        steps: (angles, conditions) by method; infinite where `most` were not enough.
        tolerance: of the distance to the minimum, at which they are counted.
    """
    columns = 3
    rows = -(-len(steps) // columns)
    figure, panels = pyplot().subplots(
        rows, columns, figsize=(14, 3.1 * rows), layout="constrained", sharex=True, sharey=True
    )
    for axes, (label, table) in zip(panels.flat, steps.items(), strict=True):
        image = axes.imshow(
            table.T.clip(max=most), origin="lower", aspect="auto", cmap="viridis_r", norm="log",
            vmin=1, vmax=most,
        )  # fmt: skip
        for (i, j), value in numpy.ndenumerate(table):
            axes.text(i, j, steps_text(value, most), ha="center", va="center", fontsize=8,
                      color="white" if value > 25 else "black")  # fmt: skip
        axes.set_title(label, fontsize=10)
        axes.set_xticks(range(len(angles)), map(str, angles))
        axes.set_yticks(range(len(conditions)), map(str, conditions))
    figure.supxlabel("angle between the Hessian's axes and the coordinates (degrees)", fontsize=10)
    figure.supylabel("condition number", fontsize=10)
    figure.colorbar(image, ax=panels, label=f"steps to {tolerance:g} of the distance")
    save(figure, path, DPI)


def steps_text(steps: float, most: int) -> str:
    """A number of steps, infinite where `most` were not enough."""
    return f"{steps:.0f}" if steps <= most else f">{most}"
