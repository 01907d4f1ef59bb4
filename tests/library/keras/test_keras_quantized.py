"""Fake quantization: its gradient is that of clipping, and so is H·z.

A quantized value is piecewise constant, so that differences of its own gradients say nothing; with
16 bits the model is near the one that clips, whose differences do.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops
from library.keras import problems
from library.keras.problems import compiled

BACKEND = keras.backend.backend()


def clip(x, low, high, axis):
    return ops.maximum(ops.minimum(x, high), low)


def quantize(x, low, high, axis):
    return keras.quantizers.fake_quant_with_min_max_vars(x, low, high, num_bits=16, axis=axis)


class Within(layers.Dense):
    """A dense layer whose kernel and output are quantized in ranges that are trained."""

    def __init__(self, units, how, axis):
        super().__init__(units)
        self.how, self.axis = how, axis

    def build(self, shape):
        super().build(shape)
        sizes = (() if self.axis is None else (self.units,)), ()
        self.ranges = [
            [self.add_weight(size, keras.initializers.Constant(end)) for end in ends]
            for size, ends in zip(sizes, [(-0.2, 0.1), (-0.7, 0.5)], strict=True)
        ]

    def call(self, x):
        of_kernel, of_output = self.ranges
        x = ops.matmul(x, self.how(self.kernel, *of_kernel, self.axis)) + self.bias
        return self.how(ops.tanh(x), *of_output, None)


@pytest.mark.parametrize("axis", [None, 1])
def test_quantized_weights_and_outputs(axis, float64):
    x, y = problems.data(8)
    models = []
    for how in (quantize, clip):
        model = problems.network(layers.Flatten(), Within(4, how, axis))
        models.append(model)
    quantized, clipped = models
    clipped.set_weights(quantized.get_weights())
    found = problems.magnitudes_by_optimizer(compiled(quantized, problems.looking()), x, y)
    expected = problems.magnitudes_by_differences(clipped, x, y)
    if BACKEND == "jax":  # it differentiates the rounding itself: docs/keras.md
        assert problems.relative_error(found, expected) > 0.1
        return
    for v, f, e in zip(quantized.trainable_variables, found, expected, strict=True):
        assert e.any()
        assert np.abs(f - e).max() < 1e-3 * e.max(), v.path
