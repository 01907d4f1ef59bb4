"""The AdaHessian optimizer: Adam with the curvature's running root mean square as denominator."""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from adahessian import _torch, grad_scaler
from adahessian.curvature import Earlier
from adahessian.curvature.attributes import may_change
from adahessian.curvature.closures import (
    call,
    gradients,
    refuse_capture,
    refuse_uninitialized,
)
from adahessian.curvature.compare import CurvatureError, compare_products
from adahessian.curvature.hutchinson import Probes
from adahessian.left_out import LeftOut
from adahessian.options import SharedOptions, check_gradient, check_options
from adahessian.refresh import CurvatureClosure, Member, begin_refresh
from adahessian.replicas import Reduction, check_replicas, place_gradients
from adahessian.state import COUNTERS, check_fits, is_only_to_begin, take_over
from adahessian.update import update_group

_Loss = TypeVar("_Loss")  # what a closure returns, a Tensor as a rule


class AdaHessian(Optimizer):
    r"""AdaHessian (Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, AAAI 2021, arXiv:2006.00719).

    With the gradient g, a Rademacher probe z and the Hessian H of the same batch, one step t is

    .. code-block:: text

        m ← β₁ m + (1 − β₁) g                        exp_avg                 (Eq. 7, 11)
        d = mean over samples and block of |z · Hz|   the curvature           (Eq. 8 to 10)
        v ← β₂ v + (1 − β₂) d²                       exp_hessian_diag_sq     (Eq. 11)
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ʳ)        r: refreshes of d so far
        θ ← θ − lr · weight_decay · θ                decoupled
        θ ← θ − lr · m̂ / (v̂^(hessian_power / 2) + eps)

    Example::

        optimizer = AdaHessian(model.parameters(), lr=0.15)

        def closure():
            optimizer.zero_grad()
            loss = loss_function(model(images), labels)
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        loss = optimizer.step(closure)

    The published ``loss.backward(create_graph=True); optimizer.step()`` works as well.

    At a fraction of the cost, the curvature comes from a part of the batch::

        optimizer = AdaHessian(model.parameters(), lr=0.15, curvature_fraction=0.25)

        def curvature_closure(start, stop):  # fractions of the batch
            part = slice(round(start * len(images)), round(stop * len(images)))
            return loss_function(model(images[part]), labels[part])  # no backward

        optimizer.zero_grad()
        loss_function(model(images), labels).backward()
        optimizer.step(curvature_closure=curvature_closure)

    Differences from the paper: its Eq. 10 averages z · Hz with its sign; the code that produced
    its image results averages the magnitudes, and so do we by default (``averaging``). The paper
    does not print the interval code behind its Table 8; with ``update_interval`` above 1 we apply
    β₂ and its bias correction once a refresh, not once a step.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups; every option but
            ``curvature``, ``curvature_fraction``, ``num_samples``, ``seed``, ``check_interval`` and
            ``max_grad_norm`` can differ between groups. float32 or float64 (under autocast the
            parameters stay float32).
        lr: learning rate, zero allowed; a float or a one-element tensor. 0.15 is the paper's value
            for image classification.
        betas: decay of the two running averages, each in [0, 1).
        eps: added to the denominator, outside the power.
        weight_decay: decoupled: each step shrinks the parameters by lr · weight_decay. The
            released training script passes its weight decay divided by the initial lr.
        hessian_power: the paper's k in [0, 1]; 0 leaves momentum SGD, 0.5 was used for language
            models. May be changed in ``param_groups`` during training, as may ``update_clip``.
        block_size: what the curvature is averaged over, see :mod:`adahessian.averaging`.
        averaging: "abs" is the mean of \|z · Hz\|; "signed" the mean of z · Hz, in which the
            off-diagonal noise of the probe cancels (the paper's Eq. 10).
        curvature: how H·z is computed: "double_backward", exact, or "finite_difference", from one
            more evaluation of the closure: less than half the time and memory, for any model whose
            gradient can be computed, with an error of about 1 %
            (:class:`adahessian.curvature.FiniteDifference`).
        curvature_fraction: below 1, the curvature comes from this fraction of the batch, by
            ``curvature_closure`` (see :meth:`step`), scaled to what the whole batch would give
            (:mod:`adahessian.part_correction`). A refresh then costs this fraction of what it costs
            otherwise, and the step's own gradient needs no graph. An element waits until some part
            has shown its curvature: only the weight decay moves it before. Models with embeddings
            and a small eps need ``update_clip`` with it: a part lacks words that the gradient has.
        update_interval: steps between refreshes of the curvature, from the first step on. May be
            changed in ``param_groups`` during training.
        num_samples: probes per refresh.
        seed: of the probes, 0 to 2⁶³ − 1. Replicas of one model need the same.
        check_interval: refreshes between checks of the finite difference, the first of which has
            one in any case; 0 for no checks at all. A check takes another evaluation, finds
            gradients that jump and steps h that do not suit the model, for which another is
            chosen, and warns (:class:`adahessian.CurvatureWarning`) of what stays wrong
            (docs/curvature.md).
        max_grad_norm: clip the gradient, over all groups together, to this norm. Clipping has its
            place here because the curvature must not be clipped: within a closure it would
            scale the second gradient of a finite difference as well.
        second_moment: what v averages, and the denominator with it: "rms", as above, "mean_abs"
            (Sassha) or "signed" (Sophia), which needs ``averaging="signed"`` and nearly always
            ``update_clip``. docs/rules.md has the formulas. Cannot be changed during training.
        bias_correction: of the averages: "refreshes", as above, "steps" (Sassha) or None (Sophia);
            docs/rules.md.
        update_clip: bound of each element of m̂ / denominator; None for none. An element then moves
            by at most lr · update_clip, besides the weight decay.
        process_group: average gradient and H·z over these processes, each of which has computed
            them on its own part of the batch with a bare module (DistributedDataParallel does
            not support double backward). Not with DistributedDataParallel or fully_shard, which
            average themselves.
        foreach: update all parameters of a group together (default: yes).
        maximize: ascend instead of descend: as on the negative loss, whose curvature is negative.

    ``defaults`` holds the options. ``param_groups`` hold them too and may be changed between steps;
    beside them they hold the counters named in ``COUNTERS``, which only the optimizer sets.

    State of a parameter: ``step``, ``num_refreshes``, ``last_refresh``, ``exp_avg``,
    ``exp_hessian_diag_sq`` (``exp_hessian_diag_abs``, ``exp_hessian_diag`` with another
    ``second_moment``), and with a ``curvature_fraction`` below 1 ``exp_signal_sq`` and
    ``exp_noise_sq``, unless signed. It begins with a refresh at which the parameter has a gradient
    and a finite curvature. One that has its first gradient between refreshes (unfrozen, a new
    group, a head that is trained at some steps only) keeps its value then, and the steps that
    follow refresh it, too, until it has begun. So do they where it has missed the refreshes for
    four intervals of its own steps.

    A curvature that is not finite although the gradient is (the norm of a zero vector) is left out:
    that tensor's v̂ stays what it is at this refresh. A warning names the tensor.

    Raises:
        ValueError: an option out of range; on stepping also a sparse gradient, or a complex
            parameter or one below float32 that is to be trained.
        RuntimeError: on stepping: the curvature is due but no gradient has a graph, or there is
            no ``curvature_closure`` and ``curvature_fraction`` asks for one, or a tensor's
            curvature was not finite at each of its first ten refreshes. Parameters and averages
            are then unchanged.

    Attributes:
        curvature_closure: for trainers that pass only ``closure`` to :meth:`step`: used where none
            is passed. To be set for each batch; the closure may do it. Not part of a copy or a
            pickle.
    """

    COUNTERS = tuple(COUNTERS)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        *,
        block_size: int | str | None = "kernel",
        averaging: str = "abs",
        curvature: str = "double_backward",
        curvature_fraction: float = 1.0,
        update_interval: int = 1,
        num_samples: int = 1,
        seed: int = 0,
        check_interval: int = 500,
        max_grad_norm: float | None = None,
        second_moment: str = "rms",
        bias_correction: str | None = "refreshes",
        update_clip: float | None = None,
        process_group: Any = None,
        foreach: bool | None = None,
        maximize: bool = False,
    ):
        given = locals()
        self._process_group = process_group
        self._curvature_hooks: dict[int, Callable[..., None]] = OrderedDict()
        self._earlier, self._left_out = Earlier(), LeftOut()
        super().__init__(params, {name: given[name] for name in _defaults()})

    # GradScaler then leaves the unscaling to us, because H·z has the scale of the loss too.
    _step_supports_amp_scaling = True
    curvature_closure: CurvatureClosure | None = None
    _comparing = False  # whether curvature_error is evaluating the closure

    @property
    def needs_graph(self) -> bool:
        """Whether backward needs create_graph at the coming step: to refresh the curvature."""
        return self._comparing or (self.is_second_order and self._refresh_is_due())

    @property
    def is_second_order(self) -> bool:
        """Whether this optimizer ever needs create_graph (a convention of timm)."""
        group = self.param_groups[0]
        return (
            group["curvature"] == "double_backward"
            and group["curvature_fraction"] == 1
            and self.curvature_closure is None
        )

    def _refresh_is_due(self) -> bool:
        return any(m.is_due() for m in Member.all_of(self.param_groups))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it falls in with the refreshes of the groups that are there."""
        if isinstance(param_group, dict):  # if not, torch raises
            group = {**self.defaults, **param_group}
            check_options(group)
            counters = {key: param_group.get(key, value) for key, value in COUNTERS.items()}
            if self.param_groups:
                first = self.param_groups[0]
                SharedOptions.of(first).check_same(SharedOptions.of(group))
                counters = {
                    **COUNTERS,
                    "step": first["step"],
                    "last_refresh": first["last_refresh"],
                }
            param_group = {**group, **counters}
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # A process group can be neither copied nor pickled: then this fails instead of forgetting.
        return {**super().__getstate__(), "_process_group": self._process_group}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a state dict; nothing is changed if that is refused."""
        before = {k: dict(v) if k == "defaults" else v for k, v in self.__dict__.items()}
        super().__setstate__(state)
        # torch adds to them what is no option of ours; those of an earlier version lack some.
        ours = {k: v for k, v in self.defaults.items() if k not in {*COUNTERS, "differentiable"}}
        self.defaults = {**_defaults(), **ours}
        # Like torch's own hooks, these are not part of a copy or a pickle.
        self.__dict__.setdefault("_curvature_hooks", OrderedDict())
        self._earlier, self._left_out = Earlier(), LeftOut()
        try:
            take_over(self.param_groups, self.defaults, self.state)
        except ValueError:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes; it shares the state's tensors."""
        self._left_out.report()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of a state dict, also of one that a published AdaHessian wrote.

        Those know no refresh counter (they count steps). The next step then refreshes the
        curvature. Options that they lack stay what they are here.

        Raises:
            ValueError: it is another optimizer's, of parameters of other shapes, or has options
                that cannot be followed. The optimizer is then unchanged.
        """
        super().load_state_dict(state_dict)

    @overload
    def step(
        self, closure: None = None, *, curvature_closure: CurvatureClosure | None = None
    ) -> None: ...

    @overload
    def step(
        self, closure: Callable[[], _Loss], *, curvature_closure: CurvatureClosure | None = None
    ) -> _Loss: ...

    @_torch.not_compiled
    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        curvature_closure: CurvatureClosure | None = None,
    ) -> Any:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss of one batch, calls
                ``loss.backward(create_graph=optimizer.needs_graph)`` and returns the loss.
                Without it the gradients must be there.
            curvature_closure: ``curvature_closure(start, stop)`` returns the loss of the batch from
                fraction ``start`` to fraction ``stop``, with its graph and without calling
                backward: a mean over these examples, as the step's loss is one over all. It is
                called when the curvature is due, after the closure, for the part (0, f) where f is
                ``curvature_fraction``, or for its halves, (0, f/2) and (f/2, f).
                Gradients, buffers of modules and random states are left as they were. It may return
                None, on all processes alike, where a batch is too small: the refresh is then due
                at the next step (as where batch normalization would see fewer than 8 examples);
                at the first refresh that is an error. What the
                fractions are of is the caller's choice: under gradient accumulation over m
                micro-batches with ``curvature_fraction=1 / m`` it can be one of them. In each of
                several processes they are fractions of its own shard; H·z is averaged over
                ``process_group``, or that of the DistributedDataParallel module that it calls.

        Returns:
            What the closure returned, detached if it is a tensor (those within a dict or a tuple
            keep their graph); None without a closure, and where a GradScaler skips the step.
        """
        with grad_scaler.forgotten_if_it_raises(self):
            if curvature_closure is None:
                return self._step(closure)
            attribute, self.curvature_closure = self.curvature_closure, curvature_closure
            try:
                return self._step(closure)
            finally:
                self.curvature_closure = attribute

    def register_curvature_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Let ``hook(optimizer, params, estimates)`` see what the curvature is made from.

        It is called within :meth:`step`, for each probe of a refresh, with the parameters that are
        refreshed and their z · Hz (signed, of the unscaled loss, averaged over the processes, not
        over blocks; under bfloat16 autocast not below their resolution, and not finite where a
        GradScaler's scale was too large). They are to be read at once: the step goes on to change
        them in place. As with torch's hooks, copies and pickles of the optimizer have none.
        :class:`adahessian.CurvatureStatistics` is such a hook.

        Returns:
            A handle whose ``remove()`` takes the hook away.
        """
        handle = RemovableHandle(self._curvature_hooks)
        self._curvature_hooks[handle.id] = hook
        return handle

    @torch.no_grad()
    def curvature_error(self, closure: Callable[[], Tensor]) -> CurvatureError:
        """Compare the finite difference with double backward, at the coming step's probe.

        Works whatever ``curvature`` is set to. Parameters, gradients, state, buffers and random
        states are left as they were.

        Args:
            closure: as for :meth:`step`.
        """
        params = [p for p in self._all_params() if p.requires_grad]
        refuse_uninitialized(params)
        grads = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in params]
        seed, step = (self.param_groups[0][key] for key in ("seed", "step"))
        probe = Probes(params, seed=seed, step=step)
        self._comparing = True  # the closure asks needs_graph
        try:
            return compare_products(closure, params, probe)
        finally:
            self._comparing = False
            for p, grad, values in grads:
                p.grad = grad
                if grad is not None and values is not None and may_change(grad):
                    grad.copy_(values)  # the closure may have cleared it in place

    def check_replicas(self) -> None:
        """Raise RuntimeError, on all processes, if their parameters are not the same.

        For several processes that train one model; call it now and then. It compares over
        ``process_group``, or over all processes; a DTensor where its mesh replicates it, so that
        under ``fully_shard`` of one dimension there is nothing to compare.
        """
        check_replicas(self._all_params(), self._process_group)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        self._left_out.report()
        if grad_scaler.has_found_overflow(self):
            self._drop_graphs()
            return None
        refuse_capture(self._all_params())
        for group in self.param_groups:
            check_options(group)
        options = SharedOptions.of_all(self.param_groups)
        if closure is None and is_only_to_begin(self.param_groups, self.state):
            return None
        hessian_is_due = self.curvature_closure is None and self._refresh_is_due()
        scale = grad_scaler.loss_scale(self, must_be_known=hessian_is_due)
        reduction = Reduction(scale, self._process_group)

        # 1. Evaluate the loss and its gradient.
        refresh = begin_refresh(
            closure, self.param_groups, self.state, self._earlier, lambda: self.curvature_closure
        )
        loss = call(closure) if refresh is None else refresh.evaluate()
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        members = self._members()

        # 2. At a refresh, estimate the curvature.
        curvature = {} if refresh is None else refresh.estimate(members, reduction, self._show)
        self._drop_graphs()

        # 3. Reduce and clip the gradient.
        reduction.apply_(gradients(m.param for m in members))
        if options.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._all_params(), options.max_grad_norm)

        # 4. Update averages and parameters, with the curvature that is finite.
        finite = self._left_out.sift(members, curvature, self.state, scale)
        if refresh is not None:
            refresh.leave_out_wrong(finite)
        for group in self.param_groups:
            update_group(group, self.state, curvature, finite, is_idle=not members)
        self._left_out.report()
        return loss

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _show(self, params: list[Tensor], estimates: list[Tensor]) -> None:
        for hook in self._curvature_hooks.values():
            hook(self, params, estimates)

    def _drop_graphs(self) -> None:
        for p in self._all_params():
            if p.grad is not None and p.grad.requires_grad:
                # A fresh tensor over the same memory: detach_() is forbidden on gradients that
                # are views, as DistributedDataParallel makes them.
                p.grad = p.grad.detach()

    def _members(self) -> list[Member]:
        """Return the parameters with a gradient; raise if one of them is bad."""
        members = Member.all_of(self.param_groups)
        for m in members if self._process_group is not None else ():
            if m.param.requires_grad and m.param.grad is None:
                m.param.grad = torch.zeros_like(m.param)  # all processes must send the same tensors
        members = [m for m in members if m.param.grad is not None]
        place_gradients(m.param for m in members)
        for m in members:
            check_gradient(m.param, m.name)
            check_fits(self.state.get(m.param, {}), m.param, m.name, m.group["second_moment"])
        return members


def _defaults() -> dict[str, Any]:
    """Return the options with their defaults."""
    parameters = inspect.signature(AdaHessian).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("params", "process_group")}


Adahessian = AdaHessian  # the published spelling
