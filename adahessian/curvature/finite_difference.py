"""H·z from one more evaluation of the gradient: the door that needs no second derivative."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import set_checkpoint_early_stop

from adahessian.curvature.closures import call, not_repeatable
from adahessian.curvature.gates import Gates, HiddenKinks
from adahessian.curvature.precision import STEP_SIZES, _rounds_to_tf32
from adahessian.curvature.replay import _noted_buffers, _random_states, _restore
from adahessian.replicas import local


class FiniteDifference:
    """H·z from one more evaluation of a closure, at θ + h·z, on the pieces of the first one.

    H·z = (g(θ + h·z) − g(θ)) / h + O(h). One scalar h serves all tensors: with an h for each
    tensor the mixed third derivatives would be weighted wrongly. The second evaluation sees the
    same activation pattern, pooling indices and dropout masks as the first
    (:mod:`adahessian.curvature.gates`), the same buffers and the same random states. Afterwards
    parameters, gradients, buffers and random states are what the first evaluation left, bit for
    bit, also if the second one raises.

    Args:
        closure: clears the gradients, computes a loss, calls backward and returns the loss: the
            same function of the parameters each time.
        params: the parameters that may be asked about.
        draw: no matter here.
    """

    def __init__(
        self, closure: Callable[[], Any] | None, params: Sequence[Tensor], draw: Any = None
    ) -> None:
        if closure is None:
            raise RuntimeError(
                "curvature='finite_difference' evaluates the loss twice: call "
                "optimizer.step(closure). GradScaler.step passes no closure: use bfloat16 autocast "
                "without a GradScaler, or curvature='double_backward'."
            )
        self._closure = closure
        self._gates = Gates()
        self._buffers_before: dict[nn.Module, list[tuple[str, Tensor, Tensor]]] = {}
        self._asked = dict.fromkeys(params)
        self._params = dict.fromkeys(params)  # an ordered set: those of the modules join it
        self._devices = {p.device for p in params if p.device.type != "cpu"}

    def first_pass(self, check: bool = False) -> Any:
        """Evaluate the closure, and note what a further evaluation must find again.

        Args:
            check: warn of pieces that cannot be frozen and of TF32, and evaluate once more to see
                whether the closure is repeatable.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: the closure is not repeatable.
        """
        hook = register_module_forward_pre_hook(self._note_module)
        self._random_before = _random_states(self._devices)
        kinks = HiddenKinks(self._gates)
        try:
            with kinks if check else contextlib.nullcontext():
                loss = self._evaluate()
        finally:
            hook.remove()
        if check:
            kinks.warn()
            self._warn_of_tf32()
        self._random_after = _random_states(self._devices)
        self._buffers_after = [
            (module, *noted) for module in self._buffers_before for noted in _noted_buffers(module)
        ]
        if check:
            self._check_repeatable(loss)
        return loss

    def product(
        self, params: Sequence[Tensor], vectors: Sequence[Tensor], more: bool = False
    ) -> list[Tensor]:
        """Return the Hessian's product with a vector.

        Args:
            params: those by which to differentiate; all must have a gradient.
            vectors: one tensor for each of ``params``, of root mean square one over all together.
            more: no matter here.

        Raises:
            RuntimeError: the second evaluation is another computation than the first, or h·z is
                lost in the rounding of θ.
        """
        h = STEP_SIZES[self.precision(params)]
        values = [local(p.detach()) for p in params]
        first_values = [v.clone() for v in values]
        try:
            with torch.no_grad():
                torch._foreach_add_(values, list(vectors), alpha=h)
                _check_realised(values, first_values, h)
            with self.rerun():
                self._gates.rewind()
                self._evaluate()
                self._gates.check_complete()
                second_grads = [p.grad for p in params]
        finally:
            with torch.no_grad():
                torch._foreach_copy_(values, first_values)
        if any(grad is None for grad in second_grads):
            raise not_repeatable("a parameter got a gradient in the first evaluation only")
        with torch.no_grad():
            products = torch._foreach_sub(
                [local(g) for g in second_grads], [local(p.grad) for p in params]
            )
            torch._foreach_div_(products, h)
        return products

    def resolution(self, params: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the size below which an element of a product is rounding noise, or None.

        Under bfloat16 autocast a gradient is known to one part in 256. Where the curvature is
        small the difference is then often exactly zero, and a step divided by it goes through the
        roof. In full precision the resolution, a thousandth of the gradient, does not matter.
        """
        dtype = self._gates.autocast_dtype
        if dtype is None:
            return None
        relative = torch.finfo(dtype).eps / 2 / STEP_SIZES[dtype]
        return torch._foreach_mul(torch._foreach_abs([local(p.grad) for p in params]), relative)

    def undo(self) -> None:
        """Go back to buffers and random states of before the first evaluation."""
        _restore(self._buffers_before_flat(), self._random_before)

    def _evaluate(self) -> Any:
        # Inside an outer autocast region torch keeps the parameters that it has cast: the second
        # evaluation would see the unperturbed ones, and the curvature would be exactly zero.
        torch.clear_autocast_cache()
        # A compiled function shows no gates. A checkpointed one, run again within backward, must
        # come through all of them: it may not stop early.
        with (
            torch.compiler.set_stance("force_eager"),
            set_checkpoint_early_stop(False),
            self._gates,
        ):
            return call(self._closure)

    @contextlib.contextmanager
    def rerun(self, clear_grads: bool = True) -> Iterator[None]:
        """Start from the first pass's state; at the end put back what the first pass left."""
        # The second pass writes its gradients into tensors of its own. Views are those of a
        # communication buffer that it would overwrite.
        first_grads = [
            (p, p.grad.clone() if p.grad is not None and p.grad._is_view() else p.grad)
            for p in self._params
        ]
        if clear_grads:
            for p in self._params:
                p.grad = None
        _restore(self._buffers_before_flat(), self._random_before)
        try:
            yield
        finally:
            for p, grad in first_grads:
                p.grad = grad
            _restore(self._buffers_after, self._random_after)

    def _check_repeatable(self, loss: Any) -> None:
        kept = {p: p.grad.detach().clone() for p in self._params if p.grad is not None}
        # The closure need not clear what is not the optimizer's.
        params = [p for p in kept if p in self._asked]
        if not params:
            return
        first = [kept[p] for p in params]
        with self.rerun(clear_grads=False):
            self._gates.rewind()
            # A closure that is linear in the gradient passes a factor on; one that clips does not.
            factor = 1.0 if self._gates.backward_scale is None else 32.0
            self._gates.backward_scale = factor
            try:
                again = self._evaluate()
            finally:
                self._gates.backward_scale = 1.0
            self._gates.check_complete()
            second = [p.grad.detach() / factor for p in params]
            norms = torch._foreach_norm([local(g) for g in first])
            changes = torch._foreach_norm(
                [local(a - b) for a, b in zip(second, first, strict=True)]
            )
            scale, change = torch.stack(norms).norm(), torch.stack(changes).norm()
        for p, grad in kept.items():
            p.grad = grad  # a zero_grad(set_to_none=False) has overwritten the first pass's
        if isinstance(loss, Tensor) and not torch.allclose(loss, again, rtol=1e-3, atol=1e-6):
            raise not_repeatable(f"the loss is {float(again)} instead of {float(loss)}")
        if change > 0.01 * scale:
            raise not_repeatable(
                f"its gradient differs by {float(change):.2g} of {float(scale):.2g} (does the "
                "closure clear the gradients itself? does it clip them? max_grad_norm does it)"
            )

    def precision(self, params: Sequence[Tensor]) -> torch.dtype | str:
        """Return the coarsest precision in which the first pass computed: a key of STEP_SIZES."""
        found = {p.dtype for p in params} | {self._gates.autocast_dtype} - {None}
        on_gpu = any(p.is_cuda for p in params)
        if on_gpu and torch.cuda.is_tf32_supported() and _rounds_to_tf32(self._gates.called):
            found.add("tf32")
        return max(found, key=STEP_SIZES.__getitem__)

    def _warn_of_tf32(self) -> None:
        # bfloat16 is somebody's choice; TF32 is torch's default for convolutions.
        params = [p for p in self._asked if p.dtype == torch.float32]
        if params and self.precision(params) == "tf32":
            warnings.warn(
                "the finite difference reads gradients that are computed in TF32, with three "
                "digits: expect errors of 10 % and more behind batch normalization. Set "
                "torch.backends.cudnn.allow_tf32 = False (for matrix products: "
                "torch.set_float32_matmul_precision('highest')), or use "
                "curvature='double_backward'.",
                stacklevel=3,
            )

    def _note_module(self, module: nn.Module, _: Any) -> None:
        if module not in self._buffers_before:
            self._buffers_before[module] = _noted_buffers(module)
            self._params.update(dict.fromkeys(module.parameters(recurse=False)))

    def _buffers_before_flat(self):
        return [(m, *noted) for m, buffers in self._buffers_before.items() for noted in buffers]


def _check_realised(values, first_values, h: float) -> None:
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
