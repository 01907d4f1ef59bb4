"""The AdaHessian optimizer for Keras 3."""

import math
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import keras
import numpy as np
from keras import ops

from adahessian.keras.averaging import BlockAxes, BlockSize, block_average, mean
from adahessian.keras.options import check_options

# How the active backend computes H·z, and nothing of the others.
_BACKEND = keras.backend.backend()
_MODULES = {"tensorflow", "jax", "torch"}
if _BACKEND not in _MODULES:
    raise ImportError(
        f"adahessian.keras needs second derivatives, which Keras' backend {_BACKEND!r} does not "
        "have: set KERAS_BACKEND to tensorflow, jax or torch"
    )
backend: Any = import_module(f"adahessian.keras.{_BACKEND}")

_FLOAT8 = (
    "AdaHessian does not train in float8: the gradient is rounded to it, and H·z is lost in that. "
    "Take the policy mixed_bfloat16"
)


class Held(threading.local):
    """What an optimizer holds between two calls, apart for each thread.

    The replicas of a MirroredStrategy are threads that take turns within one step.

    Attributes:
        samples: z · Hz of the coming update by the number of its weight, each of the shape
            (num_samples, \\*shape); None where there is none.
        due: whether the coming update refreshes the curvature, where that is known in Python.
        functions: torch's, which the losses were made of when they were last looked at.
    """

    samples: dict[int, Any] | None = None
    due: bool | None = None
    functions: frozenset[type] = frozenset()

    def __reduce__(self) -> tuple:
        return Held, ()  # a copy of the optimizer holds nothing


