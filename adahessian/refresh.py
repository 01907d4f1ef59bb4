"""A refresh of the curvature: which parameters take part, their probes, and the d they get.

Private to :class:`adahessian.AdaHessian`; :mod:`adahessian.curvature` has what is
independent of an optimizer.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian.curvature import hessian_products
from adahessian.curvature.closures import gradients
from adahessian.curvature.hutchinson import Probes, hutchinson_samples
from adahessian.options import SharedOptions
from adahessian.replicas import Reduction, local, local_block_average


class Member(NamedTuple):
    """A parameter that takes part in a step."""

    group: dict[str, Any]
    index: int  # in the optimizer, over all groups: what its probe depends on
    param: Tensor


@dataclass(frozen=True)
class Overflow:
    """H·z is not finite at a GradScaler's loss scale: there is no curvature for this step."""

    scale: float

    def warn(self) -> None:
        warnings.warn(
            f"H·z overflowed at the loss scale {self.scale:g}: this step is skipped. Start "
            "the GradScaler with a smaller init_scale, or use bfloat16 autocast without one.",
            stacklevel=3,
        )


def is_due(group: dict[str, Any]) -> bool:
    """Whether the coming step refreshes the curvature of a group."""
    last = group["last_refresh"]
    return last is None or group["step"] - last >= group["update_interval"]


class Refresh:
    """A refresh of the curvature, in one step of the optimizer.

    Args:
        closure: the step's; see :mod:`adahessian.curvature.closures`.
        members: all that the optimizer has. Frozen ones, and those of groups whose refresh is not
            due, take no part.
        options: of the optimizer.
        step: the number of the coming step.
    """

    def __init__(
        self,
        closure: Callable[[], Any] | None,
        members: Sequence[Member],
        options: SharedOptions,
        step: int,
    ) -> None:
        due = [m for m in members if m.param.requires_grad and is_due(m.group)]
        self._probes = Probes(
            [m.param for m in due],
            seed=options.seed,
            step=step,
            num_samples=options.num_samples,
            tensor_indices=[m.index for m in due],
        )
        self._products = hessian_products(
            options.curvature,
            closure,
            [m.param for m in members],
            self._probes,
            check=all(m.group["last_refresh"] is None for m in members),
        )

    def evaluate(self) -> Any:
        """Evaluate the closure; return what it returns."""
        return self._products.evaluate()

    def estimate(
        self,
        members: Sequence[Member],
        reduction: Reduction,
        show: Callable[[list[Tensor], list[Tensor]], None],
    ) -> dict[Tensor, Tensor] | Overflow:
        """Return the averaged curvature d of each parameter that takes part.

        Args:
            members: those with a gradient.
            reduction: makes H·z that of the unscaled loss, over all processes.
            show: is called with the parameters and the signed z · Hz of each probe.
        """
        members = [m for m in members if m.param in self._probes.params]
        if not members:
            return {}
        params = [m.param for m in members]
        totals: list[Tensor] = []
        for sample in self._samples(params):
            # Before the absolute value: the mean of |z · Hz| over the processes would grow with
            # their number.
            reduction.apply_(sample)
            show(params, sample)
            terms = [
                s.abs_() if m.group["averaging"] == "abs" else s
                for s, m in zip(sample, members, strict=True)
            ]
            totals = list(torch._foreach_add(totals, terms)) if totals else terms
        if len(self._probes) > 1:
            torch._foreach_div_(totals, len(self._probes))
        if reduction.scale is not None and not all(t.isfinite().all() for t in totals):
            return Overflow(float(reduction.scale))
        return {
            m.param: local_block_average(total, m.param, m.group["block_size"])
            for total, m in zip(totals, members, strict=True)
        }

    def _samples(self, params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield z · Hz for each probe z, with no magnitude below the products' resolution."""
        resolution = self._products.resolution()
        finest: list[Tensor] = []
        if resolution:
            sizes = torch._foreach_abs([local(g) for g in gradients(params)])
            finest = list(torch._foreach_mul(sizes, resolution))
        for estimate in hutchinson_samples(self._products.product, self._probes):
            sample = [estimate[p] for p in params]
            if finest:
                sizes = torch._foreach_maximum(torch._foreach_abs(sample), finest)
                sample = [size.copysign_(s) for size, s in zip(sizes, sample, strict=True)]
            yield sample
