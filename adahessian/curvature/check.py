"""Whether a finite difference is right: what two steps of unequal length say of it.

Let D₊ = (g(θ + h·z) − g) / h and D₋ = (g − g(θ − 2h·z)) / 2h. For a smooth function both are H·z,

    D₊ = H·z + h/2 T + ...,     D₋ = H·z − h T + ...       with the third derivative T along z, z

and differ by three times D₊'s truncation, and by 1.3 times its rounding. At a kink or a jump that
nobody has frozen they differ by as much as they are wrong. (Steps of equal length would not: at
|p| in 0 both sides jump alike.) That needs no list of operations, and no second derivative.

It is blind to what has no kink: a gradient that is not the derivative of the loss. A
straight-through estimator has zero on both sides; a constant of autograd's that moves with the
parameters moves smoothly. But then the loss does not move as the gradient says, and
:class:`Slope` compares just that.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.replicas import is_sharded, local, over_all


class Tolerance(NamedTuple):
    """What is accepted.

    Attributes:
        disagreement: of D₊ and D₋, relative to the smaller; above it a product is wrong.
        ample: of the same; above it another h is tried.
        flat: a tensor below this share of the network's root mean square has noise for curvature.
        slope: the part of the loss's change that the gradient may leave unexplained.
    """

    disagreement: float
    ample: float
    flat: float
    slope: float


# By the precision in which the gradient is computed. In a coarser one (TF32, bfloat16) products are
# too noisy to be checked.
TOLERANCES: dict[torch.dtype | str, Tolerance] = {
    torch.float64: Tolerance(disagreement=0.1, ample=0.02, flat=1e-5, slope=0.02),
    torch.float32: Tolerance(disagreement=0.75, ample=0.3, flat=3e-2, slope=0.1),
}
_FACTOR = 8.0  # from one h to the next that is tried
_MOST_TRIALS = 8


class Slope:
    """Sees by how much a loss changes along z, and what its gradient says of it.

    While it is active, it adds up zᵀg of what backward passes bring to the parameters: not of
    ``grad``, which a closure may clear, mask or scale, nor of what hooks make of that. Of a
    parameter to which anything is accumulated that counts, and not what ``torch.autograd.grad``
    returns, of another loss perhaps.

    Args:
        z: the direction, by parameter.
    """

    def __init__(self, z: Mapping[Tensor, Tensor]) -> None:
        self.z = z
        self._nothing = torch.zeros(2, dtype=torch.float32, device=next(iter(z)).device)
        # By parameter; an accumulated sum takes the place of the returned one.
        self._returned: dict[Tensor, Tensor] = {}
        self._accumulated: dict[Tensor, Tensor] = {}
        self._latest: dict[Tensor, Tensor] = {}
        self.seen: set[Tensor] = set()

    @property
    def along(self) -> Tensor:
        """zᵀg, one element."""
        return self._sums[0]

    @property
    def square(self) -> Tensor:
        """‖g‖², one element."""
        return self._sums[1]

    @property
    def _sums(self) -> Tensor:
        return torch.stack([self._nothing, *(self._returned | self._accumulated).values()]).sum(0)

    def __enter__(self) -> "Slope":
        self._hooks = [_torch.register_first_hook(p, partial(self._see, p=p)) for p in self.z]
        self._hooks += [p.register_post_accumulate_grad_hook(self._count) for p in self.z]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def count_last(self, params: Iterable[Tensor]) -> None:
        """Count of some parameters what was brought last, and of others nothing.

        For gradients that are taken on the side: the loss may have taken others on its way.
        """
        self._returned = {p: self._latest[p] for p in params if p in self._latest}
        self._accumulated = {}

    @torch.no_grad()
    def _see(self, grad: Tensor, p: Tensor) -> None:
        self.seen.add(p)
        if is_sharded(p):  # nothing is concluded of it, see unexplained
            return
        with _torch.below_torch_functions():
            sums = torch.stack([(grad * self.z[p]).sum(), grad.square().sum()])
            self._latest[p] = sums.to(self._nothing)
            _add(self._returned, p, self._latest[p])

    @torch.no_grad()
    def _count(self, p: Tensor) -> None:
        with _torch.below_torch_functions():
            # Of a sharded parameter the gradient comes in another way, and this is called by hand.
            if (sums := self._latest.pop(p, None)) is not None:
                _add(self._accumulated, p, sums)


def _add(sums: dict[Tensor, Tensor], p: Tensor, more: Tensor) -> None:
    sums[p] = sums[p] + more if p in sums else more


class Evaluation(NamedTuple):
    """One at shifted parameters.

    Attributes:
        grads: by parameter.
        value: what the closure returned.
        slope: what its backward passes have brought, where that was looked at.
        losses: what they started from.
        lost: how much of the step was lost in rounding, relative to it; an element for each
            parameter.
    """

    grads: dict[Tensor, Tensor]
    value: Any
    slope: Slope
    losses: list[Tensor]
    lost: Tensor


def unexplained(
    after: Evaluation, before: Evaluation, width: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the part of the loss's change over a step of some width that zᵀg does not explain.

    The integral of zᵀg is taken by the trapezoidal rule, and what can be rounding is left out. That
    is returned, too.
    """
    # A sharded parameter's gradient comes in another way than by a backward pass, and so does what
    # torch.func.grad returns.
    unseen = any(map(is_sharded, after.slope.z)) or not (after.slope.seen and before.slope.seen)
    if unseen or not after.losses or len(after.losses) != len(before.losses):
        nothing = torch.zeros_like(after.slope.along)
        return nothing, nothing
    second, first = torch.stack(after.losses), torch.stack(before.losses)
    along = after.slope.along + before.slope.along
    change = (second - first).sum() - width / 2 * along.to(second)
    square = (after.slope.square + before.slope.square).to(second) / 2
    size = width * square.sqrt()
    rounding = 8 * eps * (second.abs().sum() + first.abs().sum())
    return ((change.abs() - rounding).clamp(min=0) / size).nan_to_num(0.0), rounding / size


