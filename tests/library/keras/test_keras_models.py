"""Models of many kinds: H·z in a training step is that of differences of gradients, in float64."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from library.keras import problems
from library.keras.problems import compiled, mean_square

BACKEND = keras.backend.backend()
IMAGE, ROWS = (6, 6, 2), (5, 4)


def check(model, x, y, loss=mean_square, compiling=None, h=1e-7, **given):
    """Compare with differences, for each weight on its own."""
    compiling = compiling or {}
    model = compiled(model, problems.looking(), loss, **compiling)
    found = problems.magnitudes_by_optimizer(model, x, y, **given)
    expected = problems.magnitudes_by_differences(
        model, x, y, h, loss=loss, compiling=compiling, **given
    )
    largest = max(e.max() for e in expected)
    assert largest > 0
    for v, f, e in zip(model.trainable_variables, found, expected, strict=True):
        error = np.abs(f - e).max() / max(e.max(), 1e-3 * largest)
        assert error < max(1e-5, h), f"{v.path}: {error:.1e}"


def images(n=8, outputs=3):
    return problems.data(n, IMAGE, outputs)


def rows(n=8, outputs=3):
    return problems.data(n, ROWS, outputs)


def behind(inputs, x, outputs=3):
    x = x if len(x.shape) == 2 else layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def of_layers(shape, *hidden):
    x = inputs = keras.Input(shape)
    for layer in hidden:
        x = layer(x)
    return behind(inputs, x)


ON_IMAGES = {
    "separable": lambda: [layers.SeparableConv2D(4, 3), layers.Activation("tanh")],
    "transposed": lambda: [layers.Conv2DTranspose(3, 3, strides=2), layers.Activation("tanh")],
    "dilated": lambda: [layers.Conv2D(3, 2, dilation_rate=2), layers.Activation("tanh")],
    "strided": lambda: [layers.Conv2D(3, 3, strides=2, padding="same"), layers.ELU()],
    "grouped": lambda: [layers.Conv2D(4, 3, groups=2), layers.Activation("tanh")],
    "pooling": lambda: [
        layers.Conv2D(4, 2), layers.AveragePooling2D(2, 1), layers.Activation("gelu"),
        layers.MaxPooling2D(2, 1),
    ],
    "dropout": lambda: [
        layers.GaussianNoise(0.1), layers.Conv2D(4, 3), layers.Activation("tanh"),
        layers.SpatialDropout2D(0.3), layers.Flatten(), layers.Dense(5, "tanh"),
        layers.Dropout(0.3),
    ],
    "conv3d": lambda: [
        layers.Reshape((6, 3, 2, 2)), layers.Conv3D(3, 2), layers.Activation("tanh"),
    ],
    "conv_lstm": lambda: [layers.Reshape((3, 2, 6, 2)), layers.ConvLSTM2D(2, 2)],
    "upsampling": lambda: [
        layers.Conv2D(3, 3), layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Conv2D(2, 3), layers.UpSampling2D(2, interpolation="bicubic"),
        layers.Activation("tanh"), layers.UpSampling2D(2),
    ],
    "prelu": lambda: [layers.Conv2D(4, 3), layers.PReLU(alpha_initializer="glorot_uniform")],
    "normalization of rows": lambda: [
        layers.Reshape((6, 12)), layers.TimeDistributed(layers.LayerNormalization()),
        layers.TimeDistributed(layers.Dense(3, "tanh")),
    ],
    "other normalizations": lambda: [
        layers.Conv2D(4, 3), layers.RMSNormalization(), layers.Activation("tanh"),
        layers.UnitNormalization(),
    ],
    "regularized": lambda: [
        layers.Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l2"),
        layers.Activation("tanh"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ON_IMAGES)
def test_layers_on_images(name, float64):
    keras.utils.set_random_seed(0)
    # Keras resizes in float32, whatever its input.
    check(of_layers(IMAGE, *ON_IMAGES[name]()), *images(), h=2e-3 if name == "upsampling" else 1e-7)


class NormalizedCell(layers.Layer):
    """A recurrent cell with layer normalization: on TensorFlow within a loop's body."""

    state_size, output_size = 3, 3

    def __init__(self):
        super().__init__()
        self.dense, self.normalization = layers.Dense(3), layers.LayerNormalization()

    def build(self, shape):
        self.dense.build((shape[0], shape[-1] + 3))
        self.normalization.build((shape[0], 3))

    def call(self, x, states):
        joined = ops.concatenate([x, states[0]], axis=-1)
        h = ops.tanh(self.normalization(self.dense(joined)))
        return h, [h]


