"""The torch optimizer as a port, and a way to make one of any AdaHessian for torch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from adahessian.conformance.check import Step
from adahessian.conformance.problems import loss, num_batches
from adahessian.optimizer import AdaHessian
from adahessian.options import SECOND_MOMENTS


def port(case: dict[str, Any]) -> Step:
    """Return ours: gradients and H·z by autograd, at its own parameters, along its own probes."""
    params = _parameters(case)
    optimizer = AdaHessian(_groups(case, params), **case["options"])

    def closure() -> None:
        optimizer.zero_grad()
        for batch in range(num_batches(case["problem"])):
            part = loss(case, params, batch, torch, dtype=torch.float64)
            part.backward(create_graph=optimizer.needs_graph)

    def step(given: dict[str, Any]) -> dict[str, Any]:
        optimizer.step(closure)
        return _result(case, optimizer, params)

    return step


def replayed(
    case: dict[str, Any], make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
) -> Step:
    """Return any AdaHessian for torch, fed with the recorded gradients and products.

    It may draw its own Rademacher probes z': the gradients that it finds have a graph whose product
    with z' is z' · (z · Hz) with the recorded z and Hz, so that z' times that is the recorded
    estimate.

    Args:
        case: as a factory gets it.
        make: takes parameter groups and returns an optimizer, which refreshes its curvature by
            ``torch.autograd.grad`` of the gradients, sample by sample.
    """
    params = _parameters(case)
    optimizer = make(_groups(case, params))

    def step(given: dict[str, Any]) -> dict[str, Any]:
        probes = [_tensors(sample) for sample in given["probes"]]
        for p in params:
            p.grad = None
        for batch in given["batches"]:
            estimates = [
                [z * hz for z, hz in zip(zs, _tensors(hzs), strict=True)]
                for zs, hzs in zip(probes, batch["products"], strict=True)
            ]
            grads = _Recorded.apply(_tensors(batch["grads"]), estimates, *params)
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad if p.grad is None else p.grad + grad
        optimizer.step()
        return _result(case, optimizer, params)

    return step


class _Recorded(torch.autograd.Function):
    """Recorded gradients; each backward pass is the next sample's."""

    @staticmethod
    def forward(ctx: Any, grads: list[Tensor], estimates: list[list[Tensor]], *params: Tensor):
        ctx.estimates = iter(estimates)
        return tuple(grads)

    @staticmethod
    def backward(ctx: Any, *probes: Tensor):
        estimates = next(ctx.estimates)
        return None, None, *(z * e for z, e in zip(probes, estimates, strict=True))


def _parameters(case: dict[str, Any]) -> list[Tensor]:
    """Return a case's initial parameters.

    Raises:
        NotImplementedError: they are not laid out as torch's.
    """
    for param in case["params"]:
        layout = [axis for axis in ("out", "in", "kernel") for a in param["axes"] if a == axis]
        if param["axes"] != layout:
            raise NotImplementedError(f"the layout {', '.join(param['axes'])}")
    return [t.requires_grad_() for t in _tensors([param["value"] for param in case["params"]])]


def _groups(case: dict[str, Any], params: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Return parameter groups: one for all where no parameter has options of its own."""
    own = [param["options"] for param in case["params"]]
    if not any(own):
        return [{"params": list(params)}]
    return [{"params": [p], **options} for p, options in zip(params, own, strict=True)]


def _result(
    case: dict[str, Any], optimizer: torch.optim.Optimizer, params: list[Tensor]
) -> dict[str, Any]:
    """Return what a step returns."""
    names = "exp_avg", SECOND_MOMENTS[case["options"].get("second_moment", "rms")]
    averages = {key: [optimizer.state[p][key] for p in params] for key in names}
    return {"params": params, **averages}


def _tensors(arrays: list[Any]) -> list[Tensor]:
    return [torch.tensor(array, dtype=torch.float64) for array in arrays]
