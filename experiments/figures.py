"""Draw the figures: `python -m experiments.figures`.

The paper's curves with ours over them, its Fig. 1 and Fig. 3, Rosenbrock's and Rastrigin's
function, and quadratics, rotated and stretched. Writes PNG files to `RUNS_ROOT/figures`
(`--vector`: PDF and SVG, too) and prints what is seen on each with its path.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from experiments import cli
from experiments.landscapes import functions, illustrations, quadratics
from experiments.landscapes.descent import descend
from experiments.landscapes.functions import LANDSCAPES, Landscape
from experiments.landscapes.search import NEAR, SPACES, found
from experiments.plots import landscapes as pictures
from experiments.plots import paper_curves as paper_curves_plot
from experiments.plots.canvas import as_vectors
from experiments.results.published import (
    FIGURES,
    OPTIMIZERS,
    QUANTITIES,
    PaperFigure,
    our_curves,
    our_runs,
    paper_curves,
)
from experiments.runtime.paths import runs_root


def bowl(path: Path) -> str:
    """The paper's Fig. 1; returns what is seen, as the functions below."""
    paths = illustrations.bowl_paths()
    surface = _surface(functions.quadratic(illustrations.BOWL), (-3, 9, -3, 9))
    pictures.draw_bowl(surface, _arrays(paths), path)
    ends = (f"{name} ends at ({p[-1, 0]:.3f}, {p[-1, 1]:.3f})" for name, p in paths.items())
    return f"Fig. 1: {', '.join(ends)}"


def ripples(path: Path) -> str:
    """The paper's Fig. 3, with the settings that the search found."""
    fits = found()["ripples"]
    with_average, without = fits["with"]["setting"], fits["without"]["setting"]
    seeded = illustrations.ripple_paths([with_average, without], 1000)
    (from_zero,) = illustrations.ripple_paths([with_average], 1000, seeded=False).T
    paths = {
        f"with the average ({_text(with_average)})": seeded[:, 0],
        f"without ({_text(without)})": seeded[:, 1],
        "with the average, averages from zero": from_zero,
    }
    x = torch.linspace(-1.6, 3.1, 2000, dtype=torch.float64)
    curve, *drawn = [
        (at.numpy(), functions.ripples(at[:, None]).numpy()) for at in (x, *paths.values())
    ]
    pictures.draw_ripples(
        curve, dict(zip(paths, drawn, strict=True)), illustrations.PUBLISHED,
        illustrations.PUBLISHED_REST, path,
    )  # fmt: skip
    rests = ", ".join(f"{p[-1]:.2f}" for p in paths.values())
    distance = fits["with"]["largest_distance"]
    return f"Fig. 3: within {distance} of the paper's points; after 1000 steps at {rests}"


def descents(landscape: Landscape, path: Path) -> str:
    """A landscape with the path of each optimizer from the collections' start."""
    document = found()
    start = torch.tensor(landscape.start, dtype=torch.float64)
    steps = document["budget"]["steps"]
    paths, captions, ends = {}, {}, []
    for name, space in SPACES.items():
        result = document[landscape.name][name]
        points = descend(landscape.function, start, space.constructor, [result["setting"]])
        paths[name] = torch.cat(list(itertools.islice(points, steps + 1)))
        distance = (paths[name][-1] - start.new_tensor(landscape.minimum)).norm()
        ends.append(f"{name} {distance:.2g}")
        captions[name] = (
            f"{_text(result['setting'])}\nends {distance:.2g} from the minimum\n"
            f"{result['arrived']} of {result['fresh']} other starts within {NEAR}"
        )
    surface = _surface(landscape.function, landscape.limits)
    pictures.draw_descents(surface, landscape.minimum, _arrays(paths), captions, path)
    return f"{landscape.name}: distance to the minimum after {steps} steps: {', '.join(ends)}"


def turned_quadratics(path: Path) -> str:
    """Steps needed by angle and condition number."""
    steps = {method.label: quadratics.steps_needed(method)[0] for method in quadratics.METHODS}
    most = quadratics.MAX_STEPS
    pictures.draw_quadratics(
        _arrays(steps), quadratics.ANGLES, quadratics.CONDITIONS, most, quadratics.TOLERANCE, path
    )
    corners = (
        f"{label}: {pictures.steps_text(float(t[0, -1]), most)} to "
        f"{pictures.steps_text(float(t[-1, -1]), most)}"
        for label, t in steps.items()
    )
    return (
        f"quadratics: steps at condition number {quadratics.CONDITIONS[-1]}, axes at "
        f"{quadratics.ANGLES[0]} to {quadratics.ANGLES[-1]} degrees: {'; '.join(corners)}"
    )


def curves(figure: PaperFigure, root: Path, path: Path) -> str:
    """The paper's curves, and over them the finished runs of its protocol below a root."""
    runs = our_runs(figure, root)
    panels = [
        paper_curves_plot.Panel(
            f"{'training' if split == 'train' else split} {metric.title}",
            metric.direction == "min",
            paper_curves(figure, quantity),
            {name: our_curves(found, quantity) for name, found in runs.items()},
        )
        for quantity, (split, metric) in QUANTITIES.items()
    ]
    count = ", ".join(f"{OPTIMIZERS[name]} n={len(r)}" for name, r in runs.items())
    note = f"ours: {count}" if runs else "the paper's curves alone: no finished run of ours"
    title = f"{figure.title}: paper's Fig. {figure.source[0]}.{figure.source[1:]} (dashed); {note}"
    paper_curves_plot.draw(title, panels, OPTIMIZERS, path)
    return title


def _surface(
    function: functions.Function, limits: tuple[float, ...], number: int = 300
) -> pictures.Surface:
    """A function of two variables on a grid: x from, x to, y from, y to."""
    x = torch.linspace(limits[0], limits[1], number, dtype=torch.float64)
    y = torch.linspace(limits[2], limits[3], number, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return pictures.Surface(x.numpy(), y.numpy(), function(grid).numpy())


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, pictures.Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _text(setting: dict) -> str:
    return ", ".join(
        f"{key} {value if not isinstance(value, list) else ' and '.join(map(str, value))}"
        for key, value in setting.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.figures", description=__doc__)
    parser.add_argument("--vector", action="store_true", help="also as PDF and SVG")
    return cli.execute(parser, _figures, arguments)


@as_vectors
def _figures(parsed: argparse.Namespace) -> None:
    root = runs_root()
    drawings: dict[str, Callable[[Path], str]] = {
        **{f"paper_{f.name}": lambda path, f=f: curves(f, root, path) for f in FIGURES},
        "fig1": bowl,
        "fig3": ripples,
        **{scape.name: lambda path, s=scape: descents(s, path) for scape in LANDSCAPES},
        "quadratics": turned_quadratics,
    }
    for name, draw in drawings.items():
        path = root / "figures" / f"{name}.png"
        print(f"{draw(path)}\n  {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
