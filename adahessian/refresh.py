"""A refresh of the curvature: which parameters take part, their probes, and the d they get.

Private to :class:`adahessian.AdaHessian`; :mod:`adahessian.curvature` has what is
independent of an optimizer.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adahessian import _torch
from adahessian.curvature import Earlier, HessianProducts, hessian_products
from adahessian.curvature.beside import Beside, NoPart, filling_gradients
from adahessian.curvature.check import AccuracyCheck
from adahessian.curvature.closures import call
from adahessian.curvature.hutchinson import Probes, hutchinson_samples
from adahessian.curvature.verdict import Verdict
from adahessian.options import SharedOptions, check_parameter
from adahessian.part_correction import remember, scale_factors, takes_halves
from adahessian.replicas import (
    Reduction,
    any_of,
    check_same,
    is_sharded,
    local,
    local_block_average,
)
from adahessian.state import counts

CurvatureClosure = Callable[[float, float], Tensor]
Show = Callable[[list[Tensor], list[Tensor]], None]


class Member(NamedTuple):
    """A parameter that takes part in a step."""

    group: dict[str, Any]
    place: int  # in its group
    index: int  # in the optimizer, over all groups: what its probe depends on
    param: Tensor

    @classmethod
    def all_of(cls, groups: Iterable[dict[str, Any]]) -> "list[Member]":
        """Return the parameters of an optimizer."""
        index = itertools.count()
        return [cls(g, i, next(index), p) for g in groups for i, p in enumerate(g["params"])]

    def name(self) -> str:
        """Return what messages call it."""
        names = self.group.get("param_names")
        named = "" if names is None else f" ({names[self.place]})"
        return f"parameter {self.index} of the optimizer{named}, of shape {tuple(self.param.shape)}"

    def is_due(self, *, frozen_too: bool = False) -> bool:
        """Whether the coming step refreshes its curvature.

        Args:
            frozen_too: the closure may ask for a gradient that is not asked for now.
        """
        due = is_due(self.group)
        if not self.param.requires_grad:
            return due and frozen_too
        return due or self.place in self.group["missed"]


def is_due(group: dict[str, Any]) -> bool:
    """Whether the coming step refreshes the curvature of a group."""
    last = group["last_refresh"]
    return last is None or group["step"] - last >= group["update_interval"]


class Refresh(ABC):
    """A refresh of the curvature, in one step of the optimizer.

    Args:
        closure: the step's; see :mod:`adahessian.curvature.closures`.
        members: all that the optimizer has. Those whose refresh is not due take no part.
        options: of the optimizer.
        step: the number of the coming step.
        earlier: what earlier refreshes have shown of the loss.
        states: of the optimizer, by parameter.
    """

    def __init__(
        self,
        closure: Callable[[], Any] | None,
        members: Sequence[Member],
        options: SharedOptions,
        step: int,
        earlier: Earlier,
        states: MutableMapping[Tensor, dict[str, Any]],
    ) -> None:
        due = [m for m in members if m.is_due(frozen_too=closure is not None)]
        for m in due:  # before anything is computed in a kind of number that it was not written for
            if m.param.requires_grad:
                check_parameter(m.param, m.name)
        self._closure, self._options, self._earlier = closure, options, earlier
        self._step = step
        self._members, self._states = members, states
        self._params = [m.param for m in members]
        self._is_first = all(m.group["last_refresh"] is None for m in members)
        self._accuracy = self._begin_check(due)
        earlier.begin_refresh(look=self._accuracy.due)
        self._probes = Probes(
            [m.param for m in due],
            seed=options.seed,
            step=step,
            num_samples=options.num_samples,
            tensor_indices=[m.index for m in due],
        )

    @abstractmethod
    def evaluate(self) -> Any:
        """Evaluate the closure; return what it returns."""

    @abstractmethod
    def _samples(self, members: Sequence[Member], reduction: Reduction) -> Iterator[list[Tensor]]:
        """Yield z · Hz of the unscaled loss, over all processes, for each probe."""

    def estimate(
        self, members: Sequence[Member], reduction: Reduction, show: Show
    ) -> dict[Tensor, Tensor]:
        """Return the averaged curvature d of each parameter that takes part.

        Args:
            members: those with a gradient.
            reduction: makes H·z that of the unscaled loss, over all processes.
            show: is called with the parameters and the signed z · Hz of each probe.
        """
        members = [m for m in members if m.param.requires_grad and m.param in self._probes.params]
        if not members:
            return {}
        params = [m.param for m in members]
        if reduction.process_group is not None:
            self._accuracy.decide_with([reduction.process_group])
        totals: list[Tensor] = []
        for sample in self._samples(members, reduction):
            show(params, sample)
            absolute = [
                s for s, m in zip(sample, members, strict=True) if m.group["averaging"] == "abs"
            ]
            if absolute:
                torch._foreach_abs_(absolute)
            totals = list(torch._foreach_add(totals, sample)) if totals else list(sample)
        if len(self._probes) > 1:
            torch._foreach_div_(totals, len(self._probes))
        self._end_check()
        return {
            m.param: local_block_average(total, m.param, m.group["block_size"])
            for total, m in zip(totals, members, strict=True)
        }

    def leave_out_wrong(self, good: dict[Tensor, Tensor]) -> None:
        """Take what the check has found wrong from those whose curvature is to be used.

        Not at a first refresh, where there is nothing else to go by.

        Args:
            good: one bool for each parameter with a curvature, on its device.
        """
        wrong = {} if self._is_first else self._accuracy.wrong(good)
        for p in wrong:
            good[p] = good[p] & ~wrong[p]

    def _begin_check(self, due: Sequence[Member]) -> AccuracyCheck:
        interval = self._options.check_interval
        # The last refresh may not have come to its end on the device; the one before has. All
        # processes hear of the same ones.
        failed = self._earlier.hear(but=1)
        refreshes = max(counts([self._states.get(m.param, {}) for m in due], "num_refreshes"))
        is_due = interval > 0 and (failed or self._is_first or refreshes % interval == 0)
        waits = failed or self._is_first or all(p.device.type == "cpu" for p in self._params)
        scale = self._members[0].group["difference_scale"]
        return AccuracyCheck(due=is_due, waits=waits, scale=scale, watches=interval > 0)

    def _compare_processes(self, process_group: Any, wrappers: Iterable[nn.Module]) -> None:
        """See, once, that the processes of a group are about to ask for the same products.

        Args:
            process_group: None for one process.
            wrappers: modules that the processes have in common. In them each parameter has its
                place: two can be of one shape.
        """
        if process_group is None or self._earlier.has_compared:
            return
        self._earlier.has_compared = True
        places: dict[Tensor, int] = {}
        for wrapper in wrappers:
            places |= {p: place for place, p in enumerate(wrapper.parameters())}
        due = [m for m in self._members if m.param in self._probes.params]
        shapes = [(m.index, places.get(m.param), tuple(m.param.shape)) for m in due]
        facts = self._options, self._step, self._members[0].group["difference_scale"], shapes
        check_same(facts, process_group, self._params[0].device)

    def _end_check(self) -> None:
        accuracy = self._accuracy
        accuracy.agree()
        for m in self._members:
            m.group["difference_scale"] = accuracy.scale
        names = {m.param: m.name() for m in self._members}
        self._earlier.verdicts.append(Verdict(accuracy, names))
        if accuracy.waits:
            self._earlier.hear()

    def _estimates(
        self, products: HessianProducts, params: Sequence[Tensor]
    ) -> Iterator[list[Tensor]]:
        """Yield z · Hz for each probe z, with no magnitude below the products' resolution."""
        resolution = products.resolution()
        for estimate in hutchinson_samples(products.product, self._probes):
            # A parameter that a part of the batch does not come through has no curvature in it.
            sample = [estimate[p] if p in estimate else torch.zeros_like(p) for p in params]
            if resolution:
                finest = [torch.zeros_like(p) if p.grad is None else local(p.grad) for p in params]
                finest = torch._foreach_mul(torch._foreach_abs(finest), resolution)
                sizes = torch._foreach_maximum(torch._foreach_abs(sample), finest)
                sample = [size.copysign_(s) for size, s in zip(sizes, sample, strict=True)]
            yield sample


