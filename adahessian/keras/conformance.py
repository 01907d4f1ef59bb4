"""The Keras optimizer as a port for :mod:`adahessian.conformance`, on the active backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import keras
import numpy as np
from keras import ops

from adahessian.conformance.check import Step
from adahessian.conformance.layouts import declared_axes
from adahessian.conformance.problems import is_of_another_rule, loss, num_batches
from adahessian.keras.model import second_order
from adahessian.keras.optimizer import AdaHessian

_BACKEND = keras.backend.backend()
_NUMPY = {
    "tensorflow": "tensorflow.experimental.numpy",
    "jax": "jax.numpy",
    "torch": "torch",
}


def port(case: dict[str, Any]) -> Step:
    """Return ours: the case's loss as a model, trained batch by batch as ``fit`` would."""
    if is_of_another_rule(case):
        raise NotImplementedError("other rules than AdaHessian's")
    if case["options"]["maximize"]:
        raise NotImplementedError("maximize")
    if any(param["options"] for param in case["params"]):
        raise NotImplementedError("options of single parameters")
    batches = np.eye(num_batches(case["problem"]))
    with _float64():
        optimizer = _optimizer(case)
        model = second_order(Problem(case))
        model.compile(optimizer=optimizer, jit_compile=_BACKEND == "jax")

    def step(given: dict[str, Any]) -> dict[str, Any]:
        with _float64():
            for batch in batches:
                model.train_on_batch(batch[None])
            return {
                "params": _arrays(model.trainable_variables),
                "exp_avg": _arrays(optimizer._exp_avg),
                "exp_hessian_diag_sq": _arrays(optimizer._exp_hessian_diag_sq),
            }

    return step


class Problem(keras.Model):
    """A case's loss; the input, of shape (1, micro-batches), is 1 for the micro-batch to take."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__(dtype="float64")
        xp = import_module(_NUMPY[_BACKEND])
        self._loss_of = partial(loss, case, xp=xp, dtype=xp.float64)
        self._num_batches = num_batches(case["problem"])
        self._params = []
        for param in case["params"]:
            value = np.array(param["value"])
            weight = self.add_weight(shape=value.shape, dtype="float64", name=param["name"])
            weight.assign(value)
            self._params.append(weight)

    def call(self, chosen: Any) -> Any:
        """Return the loss of the chosen micro-batch, of which Keras takes the mean over all."""
        params = [ops.convert_to_tensor(weight) for weight in self._params]
        parts = [self._loss_of(params=params, batch=b) for b in range(self._num_batches)]
        return sum(chosen[0, b] * part * len(parts) for b, part in enumerate(parts))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True) -> Any:
        """Return what :meth:`call` has computed."""
        return y_pred


def _optimizer(case: dict[str, Any]) -> AdaHessian:
    options, batches = case["options"], num_batches(case["problem"])
    block_size, (beta_1, beta_2) = options["block_size"], options["betas"]
    axes = {param["name"]: declared_axes(param["axes"], block_size) for param in case["params"]}
    return AdaHessian(
        options["lr"],
        beta_1,
        beta_2,
        options["eps"],
        options["hessian_power"],
        block_size=block_size,
        block_axes=lambda path, shape: axes[path.split("/")[-1]],
        averaging=options["averaging"],
        update_interval=options["update_interval"],
        update_clip=options.get("update_clip"),
        num_samples=options["num_samples"],
        seed=options["seed"],
        weight_decay=options["weight_decay"] or None,
        global_clipnorm=options["max_grad_norm"],
        gradient_accumulation_steps=batches if batches > 1 else None,
    )


def _arrays(variables: list[Any]) -> list[Any]:
    return [ops.convert_to_numpy(v) for v in variables]


@contextmanager
def _float64() -> Iterator[None]:
    """Let hyperparameters be float64, too, and JAX have it."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        if _BACKEND == "jax":
            with import_module("jax").enable_x64(True):
                yield
        else:
            yield
    finally:
        keras.config.set_floatx(before)