ON_ROWS = {
    "lstm": lambda: [layers.LSTM(3, return_sequences=True), layers.LSTM(3)],
    "unrolled": lambda: [
        layers.LSTM(3, unroll=True, return_sequences=True), layers.GRU(3, unroll=True),
    ],
    "both ways": lambda: [layers.Bidirectional(layers.GRU(3)), layers.Dense(4, "tanh")],
    "simple": lambda: [layers.SimpleRNN(3, recurrent_dropout=0.2)],
    "conv1d": lambda: [layers.SeparableConv1D(4, 2), layers.Activation("tanh")],
    "einsum": lambda: [
        layers.EinsumDense("abc,cde->abde", (5, 2, 3)), layers.Activation("tanh"),
    ],
    "normalized cell": lambda: [layers.RNN(NormalizedCell())],
}  # fmt: skip


@pytest.mark.parametrize("name", ON_ROWS)
def test_layers_on_rows(name, float64):
    keras.utils.set_random_seed(0)
    check(of_layers(ROWS, *ON_ROWS[name]()), *rows())


ACTIVATIONS = (
    "celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear",
    "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax",
    "softplus", "softsign", "sparse_plus", "squareplus", "tanh", "tanh_shrink",
)  # fmt: skip


def test_activations(float64):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(ROWS)
    x = layers.Flatten()(inputs)
    # torch has no second derivative of hard_sigmoid: test_keras_torch.py.
    names = [a for a in ACTIVATIONS if (a, BACKEND) != ("hard_sigmoid", "torch")]
    parts = [layers.Activation(a)(layers.Dense(3, name=f"for_{a}")(x)) for a in names]
    check(keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(parts))), *rows())


def test_two_inputs_and_outputs_with_losses_of_their_own(float64):
    keras.utils.set_random_seed(0)
    image, row = keras.Input(IMAGE, name="image"), keras.Input(ROWS, name="row")
    a = layers.Flatten()(layers.Conv2D(3, 3, activation="tanh")(image))
    x = layers.Concatenate()([a, layers.Flatten()(row)])
    x = layers.Dense(5, activation="tanh")(x)
    outputs = {
        "classes": layers.Dense(3)(x),
        "probabilities": layers.Dense(3, activation="softmax")(x),
        "yes": layers.Dense(1)(x),
        "values": layers.Dense(2)(x),
    }
    losses = {
        "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "probabilities": "categorical_crossentropy",
        "yes": keras.losses.BinaryCrossentropy(from_logits=True),
        "values": keras.losses.Huber(0.5),
    }
    rng = np.random.default_rng(0)
    y = {
        "classes": rng.integers(0, 3, 8),
        "probabilities": np.eye(3)[rng.integers(0, 3, 8)],
        "yes": rng.integers(0, 2, (8, 1)).astype(float),
        "values": rng.normal(size=(8, 2)),
    }
    x = {"image": images()[0], "row": rows()[0]}
    model = keras.Model({"image": image, "row": row}, outputs)
    check(
        model,
        x,
        y,
        losses,
        dict(loss_weights={"classes": 1.0, "probabilities": 3.0, "yes": 2.0, "values": 0.5}),
    )


CLASSES = {
    "SparseCategoricalCrossentropy": dict(from_logits=True), "CategoricalCrossentropy": {},
    "CategoricalFocalCrossentropy": {}, "CategoricalGeneralizedCrossEntropy": {},
    "KLDivergence": {}, "BinaryCrossentropy": {}, "BinaryFocalCrossentropy": {}, "Poisson": {},
    "Dice": {}, "Tversky": {},
}  # fmt: skip
VALUES = (
    "CategoricalHinge", "Circle", "CosineSimilarity", "Hinge", "Huber", "LogCosh",
    "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError",
    "MeanSquaredLogarithmicError", "SquaredHinge",
)  # fmt: skip