@dataclass
class Trial:
    """A product at one h, and what the check says of it.

    Attributes:
        scale: h in units of the usual one.
        product: H·z, by parameter.
        disagreement: of D₊ and D₋, one element for each parameter.
        slope: the part of the loss's change that the gradient does not explain; one element.
        slope_scale: of the h at which that was seen.
        blur: the part of it that can be rounding; one element.
        lost: see :class:`Evaluation`.
        seen: parameters whose gradients came from a backward pass.
    """

    scale: float
    product: dict[Tensor, Tensor]
    disagreement: Tensor
    slope: Tensor
    slope_scale: float
    blur: Tensor
    lost: Tensor
    seen: set[Tensor]

    @property
    def score(self) -> float:
        """The less the better; reads the device."""
        return float(self.disagreement.clamp(max=1.0).mean())


def best_trial(
    first: Trial, trial_at: Callable[[float], Trial], largest: float, slope: float
) -> Trial:
    """Look for the h at which D₊ and D₋ agree best, down and up from a first one.

    Args:
        first: the trial at the present scale.
        trial_at: makes one at another scale.
        largest: that is tried. Over steps as long as the parameters anything is smooth.
        slope: the tolerance. Where h is so small that the loss's change is lost in rounding, what a
            larger one has shown of it holds: steps that cross no jump look smooth.
    """
    best = first
    for factor in (1 / _FACTOR, _FACTOR):
        for _ in range(_MOST_TRIALS):
            scale = best.scale * factor
            if scale > max(largest, first.scale):
                break
            trial = trial_at(scale)
            if not trial.score < 0.7 * best.score:
                break
            if trial.blur > slope:
                trial.slope, trial.slope_scale = best.slope, best.slope_scale
            best = trial
        if best is not first:
            break
    return best


