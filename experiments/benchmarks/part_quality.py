"""Does AdaHessian train as well with the curvature of a part of the batch?

`python -m experiments.benchmarks.part_quality --problem NAME --arms exact exact,f=1/4 ...`

Trains in pairs (`experiments.benchmarks.trainings`): each arm beside the first one, from the same
initial weights, on the same batches, with the same probes. An arm names the way to H·z (`exact` or
`fd`), the fraction `f`, the interval `k` between refreshes, how many `first` steps refresh all the
same, and `lr`, a factor of the learning rate.

With `--rates` each arm has its factor chosen first, on further seeds; an arm whose choice differs
from the first one's is trained at both.
"""

import argparse
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from adahessian import AdaHessian
from experiments.benchmarks import zoo
from experiments.benchmarks.trainings import Difference, Trainings
from experiments.cli import guarded
from experiments.errors import UserError
from experiments.models.resnet_cifar import ResNetCifar
from experiments.models.transformer import Transformer
from experiments.plots.canvas import panels, save
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

WAYS = {"exact": "double_backward", "fd": "finite_difference"}
LAST_STEPS = 20
BOUND = 1.0  # per cent of the final validation loss: what "no loss" means
RANGE = 15  # per cent, of the picture
LENGTH = 64  # characters of a sequence
TUNING_SEED = 1_000  # the seeds on which rates are chosen follow it
EXPLODED = 2.0  # times the first arm's validation loss
KEYS = ("cpu_seconds", "train_loss", "validation_loss")


@dataclass(frozen=True)
class Arm:
    """What is compared: how the curvature is had, and at which learning rate."""

    way: str
    f: Fraction = Fraction(1)
    k: int = 1
    first: int = 0
    lr: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """From `way[,f=1/4][,k=4][,first=16][,lr=2]`.

        Raises:
            UserError: it is no such text.
        """
        way, *settings = text.split(",")
        kinds: dict[str, Callable[[str], Any]] = {
            "f": Fraction, "k": int, "first": int, "lr": float
        }  # fmt: skip
        try:
            pairs = [setting.split("=") for setting in settings]
            values = {key: kinds[key](value) for key, value in pairs}
            return cls({"exact": "exact", "fd": "fd"}[way], **values)
        except (KeyError, ValueError, ZeroDivisionError):
            raise UserError(
                f"--arms {text}: an arm is exact or fd, and then f=1/4, k=4, first=16 or lr=2, "
                "with commas"
            ) from None

    def build(self, params: Any, lr: float, seed: int) -> AdaHessian:
        return AdaHessian(
            params,
            lr * self.lr,
            curvature=WAYS[self.way],
            curvature_fraction=float(self.f),
            update_interval=self.k,
            seed=seed,
        )


@dataclass(frozen=True)
class Problem:
    """A network, its training and validation examples, and how it is trained."""

    title: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 20


def _images(name: str, size: int) -> Callable[[], Any]:
    return lambda: zoo.load_images(name, size)[1:]


def _characters() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sequences of Python's own reference manual, as bytes; the last tenth is validation."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    tokens = torch.tensor(list(text))
    count = (len(tokens) - 1) // LENGTH
    inputs = tokens[: count * LENGTH].view(count, LENGTH)
    targets = tokens[1 : count * LENGTH + 1].view(count, LENGTH)
    cut = count * 9 // 10
    return (inputs[:cut], targets[:cut]), (inputs[cut:][:256], targets[cut:][:256])


def _perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


PROBLEMS = {
    "perceptron": Problem(
        "Perceptron 64-64-64-10, digits", _perceptron, _images("digits", 8), 200, 128, 0.15
    ),
    "resnet20": Problem(
        "ResNet-20, digits",
        lambda: ResNetCifar(20, num_classes=10, in_channels=1),
        _images("digits", 8),
        120,
        128,
        0.15,
    ),
    "resnet20-fashion": Problem(
        "ResNet-20, Fashion-MNIST at 14 x 14",
        lambda: ResNetCifar(20, num_classes=10, in_channels=1),
        _images("fashion-mnist", 14),
        120,
        128,
        0.15,
    ),
    "characters": Problem(
        "Transformer, 2 layers of width 64, Python's manual by bytes",
        lambda: Transformer(64, 4, 2, vocabulary=128, length=LENGTH),
        _characters,
        200,
        32,
        0.2,
    ),
}


