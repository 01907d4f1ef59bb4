"""What happens inside an epoch: a row of `steps.jsonl` after every `log_every_steps`-th step.

It holds `step`, `epoch` (with its fraction), `learning_rate`, and of this one step:

- `step/loss`: the mean loss of its batch;
- `step/gradient_norm`: of the gradient that the step took, clipped where it is clipped, averaged
  over processes;
- `step/weight_norm`: of the weights that are trained, before the step;
- `step/update_norm` and `step/update_ratio`: of the change of these weights, whatever the optimizer
  did to bring it about, and the same in units of the weights' norm;
- of an AdaHessian `step/denominator/p05`, `p50` and `p95`, quantiles over the elements of what the
  step was divided by, and, where it refreshed the curvature, `step/curvature/p05`, ... of the
  averaged curvature d.

With `log_layers` the norms come for each layer as well: `step/update_ratio/layer1.0.conv1`.
Norms are Euclidean. Steps between rows do nothing for them, and nothing waits for the device but
the row itself. Nothing in a row depends on time, so a resumed run has the same rows.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adahessian import AdaHessian
from adahessian.curvature_statistics import DiagonalRecorder, denominators
from adahessian.spectrum import layers

QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
MOST_ELEMENTS = 2**16  # that quantiles are taken over, evenly chosen: a sort takes milliseconds
NORMS = ("gradient_norm", "weight_norm", "update_norm")


class StepLog:
    """Measures single steps of a training.

    Args:
        model: gives the layers their names.
        optimizer: whose steps they are.
        by_layer: measure the norms of each layer, too.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, by_layer: bool) -> None:
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        places = {p: place for place, p in enumerate(self._params)}
        self._layers: dict[str, list[int]] = {}
        for name, members in layers(model).items() if by_layer else ():
            if found := [places[p] for p in members if p in places]:
                self._layers[name] = found
        self._recorder = DiagonalRecorder()
        self._adahessian: AdaHessian | None = None
        if isinstance(optimizer, AdaHessian):  # what is measured of it is defined by its rule
            self._adahessian = optimizer
            optimizer.register_curvature_hook(self._recorder)

    @torch.no_grad()
    def begin(self) -> None:
        """Before the step: keep the weights."""
        self._before = [p.detach().clone() for p in self._params]
        self._recorder.start()

    @torch.no_grad()
    def end(self) -> Sequence[Tensor]:
        """After the step: what `row` needs, one element each, still on the device."""
        before, self._before = self._before, []
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self._params
        ]
        weights = torch._foreach_norm(before)
        changes = torch._foreach_sub(before, [p.detach() for p in self._params])
        found = [*torch._foreach_norm(gradients), *weights, *torch._foreach_norm(changes)]
        values = {"denominator": {}, "curvature": self._recorder.stop()}
        if self._adahessian is not None:
            values["denominator"] = denominators(self._adahessian)
        self._quantiles = [
            f"{name}/{key}" for name, of in values.items() if of for key in QUANTILES
        ]
        for tensors in filter(None, values.values()):
            found += quantiles(list(tensors.values()))
        return found

    def row(self, numbers: Sequence[float]) -> dict[str, float]:
        """The entries of a row, from the numbers behind what `end` returned."""
        count = len(self._params)
        squares = {
            name: [value * value for value in numbers[place * count : (place + 1) * count]]
            for place, name in enumerate(NORMS)
        }
        found = _norms(squares, "")
        found |= zip(self._quantiles, numbers[len(NORMS) * count :], strict=True)
        for name, places in self._layers.items():
            found |= _norms({k: [all[i] for i in places] for k, all in squares.items()}, f"/{name}")
        return {f"step/{name}": value for name, value in found.items()}


def _norms(squares: Mapping[str, list[float]], suffix: str) -> dict[str, float]:
    norms = {name: math.sqrt(math.fsum(values)) for name, values in squares.items()}
    if norms["weight_norm"]:
        norms["update_ratio"] = norms["update_norm"] / norms["weight_norm"]
    return {f"{name}{suffix}": value for name, value in norms.items()}


def quantiles(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`QUANTILES` over the elements of some tensors, evenly chosen where they are many."""
    stride = -(-sum(t.numel() for t in tensors) // MOST_ELEMENTS)
    chosen, offset = [], 0  # as if all were one vector, so that each element counts alike
    for tensor in tensors:
        chosen.append(tensor.reshape(-1)[offset::stride])
        offset = (offset - tensor.numel()) % stride
    ordered = torch.cat(chosen).sort().values
    return [ordered[round(share * (len(ordered) - 1))] for share in QUANTILES.values()]
