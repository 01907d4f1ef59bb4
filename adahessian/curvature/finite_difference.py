"""Hessian-vector products from one more evaluation of the gradient, without second derivatives."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adahessian import _torch
from adahessian.curvature.changes import Change, norms
from adahessian.curvature.check import (
    TOLERANCES,
    AccuracyCheck,
    Evaluation,
    Slope,
    Trial,
    best_trial,
    unexplained,
)
from adahessian.curvature.closures import (
    gradients,
    held_weakly,
    not_repeatable,
    refuse_uninitialized,
)
from adahessian.curvature.diagnosis import likely_cause
from adahessian.curvature.earlier import Earlier
from adahessian.curvature.gates import Gates
from adahessian.curvature.precision import CENTRAL_STEP_SIZES, STEP_SIZES
from adahessian.curvature.products import Vector
from adahessian.curvature.replay import Replay
from adahessian.curvature.trace import Trace
from adahessian.replicas import is_sharded, local, mesh_groups, over_all

_MOST_LOST = 0.5  # of a step, by rounding
_NOTHING = contextlib.nullcontext()
_LARGEST = 0.01  # the step h, relative to the parameters' root mean square


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
        accuracy: a check of the first product, if one is due; it also holds the scale of h.

    Attributes:
        step_size, accuracy: as above; may be changed between products.
        replay: the recorded evaluation.

    Raises:
        RuntimeError: there is no closure.
        ValueError: a parameter is not initialized.
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
        accuracy: AccuracyCheck | None = None,
    ) -> None:
        if closure is None:
            raise RuntimeError(
                "curvature='finite_difference' evaluates the loss twice: call "
                "optimizer.step(closure). A trainer that passes none can train with "
                "curvature_fraction below 1 and optimizer.curvature_closure. GradScaler.step "
                "passes none either: use bfloat16 autocast without a GradScaler, or "
                "curvature='double_backward'."
            )
        refuse_uninitialized(params)
        self._params = params
        self._check = check
        self.step_size = step_size
        see = held_weakly(self._see_wrapper)
        self._earlier = Earlier() if earlier is None else earlier
        self.replay = Replay(closure, params, gates, earlier, see, alone=central)
        self._central = self._is_beside = central
        self.accuracy = AccuracyCheck() if accuracy is None else accuracy
        self._groups = mesh_groups(params)  # each process has a part of the parameters
        self.accuracy.decide_with(self._groups)

    def evaluate(self) -> Any:
        """Evaluate the closure; return what it returns, or None where that is not needed.

        Raises:
            RuntimeError: the closure is not repeatable.
        """
        if self._central and self.replay.is_smooth:
            self.replay.begin()
            return None
        if self._groups and not self.replay.is_smooth:
            for module in self.replay.modules():
                _refuse_coarse_reduction(module)
        value = self.replay.record(check=self._check)
        checked = self.accuracy.due and self.replay.precision(self._params) in TOLERANCES
        self._central = self._central and not checked and not self.replay.met_pieces
        self._used = {p for p in self._params if p.grad is not None}
        self._value = value
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
            after = self._evaluate_at(z, h)
            if not self.replay.is_another(after.value, after.grads):
                before = self._evaluate_at(z, -h, lost=after.lost)
                for p, grad in after.grads.items():
                    p.grad = grad
                change = Change(after.grads, before.grads, (after.value, before.value), 2 * h)
                self._watch(z, after, change)
                return change.quotients()
            self.replay.undo()
            self._central = False
            self.evaluate()
        used = {p: s for p, s in z.items() if p.grad is not None}
        if self.accuracy.due and self.replay.precision(list(used)) in TOLERANCES:
            return self._checked_product(used)
        h = self._step_size(list(used))
        after = self._evaluate_at(used, h)
        change = self._change(used, after, h)
        self._watch(used, after, change)
        return change.quotients()

    def _see_wrapper(self, module: DistributedDataParallel) -> None:
        """Take in that the closure calls a module that averages its gradients over processes."""
        hook = _torch.communication_hook(module)
        # Where the gradient at θ is not needed, gradients are taken beside the module's hooks.
        if hook and not self._central:
            raise RuntimeError(
                f"the communication hook {hook} of DistributedDataParallel changes gradients, "
                "whose small differences the finite difference reads: use curvature_fraction below "
                "1, process_group= with the bare module, or no such hook"
            )
        if not _torch.is_within_join(module):
            self.accuracy.decide_with([module.process_group])
        elif not self._central and (self.accuracy.due or self.accuracy.watches):
            raise RuntimeError(
                "within DistributedDataParallel's Join a process that has run out of data answers "
                "no messages of the finite difference's checks: set check_interval=0"
            )

    def _checked_product(self, z: Vector) -> dict[Tensor, Tensor]:
        """Return H·z, with the step at which D₊ and D₋ agree best where they do not agree well."""
        precision = self.replay.precision(list(z))
        accuracy = self.accuracy
        accuracy.params = list(z)
        trial = self._trial(z, accuracy.scale)
        if accuracy.waits:
            if not float(trial.disagreement.max()) <= TOLERANCES[precision].ample:
                largest = _LARGEST * self._size(list(z)) / self._step_size(list(z), 1.0)
                slope = TOLERANCES[precision].slope
                trial = best_trial(trial, partial(self._trial, z), largest, slope)
            self._refuse_lost(list(z), trial.lost, self._step_size(list(z), trial.scale))
        accuracy.conclude(trial, dict(zip(z, gradients(z), strict=True)), precision)
        if self._check:  # on all processes, or one would wait for the others
            h, noise = self._step_size(list(z), trial.scale), self.replay.noise
            again = {p: hz + noise[p] / h if p in noise else hz for p, hz in trial.product.items()}
            accuracy.noise = accuracy.disagreement(trial.product, again, TOLERANCES[precision].flat)
        if accuracy.waits and accuracy.is_wrong():
            accuracy.cause = self._likely_cause(z, trial)
        return trial.product

    def _size(self, params: Sequence[Tensor]) -> float:
        """Return the root mean square of parameters, over all processes that have a part."""
        norm = norms([local(p.detach()) for p in params]).norm()
        count = norm.new_tensor(sum(local(p).numel() for p in params))
        square, count = over_all(torch.stack([norm**2, count]), self._groups).tolist()
        return (square / count) ** 0.5

    def _likely_cause(self, z: Vector, trial: Trial) -> str:
        """Look for the operation that a failed check is due to."""
        accuracy = self.accuracy
        is_kink = accuracy.failed is not None and bool(accuracy.failed.any())
        h = self._step_size(list(z), trial.scale if is_kink else trial.slope_scale)
        size = 3 * h * float(norms([local(g) for g in gradients(z)]).norm())

        def evaluate(trace: Trace, step: float) -> None:
            self._evaluate_at(z, step, look=True, within=trace)

        return likely_cause(
            evaluate,
            self.replay.gates,
            h,
            unexplained=None if is_kink else float(trial.slope) * size,
            eps=_eps(self.replay.precision(list(z))),
        )

    def _trial(self, z: Vector, scale: float) -> Trial:
        """Compare the product with one that looks the other way, and twice as far."""
        precision = self.replay.precision(list(z))
        h = self._step_size(list(z), scale)
        after, before = (self._evaluate_at(z, step, look=True) for step in (h, -2 * h))
        changes = self._change(z, after, h), self._change(z, before, -2 * h)
        for change in changes:
            self._see_strays(z, change)
        near, far = (change.quotients() for change in changes)
        slope, blur = unexplained(after, before, 3 * h, _eps(precision))
        disagreement = self.accuracy.disagreement(near, far, TOLERANCES[precision].flat)
        return Trial(
            scale,
            near,
            torch.maximum(disagreement, after.lost.to(disagreement)),
            slope,
            scale,
            blur,
            after.lost,
            after.slope.seen,
        )

    def _change(self, z: Vector, after: Evaluation, h: float) -> Change:
        """Return that from the recorded evaluation to another one."""
        if not after.grads.keys() >= self._used.intersection(z):
            raise not_repeatable("a parameter got a gradient in the first evaluation only")
        first = dict(zip(z, gradients(z), strict=True))
        # A gradient that no evaluation fills is a zero for the sake of other processes.
        second = {p: after.grads.get(p, grad) for p, grad in first.items()}
        return Change(second, first, (after.value, self._value), h)

    def resolution(self) -> float:
        """Return how fine products are: an element below this times |gradient| is noise.

        Under bfloat16 autocast a gradient is known to one part in 256. Where the curvature is
        small the difference is then often exactly zero, and a step divided by it becomes huge. In
        full precision the resolution, a thousandth of the gradient, does not matter: 0.
        """
        dtype = self.replay.precision(self._params)
        if not isinstance(dtype, torch.dtype) or torch.finfo(dtype).bits > 16:
            return 0.0
        width = (2 if self._central else 1) * self._step_size(())
        return torch.finfo(dtype).eps / 2 / width

    def _step_size(self, params: Sequence[Tensor], scale: float | None = None) -> float:
        sizes = CENTRAL_STEP_SIZES if self._central else STEP_SIZES
        scale = self.accuracy.scale if scale is None else scale
        return scale * (self.step_size or sizes[self.replay.precision(params)])

    def _evaluate_at(
        self,
        z: Vector,
        h: float,
        *,
        look: bool = False,
        within: contextlib.AbstractContextManager = _NOTHING,
        lost: Tensor | None = None,
    ) -> Evaluation:
        """Evaluate the gradient at θ + h·z; θ is afterwards what it was.

        Args:
            look: see how the loss changes along z.
            within: a context for the closure.
            lost: what a step of the same length is known to lose (:class:`Evaluation`).
        """
        values = [local(p.detach()) for p in z]
        first_values = [torch.empty_like(v) for v in values]
        torch._foreach_copy_(first_values, values)
        slope = Slope(z)
        try:
            with torch.no_grad():
                torch._foreach_add_(values, list(z.values()), alpha=h)
                if lost is None:
                    lost = _lost(values, first_values, list(z.values()), h)
                    over_all(lost, self._groups, "MAX")  # or one raises, and the others wait
            if not look and lost.is_cpu:  # a device is not waited for
                self._refuse_lost(list(z), lost, abs(h))
            with slope if look else _NOTHING:
                value, grads = self.replay.again(within, look=look or self._check)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(values, first_values)
        if (look or self._check) and self.replay.learn_searches():
            return self._evaluate_at(z, h, look=look, within=within)
        grads = {p: grads[p] for p in z if p in grads}
        if not self._is_beside:
            return Evaluation(grads, value, slope, self.replay.loss(value), lost)
        slope.count_last(grads)
        return Evaluation(grads, value, slope, [value.detach().sum()], lost)

    def _watch(self, z: Vector, after: Evaluation, change: Change) -> None:
        """See whether an evaluation was the first one's computation, by its loss."""
        accuracy = self.accuracy
        if not accuracy.watches or not change.is_seen:
            return
        self._see_strays(z, change)
        is_anothers = self._earlier.changes.exceeded(*change.at_all())
        doubt = is_anothers | (after.lost > _MOST_LOST).any()
        accuracy.doubt = doubt if accuracy.doubt is None else accuracy.doubt | doubt

    def _see_strays(self, z: Vector, change: Change) -> None:
        """See whether the loss that the closure returns changes as the gradients say.

        In one process: over several the gradients are averaged, and losses are not.
        """
        accuracy, precision = self.accuracy, self.replay.precision(list(z))
        is_recorded = not self.replay.is_smooth
        is_of_use = is_recorded and not self.replay.met_pieces or self._earlier.is_explained
        alone = not (accuracy.process_groups or any(map(is_sharded, z)))
        watches = accuracy.watches and change.is_seen
        if is_of_use and alone and watches and precision in TOLERANCES:
            tolerance = TOLERANCES[precision].slope
            found = change.unexplained(z, eps=_eps(precision), tolerance=tolerance)
            strays = self._earlier.unexplained.exceeded(*found)
            accuracy.note_strays(strays, is_recorded=is_recorded)

    def _refuse_lost(self, params: Sequence[Tensor], lost: Tensor, h: float) -> None:
        """Raise if θ + h·z is not that for one of the parameters."""
        if not (lost > _MOST_LOST).any():
            return
        worst = params[int(lost.argmax())]
        values = local(worst.detach()).abs().reshape(-1)
        largest = torch.cat([values, values.new_zeros(1)]).max()  # of a part without elements, too
        size = float(over_all(largest, self._groups, "MAX"))
        if any(p is not worst and _overlap(p, worst) for p in params):
            raise RuntimeError(
                f"two parameters share their memory, one of them of shape {tuple(worst.shape)}: a "
                "step along one moves the other. Give the optimizer one tensor, and tie layers by "
                "assigning the same parameter (a.weight = b.weight), not its data"
            )
        raise RuntimeError(
            f"the step of the finite difference, {h:.3g}, is lost in the rounding of a parameter "
            f"of shape {tuple(worst.shape)} with values up to {size:.3g}: use "
            "curvature='double_backward', or scale the parameter down"
        )


