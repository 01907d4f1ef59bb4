"""Many descents at once, with the real optimizers.

The optimizers compared here treat every element of a parameter alike and apart from the others,
and the loss is a sum over points, so a tensor of points moves as its points would alone; a
Rademacher probe is drawn for each. Each setting of an optimizer is a parameter group, its points
the rows of a matrix, because AdaHessian averages the curvature of tensors with more dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from experiments.landscapes.functions import Function


def descend(
    function: Function,
    start: Tensor,
    constructor: Callable[..., Optimizer],
    settings: Sequence[dict[str, Any]],
    prepare: Callable[[Optimizer], None] = lambda optimizer: None,
) -> Iterator[Tensor]:
    """Yield the points before the first step and after every step, without end.

    Args:
        function: from points to values.
        start: the points to start from, (..., dimension), the same for every setting.
        constructor: of the optimizer.
        settings: arguments of the constructor, one dictionary for each descent.
        prepare: called with the optimizer before its first step.

    Yields:
        Points, (number of settings, ..., dimension).
    """
    rows = start.reshape(-1, start.shape[-1])
    params = [rows.clone().requires_grad_() for _ in settings]
    groups = zip(params, settings, strict=True)
    optimizer = constructor([{"params": [p], **setting} for p, setting in groups])
    prepare(optimizer)

    def points(matrices: list[Tensor]) -> Tensor:
        return torch.stack(matrices).reshape(len(settings), *start.shape)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = function(points(params)).sum()
        loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
        return loss

    while True:
        yield points([p.detach() for p in params])
        optimizer.step(closure)
