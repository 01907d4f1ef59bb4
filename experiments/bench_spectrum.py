"""What a Hessian's spectrum costs, beside curvlinops and hessian-eigenthings.

    python -m experiments.bench_spectrum [--batch 128] [--repetitions 5] [--clock cpu]

ResNet-20 on one batch of random images, the same weights, mode and batch for all. Two questions:
what a fixed number of products costs (a Lanczos sequence, with all that belongs to it), and what
the top eigenvalues cost at equal accuracy. The candidates take turns within each repetition, so
that load on the machine falls on all of them; what is printed are medians over the repetitions,
of the times and of their ratios to ours. Memory is measured in a process of its own for each.

Needs curvlinops-for-pytorch and hessian-eigenthings (and scipy) beside the harness.
"""

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from adahessian import spectrum
from experiments.models.resnet_cifar import ResNetCifar

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
    candidates: dict[str, Callable], problem: Problem, amount: float, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return each candidate's seconds per repetition, and what it returned last.

    The first repetition warms up and is not counted. A candidate that fails is left out.
    """
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Any] = {}
    for repetition in range(arguments.repetitions + 1):
        for name in list(seconds):
            start = clock()
            try:
                results[name] = candidates[name](problem, amount)
            except Exception as error:  # a foreign library may fail in any way
                print(f"{name} fails: {type(error).__name__}: {str(error)[:150]}", flush=True)
                del seconds[name]
                continue
            if repetition > 0:
                seconds[name].append(clock() - start)
    return seconds, results


def memory(name: str, arguments: argparse.Namespace) -> float:
    """Return by how many MiB three products raise the peak of a process of their own."""
    command = [sys.executable, "-m", "experiments.bench_spectrum", "--memory-of", name]
    for key in ("batch", "size", "mode"):
        command += [f"--{key}", str(getattr(arguments, key))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory_of(name: str, arguments: argparse.Namespace) -> None:
    import curvlinops  # noqa: F401 (not to be counted)
    import hessian_eigenthings  # noqa: F401

    problem = make_problem(arguments, steps=0)  # training would leave a higher peak behind
    before = peak_mib()
    SEQUENCES[name](problem, 3)
    print(peak_mib() - before)


def peak_mib() -> float:
    """Return the peak of this process's resident memory (Linux)."""
    # Not getrusage: its peak includes that of the parent from before exec.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def report(seconds: dict[str, list[float]], extra: Callable[[str], str]) -> None:
    for name, times in seconds.items():
        ratio = median(t / o for t, o in zip(times, seconds["ours"], strict=True))
        spread = f"({min(times):.2f} to {max(times):.2f})"
        print(f"{name:34s} {median(times):8.2f} s {spread:18s} {ratio:5.2f} x ours  {extra(name)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--mode", choices=["eval", "train"], default="eval")
    parser.add_argument("--products", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--part", choices=["products", "eigenvalues", "both"], default="both")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of other libraries' use of torch
    if arguments.memory_of:
        print_memory_of(arguments.memory_of, arguments)
        return
    problem = make_problem(arguments)
    print(
        f"ResNet-20, batch {arguments.batch}, {arguments.size} x {arguments.size}, "
        f"{arguments.mode} mode; torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"{arguments.clock} clock; medians of {arguments.repetitions} repetitions"
    )
    if arguments.part != "eigenvalues":
        bench_products(problem, arguments)
    if arguments.part != "products":
        bench_eigenvalues(problem, arguments)


def bench_products(problem: Problem, arguments: argparse.Namespace) -> None:
    print(f"\n{arguments.products} products, a Lanczos sequence:", flush=True)
    seconds, _ = take_turns(SEQUENCES, problem, arguments.products, arguments)
    report(seconds, lambda name: f"{memory(name, arguments):6.0f} MiB")


def bench_eigenvalues(problem: Problem, arguments: argparse.Namespace) -> None:
    print(f"\n{K} largest eigenvalues to a relative residual of {arguments.tolerance}:", flush=True)
    truth, _ = top_ours()(problem, 1e-5)
    seconds, results = take_turns(TOPS, problem, arguments.tolerance, arguments)

    def accuracy(name: str) -> str:
        values, products = results[name]
        error = float(((values.double() - truth) / truth).abs().max())
        return f"{products:4d} products, largest relative error {error:.1e}"

    report(seconds, accuracy)


if __name__ == "__main__":
    main()
