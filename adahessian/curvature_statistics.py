"""Statistics of the curvature, from the products that the optimizer has computed anyway.

At each refresh the optimizer knows u = z · Hz, with random signs z. Given the Hessian H of the
refresh's batch, E[u] = diag(H), the elements of u add up to zᵀHz with E[zᵀHz] = tr H, and, because
the elements of z are ±1, ‖u‖² = ‖Hz‖² with E‖Hz‖² = ‖H‖_F². So a window of R refreshes (an epoch,
say) gives, for the price of some sums:

**Trace**: the mean of zᵀHz, of the whole and of each layer. Its standard error comes from the
differences of consecutive refreshes, ½ mean (zᵀHz_{t+1} − zᵀHz_t)² / R (von Neumann 1941), which
see the randomness of probes and batches, and hardly the Hessian's slow drift during the window.

**Frobenius norm**: the root of the mean of ‖u‖². It is that of single batches' Hessians, which is
above the norm of their mean.

**Negative share**: Σ max(−ū, 0) / Σ |ū| with ū the window's mean of u, an estimate of the share of
negative curvature on the diagonal. Noise makes elements of ū negative too, so the estimate is too
large (0.5 without any signal); it is reliable where R times the signal-to-noise of block size 1,
below, is well above one. Exact products only: a finite difference does not know the signs of small
elements.

**Signal-to-noise of the diagonal for blocks of b elements**: what averaging over blocks gains and
loses. Let h be the diagonal's mean over batches, h_B its mean over a block B, and m_B that of u.
As an estimate of h, the block average errs by

.. code-block:: text

    E Σ_B Σ_{i∈B} (m_B − h_i)² = Σ_B |B| E m_B²  −  2 Σ_B |B| h_B²  +  Σ_i h_i²
                               =     T_b         −       2 S_b      +    S_1

because E m_B = h_B: noise, T_b − S_b, falls with b, and blur, S_1 − S_b, grows. T_b is seen
directly. S_b is not, since the square of m_B contains its noise; but consecutive refreshes have
independent probes and other batches, so Σ_B |B| m_B(t) m_B(t+1) is unbiased for it as long as the
diagonal changes slowly. The signal-to-noise is S_1 / (T_b − 2 S_b + S_1): infinite for a perfect
estimate, 1 for one that is as good as zero everywhere. The block size with the largest one is the
best, for the mean of u with its sign (``averaging="signed"``) and before averaging over time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adahessian.dtypes import widest
from adahessian.options import SECOND_MOMENTS
from adahessian.replicas import local, local_block_average
from adahessian.spectrum.estimate import Estimate
from adahessian.state import has_begun
from adahessian.update import corrections_of, denominator

if TYPE_CHECKING:
    from adahessian.optimizer import AdaHessian


@dataclass(frozen=True)
class CurvatureSummary:
    """What a window of refreshes says; formulas in :mod:`adahessian.curvature_statistics`.

    Curvature is in units of the loss per squared unit of the parameters.

    Attributes:
        trace: of the whole Hessian; its ``num_matvecs`` are the products that it is made from.
        layer_traces: of each layer's diagonal block.
        frobenius_norm: of single batches' Hessians.
        negative_share: between 0 and 1; None where products were not exact.
        signal_to_noise: by block size; empty with fewer than two refreshes.
    """

    trace: Estimate
    layer_traces: dict[str, Estimate]
    frobenius_norm: float
    negative_share: float | None
    signal_to_noise: dict[int, float]


class CurvatureStatistics:
    """Statistics of the products that an :class:`~adahessian.AdaHessian` computes.

    Example::

        statistics = CurvatureStatistics(layers(model))  # adahessian.spectrum.layers
        optimizer.register_curvature_hook(statistics)
        ...                                              # train an epoch
        print(statistics.summary())
        statistics.reset()

    Nothing waits for the device before :meth:`summary`. Held are about five numbers per parameter.

    Refreshes of a part of the parameters (groups with another ``update_interval``) are left out; a
    refresh of others than before starts a new window. A refresh that is not finite (a GradScaler's
    overflow) does not count. Of sharded parameters, each process's statistics are those of its
    shards.

    Args:
        layers: lists of parameters by name, whose traces are wanted too.
        largest_block: of the signal-to-noise: block sizes are 1, 2, 4, ... up to this power of
            two. Blocks are runs in row-major order, as for an integer ``block_size``.

    Raises:
        ValueError: ``largest_block`` is no power of two.
    """

    def __init__(
        self, layers: Mapping[str, Iterable[Tensor]] | None = None, *, largest_block: int = 64
    ) -> None:
        if largest_block < 1 or largest_block & (largest_block - 1):
            raise ValueError(f"largest_block must be a power of two, got {largest_block}")
        self._names = list(layers or {})
        self._layer_of = {
            p: index for index, name in enumerate(self._names) for p in (layers or {})[name]
        }
        self._block_sizes = [2**level for level in range(largest_block.bit_length())]
        self.reset()

    def reset(self) -> None:
        """Start a new window."""
        self._members: list[int] = []  # the parameters, by their number in the optimizer
        self._params: Sequence[Tensor] = ()
        self._layout: _Layout | None = None
        self._sums: dict[str, Tensor] = {}
        self._previous: dict[str, Tensor] = {}  # of the last refresh
        self._samples: list[Tensor] = []  # of a refresh that is not complete

    @torch.no_grad()
    def __call__(
        self, optimizer: "AdaHessian", params: Sequence[Tensor], estimates: Sequence[Tensor]
    ) -> None:
        """Take in one sample of z · Hz; see :meth:`AdaHessian.register_curvature_hook`."""
        if not self._belongs_to_window(optimizer, params):
            return
        if self._layout is None:
            exact = optimizer.param_groups[0]["curvature"] == "double_backward"
            self._layout = self._begin(params, estimates, exact=exact)
        self._samples.append(self._layout.join(estimates))
        if len(self._samples) == optimizer.param_groups[0]["num_samples"]:
            samples, self._samples = self._samples, []
            self._add(self._layout, samples)

    def _belongs_to_window(self, optimizer: "AdaHessian", params: Sequence[Tensor]) -> bool:
        if len(params) == len(self._params):
            if all(p is known for p, known in zip(params, self._params, strict=True)):
                return True
        numbers: dict[Tensor, int] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                numbers[p] = len(numbers)
        members = [numbers[p] for p in params]
        if set(members) < set(self._members):
            return False
        if members != self._members:
            self.reset()
            self._members = members
        self._params = tuple(params)
        return True

    def _begin(
        self, params: Sequence[Tensor], estimates: Sequence[Tensor], exact: bool
    ) -> "_Layout":
        no_layer = len(self._names)
        layout = _Layout(
            estimates, [self._layer_of.get(p, no_layer) for p in params], self._block_sizes[-1]
        )
        if self._sums:  # from a state dict, which knows no device
            device = layout.device
            self._sums = {key: value.to(device) for key, value in self._sums.items()}
            self._previous = {key: value.to(device) for key, value in self._previous.items()}
            return layout
        zeros = layout.zeros
        num_traces, num_levels = 1 + len(self._names), len(self._block_sizes)
        self._sums = {
            "refreshes": zeros(1),
            "pairs": zeros(1),
            "samples": zeros(1),
            "samples_squared": zeros(1),
            "traces": zeros(num_traces),
            "squared_differences": zeros(num_traces),
            "squares": zeros(num_levels),  # of both refreshes of a pair, so twice T_b
            "products": zeros(num_levels),  # S_b
        }
        self._previous = {
            "valid": zeros(1),
            "traces": zeros(num_traces),
            "squares": zeros(num_levels),
        }
        flat = layout.join([torch.zeros_like(e) for e in estimates])
        for level, sums in enumerate(layout.block_sums(flat)):
            self._previous[f"block_sums_{level}"] = sums
        if exact:
            self._sums["diagonal"] = torch.zeros_like(flat)
        return layout

    def _add(self, layout: "_Layout", samples: list[Tensor]) -> None:
        """Take in the samples of one refresh."""
        sums, previous = self._sums, self._previous
        zero = layout.zeros(1).squeeze()
        squared = sum((torch.dot(s, s).to(zero) for s in samples), zero)
        # Without asking the device: what is not finite becomes zero and counts as zero.
        valid = squared.isfinite()
        mean = torch.stack(samples).mean(0) if len(samples) > 1 else samples[0]
        mean = torch.where(valid, mean, 0)
        block_sums = layout.block_sums(mean)
        weighted = [s * w for s, w in zip(block_sums, layout.weights, strict=True)]
        earlier = [previous[f"block_sums_{level}"] for level in range(len(block_sums))]
        squares = _dots(weighted, block_sums)
        traces = layout.traces(block_sums[-1], len(self._names))
        one = valid.to(zero).reshape(1)
        pair = one * previous["valid"]

        sums["refreshes"] += one
        sums["pairs"] += pair
        sums["samples"] += len(samples) * one
        sums["samples_squared"] += torch.where(valid, squared, 0)
        sums["traces"] += traces
        sums["squared_differences"] += pair * (traces - previous["traces"]) ** 2
        sums["squares"] += pair * (squares + previous["squares"])
        sums["products"] += _dots(weighted, earlier)
        if "diagonal" in sums:
            sums["diagonal"] += mean

        self._previous = {"valid": one, "traces": traces, "squares": squares}
        self._previous |= {f"block_sums_{level}": s for level, s in enumerate(block_sums)}

    def summary(self) -> CurvatureSummary | None:
        """Return what the window's refreshes say; None if there were none that are finite."""
        if not self._sums:
            return None
        of_window = dict(self._sums)
        diagonal = of_window.pop("diagonal", None)
        if diagonal is not None:
            of_window["magnitudes"] = torch.stack(
                [part.sum(dtype=widest(part.device)) for part in (diagonal.abs(), diagonal)]
            )
        numbers = iter(torch.cat(list(of_window.values())).tolist())  # one transfer from the device
        values = {key: [next(numbers) for _ in t] for key, t in of_window.items()}
        (refreshes,), (pairs,), (samples,) = (
            values[key] for key in ("refreshes", "pairs", "samples")
        )
        if not refreshes:
            return None
        estimates = []
        for total, squared in zip(values["traces"], values["squared_differences"], strict=True):
            error = math.sqrt(squared / (2 * pairs) / refreshes) if pairs else math.inf
            estimates.append(Estimate(total / refreshes, error, int(samples)))
        negative_share = None
        if diagonal is not None:
            magnitude, net = values["magnitudes"]
            negative_share = (magnitude - net) / (2 * magnitude) if magnitude else 0.0
        return CurvatureSummary(
            trace=estimates[0],
            layer_traces=dict(zip(self._names, estimates[1:], strict=True)),
            frobenius_norm=math.sqrt(values["samples_squared"][0] / samples),
            negative_share=negative_share,
            signal_to_noise=self._signal_to_noise(values["squares"], values["products"])
            if pairs
            else {},
        )

    def _signal_to_noise(self, squares: list[float], products: list[float]) -> dict[int, float]:
        signal = max(products[0], 0.0)
        found = {}
        for size, square, product in zip(self._block_sizes, squares, products, strict=True):
            # By chance the estimate of a small error can be negative.
            error = max(square / 2 - 2 * product + products[0], 0.0)
            found[size] = signal / error if error else math.inf if signal else 0.0
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the window so far; to be saved between steps, for an exact resume."""
        return {
            "members": list(self._members),
            "sums": {key: value.clone() for key, value in self._sums.items()},
            "previous": {key: value.clone() for key, value in self._previous.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a window that :meth:`state_dict` returned, for the same parameters."""
        self.reset()
        self._members = list(state["members"])
        self._sums = {key: value.clone() for key, value in state["sums"].items()}
        self._previous = {key: value.clone() for key, value in state["previous"].items()}


