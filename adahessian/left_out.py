"""Curvatures that are not finite, and never reach the parameters.

A gradient can be finite where the second derivative is not: at the norm of a zero vector, or where
H·z overflows at a GradScaler's loss scale. Such a tensor's d is left out of this refresh. Once its
running average has begun, the device decides that: :func:`adahessian.update.in_place_of` takes what
the average says instead. The host hears of it when the flags have arrived by themselves, and warns.
A tensor without an average has nothing to go by, and stays where it is until a refresh gives it a
finite d. That is the host's to know: it waits for the device at first refreshes, and only there.
"""

import warnings
from collections import Counter, deque
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from adahessian.refresh import Member
from adahessian.replicas import is_sharded, local
from adahessian.state import counts, has_begun

_WITHOUT_ONE = (
    ". torch's second derivative can be no number by itself: curvature='finite_difference' needs "
    "none"
)
PATIENCE = 10  # refreshes: a tensor that could not begin in so many is an error


@dataclass
class _Flags:
    """Which d of a refresh were not finite, on their way from the device."""

    members: Sequence[Member]
    lost: Tensor
    scale: Tensor | None
    arrival: torch.Event | None

    @classmethod
    def send(cls, members: Sequence[Member], lost: Tensor, scale: Tensor | None) -> "_Flags":
        if lost.device.type == "cpu":
            return cls(members, lost, scale, None)
        on_host = lost.to("cpu", non_blocking=True)
        arrival = torch.Event(lost.device)
        arrival.record()
        return cls(members, on_host, scale, arrival)

    def have_arrived(self) -> bool:
        return self.arrival is None or self.arrival.query()


class LeftOut:
    """Finds the curvatures of one optimizer that are not finite, and tells of them."""

    def __init__(self) -> None:
        self._times: Counter[Tensor] = Counter()
        self._on_their_way: deque[_Flags] = deque()

    def sift(
        self,
        members: Sequence[Member],
        curvature: MutableMapping[Tensor, Tensor],
        states: Mapping[Tensor, dict[str, Any]],
        scale: Tensor | None,
    ) -> dict[Tensor, Tensor]:
        """Take away the curvatures with which no average can begin; tell which are finite.

        Args:
            members: of the step, with their gradients, reduced over the processes.
            curvature: d by parameter.
            states: of the optimizer.
            scale: a GradScaler's factor of the loss, for messages.

        Returns:
            For each parameter with a curvature one bool on its device, the same on all processes.

        Raises:
            RuntimeError: a tensor could not begin in ``PATIENCE`` refreshes.
        """
        finite: dict[Tensor, Tensor] = {}
        kinds: dict[tuple, list[Member]] = {}
        for m in members:
            if m.param in curvature:
                mesh = m.param.device_mesh if is_sharded(m.param) else None
                kinds.setdefault((m.param.device, m.param.dtype, mesh), []).append(m)
        for (*_, mesh), alike in kinds.items():
            curvatures = [curvature[m.param] for m in alike]
            gradients = [local(cast(Tensor, m.param.grad)) for m in alike]
            both = _are_finite([*curvatures, *gradients], mesh)
            good, has_gradient = both.view(2, -1).unbind()
            # Where the gradient is not finite either, all is lost already, and seen in the loss.
            lost = ~good & has_gradient
            finite |= zip([m.param for m in alike], good.unbind(), strict=True)
            if all(counts([states.get(m.param, {}) for m in alike], "num_refreshes")):
                self._on_their_way.append(_Flags.send(alike, lost, scale))
                continue
            lost_members = [m for m, is_lost in zip(alike, lost.tolist(), strict=True) if is_lost]
            self._tell(lost_members, scale)
            for m in lost_members:
                if has_begun(states.get(m.param, {})):
                    continue
                del curvature[m.param]
                if self._times[m.param] >= PATIENCE:
                    raise RuntimeError(
                        f"{m.name()}, had no finite curvature in any of {PATIENCE} refreshes"
                        f"{_advice(scale, m)}"
                    )
        return finite

    def report(self) -> None:
        """Warn of what has arrived from the device, without waiting for it."""
        while self._on_their_way and self._on_their_way[0].have_arrived():
            flags = self._on_their_way.popleft()
            pairs = zip(flags.members, flags.lost.tolist(), strict=True)
            self._tell([m for m, is_lost in pairs if is_lost], flags.scale)

    def _tell(self, lost: Sequence[Member], scale: Tensor | None) -> None:
        """Count, and warn the first, tenth, hundredth ... time."""
        self._times.update(m.param for m in lost)
        news = [m for m in lost if self._times[m.param] in (1, 10, 100, 1000, 10_000)]
        if news:
            others = f" (and {len(news) - 1} others)" if len(news) > 1 else ""
            times = self._times[news[0].param]
            warnings.warn(
                f"the curvature of {news[0].name()}{others}, is not finite, though its gradient "
                f"is: left out of this refresh, time {times}{_advice(scale, news[0])}",
                stacklevel=2,
            )


def _are_finite(tensors: list[Tensor], mesh: Any) -> Tensor:
    """Return whether each sum of squares is finite, alike on all processes that share a tensor."""
    finite = torch.stack(torch._foreach_norm(tensors)).isfinite()
    if mesh is None:
        return finite
    flags = finite.to(mesh.device_type, torch.float32)
    for group in mesh.get_all_groups():
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MIN, group=group)
    return flags.to(finite.device) > 0


def _advice(scale: Tensor | None, member: Member) -> str:
    if scale is not None:
        return (
            f". H·z may overflow at the loss scale {float(scale):g}: start the GradScaler with a "
            "smaller init_scale, or use bfloat16 autocast without one"
        )
    is_exact = member.group["curvature"] == "double_backward"
    return (
        ". A norm has no second derivative at zero, nor has √x: add an eps under the root, or "
        f"begin elsewhere{_WITHOUT_ONE if is_exact else ''}"
    )