@functools.cache
def _data(name: str, device: str) -> Any:
    return [tuple(t.to(device) for t in part) for part in PROBLEMS[name].data()]


def train(name: str, steps: int, device: str, seed: int, text: str) -> dict[str, Any]:
    """Train one network: a linear rise of the rate, and tenfold drops at one half and 3/4.

    Args:
        name, text: of the problem and of the arm.
    """
    problem, arm = PROBLEMS[name], Arm.parse(text)
    (inputs, targets), validation = _data(name, device)
    torch.manual_seed(seed)
    model = problem.build().to(device)
    optimizer = arm.build(model.parameters(), problem.lr, seed)
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    start = time.process_time()
    for step in range(steps):
        drops = (step >= steps / 2) + (step >= steps * 3 / 4)
        rise = min(1.0, (step + 1) / problem.warmup_steps)
        optimizer.param_groups[0]["lr"] = problem.lr * arm.lr * rise * 0.1**drops
        optimizer.param_groups[0]["update_interval"] = 1 if step < arm.first else arm.k
        chosen = torch.randint(len(targets), (problem.batch_size,), generator=order).to(device)
        losses.append(_step(optimizer, model, inputs[chosen], targets[chosen]))
    seconds = time.process_time() - start
    model.eval()
    with torch.no_grad():
        parts = zip(*(t.split(250) for t in validation), strict=True)
        sums = [float(_loss(model, x, y)) * len(x) for x, y in parts]
    return {
        "cpu_seconds": round(seconds, 2),
        "train_loss": statistics.mean(losses[-LAST_STEPS:]),
        "validation_loss": sum(sums) / len(validation[0]),
    }


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _step(optimizer: AdaHessian, model: nn.Module, x: Tensor, y: Tensor) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model, x, y)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    def part(start: float, stop: float) -> Tensor:
        rows = slice(round(start * len(x)), round(stop * len(x)))
        return _loss(model, x[rows], y[rows])

    takes_part = optimizer.param_groups[0]["curvature_fraction"] < 1
    with sdpa_kernel([SDPBackend.MATH]):  # the fused kernels have no second derivative
        return float(optimizer.step(closure, curvature_closure=part if takes_part else None))


def table(
    problem: Problem, arms: Sequence[str], pairs: dict[int, dict[str, Any]], note: str = ""
) -> Grid:
    """A row for each arm, beside the first one."""
    rows = []
    for arm in arms:
        cells = [arm]
        for key in ("validation_loss", "train_loss"):
            first, second = ([row[name][key] for row in pairs.values()] for name in (arms[0], arm))
            found = Difference.of(first, second, relative=True)
            cells.append(f"{found.second:.4f}")
            if arm == arms[0]:
                cells += ["", ""] if key == "validation_loss" else [""]
                continue
            cells.append(f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})")
            if key == "validation_loss":
                within = -BOUND <= found.low and found.high <= BOUND
                cells.append("yes" if within else "no" if found.low > BOUND else "open")
        rows.append((*cells, str(_exploded(arms[0], arm, pairs) or "")))
    note = (
        f"n = {len(pairs)} pairs: {problem.steps} steps, batch {problem.batch_size}, learning rate "
        f"{problem.lr:g}{note}. Mean loss, and the mean difference from the first row in % with "
        f"its 95 % interval. No loss: the interval lies within ±{BOUND:g} %. Exploded: trainings "
        f"whose validation loss is more than {EXPLODED:g} times the first row's median."
    )
    columns = ("curvature", "validation loss", "difference, %", "no loss",
               f"training loss, last {LAST_STEPS} steps", "difference, %", "exploded")  # fmt: skip
    return Grid(problem.title, columns, rows, note)


def _exploded(first: str, arm: str, pairs: dict[int, dict[str, Any]]) -> int:
    usual = statistics.median(row[first]["validation_loss"] for row in pairs.values())
    # Not `>`: a loss that is no number has exploded, too.
    return sum(not row[arm]["validation_loss"] <= EXPLODED * usual for row in pairs.values())


