"""Does AdaHessian train as well by finite differences?

`python -m experiments.benchmarks.paired_runs`.

Trains ResNet-20 on small images in pairs: same initial weights, same batches, same probes, the
curvature once by double backward and once by finite differences. Two such trainings part after some
tens of steps, as any two do that differ in the last bit, so a single pair says nothing; the mean
difference over many pairs has an interval, which must hold zero and be narrow.

Every finished training is a line of `FOLDER/trainings.jsonl`. The command trains what is missing
there, then prints the verdict; it may be interrupted, and several may work in one folder.
`--picture` draws the losses of all pairs, the ways over each other.
"""

import argparse
import fcntl
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adahessian import AdaHessian
from experiments.benchmarks import zoo
from experiments.models.resnet_cifar import ResNetCifar
from experiments.plots.canvas import panels, save
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid
from experiments.results.statistics import mean_interval

EXACT, FAST = "double_backward", "finite_difference"
LOSS_BOUND = 0.02  # of the mean loss
ACCURACY_BOUND = 0.005
LAST_STEPS = 50
SMOOTHING = 10  # steps, of the curves in the picture


@dataclass(frozen=True)
class Settings:
    """What all trainings of a folder share."""

    images: str = "fashion-mnist"
    steps: int = 200
    batch_size: int = 32
    size: int = 12  # pixels of an image, as small as keeps three stages apart
    depth: int = 20
    lr: float = 0.15
    # AdaHessian's first denominators rest on single samples of a heavy-tailed estimate: at the full
    # rate some trainings, through either way, lose half of the 200 steps to it.
    warmup_steps: int = 20
    weight_decay: float = 5e-4 / 0.15


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 1 where the verdict is no."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.paired_runs", description=__doc__.splitlines()[0]
    )
    defaults = Settings()
    parser.add_argument("--pairs", type=int, default=45)
    parser.add_argument("--images", choices=zoo.IMAGES, default=zoo.IMAGES[0])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--size", type=int, default=defaults.size, help="pixels of an image")
    parser.add_argument("--depth", type=int, default=defaults.depth)
    parser.add_argument("--folder", type=Path, default=Path("runs/paired"))
    parser.add_argument("--docs", type=Path, help="a page whose table to replace")
    parser.add_argument("--picture", type=Path, help="a PNG to draw")
    options = parser.parse_args(arguments)
    settings = Settings(
        options.images, options.steps, options.batch_size, options.size, options.depth
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.folder, settings)
    train_missing(results, range(1, options.pairs + 1))
    pairs = results.pairs()
    if options.picture:
        draw(settings, pairs, options.picture)
    if len(pairs) < 3:
        print(f"{len(pairs)} pairs are complete: too few for an interval", file=sys.stderr)
        return 1
    table, passed = verdict(settings, pairs)
    data = {"settings": asdict(settings), "pairs": pairs}
    publish("paired-runs", [table], provenance("cpu"), data, options.docs)
    return 0 if passed else 1


class Results:
    """The trainings in a folder, shared with other processes.

    Args:
        folder: exists.
        settings: of all its trainings.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.path = folder / "trainings.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["settings"] == asdict(self.settings)]

    def pairs(self) -> dict[int, dict[str, Any]]:
        """Rows by seed and way, of the seeds for which both ways are there."""
        found: dict[int, dict[str, Any]] = {}
        for row in self.rows():
            found.setdefault(row["seed"], {})[row["curvature"]] = row
        return {seed: ways for seed, ways in sorted(found.items()) if len(ways) == 2}

    def append(self, row: dict[str, Any]) -> None:
        line = json.dumps({"settings": asdict(self.settings), **row}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line)

    @contextmanager
    def claimed(self, seed: int) -> Iterator[bool]:
        """Whether the seed is ours to train; the claim ends with the block, or with the process."""
        with (self.folder / f".seed-{seed}.lock").open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True


def train_missing(results: Results, seeds: Sequence[int]) -> None:
    """Train the pairs that are not complete and that no other process is training."""
    data = None
    for seed in seeds:
        with results.claimed(seed) as ours:
            done = {row["curvature"] for row in results.rows() if row["seed"] == seed}
            missing = [way for way in (EXACT, FAST) if way not in done]
            if not ours or not missing:
                continue
            data = data or zoo.load_images(results.settings.images, results.settings.size)
            for way in missing:
                row = train(results.settings, seed, way, data)
                results.append(row)
                print(
                    f"seed {seed} {way:17s} test loss {row['test_loss']:.4f} accuracy "
                    f"{row['test_accuracy']:.4f} in {row['seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )


def train(settings: Settings, seed: int, curvature: str, data: Any) -> dict[str, Any]:
    """Train one network.

    The learning rate rises linearly at first, and drops tenfold at one half and three quarters.
    """
    name, (inputs, labels), test = data
    torch.manual_seed(seed)
    model = ResNetCifar(settings.depth, num_classes=10, in_channels=1)
    optimizer = AdaHessian(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay,
        curvature=curvature, seed=seed,
    )  # fmt: skip
    order = torch.Generator().manual_seed(seed)
    losses = []
    start = time.perf_counter()
    for step in range(settings.steps):
        drops = (step >= settings.steps / 2) + (step >= settings.steps * 3 / 4)
        rise = min(1.0, (step + 1) / settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = settings.lr * rise * 0.1**drops
        chosen = torch.randint(len(labels), (settings.batch_size,), generator=order)
        x, y = inputs[chosen], labels[chosen]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        losses.append(float(optimizer.step(closure)))
    seconds = time.perf_counter() - start
    loss, accuracy = evaluate(model, test)
    return {
        "seed": seed, "curvature": curvature, "data": name, "seconds": round(seconds, 2),
        "train_loss": statistics.mean(losses[-LAST_STEPS:]),
        "test_loss": loss, "test_accuracy": accuracy, "losses": [round(x, 5) for x in losses],
    }  # fmt: skip


@torch.no_grad()
def evaluate(model: torch.nn.Module, test: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Mean loss and accuracy on the test images."""
    model.eval()
    logits = torch.cat([model(part) for part in test[0].split(500)])
    accuracy = (logits.argmax(1) == test[1]).float().mean()
    return float(F.cross_entropy(logits, test[1])), float(accuracy)


