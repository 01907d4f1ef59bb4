"""How exact is the finite difference? `python -m experiments.benchmarks.curvature_accuracy`.

Compares H·z of the finite difference with the exact one, at the same probes, over a zoo of
networks, tensor by tensor: one norm over a whole network would hide a small tensor's error behind
a large one's. The step size h is that which the check of the first product leaves or chooses;
`--sweep` does so for a range of them, from which `STEP_SIZES` was chosen.
"""

import argparse
import contextlib
import copy
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adahessian import AdaHessian
from adahessian.curvature.check import TOLERANCES, AccuracyCheck
from adahessian.curvature.double_backward import DoubleBackward
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.hutchinson import Probes
from adahessian.curvature.precision import STEP_SIZES
from experiments.benchmarks import zoo
from experiments.benchmarks.precisions import (
    FLOAT32,
    FLOAT64,
    PRECISIONS,
    EmulatedTF32,
    Precision,
    computing_in,
)
from experiments.models.transformer import Transformer
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

# A tensor whose exact curvature, in float64, is below this part of the network's has none: what is
# there is rounding. In exact arithmetic it is 0, as for a bias before batch normalization.
NO_CURVATURE = 1e-9


SWEEPS = {
    "float64": (1e-9, 1e-8, 1e-7),
    "float32": (1e-5, 2e-5, 4e-5, 1e-4, 2e-4),
    "TF32": (1e-4, 3e-4, 1e-3, 3e-3),
    "bfloat16": (1e-3, 3e-3, 1e-2, 3e-2),
}


@dataclass(frozen=True)
class Case:
    """A network, and after how many steps of AdaHessian to look at it."""

    name: str
    build: Callable[[], zoo.Problem]
    steps: tuple[int, ...]
    lr: float = 0.15
    emulable: bool = True  # whether all its products pass through `EmulatedTF32`
    on_gpu: bool = True  # whether a GPU's kernels have a second derivative