class WholeBatch(Refresh):
    """A refresh from the loss whose gradient the step takes: the closure serves both."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._products = hessian_products(
            self._options.curvature,
            self._closure,
            self._params,
            self._probes,
            check=self._is_first,
            earlier=self._earlier,
            accuracy=self._accuracy,
        )

    def evaluate(self) -> Any:
        return self._products.evaluate()

    def _samples(self, members: Sequence[Member], reduction: Reduction) -> Iterator[list[Tensor]]:
        wrappers = self._earlier.wrappers
        groups = (w.process_group for w in wrappers if not _torch.is_within_join(w))
        group = next(groups, None)
        self._compare_processes(reduction.process_group or group, wrappers)
        for sample in self._estimates(self._products, [m.param for m in members]):
            # Before the absolute value: the mean of |z · Hz| over the processes would grow with
            # their number.
            reduction.apply_(sample)
            yield sample


class PartOfBatch(Refresh):
    """A refresh from losses of a part of the batch, evaluated beside the step.

    Now and then the part comes in two halves, which tell its sampling noise
    (:mod:`adahessian.part_correction`).

    Args:
        curvature_closure: returns that of :meth:`adahessian.AdaHessian.step`, or None.
    """

    def __init__(
        self, *args: Any, curvature_closure: Callable[[], CurvatureClosure | None]
    ) -> None:
        super().__init__(*args)
        self._get_closure = curvature_closure
        self._remembered: list[tuple[list[Tensor], Callable[[Tensor], None]]] = []
        if any(is_sharded(p) for p in self._params):
            raise ValueError(
                "curvature_closure does not work with fully_shard, which gathers parameters for a "
                "backward pass only: leave it out, with curvature_fraction=1.0 and "
                "curvature='finite_difference'"
            )

    def evaluate(self) -> Any:
        return call(self._closure)

    def estimate(
        self, members: Sequence[Member], reduction: Reduction, show: Show
    ) -> dict[Tensor, Tensor]:
        """As that of any refresh; where there is no part of this batch, nothing.

        The last batch of an epoch can be too small. The refresh then stays due.

        Raises:
            NoPart: it is the first refresh.
        """
        try:
            return super().estimate(members, reduction, show)
        except NoPart:
            if self._is_first:
                raise
            return {}

    def leave_out_wrong(self, good: dict[Tensor, Tensor]) -> None:
        """As that of any refresh; its sampling noise is not remembered either."""
        super().leave_out_wrong(good)
        for params, keep in self._remembered:
            keep(torch.stack([good[p] for p in params]))

    def _samples(self, members: Sequence[Member], reduction: Reduction) -> Iterator[list[Tensor]]:
        fraction = self._options.curvature_fraction
        closure = self._get_closure()
        if closure is None:
            raise RuntimeError(
                f"curvature_fraction={fraction} needs the loss of a part of the batch: call "
                "optimizer.step(curvature_closure=...), or set optimizer.curvature_closure, see "
                "the docstring of AdaHessian.step"
            )
        params = [m.param for m in members]
        inflated = [self._states.get(m.param, {}) for m in members if _is_inflated(m)]
        halves = fraction < 1 and bool(inflated) and takes_halves(inflated)
        bounds = (0.0, fraction / 2, fraction) if halves else (0.0, fraction)
        pieces: list[list[list[Tensor]]] = []
        missing: NoPart | None = None
        with Beside(self._params, self._earlier, look=self._is_first) as beside:
            try:
                pieces = [
                    list(self._piece(partial(closure, *piece), params, beside, reduction))
                    for piece in itertools.pairwise(bounds)
                ]
            except NoPart as error:
                missing = error
        group = self._agree(missing, beside, reduction)
        self._compare_processes(group, beside.wrappers)
        for samples in zip(*pieces, strict=True):
            Reduction(reduction.scale, group).apply_([s for sample in samples for s in sample])
        samples = pieces[0]
        if halves:
            noises = [list(torch._foreach_sub(*pair)) for pair in zip(*pieces, strict=True)]
            for sample, second, noise in zip(*pieces, noises, strict=True):
                torch._foreach_add_(sample, second)
                torch._foreach_mul_([*sample, *noise], 0.5)
            self._remember(members, samples, noises)
        factors = self._factors(members) if fraction < 1 else {}
        for sample in samples:
            for i, factor in factors.items():
                sample[i].mul_(factor)
            yield sample

    def _piece(
        self,
        loss_function: Callable[[], Tensor],
        params: Sequence[Tensor],
        beside: Beside,
        reduction: Reduction,
    ) -> Iterator[list[Tensor]]:
        """Yield z · Hz of the loss of a piece of the batch, for each probe."""
        exact = self._options.curvature == "double_backward"
        for p in self._params:
            p.grad = None
        loss = filling_gradients(
            loss_function, self._params, create_graph=exact, scale=reduction.scale
        )
        products = hessian_products(
            self._options.curvature,
            loss,
            self._params,
            self._probes,
            check=self._is_first,
            earlier=self._earlier,
            central=True,
            accuracy=self._accuracy,
        )
        missing = None
        try:
            products.evaluate()
        except NoPart as error:
            if not self._accuracy.due:
                raise
            missing = error
        if self._accuracy.due:  # others would wait in the check for a process without a part
            self._agree(missing, beside, reduction)
        yield from self._estimates(products, params)

    def _agree(self, missing: NoPart | None, beside: Beside, reduction: Reduction) -> Any:
        """Return the process group; raise NoPart in all of its processes where one has no part."""
        group = reduction.process_group or beside.process_group(missing)
        groups = [] if group is None else [group]
        if any_of(missing is not None, groups, self._params[0].device):
            raise missing or NoPart("another process has no part of this batch")
        return group

    def _remember(
        self, members: Sequence[Member], samples: list[list[Tensor]], noises: list[list[Tensor]]
    ) -> None:
        def squared(sample: list[Tensor], places: list[int]) -> list[Tensor]:
            """What d is the root mean square of: z · Hz, or its signed mean over blocks."""
            return [
                local_block_average(sample[i], members[i].param, members[i].group["block_size"])
                if members[i].group["averaging"] == "signed"
                else sample[i]
                for i in places
            ]

        for places in _alike(members):
            params = [members[i].param for i in places]
            keep = remember(
                [self._states[p] for p in params],
                [squared(sample, places) for sample in samples],
                [squared(noise, places) for noise in noises],
                fraction=self._options.curvature_fraction,
                beta2=members[places[0]].group["betas"][1],
            )
            self._remembered.append((params, keep))

    def _factors(self, members: Sequence[Member]) -> dict[int, Tensor]:
        """Return the factor of a member's curvature by its place; those without need none."""
        factors: dict[int, Tensor] = {}
        for places in _alike(members):
            states = [self._states[members[i].param] for i in places]
            found = scale_factors(states, self._options.curvature_fraction)
            factors |= zip(places, found, strict=True)
        return factors


