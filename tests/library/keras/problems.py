"""Models and steps that several of these tests take."""

import keras
import numpy as np
from keras import layers, ops

import adahessian.keras
from adahessian.keras import AdaHessian
from adahessian.keras.probes import rademacher


def mean_square(y_true, y_pred):
    """Return a loss for each example; unlike Keras' own it casts nothing."""
    return ops.mean(ops.square(y_pred - y_true), axis=-1)


def compiled(model, optimizer, loss=mean_square, **options):
    """Return the model, compiled; not by XLA unless ``options`` say so."""
    model = adahessian.keras.second_order(model)
    options = {"jit_compile": keras.backend.backend() == "jax", **options}
    model.compile(optimizer=optimizer, loss=loss, **options)
    return model


def network(*hidden, outputs=3):
    """Return a network of layers behind one another, for inputs (batch, 6, 6, 2).

    Equal networks have equal weights: those of the layers, which have drawn their seeds when they
    were made, are drawn anew.
    """
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), *hidden, layers.Flatten(), layers.Dense(outputs)]
    )
    for i, v in enumerate(model.trainable_variables):
        if len(v.shape) > 1:
            dtype = "float32" if "float16" in v.dtype else v.dtype  # which draw other numbers
            v.assign(keras.initializers.GlorotUniform(seed=i)(v.shape, dtype))
    return model


def data(n=16, shape=(6, 6, 2), outputs=3, seed=0):
    """Return inputs and targets of ``n`` examples, in floatx."""
    rng = np.random.default_rng(seed)
    dtype = keras.config.floatx()
    return rng.normal(size=(n, *shape)).astype(dtype), rng.normal(size=(n, outputs)).astype(dtype)


def weights(model):
    """Return copies of the trainable weights as arrays."""
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.trainable_variables]


def averages(optimizer, name):
    """Return copies of one of the optimizer's averages, a list by weight."""
    of_name = {v.name: v for v in optimizer.variables}
    return [
        np.array(ops.convert_to_numpy(of_name[f"{w.path.replace('/', '_')}_{name}"].value))
        for w in optimizer._trainable_variables
    ]


def looking(**options):
    """Return an AdaHessian that changes nothing, whose v after one step is (z · Hz)²."""
    return AdaHessian(0.0, beta_2=0.0, block_size=None, **options)


def magnitudes_by_optimizer(model, x, y, **given):
    """Return |Hz| of the first step's probe, as the optimizer has seen it in a training step.

    ``given`` goes to ``train_on_batch``; random layers draw what they draw for the differences.
    """
    before = others(model)
    restore(model, before)
    model.train_on_batch(x, y, **given)
    restore(model, before)
    return [np.sqrt(v) for v in averages(model.optimizer, "exp_hessian_diag_sq")]


def others(model):
    """Return copies of running statistics and of the random state."""
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.non_trainable_variables]


def restore(model, values):
    """Set what :func:`others` has returned."""
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(0)  # Keras' dropout draws from torch's own generator
    for v, value in zip(model.non_trainable_variables, values, strict=True):
        v.assign(value)


def probe(model, seed=0, step=0):
    """Return the probe of a step as arrays."""
    variables = model.trainable_variables
    z = rademacher(
        [tuple(v.shape) for v in variables], [v.dtype for v in variables],
        seed=seed, step=step, sample=0, tensor_indices=range(len(variables)),
    )  # fmt: skip
    return [ops.convert_to_numpy(zi) for zi in z]


def magnitudes_by_differences(model, x, y, h=1e-7, loss=mean_square, compiling=None, **given):
    """Return |Hz| by central differences of gradients, which steps of SGD reveal."""
    z, start = probe(model), model.get_weights()
    compiled(model, keras.optimizers.SGD(1.0), loss, **(compiling or {}))
    gradients, random = [], others(model)
    for sign in (1, -1):
        model.set_weights(start)
        restore(model, random)
        for v, zi in zip(model.trainable_variables, z, strict=True):
            v.assign(v + sign * h * zi)
        before = weights(model)
        model.train_on_batch(x, y, **given)
        gradients.append([b - a for b, a in zip(before, weights(model), strict=True)])
    model.set_weights(start)
    return [np.abs(p - m) / (2 * h) for p, m in zip(*gradients, strict=True)]


def relative_error(found, expected):
    """Return the distance of two lists of arrays, relative to the second's norm."""

    def norm(arrays):
        return np.sqrt(sum((a**2).sum() for a in arrays))

    return norm([f - e for f, e in zip(found, expected, strict=True)]) / norm(expected)