class _Layout:
    """All estimates as one vector in which no block of up to ``largest_block`` spans two tensors.

    Tensors are padded with zeros to whole blocks of the largest size, so that every level of
    blocks is the pairwise sum of the one below.
    """

    def __init__(self, estimates: Sequence[Tensor], layers: list[int], largest_block: int) -> None:
        self.device = estimates[0].device
        self._num_levels = largest_block.bit_length()
        sizes = [e.numel() for e in estimates]
        blocks = [-(-size // largest_block) for size in sizes]
        self._padding = [
            torch.zeros(count * largest_block - size, dtype=e.dtype, device=self.device)
            for size, count, e in zip(sizes, blocks, estimates, strict=True)
        ]
        self._layer_of_block = torch.tensor(layers, device=self.device).repeat_interleave(
            torch.tensor(blocks, device=self.device)
        )
        present = self.join([torch.ones_like(e) for e in estimates])
        # The square of a block's mean, times its length, is the square of its sum over its length.
        self.weights = [1 / count.clamp(min=1) for count in self.block_sums(present)]
        self.weights[0] = torch.ones((), dtype=present.dtype, device=self.device)

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=widest(self.device), device=self.device)

    def join(self, estimates: Sequence[Tensor]) -> Tensor:
        parts = []
        for estimate, padding in zip(estimates, self._padding, strict=True):
            parts += [estimate.reshape(-1).to(self.device), padding]
        return torch.cat(parts)

    def block_sums(self, flat: Tensor) -> list[Tensor]:
        """Return the sums over blocks of 1, 2, 4, ... elements."""
        levels = [flat]
        while len(levels) < self._num_levels:
            levels.append(levels[-1][0::2] + levels[-1][1::2])
        return levels

    def traces(self, largest_blocks: Tensor, num_layers: int) -> Tensor:
        """Return the sum over everything and over each layer."""
        by_layer = self.zeros(num_layers + 1)
        by_layer.index_add_(0, self._layer_of_block, largest_blocks.to(by_layer))
        return torch.cat([by_layer.sum().reshape(1), by_layer[:num_layers]])


def _dots(left: list[Tensor], right: list[Tensor]) -> Tensor:
    dots = torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)])
    return dots.to(widest(dots.device))