def _is_inflated(member: Member) -> bool:
    """Whether a part's sampling noise makes a member's average larger: magnitudes and squares."""
    return member.group["second_moment"] != "signed"


def _alike(members: Sequence[Member]) -> Iterable[list[int]]:
    """Return the places of members whose sums can be stacked: of one device, type and β₂.

    Without those that need no factor.
    """
    places: dict[tuple, list[int]] = {}
    for place, m in enumerate(members):
        if not _is_inflated(m):
            continue
        kind = m.param.device, m.param.dtype, m.group["betas"][1]
        places.setdefault(kind, []).append(place)
    return places.values()


def begin_refresh(
    closure: Callable[[], Any] | None,
    groups: Sequence[dict[str, Any]],
    states: MutableMapping[Tensor, dict[str, Any]],
    earlier: Earlier,
    get_curvature_closure: Callable[[], CurvatureClosure | None],
) -> Refresh | None:
    """Return the refresh of the coming step; None if none is due.

    Args:
        closure: the step's.
        groups, states: of the optimizer.
        earlier: what earlier refreshes have shown of the loss.
        get_curvature_closure: returns that of :meth:`adahessian.AdaHessian.step`, or None. It is
            asked again behind the closure, where a trainer's closure may have set it: only there is
            the batch known.
    """
    members = Member.all_of(groups)
    if not any(m.is_due(frozen_too=closure is not None) for m in members):
        return None
    options = SharedOptions.of(groups[0])
    arguments = closure, members, options, groups[0]["step"], earlier, states
    if get_curvature_closure() is None and options.curvature_fraction == 1:
        return WholeBatch(*arguments)
    return PartOfBatch(*arguments, curvature_closure=get_curvature_closure)