class AccuracyCheck:
    """A check that is asked for, and in the end what it has shown.

    Args:
        due: it is asked for.
        waits: its result may be read at once, for which a device is waited for, and h be chosen.
        scale: of h, in units of the usual one.
        watches: whether products without a check see at least if the loss is the first one's.

    Attributes:
        due, waits, scale, watches: as above; ``scale`` becomes the chosen one.
        process_groups: all of their processes must decide alike.
        params: those that were checked; the following have an element for each of them.
        failed: whose products are wrong; None before a check.
        zeros: whose products are exactly zero, while their gradients are not.
        disagreements: of the chosen trial.
        noise: how much of a product it is that gradients differ at the same parameters; an element
            for each.
        unseen: whose gradients no backward pass has brought: they were written by hand.
        slope: the part of the loss's change that the gradient does not explain, one element.
        slope_tolerance: what it may be.
        doubt: an evaluation was another computation than the first, one element; None where that
            was not seen, or is not the case.
        strays: the loss that the closure returns changes otherwise than its gradients say, one
            element; None where that was not seen. Of an evaluation that is not recorded, where
            earlier losses did not: something moves that is to stand still.
        recorded_strays: the same of one that is recorded, where nothing of the kind moves: what
            the closure returns is not what its gradients are those of.
        cause: the operation that is likely to be behind what is wrong; "" for none.
    """

    failed: Tensor | None = None
    zeros: Tensor | None = None
    disagreements: Tensor | None = None
    noise: Tensor | None = None
    slope: Tensor | None = None
    slope_tolerance = math.inf
    doubt: Tensor | None = None
    strays: Tensor | None = None
    recorded_strays: Tensor | None = None
    cause = ""

    def __init__(
        self,
        *,
        due: bool = False,
        waits: bool = True,
        scale: float = 1.0,
        watches: bool = False,
    ) -> None:
        self.due, self.waits, self.scale, self.watches = due, waits, scale, watches
        self.process_groups: list[Any] = []
        self.params: list[Tensor] = []
        self.unseen: set[Tensor] = set()

    def decide_with(self, process_groups: Iterable[Any]) -> None:
        """Let all processes of some groups decide alike."""
        self.process_groups += [g for g in process_groups if g not in self.process_groups]

    def disagreement(
        self, near: Mapping[Tensor, Tensor], far: Mapping[Tensor, Tensor], flat: float
    ) -> Tensor:
        """Return that of D₊ and D₋, relative to the smaller, for each parameter."""
        pairs = [(near[p], far[p]) for p in near]
        gaps = self._norms([a - b for a, b in pairs])
        sizes = torch.minimum(*(self._norms(list(side)) for side in zip(*pairs, strict=True)))
        counts = self._norms([torch.ones_like(a) for a, _ in pairs])
        floor = flat * sizes.norm() / counts.norm() * counts
        # No curvature at all is no disagreement; no number is one.
        found = torch.where(gaps == 0, 0.0, gaps / torch.maximum(sizes, floor))
        return found.nan_to_num(math.inf, math.inf)

    def conclude(self, trial: Trial, grads: Mapping[Tensor, Tensor], precision: Any) -> None:
        """Take in the trial whose product is used."""
        limits = TOLERANCES[precision]
        self.due, self.scale = False, trial.scale
        self.params = list(trial.product)
        self.disagreements = trial.disagreement
        # What is not finite is left out elsewhere, and named for what it is.
        is_number = trial.disagreement.isfinite()
        self.failed = is_number & (trial.disagreement > limits.disagreement)
        self.unseen = {p for p in self.params if p not in trial.seen and not is_sharded(p)}
        products = self._norms(list(trial.product.values()))
        self.zeros = (products == 0) & (self._norms([grads[p] for p in self.params]) > 0)
        self.slope, self.slope_tolerance = trial.slope, limits.slope

    def is_wrong(self) -> bool:
        """Whether the check has failed; reads the device."""
        failed, slope = self.failed, self.slope
        wrong = failed is not None and bool(failed.any())
        return wrong or slope is not None and float(slope) > self.slope_tolerance

    def agree(self) -> None:
        """Let a doubt of one process be that of all that must decide alike."""
        if self.doubt is not None and self.process_groups:
            self.doubt = over_all(self.doubt.float(), self.process_groups, "MAX") > 0

    def note_strays(self, strays: Tensor, *, is_recorded: bool) -> None:
        """Take in that of one of the refresh's evaluations."""
        name = "recorded_strays" if is_recorded else "strays"
        earlier = getattr(self, name)
        setattr(self, name, strays if earlier is None else earlier | strays)

    def sent(self) -> "tuple[AccuracyCheck, torch.Event | None]":
        """Return a copy that the host can read, and when: from an event on, None for now."""
        names = (
            "failed", "zeros", "disagreements", "noise", "slope", "doubt", "strays",
            "recorded_strays",
        )  # fmt: skip
        values = {name: t for name in names if (t := getattr(self, name)) is not None}
        device = next((t.device for t in values.values() if t.device.type != "cpu"), None)
        if device is None:
            return self, None
        there = copy.copy(self)
        for name, value in values.items():
            setattr(there, name, value.to("cpu", non_blocking=True))
        arrival = torch.Event(device)
        arrival.record()
        return there, arrival

    def wrong(self, params: Collection[Tensor]) -> dict[Tensor, Tensor]:
        """Return one bool for each of some parameters, where anything can be wrong."""
        wrong = {}
        if self.failed is not None:
            wrong |= zip(self.params, self.failed.unbind(), strict=True)
        for doubt in (self.doubt, self.strays):
            if doubt is not None and not (self.waits and not doubt):
                wrong = {p: doubt | wrong[p] if p in wrong else doubt for p in params}
        return {p: wrong[p] for p in params if p in wrong}

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        """Return the norms of tensors over all processes that must decide alike."""
        norms = torch._foreach_norm([local(t) for t in tensors])
        squares = torch.stack([n.to(norms[0].device, torch.float32) for n in norms]).square()
        return over_all(squares, self.process_groups).sqrt()
