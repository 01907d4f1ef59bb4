"""What a Hessian's spectrum costs, beside curvlinops and hessian-eigenthings.

    python -m experiments.benchmarks.spectrum [--batch 128] [--repetitions 5] [--clock cpu]

ResNet-20 on one batch of random images, the same weights, mode and batch for all. Two questions:
what a fixed number of products costs (a Lanczos sequence, with all that belongs to it), and what
the top eigenvalues cost at equal accuracy. The candidates take turns within each repetition, so
that load on the machine falls on all of them; what is shown are medians over the repetitions,
of the times and of their ratios to ours. Memory is measured in a process of its own for each.

Candidates are other packages, too, where they are installed: curvlinops-for-pytorch (with scipy)
and hessian-eigenthings. On a GPU products are computed in float32 without TF32, and memory is what
its allocator counts.
"""

import argparse
import contextlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from adahessian import spectrum
from experiments.benchmarks.harness import median_ratio
from experiments.benchmarks.resident import peak_mib
from experiments.models.resnet_cifar import ResNetCifar
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid

K = 5


@dataclass
class Problem:
    """A model and its batch; `loss` is what the libraries call with them."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]

    def hessian(self, **options: Any) -> spectrum.Hessian:
        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        return spectrum.Hessian(loss, self.model, [self.batch], **options)

    def curvlinops(self) -> Any:
        from curvlinops import HessianLinearOperator

        params = list(self.model.parameters())
        return HessianLinearOperator(
            self.model, nn.CrossEntropyLoss(), params, [self.batch], check_deterministic=False
        )

    def eigenthings(self, method: str) -> Any:
        from hessian_eigenthings import HessianOperator, supervised_loss

        loss = supervised_loss(nn.functional.cross_entropy)
        return HessianOperator(self.model, [self.batch], loss, method=method)


def make_problem(arguments: argparse.Namespace, steps: int = 5) -> Problem:
    """ResNet-20, a few steps away from its initialization, and a batch of random images."""
    torch.manual_seed(0)
    model = ResNetCifar(20, 10)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    batch = torch.randn(shape), torch.randint(10, (arguments.batch,))
    model.to(arguments.device)
    batch = batch[0].to(arguments.device), batch[1].to(arguments.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Problem(model.train(arguments.mode == "train"), batch)


# --- a fixed number of products: one Lanczos sequence ---------------------------------------------


def ours(**options: Any) -> Callable[[Problem, int], Any]:
    return lambda problem, steps: spectrum.lanczos_quadrature(problem.hessian(**options), steps)


def theirs_curvlinops(problem: Problem, steps: int) -> Any:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    return fast_lanczos(problem.curvlinops(), steps)


def theirs_eigenthings(method: str) -> Callable[[Problem, int], Any]:
    def run(problem: Problem, steps: int) -> Any:
        from hessian_eigenthings import lanczos_tridiagonal

        operator = problem.eigenthings(method)
        return lanczos_tridiagonal(operator, torch.randn(operator.size), steps)

    return run


SEQUENCES = {
    "ours": ours(),
    "ours, keep_batches=0": ours(keep_batches=0),
    "ours, finite differences": ours(curvature="finite_difference"),
    "curvlinops": theirs_curvlinops,
    "hessian-eigenthings": theirs_eigenthings("autograd"),
    "hessian-eigenthings, finite diff.": theirs_eigenthings("finite_difference"),
}


# --- the top eigenvalues --------------------------------------------------------------------------


def top_ours(**options: Any) -> Callable[[Problem, float], tuple[Tensor, int]]:
    def run(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
        pairs = spectrum.top_eigenvalues(problem.hessian(**options), K, tolerance=tolerance)
        return pairs.eigenvalues, pairs.num_matvecs

    return run


def top_curvlinops(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
    """ARPACK through SciPy, as its documentation proposes."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator, products = problem.curvlinops().to_scipy(), []

    def matvec(vector: Any) -> Any:
        products.append(1)
        return operator @ vector

    # pyrefly: ignore [unexpected-keyword, bad-keyword-argument]: it is the factory's signature.
    counted = LinearOperator(operator.shape, matvec=matvec, dtype=operator.dtype)
    # SciPy's bound is on the same relative residual.
    values = eigsh(counted, k=K, which="LA", tol=tolerance, return_eigenvectors=False)
    return torch.tensor(values).flip(0), len(products)


