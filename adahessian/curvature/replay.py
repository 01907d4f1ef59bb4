"""One evaluation of a closure, recorded, and further ones that are the same computation.

A finite difference compares the gradient (or a value) at two points of one and the same function.
So the second evaluation starts from the first one's buffers and random states, and takes its pieces
(:mod:`adahessian.curvature.gates`): it differs from the first by the parameters alone.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from itertools import starmap
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import set_checkpoint_early_stop

from adahessian import _torch
from adahessian.curvature.attributes import may_change
from adahessian.curvature.closures import call, gradients
from adahessian.curvature.earlier import Earlier, Kinds
from adahessian.curvature.gates import Gates
from adahessian.curvature.graph import kinds_below, leaves_below
from adahessian.curvature.hidden_kinks import HiddenKinks
from adahessian.curvature.module_calls import before_each_call
from adahessian.curvature.precision import STEP_SIZES, coarsest
from adahessian.curvature.repeatable import check_repeatable
from adahessian.curvature.snapshot import Snapshot
from adahessian.replicas import any_of, local, mesh_groups, place_gradients, whole

_NOTHING = contextlib.nullcontext()


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes


def _have_one_memory(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.layout != torch.strided or b.layout != torch.strided:
        return a is b is not None
    return local(a).data_ptr() == local(b).data_ptr() != 0


class Replay:
    """Records one evaluation of a closure, and repeats it at other values of the parameters.

    After each repetition gradients, buffers and random states are what the recorded evaluation
    left, bit for bit, also if it raises.

    Args:
        closure: clears the gradients, computes a loss, calls backward and returns the loss: the
            same function of the parameters each time. Any other function is good for its value.
        params: its parameters. The gradients of all other leaves that its backward passes reach,
            and of all that its modules have, are preserved too.
        gates: what records and replays the pieces of the function.
        earlier: what is known of it; None for nothing, and its modules are those that it calls.
        see_wrapper: is called with the DistributedDataParallel modules that the function calls,
            before they run; with those of earlier evaluations where nothing is recorded.
        alone: other processes need not evaluate as often.

    Attributes:
        gates: as above.
        is_smooth: the function is known to have no pieces: nothing is recorded.
        noise: by how much the gradients of a repetition differed at the same parameters, where that
            was looked at, by parameter.
    """

    def __init__(
        self,
        closure: Callable[[], Any],
        params: Sequence[Tensor],
        gates: Gates | None = None,
        earlier: Earlier | None = None,
        see_wrapper: Callable[[DistributedDataParallel], None] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self._closure, self._see_wrapper = closure, see_wrapper
        self.gates = Gates() if gates is None else gates
        self._earlier = Earlier() if earlier is None else earlier
        if earlier is None:
            self._earlier.modules = []
        self.is_smooth = self._earlier.is_smooth
        self.gates.searches = self._earlier.searches
        if self._earlier.has_hidden_pieces:
            self.gates.record_anew(kernels=True)
        self.noise: dict[Tensor, Tensor] = {}
        self._latest: dict[Tensor, Tensor] = {}  # gradients of the last evaluation
        self._given = self.gates.params = dict.fromkeys(params)
        # An ordered set: those of the modules join it.
        self._params: dict[Tensor, None] = dict.fromkeys(params)
        self._devices = {p.device for p in params if p.device.type != "cpu"}

    def record(self, *, check: bool = False) -> Any:
        """Evaluate the closure for the first time.

        Args:
            check: warn of pieces that cannot be frozen and of TF32, and evaluate once more to see
                whether the closure is repeatable.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: the closure is not repeatable.
        """
        if self.is_smooth:
            self.begin()
            value = self._evaluate()
            if isinstance(value, Tensor):
                self._params |= leaves_below([value])
            self._after = self._snapshot()
            if not self._agree(self.is_another(value, self._used())):
                return value
            seen, after = self._kinds(value, self._used()), self._after
            self.is_smooth = False
            with self.rewound():
                self._record(check=check)
            # Modules that nobody knew were noted when the record came to them: that is their end.
            self._before.restore()
            after.restore()
            self._after = self._snapshot(self._before.modules)
            if not self.met_pieces:  # compiled code has other operations
                self._earlier.smooth.add(seen)
            return value
        value = self._record(check=check)
        if check:
            self._check_repeatable(value)
        return value

    def is_another(self, value: Any, used: Collection[Tensor]) -> bool:
        """Whether an evaluation that was to be smooth was of a loss that is not known to be.

        Then it counts as not smooth from now on. One that is recorded is what was recorded, though
        a reshape, say, may go another way.

        Args:
            value: what the closure returned.
            used: the parameters that got a gradient.
        """
        if not self.is_smooth:
            return False
        self.is_smooth = self._kinds(value, used) in self._earlier.smooth
        return not self.is_smooth

    def _agree(self, condition: bool) -> bool:
        """Whether a condition holds in any of the processes whose evaluations belong together."""
        wrappers = self._earlier.wrappers
        if self._alone or any(map(_torch.is_within_join, wrappers)):
            return condition
        groups = dict.fromkeys([*mesh_groups(self._given), *(w.process_group for w in wrappers)])
        return any_of(condition, list(groups), next(iter(self._given)).device)

    def _kinds(self, value: Any, used: Collection[Tensor]) -> Kinds:
        return kinds_below(value), tuple(p in used for p in self._given)

    def _used(self) -> set[Tensor]:
        return {p for p in self._given if p.grad is not None}

    def _record(self, *, check: bool) -> Any:
        """Evaluate the closure under the gates, at the beginning or within ``rewound``."""
        self._before = self._snapshot()
        self._earlier.wrappers = {}
        for module in self._before.modules:
            self._know(module)
        hook = before_each_call(self._note_module)
        kinks = HiddenKinks(self.gates)
        look = check or not self._earlier.looked_at
        try:
            with kinks if look else contextlib.nullcontext():
                value = self._evaluate()
        finally:
            hook.remove()
        self._earlier.places = self._before.settle(self.gates.written)
        self._before.generators = self.gates.generators
        self._after = self._snapshot(self._before.modules)
        self._params |= self.gates.leaves
        kinds = self._kinds(value, self._used())
        if not look and self._agree(kinds not in self._earlier.looked_at):
            look = True
            with self.rewound(), kinks:
                self._evaluate_again()
        if look:
            kinks.warn()
        if check:
            self._warn_of_tf32()
        self._earlier.looked_at.add(kinds)
        if kinks.found:
            self._earlier.has_hidden_pieces = True
            self._record_anew()
        self._earlier.learn(self.gates, self._before.modules, self._params)
        if not kinds[0]:  # a loss without its graph: nothing would tell it from another
            self._earlier.always_record()
        elif not self.gates.met_pieces:
            self._earlier.smooth.add(kinds)
        return value

    def _record_anew(self) -> None:
        """Record the same evaluation in the way that is now known to be needed."""
        self.gates.record_anew(kernels=self._earlier.has_hidden_pieces)
        with self.rewound():
            self._evaluate()

    def learn_searches(self) -> bool:
        """Record anew if the last repetition froze a search; return whether it did.

        The parameters are those of the recorded evaluation.
        """
        if not self._agree(self._earlier.searches.settle()):
            return False
        self._record_anew()
        return True

    def modules(self) -> list[nn.Module]:
        """Return the modules around the parameters, or those that the function has called."""
        return self._earlier.known_modules(self._given)

    @property
    def met_pieces(self) -> bool:
        """Whether the recorded evaluation came through anything that is to be frozen."""
        return not self.is_smooth and self.gates.met_pieces

    def loss(self, value: Any) -> list[Tensor]:
        """Return what the gradient of the last evaluation is the derivative of, in parts.

        Args:
            value: what the closure returned, of which that is taken if no backward was seen.
        """
        if self.gates.losses or not isinstance(value, Tensor):
            return self.gates.losses
        return [value.detach().sum()]

    def begin(self) -> None:
        """Note where a smooth function's evaluations start, in the place of a first one.

        The first repetition then is what leaves buffers and random states behind.
        """
        if self._see_wrapper is not None:
            for wrapper in self._earlier.wrappers:
                self._see_wrapper(wrapper)
        self._params |= dict.fromkeys(self._earlier.params)
        self._before = self._after = self._snapshot()

    def again(
        self, within: contextlib.AbstractContextManager = _NOTHING, *, look: bool = False
    ) -> tuple[Any, dict[Tensor, Tensor]]:
        """Evaluate the closure once more, at the values that the parameters have now.

        Args:
            within: a context for the closure, which finds the gates active.
            look: for what :meth:`learn_searches` is to learn.

        Returns:
            What the closure returned, and the gradients that it left, by parameter.

        Raises:
            RuntimeError: it was another computation than the recorded one.
        """
        self._earlier.searches.looks = look
        with self.rewound():
            value = self._evaluate_again(within)
            if self._after is self._before:  # nothing was recorded: this is the first evaluation
                self._after = self._snapshot()
            found = ((p, p.grad) for p in self._params if p.grad is not None)
            return value, {p: g.clone() if self._may_be_refilled(g) else g for p, g in found}

    @contextlib.contextmanager
    def rewound(self, clear_grads: bool = True) -> Generator[None]:
        """Go back to where the recorded evaluation started, and in the end to where it ended.

        Args:
            clear_grads: begin without gradients; else with those of the recorded evaluation.
        """
        # What is evaluated within writes its gradients into tensors of its own; but for those that
        # lie in a buffer, of communication or of the closure's own, which it fills again.
        grads = [(p, p.grad) for p in self._params]
        kept = [(grad, grad.clone()) for _, grad in grads if self._may_be_refilled(grad)]
        try:
            if clear_grads:
                for p, grad in grads:
                    p.grad = grad.zero_() if self._lies_in_a_buffer(grad) else None
            self._before.restore()
            yield
            if clear_grads:
                self._refuse_overwritten(grads)
        finally:
            for p, grad in grads:
                p.grad = grad
            for grad, values in kept:
                grad.copy_(values)
            self._after.restore()

    def _lies_in_a_buffer(self, grad: Tensor | None) -> TypeGuard[Tensor]:
        """Whether a gradient is part of another tensor, of which it is to stay one.

        Autograd itself makes views of all of a tensor, a transposed product for example. A bucket
        of DistributedDataParallel can hold a single gradient, and is another one after a step.
        """
        # Those of an evaluation beside the step are new ones.
        if grad is None or self._alone or not (_torch.is_view(grad) and may_change(grad)):
            return False
        can_be_all = bool(self._earlier.refills or self._earlier.wrappers)
        return can_be_all or _is_part(local(grad))

    def _may_be_refilled(self, grad: Tensor | None) -> TypeGuard[Tensor]:
        """Whether another evaluation may write its gradient where this one lies."""
        if grad is None or self._alone:
            return False
        refills = self._earlier.refills is not False and may_change(grad)
        return refills or self._lies_in_a_buffer(grad)

    def _learn_of_refills(self) -> None:
        """Compare where two evaluations in turn have written their gradients."""
        if self._earlier.refills is not None or self._alone:
            return
        now = {p: p.grad for p in self._params if not self._lies_in_a_buffer(p.grad)}
        pairs = [(now[p], grad) for p, grad in self._latest.items() if now.get(p) is not None]
        self._earlier.refills = any(starmap(_have_one_memory, pairs)) if pairs else None
        self._latest = {} if pairs else {p: grad for p, grad in now.items() if grad is not None}

    def _refuse_overwritten(self, grads: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Raise if the closure has written where the gradients lay that were taken away."""
        taken = [(p.grad, grad) for p, grad in grads if not self._lies_in_a_buffer(grad)]
        if self._earlier.refills is False and any(starmap(_have_one_memory, taken)):
            self._earlier.refills = True
            raise RuntimeError(
                "the closure has begun to write its gradients into tensors that it keeps, and "
                "this step's are lost: take the step again, which reckons with it"
            )

    def undo(self) -> None:
        """Go back to the buffers and random states of before the recorded evaluation."""
        self._before.restore()

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """In which the recorded evaluation ran under autocast; None if it did not."""
        return self._seen.autocast_dtype

    @property
    def _seen(self) -> Gates | Earlier:
        return self._earlier if self.is_smooth else self.gates

    def precision(self, params: Sequence[Tensor]) -> torch.dtype | str:
        """Return the coarsest precision in which the recorded evaluation computed.

        Args:
            params: those whose gradients are meant.

        Returns:
            A key of ``STEP_SIZES``.
        """
        found: set[torch.dtype | str] = {p.dtype for p in params}
        if self.autocast_dtype is not None:
            found.add(self.autocast_dtype)
        # Parts of a model may be cast by themselves.
        found |= STEP_SIZES.keys() & self._seen.dtypes
        on_tensor_cores = any(p.is_cuda for p in params) and torch.cuda.is_tf32_supported()
        return coarsest(found, self._seen.called, on_tensor_cores=on_tensor_cores)

    def _evaluate(self, within: contextlib.AbstractContextManager = _NOTHING) -> Any:
        # Inside an outer autocast region torch keeps the parameters that it has cast: the second
        # evaluation would see the unperturbed ones, and the curvature would be exactly zero.
        torch.clear_autocast_cache()
        if self.is_smooth:
            with _torch.without_known_parametrizations():  # for the same reason
                value = whole(call(self._closure))
            self._take_gradients()
            return value
        # A compiled function shows no gates. A checkpointed one, run again within backward, must
        # come through all of them: it may not stop early.
        with (
            _torch.without_known_parametrizations(),
            torch.compiler.set_stance("force_eager"),
            set_checkpoint_early_stop(False),
            self.gates.active(),
            within,
        ):
            value = whole(call(self._closure))
        self._take_gradients()
        return value

    def _take_gradients(self) -> None:
        """Let gradients lie as parameters do, and drop the graph that a closure may ask for."""
        place_gradients(self._params)
        for p in self._params:
            if p.grad is not None and p.grad.requires_grad:
                p.grad = p.grad.detach()
        self._learn_of_refills()

    def _evaluate_again(self, within: contextlib.AbstractContextManager = _NOTHING) -> Any:
        if self.is_smooth:
            return self._evaluate(within)
        self.gates.rewind()
        value = self._evaluate(within)
        self.gates.check_complete()
        return value

    def _snapshot(self, modules: Iterable[nn.Module] | None = None) -> Snapshot:
        if modules is None:
            modules = self._earlier.known_modules(self._given)
        snapshot = Snapshot(self._devices, modules, self._given, self._earlier.places)
        snapshot.generators = {g: g.get_state() for g in self.gates.generators}
        return snapshot

    def _note_module(self, module: nn.Module, _: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            self._earlier.wrappers[module] = None
            if self._see_wrapper is not None:
                self._see_wrapper(module)
        if self._before.add(module):
            self._know(module)

    def _know(self, module: nn.Module) -> None:
        for p in _torch.parameters(module).values():
            if p.is_leaf:  # torch.func.functional_call puts others there
                self._params[p] = None

    def _check_repeatable(self, value: Any) -> None:
        kept = {p: p.grad.detach().clone() for p in self._params if p.grad is not None}
        # The closure need not clear what is not the optimizer's.
        params = [p for p in kept if p in self._given]
        if not params:
            return
        is_lost = isinstance(value, Tensor) and not value.isfinite().all()
        if any_of(is_lost, mesh_groups(params), params[0].device):
            raise RuntimeError(
                f"the loss of the first step is {float(value.detach().sum())}: there is no "
                "curvature to take. Are the data finite, and the initial parameters?"
            )
        scales = self.gates.backward_scale is not None

        def repeat(factor: float) -> tuple[Any, list[Tensor], set[Tensor]]:
            for p, grad in kept.items():
                if p.grad is grad:
                    p.grad = grad.clone()
            reached: set[Tensor] = set()
            hooks = [p.register_post_accumulate_grad_hook(reached.add) for p in params]
            try:
                with self.rewound(clear_grads=False):
                    self.gates.backward_scale = factor
                    again = self._evaluate_again()
                    # The next evaluation may write to the same tensors.
                    return again, [g.detach().clone() for g in gradients(params)], reached
            finally:
                self.gates.backward_scale = 1.0
                for hook in hooks:
                    hook.remove()
                for p, grad in kept.items():
                    if not self._lies_in_a_buffer(p.grad):  # it was overwritten, or added to
                        p.grad = grad

        noise = check_repeatable(value, params, [kept[p] for p in params], repeat, scales)
        self.noise = dict(zip(params, noise, strict=bool(noise)))

    def _warn_of_tf32(self) -> None:
        # bfloat16 is somebody's choice; TF32 is torch's default for convolutions.
        params = [p for p in self._given if p.dtype == torch.float32]
        if params and self.precision(params) == "tf32":
            warnings.warn(
                "the finite difference reads gradients that are computed in TF32, with three "
                "digits: expect errors of 10 % and more behind batch normalization. Set "
                "torch.backends.cudnn.allow_tf32 = False (for matrix products: "
                "torch.set_float32_matmul_precision('highest')), or use "
                "curvature='double_backward'.",
                stacklevel=3,
            )
