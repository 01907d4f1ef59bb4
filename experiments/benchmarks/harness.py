"""What benchmarks share: optimizers as methods, interleaved timing, ratios of medians."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adahessian import AdaHessian
from experiments.benchmarks import zoo

ALL_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


INSTALL = "pip install 'adahessian[bench]'"


@dataclass(frozen=True)
class Method:
    """A way to take a step.

    Attributes:
        label: its row.
        build: the optimizer of some parameters; ImportError where its package is missing.
        cycle: steps after which the work repeats: one repetition times a whole cycle.
        closure: whether it steps with a closure, and says by `needs_graph` what it needs; else it
            steps behind backward(create_graph=True), as the public packages document it.
        math: whether attention must avoid the fused kernels, which have no second derivative.
        settle: steps until the work repeats.
    """

    label: str
    build: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    cycle: int = 1
    closure: bool = True
    math: bool = False
    settle: int = 0


def public(module: str, name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    """A constructor that imports its package when it is called."""

    def build(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        with warnings.catch_warnings():  # their imports warn of what they deprecate
            warnings.simplefilter("ignore")
            return getattr(import_module(module), name)(params, **options)

    return build


def ours(
    way: str, interval: int = 1, fraction: float = 1.0
) -> Callable[..., torch.optim.Optimizer]:
    return lambda p: AdaHessian(
        p, lr=0.01, curvature=way, update_interval=interval, curvature_fraction=fraction
    )


class Stepper:
    """Takes steps of one method on a network of its own.

    Raises:
        ImportError: the method's package is not installed.
    """

    def __init__(self, method: Method, problem: zoo.Problem, device: str, least: int = 10) -> None:
        self.method, self.problem, self.device = method, problem, device
        self.least = least
        self.optimizer = method.build(list(self.problem.model.parameters()))
        self._settled = False

    def step(self) -> None:
        kernels = [SDPBackend.MATH] if self.method.math else ALL_KERNELS
        with sdpa_kernel(kernels), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph")
            if self.method.closure:
                graph = getattr(self.optimizer, "needs_graph", False)
                takes_part = self.optimizer.param_groups[0].get("curvature_fraction", 1) < 1
                part = {"curvature_closure": self._part} if takes_part else {}
                self.optimizer.step(lambda: self._backward(graph), **part)
            else:
                self._backward(True)
                self.optimizer.step()

    def _backward(self, create_graph: bool) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.problem.model, self.problem.batches[0])
        loss.backward(create_graph=create_graph)
        return loss

    def _part(self, start: float, stop: float) -> Tensor:
        x, y = self.problem.batches[0]
        rows = slice(round(start * len(x)), round(stop * len(x)))
        return self.problem.loss(self.problem.model, (x[rows], y[rows]))

    def settle(self) -> None:
        """Take steps until the work repeats, and two more, whose work is that of the later ones."""
        for _ in range(2 + self.method.settle):
            self.step()
        self._settled = True

    @property
    def warm_up(self) -> int:
        """Steps that do not count: on a GPU all kinds of a cycle, several times the usual one."""
        more = 0 if self._settled else self.method.settle
        return more + (self.method.cycle + 4 if self.device == "cuda" else 1)

    def seconds(self, steps: int | None = None) -> float:
        """Mean seconds per step; default: over whole cycles of 2 steps (GPU: `least`) or more."""
        least = self.least if self.device == "cuda" else 2
        steps = steps or self.method.cycle * -(-least // self.method.cycle)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._synchronize()
        elapsed = time.perf_counter() - start
        self.release()
        return elapsed / steps

    def release(self) -> None:
        """Drop the gradients: the public packages leave a graph to them, and the next method
        needs the memory."""
        self.optimizer.zero_grad(set_to_none=True)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def median_ratio(mine: Sequence[float], unit: Sequence[float]) -> float:
    """How many of the unit one takes: the median of the ratios within each repetition."""
    return median(a / b for a, b in zip(mine, unit, strict=True))


def times(
    steppers: Sequence[Stepper], repetitions: int, progress: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds per step of each method in each repetition, after steps that do not count."""
    seconds: dict[str, list[float]] = {stepper.method.label: [] for stepper in steppers}
    for repetition in range(repetitions + 1):
        for stepper in steppers:
            if repetition == 0:
                stepper.seconds(stepper.warm_up)
            else:
                seconds[stepper.method.label].append(stepper.seconds())
        progress(repetition)
    return seconds
