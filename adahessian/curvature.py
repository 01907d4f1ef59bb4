"""Hessian-vector products, and the estimate of the Hessian's diagonal that is made from them.

There are two doors to H·z: :func:`double_backward` differentiates the gradient once more and is
exact; :class:`FiniteDifference` evaluates the gradient once more and needs no second derivative of
anything.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from adahessian import probes
from adahessian.batch_norm import FastBatchNorm
from adahessian.closures import call
from adahessian.finite_difference import FiniteDifference


def double_backward(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    retain_graph: bool = False,
) -> list[Tensor]:
    """Return the exact product of the Hessian and a vector: the derivative of gradᵀ·vector.

    Args:
        grads: first derivatives of one scalar by ``params``, made with ``create_graph=True``. One
            without a graph is constant in every parameter: its rows of the Hessian are zero.
        params: the parameters.
        vectors: the vector, one tensor of each parameter's shape.
        retain_graph: keep the graph for a further product.

    Returns:
        The product, one detached tensor of each parameter's shape. A parameter on which no
        gradient depends gets zeros.
    """
    rows = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
    if not rows:
        return [torch.zeros_like(p) for p in params]
    products = torch.autograd.grad(
        outputs=[g for g, _ in rows],
        inputs=list(params),
        grad_outputs=[v for _, v in rows],
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return [
        torch.zeros_like(p) if hz is None else hz for p, hz in zip(params, products, strict=True)
    ]


_MISSING_GRAPH = (
    "the curvature is due at this step, but no gradient has a graph: call "
    "loss.backward(create_graph=True) before optimizer.step(). In a closure use "
    "loss.backward(create_graph=optimizer.needs_graph), which builds the graph only for the steps "
    "that refresh the curvature."
)


_NOT_UNDER_DDP = (
    "backward(create_graph=True) does not run under DistributedDataParallel, whose gradient "
    "buckets are filled in place. Train the bare module with AdaHessian(process_group=...), which "
    "averages gradient and H·z itself, or use curvature='finite_difference', which runs under "
    "DistributedDataParallel as it is."
)
_REENTRANT = (
    "activation checkpointing with use_reentrant=True has no second derivative: the curvature of "
    "what is inside would be zero. Use checkpoint(..., use_reentrant=False), or "
    "curvature='finite_difference'."
)
_NO_SECOND_DERIVATIVE = (
    "this model uses a kernel whose second derivative torch does not have. Use "
    "curvature='finite_difference', which needs none; or, for attention, its slower kernel: "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH) around the forward pass."
)


class Door(Protocol):
    """A way from a closure to H·z."""

    def first_pass(self, check: bool) -> Any:
        """Evaluate the closure and return what it returns; ``check`` it the first time."""

    def product(self, params: Sequence[Tensor], vectors: Sequence[Tensor], more: bool):
        """Return the Hessian's product with a vector; ``more`` says that another one follows."""

    def resolution(self, params: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the size below which an element of a product is noise; None if it is exact."""


def _runs_again_without_graph(grads: Sequence[Tensor]) -> bool:
    """Whether a reentrant checkpoint, whose inner backward drops create_graph, is in the graph."""
    pending, seen = [g.grad_fn for g in grads if g.requires_grad], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        pending.extend(following for following, _ in node.next_functions)
    return False


class DoubleBackward:
    """The exact door.

    Args:
        closure: computes a loss, calls ``backward(create_graph=True)`` and returns the loss. None
            if the gradients and their graph are there already.
        params: the parameters whose gradients it fills.
    """

    def __init__(self, closure: Callable[[], Any] | None, params: Sequence[Tensor]) -> None:
        self._closure = closure

    def first_pass(self, check: bool = False) -> Any:
        # A compiled function has no second derivative.
        with torch.compiler.set_stance("force_eager"), FastBatchNorm():
            try:
                return call(self._closure)
            except RuntimeError as error:
                if "in-place operation" in str(error) and torch.distributed.is_initialized():
                    raise RuntimeError(_NOT_UNDER_DDP) from error
                raise

    def product(
        self, params: Sequence[Tensor], vectors: Sequence[Tensor], more: bool = False
    ) -> list[Tensor]:
        grads = [p.grad for p in params]
        if not any(g.requires_grad for g in grads):
            raise RuntimeError(_MISSING_GRAPH)
        if not all(g.requires_grad for g in grads) and _runs_again_without_graph(grads):
            raise RuntimeError(_REENTRANT)
        try:
            return double_backward(grads, params, vectors, retain_graph=more)
        except RuntimeError as error:
            if "is not implemented" in str(error):
                raise RuntimeError(f"{error}: {_NO_SECOND_DERIVATIVE}") from error
            raise

    def resolution(self, params: Sequence[Tensor]) -> None:
        return None


DOORS: dict[str, type[Door]] = {
    "double_backward": DoubleBackward,
    "finite_difference": FiniteDifference,
}


class CurvatureError(NamedTuple):
    """How far the finite difference is from the exact product, for one probe.

    Attributes:
        relative: ‖approximate − exact‖ / ‖exact‖ of each parameter; NaN for those in ``flat``.
        flat: for parameters without curvature to speak of (a bias before batch normalization), by
            number: the error's root mean square over that of the whole network's curvature.
        mean_ratio: mean |z · Hz| of the finite difference over that of double backward.
    """

    relative: list[float]
    flat: dict[int, float]
    mean_ratio: float

    @property
    def median(self) -> float:
        return statistics.median(e for e in self.relative if e == e)

    @property
    def largest(self) -> float:
        return max(e for e in self.relative if e == e)


def compare_doors(
    closure: Callable[[], Any], params: Sequence[Tensor], vectors: Sequence[Tensor]
) -> CurvatureError:
    """Compute one product through both doors; change nothing but the gradients.

    Args:
        closure: as for the doors; ``backward`` is called with create_graph in the exact one.
        params: the parameters; those without a gradient are left out.
        vectors: the vector.
    """
    difference = FiniteDifference(closure, params)
    difference.first_pass(check=True)
    used = [(p, v) for p, v in zip(params, vectors, strict=True) if p.grad is not None]
    params, vectors = [p for p, _ in used], [v for _, v in used]
    approximate = difference.product(params, vectors)
    with difference.rerun():
        door = DoubleBackward(closure, params)
        door.first_pass()
        exact = door.product(params, vectors)
    difference.undo()

    def rms(tensors: Sequence[Tensor]) -> float:
        count = sum(t.numel() for t in tensors)
        return (sum(float(t.double().square().sum()) for t in tensors) / count) ** 0.5

    network = rms(exact)
    relative, flat = [], {}
    for i, (a, e) in enumerate(zip(approximate, exact, strict=True)):
        if rms([e]) < 1e-6 * network:
            flat[i] = rms([a - e]) / network
        relative.append(math.nan if i in flat else rms([a - e]) / rms([e]))
    means = [sum(float(t.double().abs().sum()) for t in side) for side in (approximate, exact)]
    return CurvatureError(relative, flat, means[0] / means[1])


def hutchinson_samples(
    hvp: Callable[[list[Tensor], bool], list[Tensor]],
    params: Sequence[Tensor],
    *,
    seed: int,
    step: int,
    num_samples: int = 1,
    tensor_indices: Sequence[int] | None = None,
) -> Iterator[list[Tensor]]:
    """Yield ``num_samples`` unbiased estimates z·Hz of the Hessian's diagonal.

    E[z zᵀ] = I makes E[z·Hz] = diag(H) (Bekas, Kokiopoulou and Saad 2007; the paper's Eq. 8). One
    estimate's error at element i has the variance of the off-diagonal row, Σ_{j≠i} H_ij².

    Args:
        hvp: takes a vector (one tensor for each parameter) and whether another product follows,
            and returns the Hessian's product with it.
        params: the parameters.
        seed, step, tensor_indices: see :func:`adahessian.probes.rademacher_like`.
        num_samples: how many probes.

    Yields:
        Lists with one tensor of each parameter's shape, signed and unaveraged.
    """
    for sample in range(num_samples):
        z = probes.rademacher_like(
            params, seed=seed, step=step, sample=sample, tensor_indices=tensor_indices
        )
        products = hvp(z, sample + 1 < num_samples)
        yield [zi * hz for zi, hz in zip(z, products, strict=True)]
