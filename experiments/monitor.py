"""Watching an optimizer's own Hessian-vector products, epoch by epoch.

`curvature_statistics: true` adds to a row, from the products of the epoch's steps:

- `hessian/trace_estimate` and `hessian/trace_estimate_standard_error`,
  `hessian/layer_trace/<module>`, `hessian/frobenius_norm`, `hessian/negative_share`,
  `hessian/signal_to_noise/block_<b>`: `adahessian.statistics` has the formulas;
- `time/curvature_share`: the part of the steps' time from the end of the closure's first
  evaluation until H·z is there. What the graph costs the first evaluation is not in it.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adahessian import CurvatureStatistics
from adahessian.spectrum import layers


class CurvatureMonitor:
    """Statistics of the products that the optimizer computes in its steps, epoch by epoch.

    An optimizer without `register_curvature_hook` has none, and its rows stay as they are.

    Args:
        model: gives the layers their names.
        optimizer: is watched from now on.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.statistics = CurvatureStatistics(layers(model))
        self._device = next(model.parameters()).device
        self._steps: list[dict[str, Any]] = []  # of each step, when its parts began and ended
        if hasattr(optimizer, "register_curvature_hook"):
            optimizer.register_curvature_hook(self._note("curved"))
            optimizer.register_curvature_hook(self.statistics)
            optimizer.register_step_pre_hook(self._begin)
            optimizer.register_step_post_hook(self._note("end"))

    def _begin(self, optimizer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Before a step: see to it that the end of its first evaluation is noted."""
        times = {"start": self._now()}
        self._steps.append(times)

        def timed(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def evaluate() -> Tensor:
                loss = closure()
                if "evaluated" not in times:
                    times["evaluated"] = self._now()
                return loss

            return evaluate

        return (args[0], timed(args[1]), *args[2:]), kwargs

    def _note(self, event: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._steps[-1][event] = self._now()

        return hook

    def _now(self) -> Any:
        """This moment, on the device's own clock: nobody waits for it to get there."""
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return end - start if self._device.type == "cpu" else start.elapsed_time(end) / 1000

    def finish_epoch(self) -> dict[str, float]:
        """What the row of an epoch says, and a new beginning."""
        summary, steps = self.statistics.summary(), self._steps
        self.statistics.reset()
        self._steps = []
        if summary is None:
            return {}
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        curved = sum(self._seconds(s["evaluated"], s["curved"]) for s in steps if "curved" in s)
        whole = sum(self._seconds(s["start"], s["end"]) for s in steps)
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
        # JSON knows no infinity: an error that is not known yet is not there.
        return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}

    def state_dict(self) -> dict[str, Any]:
        """The statistics of the epoch so far."""
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)