def test_losses_of_keras(float64):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(ROWS)
    x = layers.Dense(6, "tanh")(layers.Flatten()(inputs))
    rng, kinds = np.random.default_rng(0), np.eye(3)[np.arange(8) % 3]
    outputs, losses, y = {}, {}, {}
    for name, options in {**CLASSES, **dict.fromkeys(VALUES, {})}.items():
        activation = "softmax" if name in CLASSES and not options else None
        outputs[name] = layers.Dense(3, activation, name=name)(x)
        losses[name] = getattr(keras.losses, name)(**options)
        y[name] = kinds if name in CLASSES else rng.normal(size=(8, 3))
    for name in ("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy", "Circle"):
        y[name] = np.arange(8) % 3
    y["MeanSquaredLogarithmicError"] = abs(y["MeanSquaredLogarithmicError"])
    weights = {"MeanAbsolutePercentageError": 0.01}
    weights = {name: weights.get(name, 1.0) for name in outputs}
    check(keras.Model(inputs, outputs), rows()[0], y, losses, dict(loss_weights=weights))


def test_ctc(float64):
    """Torch has no second derivative of it, and TensorFlow none that could be run."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(ROWS)
    model = keras.Model(inputs, layers.Dense(4)(layers.Dense(5, "tanh")(inputs)))
    x, y = rows()[0], np.random.default_rng(0).integers(1, 4, (8, 2))
    if BACKEND == "jax":
        check(model, x, y, keras.losses.CTC())
    else:
        message = {"torch": "no second derivative", "tensorflow": "no derivative .*ctc"}[BACKEND]
        with pytest.raises(RuntimeError, match=message):
            check(model, x, y, keras.losses.CTC())


@pytest.mark.parametrize("given", ["sample_weight", "class_weight"])
def test_weighted_examples(given, float64):
    keras.utils.set_random_seed(0)
    x, y = rows()[0], np.arange(8) % 3
    weight = {
        "sample_weight": np.array([0.0, 1, 2, 0, 0.5, 1, 1, 3]),
        "class_weight": {0: 0.5, 1: 2.0, 2: 0.0},
    }[given]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    check(of_layers(ROWS, layers.Dense(4, "tanh")), x, y, loss, **{given: weight})


def test_masked_sequences(float64):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 3, mask_zero=True)(inputs)
    x = layers.LSTM(4, return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Dense(3, "tanh"))(x)
    x = layers.BatchNormalization()(x)
    model = behind(inputs, layers.GlobalAveragePooling1D()(x))
    check(model, np.random.default_rng(0).integers(0, 7, (8, 5)), rows()[1])


class Block(layers.Layer):
    """A residual block as people write them: no build, layers in a list, dropout in training."""

    def __init__(self, width):
        super().__init__()
        self.steps = [layers.Dense(width, "tanh"), layers.LayerNormalization(), layers.Dense(width)]
        self.drop = layers.Dropout(0.2)

    def call(self, x, training=False):
        y = x
        for step in self.steps:
            y = step(y)
        self.add_loss(0.01 * ops.mean(ops.square(y)))
        return x + self.drop(y, training=training)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.out = layers.Flatten(), layers.Dense(3)
        self.blocks = [Block(20), Block(20)]

    def call(self, x, training=False):
        x = self.flatten(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.out(x)


def test_subclassed_model_with_losses_of_layers(float64):
    keras.utils.set_random_seed(0)
    x, y = rows()
    model = Subclassed()
    model(x)
    check(model, x, y)


def test_frozen_layers_are_constants(float64):
    """The product is that of the weights that are trained, numbered as the optimizer has them."""
    model = problems.network(
        layers.Conv2D(3, 3), layers.BatchNormalization(), layers.Activation("tanh")
    )
    model.layers[0].trainable = False
    assert len(model.trainable_variables) == 4
    check(model, *images())


@pytest.mark.skipif(BACKEND == "tensorflow", reason="eager TensorFlow is refused")
def test_eager_steps(float64):
    keras.utils.set_random_seed(0)
    model = of_layers(IMAGE, layers.Conv2D(3, 3), layers.BatchNormalization(), layers.ReLU())
    check(model, *images(), compiling=dict(run_eagerly=True, jit_compile=False))
