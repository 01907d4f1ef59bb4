"""Statistics of an optimizer's own Hessian-vector products, epoch by epoch.

Where the optimizer shows its products, `curvature_statistics: true` adds to a row, from those of
the epoch's steps:

- `hessian/trace_estimate` and `hessian/trace_estimate_standard_error`,
  `hessian/layer_trace/<module>`, `hessian/frobenius_norm`, `hessian/negative_share`,
  `hessian/signal_to_noise/block_<b>`: `adahessian.curvature_statistics` has the formulas;
- `time/curvature_share`: the part of the steps' time between the end of the closure's first
  evaluation and H·z. It leaves out what the graph costs the first evaluation.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from adahessian import CurvatureStatistics
from adahessian.spectrum import layers
from experiments.training.clock import Clock, register_evaluation_hook


class CurvatureMonitor:
    """Statistics of the products that the optimizer computes in its steps, epoch by epoch.

    Args:
        model: gives the layers their names.
        optimizer: watched from now on; it has curvature hooks (`optimizers.Capabilities`).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.statistics = CurvatureStatistics(layers(model))
        self._clock = Clock(next(model.parameters()).device)
        self._steps: list[dict[str, Any]] = []  # when each step's parts began and ended
        optimizer.register_curvature_hook(self._note("curved"))
        optimizer.register_curvature_hook(self.statistics)
        register_evaluation_hook(optimizer, self._begin, self._evaluated)
        optimizer.register_step_post_hook(self._note("end"))

    def _begin(self) -> None:
        self._steps.append({"start": self._clock.now()})

    def _evaluated(self) -> None:
        if "evaluated" not in self._steps[-1]:
            self._steps[-1]["evaluated"] = self._clock.now()

    def _note(self, event: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._steps[-1][event] = self._clock.now()

        return hook

    def finish_epoch(self) -> dict[str, float]:
        """The entries of the epoch's row; the next epoch starts from nothing."""
        summary, steps = self.statistics.summary(), self._steps
        self.statistics.reset()
        self._steps = []
        if summary is None:
            return {}
        self._clock.synchronize()
        seconds = self._clock.seconds
        curved = sum(seconds(s["evaluated"], s["curved"]) for s in steps if "curved" in s)
        whole = sum(seconds(s["start"], s["end"]) for s in steps)
        values = {
            "hessian/trace_estimate": summary.trace.value,
            "hessian/trace_estimate_standard_error": summary.trace.standard_error,
            "hessian/frobenius_norm": summary.frobenius_norm,
            "hessian/negative_share": summary.negative_share,
            **{f"hessian/layer_trace/{n}": e.value for n, e in summary.layer_traces.items()},
            **{
                f"hessian/signal_to_noise/block_{size}": ratio
                for size, ratio in summary.signal_to_noise.items()
            },
            "time/curvature_share": curved / whole if steps else None,
        }
        # JSON has no infinity: a standard error that is not known yet is left out.
        return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}

    def state_dict(self) -> dict[str, Any]:
        """The statistics of the epoch so far."""
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)