def verdict(settings: Settings, pairs: dict[int, dict[str, Any]]) -> tuple[Grid, bool]:
    """The table of the differences, and whether both intervals are where they must be."""
    rows, passed = [], True
    for key, label, bound in (
        ("test_loss", "test loss", LOSS_BOUND),
        ("test_accuracy", "test accuracy, points", ACCURACY_BOUND),
        ("train_loss", f"training loss, last {LAST_STEPS} steps", None),
    ):
        exact, fast = ([ways[way][key] for ways in pairs.values()] for way in (EXACT, FAST))
        relative = "loss" in key
        scale = 100 / statistics.mean(exact) if relative else 100
        differences = [scale * (b - a) for a, b in zip(exact, fast, strict=True)]
        mean = statistics.mean(differences)
        low, high = mean_interval(differences) or (mean, mean)
        answer = "-"
        if bound is not None:
            # A NaN, from a training that exploded, makes this False.
            fits = low <= 0 <= high and max(-low, high) <= 100 * bound
            passed, answer = passed and fits, "yes" if fits else "NO"
        unit = " %" if relative else ""
        rows.append(
            (
                label, f"{statistics.mean(exact):.4f}", f"{statistics.mean(fast):.4f}",
                f"{mean:+.2f}{unit}", f"{low:+.2f} to {high:+.2f}", answer,
            )
        )  # fmt: skip
    note = (
        f"n = {len(pairs)} pairs: ResNet-{settings.depth}, {settings.steps} steps of AdaHessian, "
        f"batch {settings.batch_size}, "
        f"{next(iter(pairs.values()))[EXACT]['data']} at {settings.size} x {settings.size}; means, "
        "and the mean difference (finite difference minus double backward) with its 95 % interval. "
        f"To hold: zero inside, at most {100 * LOSS_BOUND:g} % of the loss and "
        f"{100 * ACCURACY_BOUND:g} points of accuracy."
    )
    columns = ("of the last step", "exact", "finite", "difference", "95 % interval", "holds")
    return Grid("Paired trainings by both ways to H·z", columns, rows, note), passed


def draw(settings: Settings, pairs: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw the training losses, each pair's thin and their mean thick, smoothed over steps."""
    figure, (axes,) = panels(1, (8, 4.5))
    for way, label, style in ((EXACT, "double backward", "-"), (FAST, "finite difference", "--")):
        curves = [_smoothed(ways[way]["losses"]) for ways in pairs.values()]
        color = axes.plot([], [])[0].get_color()
        for curve in curves:
            axes.plot(
                range(1, len(curve) + 1), curve, style, color=color, alpha=0.35, linewidth=0.8
            )
        mean = [statistics.mean(values) for values in zip(*curves, strict=True)]
        axes.plot(range(1, len(mean) + 1), mean, style, color=color, linewidth=2, label=label)
    axes.set(
        xlabel="step", ylabel=f"training loss, mean of {SMOOTHING} steps", yscale="log",
        title=f"ResNet-{settings.depth}, {settings.images} at {settings.size} x {settings.size}, "
        f"batch {settings.batch_size}, AdaHessian, n = {len(pairs)} seeds",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save(figure, path)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each step and those before it, `SMOOTHING` in all."""
    return [
        statistics.mean(losses[max(0, end - SMOOTHING) : end]) for end in range(1, len(losses) + 1)
    ]


if __name__ == "__main__":
    sys.exit(main())