@keras.saving.register_keras_serializable(package="adahessian")
class AdaHessian(keras.optimizers.Optimizer):
    r"""AdaHessian (Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, AAAI 2021, arXiv:2006.00719).

    With the gradient g, a Rademacher probe z and the Hessian H of the same batch, one step t is

    .. code-block:: text

        θ ← θ − lr · weight_decay · θ                decoupled, as Keras does it
        m ← β₁ m + (1 − β₁) g                        exp_avg                 (Eq. 7, 11)
        d = mean over samples and block of |z · Hz|   the curvature           (Eq. 8 to 10)
        v ← β₂ v + (1 − β₂) d²                       exp_hessian_diag_sq     (Eq. 11)
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ʳ)        r: refreshes of d so far
        θ ← θ − lr · clip(m̂ / (v̂^(hessian_power / 2) + epsilon), update_clip)

    as in :class:`adahessian.AdaHessian` (torch), on each backend. Example::

        model = second_order(build())  # needed on the JAX backend, nothing elsewhere
        model.compile(optimizer=AdaHessian(learning_rate=0.15), loss="mse")
        model.fit(x, y)

    Clipping acts on the gradient alone; the curvature is exact, of the whole batch.

    Differences from the paper: its Eq. 10 averages z · Hz with its sign; the code that produced its
    image results averages the magnitudes, and so do we by default (``averaging``). With
    ``update_interval`` above 1 we apply β₂ and its bias correction once a refresh, not once a step.

    A weight's curvature that is not finite is left out: its v stays, corrected, what it was, and
    before its first finite one the weight does not move.

    Args:
        learning_rate: a float, a ``keras.optimizers.schedules.LearningRateSchedule`` or a function.
            0.15 is the paper's value for image classification.
        beta_1: decay of the gradient's running average, in [0, 1).
        beta_2: decay of the squared curvature's running average, in [0, 1).
        epsilon: added to the denominator, outside the power.
        hessian_power: the paper's k in [0, 1]; 0 leaves momentum SGD.
        block_size: what the curvature is averaged over, see :mod:`adahessian.keras.averaging`.
        block_axes: the axes to average over, for weights that are not laid out as those of Keras'
            layers: a function of a weight's path ("block/conv2d/kernel") and shape that returns a
            tuple of axes, () for none or None for the default.
        averaging: "abs" is the mean of \|z · Hz\|; "signed" the mean of z · Hz, in which the
            off-diagonal noise of the probe cancels (the paper's Eq. 10).
        update_interval: steps between refreshes of the curvature, from the first step on. With
            gradient accumulation a step is an update, not a batch.
        update_clip: bound of each element of m̂ / denominator, as Sophia-H's (arXiv:2305.14342);
            None, as in the paper, for none. An element then moves by at most learning rate ·
            update_clip, besides the weight decay.
        num_samples: probes per refresh.
        seed: of the probes, 0 to 2⁶³ − 1.
        **kwargs: of every Keras optimizer: ``weight_decay``, ``clipnorm``, ``global_clipnorm``,
            ``clipvalue``, ``use_ema``, ``gradient_accumulation_steps``, ``loss_scale_factor``,
            ``name``, ...

    State: ``exp_avg`` and ``exp_hessian_diag_sq`` of each weight, never below float32, and
    ``num_refreshes``; with gradient accumulation also the z · Hz so far.

    Raises:
        ValueError: an option out of range.
        RuntimeError: in training, where H·z cannot be had: float8, eager TensorFlow, JAX without
            ``second_order``, torch with a LossScaleOptimizer.
    """

    def __init__(
        self,
        learning_rate: Any = 0.15,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-4,
        hessian_power: float = 1.0,
        *,
        block_size: BlockSize = "kernel",
        block_axes: BlockAxes | None = None,
        averaging: str = "abs",
        update_interval: int = 1,
        update_clip: float | None = None,
        num_samples: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        if self.weight_decay is not None:
            # On TensorFlow Keras takes a Python float through float32.
            self.weight_decay = np.float64(self.weight_decay)
        options = {
            "beta_1": beta_1,
            "beta_2": beta_2,
            "epsilon": epsilon,
            "hessian_power": hessian_power,
            "block_size": block_size,
            "block_axes": block_axes,
            "averaging": averaging,
            "update_interval": update_interval,
            "update_clip": update_clip,
            "num_samples": num_samples,
            "seed": seed,
        }
        check_options(options)
        self._names_of_options = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)
        self.held = Held()

    def get_config(self) -> dict[str, Any]:
        """Return the options, as ``from_config`` and ``.keras`` files take them."""
        options = {name: getattr(self, name) for name in self._names_of_options}
        if self.block_axes is not None:
            options["block_axes"] = keras.saving.serialize_keras_object(self.block_axes)
        return {**super().get_config(), **options}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "AdaHessian":
        """Return the optimizer that ``get_config`` described."""
        axes = config.get("block_axes")
        if isinstance(axes, dict):
            axes = keras.saving.deserialize_keras_object(axes, custom_objects=custom_objects)
            config = {**config, "block_axes": axes}
        return super().from_config(config, custom_objects=custom_objects)

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state of the weights that the optimizer is to train."""
        if self.built:
            return
        if any(self._overwrite_variable_with_gradient(variable) for variable in variables):
            raise RuntimeError(_FLOAT8)
        super().build(variables)
        self._num_refreshes = self.add_variable(
            (), dtype="int", aggregation="only_first_replica", name="num_refreshes"
        )
        self._exp_avg = self._state(variables, "exp_avg")
        self._exp_hessian_diag_sq = self._state(variables, "exp_hessian_diag_sq")
        if self.gradient_accumulation_steps:
            self._accumulated_samples = self._state(
                variables, "accumulated_samples", (self.num_samples,)
            )

    def _state(self, variables: Sequence[Any], name: str, more: tuple[int, ...] = ()) -> list[Any]:
        """Return zeros for each weight, none below float32."""
        return [
            self.add_variable(
                (*more, *variable.shape),
                dtype=state_dtype(variable),
                name=f"{variable.path.replace('/', '_')}_{name}",
            )
            for variable in variables
        ]

    # ------------------------------------------------------------------------------- one step

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss by ``loss_scale_factor``; training steps of Keras call it.

        On torch it is where a refresh of the curvature is computed, so that a training loop of
        one's own calls it, too: ``optimizer.scale_loss(loss).backward()``.
        """
        return backend.scale_loss(self, super().scale_loss(loss))

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step; called by Keras' training step with the gradients of a batch."""
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            variables = list(self._trainable_variables)
        else:
            variables = list(trainable_variables)
            if not self.built:
                with keras.name_scope(self.name):
                    self.build(variables)
        self._check_variables_are_known(variables)
        grads, samples = backend.samples(self, grads, variables)
        due, is_update = self.refresh_is_due(), self._is_update()
        if self.gradient_accumulation_steps and samples is not None:
            samples = self._with_earlier(samples)
        self.held.samples = samples
        try:
            super().apply(grads, variables)
        finally:
            self.held.samples = None
        if self.gradient_accumulation_steps:
            for total in self._accumulated_samples:
                kept = ops.cast(ops.logical_not(is_update), total.dtype)
                total.assign(total * kept)
        refreshed = ops.cast(ops.logical_and(due, is_update), self._num_refreshes.dtype)
        self._num_refreshes.assign_add(refreshed)

    def refresh_is_due(self) -> Any:
        """Return whether the coming update refreshes the curvature: a bool, or a scalar of one."""
        if self.held.due is not None:
            return self.held.due
        if self.update_interval == 1:
            return True
        # Someone may have set `iterations`: without any curvature the denominator would be epsilon.
        step = backend.number(self.iterations)
        is_first = backend.number(self._num_refreshes) == 0
        return (step % self.update_interval == 0) | is_first

    def _is_update(self) -> Any:
        """Whether the coming batch is the last of an update."""
        steps = self.gradient_accumulation_steps
        return (self._iterations + 1) % steps == 0 if steps else True

    def _with_earlier(self, samples: dict[int, Any]) -> dict[int, Any]:
        """Add z · Hz to that of the update's earlier batches; return the sum so far."""
        totals = {}
        for index, sample in samples.items():
            total = self._accumulated_samples[index]
            total.assign(total + ops.cast(sample, total.dtype))
            totals[index] = ops.convert_to_tensor(total)
        return totals

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # Beside the gradients, so that they take the same way: TensorFlow sums both over the
        # replicas, signed. The mean of |z · Hz| over the replicas would grow with their number.
        samples = self.held.samples
        pairs = []
        for grad, variable in zip(grads, trainable_variables, strict=True):
            sample = None if samples is None else samples[self._get_variable_index(variable)]
            if sample is not None and self.gradient_accumulation_steps:
                # H is linear in the loss: the mean of signed products is that of the whole. Here,
                # because TensorFlow sums over replicas what is made within one branch only.
                sample = sample / self.gradient_accumulation_steps
            pairs.append((grad, sample))
        super()._backend_update_step(pairs, trainable_variables, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one weight; ``gradient`` is a pair of the gradient and z · Hz."""
        grad, samples = gradient
        index = self._get_variable_index(variable)
        m, v = self._exp_avg[index], self._exp_hessian_diag_sq[index]
        dtype = m.dtype
        due = self.refresh_is_due()
        step = backend.number(self.iterations) + 1
        refreshes = backend.number(self._num_refreshes)
        self.assign_add(m, (ops.cast(grad, dtype) - m) * (1 - self.beta_1))
        if due is not False:
            d = self._curvature(ops.cast(samples, dtype), self._trainable_variables[index])
            seen = _bias_correction(self.beta_2, refreshes, dtype)
            before = ops.convert_to_tensor(v)
            refreshed = self._refreshed(before, d, seen)
            self.assign(v, refreshed if due is True else backend.where(due, refreshed, before))
            refreshes = refreshes + (1 if due is True else ops.cast(due, refreshes.dtype))
        denominator = v / _bias_correction(self.beta_2, refreshes, dtype)
        power = self.hessian_power / 2
        denominator = ops.sqrt(denominator) if power == 0.5 else ops.power(denominator, power)
        direction = m / _bias_correction(self.beta_1, step, dtype) / (denominator + self.epsilon)
        if self.update_clip is not None:
            direction = ops.clip(direction, -self.update_clip, self.update_clip)
        change = ops.cast(learning_rate, dtype) * direction
        self.assign_sub(variable, ops.cast(change, variable.dtype))

    def _refreshed(self, v: Any, d: Any, seen: Any) -> Any:
        """Return the running average after a refresh; ``seen`` is 1 − β₂ʳ before it.

        A curvature that is not finite is left out. With d² = v / (1 − β₂ʳ) the corrected average
        stays what it is; one that has not begun is infinite then, so that the weight does not
        move, and its first d counts for the refreshes before.
        """
        where = backend.where
        average = where(seen > 0, v / where(seen > 0, seen, 1.0), math.inf)
        squared = where(ops.isfinite(ops.sum(d * d)), d * d, average)
        v = where(ops.isinf(v), seen * squared, v)
        mean = v * self.beta_2 + squared * (1 - self.beta_2)
        return where(ops.isfinite(squared), mean, math.inf)

    def _curvature(self, samples: Any, variable: Any) -> Any:
        """Return d, the averaged curvature, of z · Hz in an additional first axis."""
        if self.averaging == "abs":
            samples = ops.absolute(samples)
        estimate = mean(samples, (0,)) if self.num_samples > 1 else samples[0]
        axes = self.block_axes
        if axes is not None:
            axes = axes(variable.path, tuple(variable.shape))
        return block_average(estimate, self.block_size, path=variable.path, block_axes=axes)


def state_dtype(variable: Any) -> str:
    """Return the dtype of a weight's averages: its own, but never below float32."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def _bias_correction(beta: float, count: Any, dtype: str) -> Any:
    """Return 1 − betaᵗ, without the cancellation that costs float32 four digits at t = 1."""
    if isinstance(count, int):
        return 1 - beta**count
    log = ops.convert_to_tensor(math.log(beta) if beta else -math.inf, dtype=dtype)
    return -ops.expm1(ops.cast(count, dtype) * log)