def top_eigenthings(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
    """Its Lanczos takes a fixed number of steps: the fewest of 10, 15, ... that converge."""
    from hessian_eigenthings import lanczos

    steps = EIGENTHINGS_STEPS.get(tolerance, 10)
    while True:
        operator = problem.eigenthings("autograd")
        found = lanczos(operator, k=K, max_iter=steps, tol=tolerance, which="LA",
                        reorthogonalize=True, seed=0)  # fmt: skip
        if bool(found.converged.all()):
            EIGENTHINGS_STEPS[tolerance] = steps  # later repetitions need no search
            return found.eigenvalues, steps
        steps += 5


EIGENTHINGS_STEPS: dict[float, int] = {}

TOPS = {
    "ours": top_ours(),
    "ours, finite differences": top_ours(curvature="finite_difference"),
    "curvlinops + scipy": top_curvlinops,
    "hessian-eigenthings": top_eigenthings,
}


# --- measuring ------------------------------------------------------------------------------------


def take_turns(
    candidates: dict[str, Callable],
    problem: Problem,
    amount: float,
    warm_up: float,
    arguments: argparse.Namespace,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return each candidate's seconds per repetition, and what it returned last.

    Before the first repetition all take a turn with `warm_up` for `amount`, which is not counted.
    A candidate that fails is left out.
    """
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Any] = {}
    for repetition in range(arguments.repetitions + 1):
        for name in list(seconds):
            synchronize(arguments.device)
            start = clock()
            try:
                results[name] = candidates[name](problem, amount if repetition else warm_up)
                synchronize(arguments.device)
            except Exception as error:  # a foreign library may fail in any way
                say(f"{name} fails: {type(error).__name__}: {str(error)[:150]}")
                del seconds[name]
                continue
            if repetition > 0:
                seconds[name].append(clock() - start)
                say(f"{name}: {seconds[name][-1]:.2f} s")
    return seconds, results


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def memory(name: str, arguments: argparse.Namespace) -> float:
    """Return by how many MiB three products raise the peak of a process of their own.

    On a GPU by how many they raise the peak of what its tensors take.
    """
    if arguments.device == "cuda":
        problem = make_problem(arguments, steps=0)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        SEQUENCES[name](problem, 3)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    command = [sys.executable, "-m", "experiments.benchmarks.spectrum", "--memory-of", name]
    for key in ("batch", "size", "mode", "device"):
        command += [f"--{key}", str(getattr(arguments, key))]
    return float(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


def print_memory_of(name: str, arguments: argparse.Namespace) -> None:
    for package in ("curvlinops", "hessian_eigenthings"):  # not to be counted
        with contextlib.suppress(ModuleNotFoundError):
            import_module(package)

    problem = make_problem(arguments, steps=0)  # training would leave a higher peak behind
    before = peak_mib()
    SEQUENCES[name](problem, 3)
    print(peak_mib() - before)


def make_table(
    title: str, seconds: dict[str, list[float]], more: dict[str, Callable[[str], str]], note: str
) -> Grid:
    """A row for each candidate: times, ratios to ours, and the columns of `more`."""
    rows = []
    for name, times in seconds.items():
        spread = f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        ratio = f"{median_ratio(times, seconds['ours']):.2f}"
        rows.append((name, spread, ratio, *(column(name) for column in more.values())))
    return Grid(title, ("candidate", "seconds", "x ours", *more), rows, note)


def bench_products(problem: Problem, arguments: argparse.Namespace) -> tuple[Grid, Any]:
    seconds, _ = take_turns(SEQUENCES, problem, arguments.products, 2, arguments)
    more = {"MiB": lambda name: f"{memory(name, arguments):.0f}"}
    note = (
        f"{setting(arguments)} Memory is what three products add to the peak of "
        f"{'a process of their own' if arguments.device == 'cpu' else 'what tensors take'}, one "
        "measurement each."
    )
    title = f"A Lanczos sequence of {arguments.products} products"
    return make_table(title, seconds, more, note), seconds


def bench_eigenvalues(problem: Problem, arguments: argparse.Namespace) -> tuple[Grid, Any]:
    truth, _ = top_ours()(problem, 1e-5)
    say(f"{K} eigenvalues: {truth.tolist()}")
    try:
        top_eigenthings(problem, arguments.tolerance)  # finds its number of steps
    except ImportError:
        pass
    seconds, results = take_turns(TOPS, problem, arguments.tolerance, 0.3, arguments)

    def error(name: str) -> str:
        return f"{float(((results[name][0].double() - truth) / truth).abs().max()):.1e}"

    more = {"products": lambda name: str(results[name][1]), "error": error}
    note = f"{setting(arguments)} The error is the largest relative one, against ours at 1e-5."
    title = f"The {K} largest eigenvalues to a relative residual of {arguments.tolerance:g}"
    return make_table(title, seconds, more, note), seconds


def setting(arguments: argparse.Namespace) -> str:
    return (
        f"ResNet-20, batch {arguments.batch}, {arguments.size} x {arguments.size}, "
        f"{arguments.mode} mode, float32, {arguments.clock} clock: n = {arguments.repetitions} "
        "repetitions in turn, medians with the extremes, median of the ratios within a repetition."
    )


PARTS = {"products": bench_products, "eigenvalues": bench_eigenvalues}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.spectrum", description=__doc__.splitlines()[0]
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--mode", choices=["eval", "train"], default="eval")
    parser.add_argument("--products", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--docs", type=Path, help="a page whose tables to replace")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.memory_of:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print_memory_of(arguments.memory_of, arguments)
        return 0
    problem = make_problem(arguments)
    packages = {}
    for name in ("curvlinops-for-pytorch", "hessian-eigenthings"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    torch.backends.cudnn.allow_tf32 = False
    for part in arguments.part:
        with warnings.catch_warnings():  # of other libraries' use of torch
            warnings.simplefilter("ignore")
            table, seconds = PARTS[part](problem, arguments)
        origin = provenance(arguments.device, packages=packages)
        publish(f"bench-spectrum-{part}", [table], origin, seconds, arguments.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