def cases(quick: bool, images: str) -> list[Case]:
    """The zoo; `quick` has it small, for a test."""
    batch, size, late = (8, 16, ()) if quick else (128, 32, (60, 260))
    early = (0, 2) if quick else (0, 1, 3, 10, 20)
    few = (0, 2) if quick else (0, 20)

    def transformer() -> zoo.Problem:
        width, layers = (16, 1) if quick else (64, 2)
        return zoo.token_problem(Transformer(width, 4, layers), batch // 4, 32, count=8)

    def resnet() -> zoo.Problem:
        return zoo.image_problem(zoo.resnet20(), images, batch, size, count=300)

    def vgg() -> zoo.Problem:
        return zoo.image_problem(zoo.vgg(size), images, batch // 2, size, count=20)

    return [
        Case("ResNet-20", resnet, early + late),
        Case("VGG", vgg, few),
        Case("transformer", transformer, few, lr=0.047),  # as in the paper
        Case("Conv1d", lambda: zoo.random_problem(zoo.conv1d(), (batch, 2, 32)), few),
        Case("Conv3d", lambda: zoo.random_problem(zoo.conv3d(), (batch // 4, 1, 8, 8, 8)), few),
        Case(
            "LSTM",
            lambda: zoo.random_problem(zoo.LSTM(), (batch, 12, 8)),
            few,
            emulable=False,
            on_gpu=False,
        ),
        Case("tanh MLP", lambda: zoo.random_problem(zoo.mlp(nn.Tanh), (batch, 20)), few),
        Case("ReLU MLP", lambda: zoo.random_problem(zoo.mlp(nn.ReLU), (batch, 20)), few),
    ]


# ---------------------------------------------------------------------------------- measuring


def states(case: Case, device: str) -> Iterator[tuple[int, zoo.Problem]]:
    """The case's network after each of its numbers of steps, in float32.

    From step 20 on the curvature is refreshed at every fifth step only, to save time.
    """
    torch.manual_seed(1)
    problem = case.build()
    problem.model.to(device)
    problem.batches = [(x.to(device), y.to(device)) for x, y in problem.batches]
    optimizer = AdaHessian(problem.model.parameters(), lr=case.lr)
    for step in range(max(case.steps) + 1):
        if step in case.steps:
            yield step, problem
        optimizer.param_groups[0]["update_interval"] = 1 if step < 20 else 5
        batch = problem.batches[step % len(problem.batches)]

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            with sdpa_kernel(SDPBackend.MATH):
                loss = problem.loss(problem.model, batch)
                loss.backward(create_graph=optimizer.needs_graph)
            return loss

        with computing_in(FLOAT32, device):
            optimizer.step(closure)


def exact_products(
    problem: zoo.Problem, precision: Precision, num_probes: int
) -> list[list[Tensor]]:
    """H·z of the first batch's loss by double backward, in float64.

    Args:
        problem: what to differentiate; stays as it is.
        precision: in which to compute.
        num_probes: how many z.

    Returns:
        For each probe, one tensor for each parameter.
    """
    params, closure = _copy(problem, precision, create_graph=True)
    probes = _probes(params, num_probes)
    way = DoubleBackward(closure, params, probes)
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), computing_in(precision, params[0].device.type):
        way.evaluate()
        found = [_in_float64(way.product(z)) for z in probes]
    for p in params:
        p.grad = None  # its graph holds all activations
    return found


def approximate_products(
    problem: zoo.Problem, precision: Precision, num_probes: int, steps: Sequence[float] = ()
) -> tuple[float, dict[float, list[list[Tensor]]]]:
    """The same by finite differences.

    Args:
        problem, precision, num_probes: as above.
        steps: sizes h to be tried.

    Returns:
        The h of a training, which the check of the first product may have changed; by h, that one
        included, the products for each probe.
    """
    params, closure = _copy(problem, precision, create_graph=False)
    accuracy = AccuracyCheck(due=precision.key in TOLERANCES)
    way = FiniteDifference(closure, params, accuracy=accuracy)

    def products(h: float) -> list[list[Tensor]]:
        way.step_size = h
        return [_in_float64(way.product(z)) for z in _probes(params, num_probes)]

    with computing_in(precision, params[0].device.type):
        way.evaluate()
        usual = STEP_SIZES[precision.key]
        first = products(usual)
        chosen = usual * accuracy.scale
        accuracy.scale = 1.0
        found = {chosen: first} | {h: products(h) for h in steps if h != chosen}
    return chosen, found


def _copy(
    problem: zoo.Problem, precision: Precision, create_graph: bool
) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Parameters of a copy of the network, and the closure that fills their gradients."""
    model = copy.deepcopy(problem.model).to(precision.params)
    params = list(model.parameters())
    inputs, labels = problem.batches[0]
    batch = (inputs.to(precision.params) if inputs.is_floating_point() else inputs, labels)

    emulated = precision.tf32 and labels.device.type == "cpu"

    def closure() -> Tensor:
        model.zero_grad()
        lower = precision.autocast is not None
        with torch.autocast(labels.device.type, precision.autocast, enabled=lower):
            with EmulatedTF32() if emulated else contextlib.nullcontext():
                loss = problem.loss(model, batch)
        loss.backward(create_graph=create_graph)
        return loss

    torch.manual_seed(2)  # dropout's
    return params, closure


def _probes(params: Sequence[Tensor], num_probes: int) -> Probes:
    return Probes(params, seed=3, step=0, num_samples=num_probes)


def _in_float64(product: dict[Tensor, Tensor]) -> list[Tensor]:
    return [t.double() for t in product.values()]


@dataclass
class Comparison:
    """Products beside better ones.

    Attributes:
        relative: ‖difference‖ / ‖better‖ over all probes, for each tensor with curvature.
        ratio: mean |z·Hz| over the better one's, for each tensor with curvature.
        flat: for each tensor without curvature, its mean square root over the whole network's.
    """

    relative: dict[str, float]
    ratio: dict[str, float]
    flat: dict[str, float]

    @property
    def median(self) -> float:
        return statistics.median(self.relative.values())

    @property
    def worst(self) -> tuple[float, str]:
        return max((error, name) for name, error in self.relative.items())

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratio.values())


def compare(
    found: list[list[Tensor]],
    better: list[list[Tensor]],
    exact64: list[list[Tensor]],
    names: Sequence[str],
) -> Comparison:
    """Compare tensor by tensor; ``exact64`` says which tensors have curvature."""
    norm = math.sqrt(sum(float(t.square().sum()) for t in exact64[0]))
    network = norm / math.sqrt(sum(t.numel() for t in exact64[0]))
    result = Comparison({}, {}, {})
    for i, name in enumerate(names):
        mine, theirs, truth = (torch.stack([p[i] for p in s]) for s in (found, better, exact64))
        if _rms(truth) < NO_CURVATURE * network:
            result.flat[name] = _rms(mine) / network
        else:
            result.relative[name] = _rms(mine - theirs) / _rms(theirs)
            result.ratio[name] = float(mine.abs().mean() / theirs.abs().mean())
    return result


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def measure(
    case: Case, precisions: Sequence[Precision], sweep: bool, num_probes: int, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """One record for each state, precision and step size of a case."""
    for step, problem in states(case, device):
        names = [name for name, _ in problem.model.named_parameters()]
        exact64 = exact_products(problem, FLOAT64, num_probes)
        for precision in precisions:
            if precision.tf32 and device == "cpu" and not case.emulable:
                continue
            exact = exact64
            if precision != FLOAT64:
                exact = exact_products(problem, precision, num_probes)
            rounding = compare(exact, exact64, exact64, names)
            steps = SWEEPS[precision.name] if sweep else ()
            chosen, found = approximate_products(problem, precision, num_probes, steps)
            for h, fast in sorted(found.items()):
                yield {
                    "case": case.name,
                    "step": step,
                    "precision": precision.name,
                    "h": h,
                    "chosen": h == chosen,
                    "fast": compare(fast, exact, exact64, names),
                    "fast_to_float64": compare(fast, exact64, exact64, names),
                    "exact_to_float64": rounding,
                }


# ------------------------------------------------------------------------------------- tables


def percent(error: float) -> str:
    """Two digits, in percent, with a short exponent where it is small."""
    return f"{100 * error:.2g}".replace("e-0", "e-")


def size(h: float) -> str:
    return f"{h:.2g}".replace("e-0", "e-")


def accuracy_table(precision: str, records: list[dict[str, Any]], num_probes: int) -> Grid:
    """A row for each network and state."""
    rows = []
    for record in records:
        fast, rounding = record["fast"], record["exact_to_float64"]
        error, name = fast.worst
        flat = f"{percent(max(fast.flat.values()))} ({len(fast.flat)})" if fast.flat else ""
        name = name.removesuffix(".weight")
        rows.append(
            (
                record["case"], str(record["step"]), size(record["h"]), percent(fast.median),
                percent(error),
                name if len(name) <= 15 else "…" + name[-14:], f"{fast.median_ratio:.4f}", flat,
                percent(rounding.worst[0]),
            )
        )  # fmt: skip
    note = (
        f"n = {num_probes} probes, errors in %; h: the step size. Error of the finite "
        "difference's H·z relative to double backward's in the same precision: median over the "
        "tensors, the worst one and its name; the ratio of the means of |z·Hz|, median over the "
        "tensors. Zero: tensors without curvature, the largest relative to the whole network's "
        "root mean square (their number). Exact: the worst tensor's error of double backward "
        "itself, measured against float64."
    )
    columns = ("network", "step", "h", "median", "worst", "tensor", "ratio", "zero", "exact")
    return Grid(f"Accuracy of the finite difference, {precision}", columns, rows, note)


def sweep_table(precision: str, records: list[dict[str, Any]], num_probes: int) -> Grid:
    steps = sorted({record["h"] for record in records})
    rows: dict[tuple[str, str], dict[float, str]] = {}
    for record in records:
        fast = record["fast"]
        cell = f"{percent(fast.median)} {percent(fast.worst[0])}"
        rows.setdefault((record["case"], str(record["step"])), {})[record["h"]] = cell
    note = f"Median and worst error of a tensor in %, at each step size h; n = {num_probes} probes."
    columns = ("network", "step", *map(size, steps))
    lines = [(*key, *(cells[h] for h in steps)) for key, cells in rows.items()]
    return Grid(f"Step sizes, {precision}", columns, lines, note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.curvature_accuracy",
        description=__doc__.splitlines()[0],
    )
    known = [precision.name for precision in PRECISIONS]
    parser.add_argument("--precision", nargs="+", choices=known, default=known)
    parser.add_argument("--images", choices=zoo.IMAGES, default=zoo.IMAGES[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--only", help="only networks with this in their name")
    parser.add_argument("--at", type=int, nargs="+", help="only after these numbers of steps")
    parser.add_argument("--sweep", action="store_true", help="also try a range of step sizes")
    parser.add_argument("--quick", action="store_true", help="small networks, one probe")
    parser.add_argument("--docs", type=Path, help="a page whose tables to replace")
    options = parser.parse_args(arguments)
    num_probes = 1 if options.quick else 3
    chosen = [p for p in PRECISIONS if p.name in options.precision]
    records = []
    for case in cases(options.quick, options.images):
        runs = options.device == "cpu" or case.on_gpu
        if options.at:
            case = replace(case, steps=tuple(n for n in case.steps if n in options.at))
        if runs and (options.only or "").lower() in case.name.lower():
            for record in measure(case, chosen, options.sweep, num_probes, options.device):
                fast = record["fast"]
                print(
                    f"{case.name} after {record['step']} steps, {record['precision']}, "
                    f"h = {record['h']:g}: {percent(fast.median)} %, {percent(fast.worst[0])} %",
                    file=sys.stderr,
                )
                records.append(record)
    tables = []
    for precision in chosen:
        mine = [record for record in records if record["precision"] == precision.name]
        chosen_step = [record for record in mine if record["chosen"]]
        tables.append(accuracy_table(precision.name, chosen_step, num_probes))
        if options.sweep:
            tables.append(sweep_table(precision.name, mine, num_probes))
    data = [
        {k: asdict(v) if isinstance(v, Comparison) else v for k, v in record.items()}
        for record in records
    ]
    publish("curvature-accuracy", tables, provenance(options.device), data, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