def best_rates(
    arms: Sequence[str], rates: Sequence[float], rows: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Each arm at its best factor of the learning rate, by the mean validation loss."""

    def mean(arm: str) -> float:
        losses = [row["validation_loss"] for row in rows if row["arm"] == arm]
        return statistics.mean(loss if math.isfinite(loss) else math.inf for loss in losses)

    return {arm: min((f"{arm},lr={rate:g}" for rate in rates), key=mean) for arm in arms}


def draw(found: dict[str, tuple[list[str], dict[int, dict[str, Any]]]], path: Path) -> None:
    """Price against quality: a point for each arm, a panel for each problem."""
    figure, all_axes = panels(len(found), (4.5 * len(found), 4))
    for (name, (arms, pairs)), axes in zip(found.items(), all_axes, strict=True):
        columns = {
            arm: {key: [row[arm][key] for row in pairs.values()] for key in KEYS} for arm in arms
        }
        first = columns[arms[0]]
        for arm, column in columns.items():
            price = statistics.median(column["cpu_seconds"]) / statistics.median(
                first["cpu_seconds"]
            )
            difference = Difference.of(first["validation_loss"], column["validation_loss"], True)
            bars = [[difference.mean - difference.low], [difference.high - difference.mean]]
            # What lies outside of the panel is at its edge, with its number.
            height = min(max(difference.mean, -0.95 * RANGE), 0.95 * RANGE)
            axes.errorbar(
                [price], [difference.mean], yerr=bars, fmt="none", capsize=3, color="gray"
            )
            label = arm if arm == arms[0] else f"{arm}: {difference.mean:+.1f} %"
            axes.plot([price], [height], "o" if height == difference.mean else "^", label=label)
        axes.legend(fontsize=8, loc="lower right")
        axes.axhspan(-BOUND, BOUND, alpha=0.12, color="gray")
        axes.set(
            xlabel=f"CPU time, relative to {arms[0]}", ylabel="validation loss, difference in %",
            ylim=(-RANGE, RANGE),
        )  # fmt: skip
        axes.set_title(f"{PROBLEMS[name].title}\nn = {len(pairs)}", fontsize=9)
        axes.margins(x=0.25)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.part_quality", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--problem", choices=PROBLEMS, nargs="+", default=list(PROBLEMS))
    parser.add_argument(
        "--arms", nargs="+", default=["exact", "exact,f=1/4", "exact,f=1/8", "exact,k=4"]
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, help="default: the problem's own")
    parser.add_argument(
        "--rates", type=float, nargs="+", help="factors of the learning rate, to choose from"
    )
    parser.add_argument("--tuning", type=int, default=6, help="trainings for each choice")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs/part-quality"))
    parser.add_argument("--docs", type=Path, help="a page whose table to replace")
    parser.add_argument("--picture", type=Path, help="a PNG to draw")
    return guarded(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    for text in options.arms:
        Arm.parse(text)
    if options.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that it starts
    options.folder.mkdir(parents=True, exist_ok=True)
    grids, found = [], {}
    for name in options.problem:
        problem = PROBLEMS[name]
        steps = options.steps or problem.steps
        settings = {"problem": name, "steps": steps, "lr": problem.lr}
        if options.device != "cpu":
            settings["device"] = options.device
        trainings = Trainings(options.folder, settings)
        run = functools.partial(train, name, steps, options.device)
        arms, note = options.arms, ""
        if options.rates:
            arms = _tune(trainings, run, options)
            rates = ", ".join(f"{rate:g}" for rate in options.rates)
            note = (
                f" times lr, chosen among {rates} for each row by the mean validation loss of "
                f"{options.tuning} other trainings"
            )
        trainings.train_missing(range(1, options.pairs + 1), arms, run, options.jobs)
        pairs = trainings.by_seed(arms)
        if len(pairs) >= 2:
            grids.append(table(problem, arms, pairs, note))
            found[name] = (arms, pairs)
    if options.picture and found:
        draw(found, options.picture)
    data = {name: pairs for name, (_, pairs) in found.items()}
    publish("part-quality", grids, provenance(options.device), data, options.docs)
    return 0


def _tune(trainings: Trainings, run: Callable[..., Any], options: argparse.Namespace) -> list[str]:
    """The arms with their rates; those that chose otherwise than the first one at its rate, too."""
    seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + options.tuning)
    tried = [f"{arm},lr={rate:g}" for arm in options.arms for rate in options.rates]
    trainings.train_missing(seeds, tried, run, options.jobs)
    rows = [row for row in trainings.rows() if row["seed"] in seeds]
    chosen = best_rates(options.arms, options.rates, rows)
    rate = Arm.parse(chosen[options.arms[0]]).lr
    same = [f"{arm},lr={rate:g}" for arm in options.arms]
    return list(dict.fromkeys([*same, *chosen.values()]))


if __name__ == "__main__":
    sys.exit(main())
