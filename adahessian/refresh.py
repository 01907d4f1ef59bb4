"""A refresh of the curvature: which parameters take part, their probes, and the d they get.

Private to :class:`adahessian.AdaHessian`; :mod:`adahessian.curvature` has what is
independent of an optimizer.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adahessian.curvature.hutchinson import hutchinson_samples
from adahessian.curvature.products import Door
from adahessian.probes import rademacher_like
from adahessian.replicas import average_, local_block_average


class Member(NamedTuple):
    """A parameter that takes part in a step."""

    group: dict[str, Any]
    index: int  # in the optimizer, over all groups: what its probe depends on
    param: Tensor


def is_due(group: dict[str, Any]) -> bool:
    """Whether the coming step refreshes the curvature of a group."""
    last = group["last_refresh"]
    return last is None or group["step"] - last >= group["update_interval"]


def draw_probes(members: Sequence[Member], first: dict[str, Any]) -> list[list[Tensor | None]]:
    """Return the probes of the refresh that is due: for each sample one for each member.

    Args:
        members: all that the optimizer has; those that are not refreshed get None.
        first: the optimizer's first group, for the options that are one for all groups.
    """
    due = [m for m in members if m.param.requires_grad and is_due(m.group)]
    drawn = []
    for sample in range(first["num_samples"]):
        z = rademacher_like(
            [m.param for m in due],
            seed=first["seed"],
            step=first["step"],
            sample=sample,
            tensor_indices=[m.index for m in due],
        )
        by_param = dict(zip((m.param for m in due), z, strict=True))
        drawn.append([by_param.get(m.param) for m in members])
    return drawn


def diagonals(
    members: Sequence[Member],
    first: dict[str, Any],
    door: Door,
    scale: Tensor | None,
    process_group: Any,
    show: Callable[[list[Tensor], list[Tensor]], None],
) -> dict[Tensor, Tensor] | None:
    """Return the averaged curvature d of each parameter in ``members``.

    Args:
        members: those with a gradient whose refresh is due.
        first: as in :func:`draw_probes`.
        door: after its first pass.
        scale: a GradScaler's, of the loss.
        process_group: over which H·z is averaged; None for one process.
        show: is called with the parameters and the signed z · Hz of each probe.

    Returns:
        None if it has overflowed at the scale.
    """
    params = [m.param for m in members]
    samples = hutchinson_samples(
        lambda z, more: door.product(params, z, more),
        params,
        seed=first["seed"],
        step=first["step"],
        num_samples=first["num_samples"],
        tensor_indices=[m.index for m in members],
    )
    totals = None
    for sample in samples:
        resolution = door.resolution(params)
        if resolution is not None:
            sizes = torch._foreach_maximum(torch._foreach_abs(sample), resolution)
            sample = [size.copysign_(s) for size, s in zip(sizes, sample, strict=True)]
        if scale is not None:
            torch._foreach_div_(sample, scale)
        if process_group is not None:
            # Before the absolute value: the mean of |z · Hz| over the processes would grow
            # with their number.
            average_(sample, process_group)
        show(params, sample)
        terms = [
            s.abs_() if m.group["averaging"] == "abs" else s
            for s, m in zip(sample, members, strict=True)
        ]
        totals = terms if totals is None else torch._foreach_add(totals, terms)
    if first["num_samples"] > 1:
        torch._foreach_div_(totals, first["num_samples"])
    if scale is not None and not all(t.isfinite().all() for t in totals):
        warnings.warn(
            f"H·z overflowed at the loss scale {float(scale):g}: this step is skipped. Start "
            "the GradScaler with a smaller init_scale, or use bfloat16 autocast without one.",
            stacklevel=3,
        )
        return None
    return {
        m.param: local_block_average(total, m.param, m.group["block_size"])
        for total, m in zip(totals, members, strict=True)
    }