def _refuse_coarse_reduction(module: nn.Module) -> None:
    """Raise if ``fully_shard`` rounds the gradients of a module while it reduces them."""
    policy, param = _torch.sharding_policy(module), next(module.parameters(), None)
    if policy is None or policy.reduce_dtype is None or param is None:
        return
    computed, reduced = policy.param_dtype or param.dtype, policy.reduce_dtype
    if torch.finfo(reduced).eps > torch.finfo(computed).eps:
        raise RuntimeError(
            f"fully_shard reduces gradients in {reduced}, which rounds away the small differences "
            f"that the finite difference reads: use MixedPrecisionPolicy(reduce_dtype={computed})"
        )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two parameters lie in the same memory; parts of one buffer do not."""
    a, b = local(a.detach()), local(b.detach())
    of_a, of_b = a.data_ptr(), b.data_ptr()
    return a.device == b.device and of_a < of_b + b.nbytes and of_b < of_a + a.nbytes


def _eps(precision: torch.dtype | str) -> float:
    return torch.finfo(torch.float64 if precision == torch.float64 else torch.float32).eps


def _lost(values: list[Tensor], first_values: list[Tensor], z: list[Tensor], h: float) -> Tensor:
    """Return the part of the step h·z that rounding took from θ + h·z, for each parameter."""
    errors = torch._foreach_sub(values, first_values)
    torch._foreach_add_(errors, z, alpha=-h)
    found = torch._foreach_norm(errors)
    # Divided by numbers: a tensor of them would be copied to the device, which waits for it.
    sizes = [max(v.numel(), 1) ** 0.5 * abs(h) or 1.0 for v in values]
    lost = torch._foreach_div(found, sizes)
    return torch.stack([part.to(found[0]) for part in lost])
