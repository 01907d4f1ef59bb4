"""H·z in a training step is that of differences of gradients, in float64, under normalization.

Not that of another second derivative: TensorFlow's tapes agree with the wrong one.
"""

import keras
import pytest
from keras import layers
from library.keras import problems

NORMALIZATIONS = {
    "batch": layers.BatchNormalization,
    "layer": layers.LayerNormalization,
    "group": lambda: layers.GroupNormalization(2),
}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalization(name, activation, float64):
    model = problems.network(
        layers.Conv2D(4, 3), NORMALIZATIONS[name](), layers.Activation(activation)
    )
    x, y = problems.data()
    found = problems.magnitudes_by_optimizer(problems.compiled(model, problems.looking()), x, y)
    expected = problems.magnitudes_by_differences(model, x, y)
    assert problems.relative_error(found, expected) < 1e-6


def residual():
    """Return a small residual network with batch normalization."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    y = layers.Activation("relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.Activation("relu")(layers.BatchNormalization()(y))
    y = layers.Conv2DTranspose(4, 3, padding="same")(y)
    x = layers.MaxPooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def attention():
    """Return a small transformer block over the rows of an image."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Dense(4)(layers.Reshape((6, 12))(inputs))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, flash_attention=False)(y, y)])
    y = layers.Dense(8, activation="gelu")(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(y)))


def recurrent():
    """Return an LSTM and a GRU over the rows of an image."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.LSTM(4, return_sequences=True, unroll=True)(layers.Reshape((6, 12))(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(3, unroll=True)(x)))


@pytest.mark.parametrize("make", [residual, attention, recurrent])
def test_architecture(make, float64, request):
    if keras.backend.backend() == "torch":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        # torch's other kernels of attention have no second derivative.
        context = sdpa_kernel(SDPBackend.MATH)
        context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
    # JAX computes the softmax of attention in float32, whatever its input.
    in_float32 = make is attention and keras.backend.backend() == "jax"
    h, tolerance = (1e-4, 1e-3) if in_float32 else (1e-7, 1e-6)
    model = make()
    x, y = problems.data()
    found = problems.magnitudes_by_optimizer(problems.compiled(model, problems.looking()), x, y)
    expected = problems.magnitudes_by_differences(model, x, y, h)
    assert problems.relative_error(found, expected) < tolerance