# ------------------------------------------------------------------------------- a single step


def denominators(optimizer: "AdaHessian") -> dict[Tensor, Tensor]:
    """Return what the last step was divided by, by parameter: v̂^(hessian_power / 2) + eps.

    Or what there is in its place with another ``second_moment``. Parameters whose average has not
    begun are left out. Nothing waits for the device.
    """
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if not has_begun(state):
                continue
            moment = group["second_moment"]
            (correction,) = corrections_of([state], group["betas"][1], group["bias_correction"])
            average = local(state[SECOND_MOMENTS[moment]])
            found[p] = denominator(
                average, correction, group["eps"], group["hessian_power"], moment
            )
    return found


class DiagonalRecorder:
    """Keeps the averaged curvature d of the refreshes that it is told to keep.

    Example::

        recorder = DiagonalRecorder()
        optimizer.register_curvature_hook(recorder)
        recorder.start()
        optimizer.step(closure)
        diagonals = recorder.stop()  # by parameter; nothing where the step refreshed nothing

    It costs nothing while it keeps nothing.
    """

    _totals: dict[Tensor, Tensor] | None = None

    def start(self) -> None:
        """Keep what comes from now on."""
        self._totals = {}

    @torch.no_grad()
    def __call__(
        self, optimizer: "AdaHessian", params: Sequence[Tensor], estimates: Sequence[Tensor]
    ) -> None:
        """Take in one sample of z · Hz; see :meth:`AdaHessian.register_curvature_hook`."""
        if self._totals is None:
            return
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        self._groups = {p: groups[p] for p in params}
        for p, estimate in zip(params, estimates, strict=True):
            sample = estimate.abs() if groups[p]["averaging"] == "abs" else estimate.clone()
            self._totals[p] = self._totals[p] + sample if p in self._totals else sample

    @torch.no_grad()
    def stop(self) -> dict[Tensor, Tensor]:
        """Return d by parameter, as the step took it, and keep no more."""
        totals, self._totals = self._totals or {}, None
        found = {}
        for p, total in totals.items():
            group = self._groups[p]
            mean = total / group["num_samples"]
            found[p] = local_block_average(mean, p, group["block_size"])
        return found
