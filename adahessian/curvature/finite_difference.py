"""Hessian-vector products from one more evaluation of the gradient, without second derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adahessian.curvature.closures import gradients, not_repeatable
from adahessian.curvature.gates import Gates
from adahessian.curvature.precision import CENTRAL_STEP_SIZES, STEP_SIZES
from adahessian.curvature.products import Vector
from adahessian.curvature.replay import Earlier, Replay
from adahessian.replicas import local


class FiniteDifference:
    """Hessian-vector products by a difference of gradients; a :class:`HessianProducts`.

    H·z = (g(θ + h·z) − g(θ)) / h + O(h). One scalar h serves all tensors: with an h for each
    tensor the mixed third derivatives would be weighted wrongly. The second evaluation is a
    :class:`~adahessian.curvature.replay.Replay` of the first: it sees the same activation pattern,
    pooling indices, dropout masks, buffers and random states. Afterwards parameters, gradients,
    buffers and random states are what the first evaluation left, bit for bit, also if it raises.

    Where nobody needs g(θ), and the loss is known to be smooth, the difference is central,
    (g(θ + h·z) − g(θ − h·z)) / 2h + O(h²), at the same price. (Gates recorded at θ − h·z would be
    those of another point.)

    Args:
        closure: clears the gradients, computes a loss, calls backward and returns the loss: the
            same function of the parameters each time.
        params: the parameters whose gradients it fills.
        check: warn of pieces that cannot be frozen and of TF32, and evaluate the closure once more
            to see whether it is repeatable.
        step_size: h; None for the one that suits the precision of the evaluation
            (:data:`~adahessian.curvature.precision.STEP_SIZES`).
        gates: what records and replays the pieces (default: :class:`Gates`).
        earlier: what earlier products with the same loss have shown of it; is updated.
        central: the gradient at θ itself is not needed.

    Attributes:
        step_size: as above; may be changed between products.
        replay: the recorded evaluation.

    Raises:
        RuntimeError: there is no closure.
    """

    def __init__(
        self,
        closure: Callable[[], Any] | None,
        params: Sequence[Tensor],
        *,
        check: bool = False,
        step_size: float | None = None,
        gates: Gates | None = None,
        earlier: Earlier | None = None,
        central: bool = False,
    ) -> None:
        if closure is None:
            raise RuntimeError(
                "curvature='finite_difference' evaluates the loss twice: call "
                "optimizer.step(closure). GradScaler.step passes no closure: use bfloat16 autocast "
                "without a GradScaler, or curvature='double_backward'."
            )
        self._params = params
        self._check = check
        self.step_size = step_size
        self.replay = Replay(closure, params, gates, earlier)
        self._central = central

    def evaluate(self) -> Any:
        """Evaluate the closure; return what it returns, or None where that is not needed.

        Raises:
            RuntimeError: the closure is not repeatable.
        """
        if self._central and self.replay.is_smooth:
            self.replay.begin()
            return None
        value = self.replay.record(check=self._check)
        self._central = self._central and not self.replay.met_pieces
        self._used = {p for p in self._params if p.grad is not None}
        return value

    def product(self, z: Vector) -> dict[Tensor, Tensor]:
        """Return H·z for the parameters of ``z`` that have a gradient.

        A central difference leaves gradients, buffers and random states as an evaluation at θ + h·z
        does.

        Args:
            z: of root mean square one over all parameters together.

        Raises:
            RuntimeError: the second evaluation is another computation than the first, or h·z is
                lost in the rounding of θ.
        """
        if self._central:
            h = self._step_size(list(z))
            after, before = (self._gradients_at(z, sign * h) for sign in (1, -1))
            for p, grad in after.items():
                p.grad = grad
            return _quotients(after, before, 2 * h)
        used = {p: s for p, s in z.items() if p.grad is not None}
        h = self._step_size(list(used))
        found = self._gradients_at(used, h)
        if not found.keys() >= self._used.intersection(used):
            raise not_repeatable("a parameter got a gradient in the first evaluation only")
        first = dict(zip(used, gradients(used), strict=True))
        # A gradient that no evaluation fills is a zero for the sake of other processes.
        return _quotients({p: found.get(p, grad) for p, grad in first.items()}, first, h)

    def resolution(self) -> float:
        """Return how fine products are: an element below this times |gradient| is noise.

        Under bfloat16 autocast a gradient is known to one part in 256. Where the curvature is
        small the difference is then often exactly zero, and a step divided by it becomes huge. In
        full precision the resolution, a thousandth of the gradient, does not matter: 0.
        """
        dtype = self.replay.autocast_dtype
        if dtype is None:
            return 0.0
        width = (2 if self._central else 1) * self._step_size(())
        return torch.finfo(dtype).eps / 2 / width

    def _step_size(self, params: Sequence[Tensor]) -> float:
        sizes = CENTRAL_STEP_SIZES if self._central else STEP_SIZES
        return self.step_size or sizes[self.replay.precision(params)]

    def _gradients_at(self, z: Vector, h: float) -> dict[Tensor, Tensor]:
        """Return the gradients at θ + h·z; θ is afterwards what it was."""
        values = [local(p.detach()) for p in z]
        first_values = [v.clone() for v in values]
        try:
            with torch.no_grad():
                torch._foreach_add_(values, list(z.values()), alpha=h)
                _check_realised(values, first_values, abs(h))
            _, grads = self.replay.again()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(values, first_values)
        return {p: grads[p] for p in z if p in grads}


@torch.no_grad()
def _quotients(
    after: dict[Tensor, Tensor], before: dict[Tensor, Tensor], width: float
) -> dict[Tensor, Tensor]:
    """Return the differences of gradients, by parameter, divided by ``width``."""
    params = [p for p in after if p in before]
    if not params:
        return {}
    differences = torch._foreach_sub(
        [local(after[p]) for p in params], [local(before[p]) for p in params]
    )
    torch._foreach_div_(differences, width)
    return dict(zip(params, differences, strict=True))


def _check_realised(values: list[Tensor], first_values: list[Tensor], h: float) -> None:
    """Raise if θ + h·z is θ for one of the parameters."""
    steps = torch._foreach_norm(torch._foreach_sub(values, first_values))
    sizes = torch.tensor([v.numel() for v in values], device=steps[0].device).sqrt()
    lost = torch.stack(steps) < 0.5 * h * sizes
    if lost.any():
        index = int(lost.nonzero()[0])
        raise RuntimeError(
            f"the step of the finite difference, {h}, is lost in the rounding of a parameter of "
            f"shape {tuple(values[index].shape)} with values up to "
            f"{float(first_values[index].abs().max()):.3g}: use curvature='double_backward', or "
            "scale the parameter down"
        )
