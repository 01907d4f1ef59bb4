"""What happens around the steps of a training: loops, files, other optimizers, odd batches."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from library.keras import problems
from library.keras.problems import compiled, network, weights
from support.patience import PATIENCE

from adahessian.keras import AdaHessian, second_order

ROOT = Path(__file__).parents[3]
BACKEND = keras.backend.backend()


def small():
    keras.utils.set_random_seed(0)  # layers draw their seeds when they are made
    return network(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Activation("tanh"))


def fit(model, x, y, epochs=1, batch_size=8, **options):
    model.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **options)
    return model


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_running_statistics_are_updated_once_a_step():
    """And neither twice, where a refresh evaluates the batch, nor by another batch."""
    x, y = problems.data(24)
    found = []
    for optimizer in (keras.optimizers.SGD(0.0), AdaHessian(0.0, update_interval=2)):
        keras.utils.set_random_seed(0)
        model = network(
            layers.Conv2D(4, 3), layers.BatchNormalization(momentum=0.5), layers.Dropout(0.5)
        )
        metric = keras.metrics.MeanSquaredError(name="mse")
        compiled(model, optimizer, metrics=[metric])
        logs = fit(model, x, y).history.history
        found.append([*problems.others(model), logs["loss"], logs["mse"]])
    assert_close(*found)


class OwnStep(keras.Model):
    """A model with a training step of its own, as Keras' guides write it for each backend."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(4, "tanh"), layers.Dense(3)

    def call(self, x, training=False):
        return self.out(self.hidden(layers.Flatten()(x)))

    def train_step(self, *given):
        return getattr(self, f"step_of_{BACKEND}")(*given)

    def step_of_tensorflow(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(grads, self.trainable_variables)
        return {"loss": loss}

    def step_of_jax(self, state, data):
        import jax

        trainable, non_trainable, of_optimizer, metrics = state
        x, y = data

        def loss_of(trainable, non_trainable):
            y_pred, non_trainable = self.stateless_call(trainable, non_trainable, x, training=True)
            return self.compute_loss(x, y, y_pred), non_trainable

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, non_trainable), grads = gradient(trainable, non_trainable)
        trainable, of_optimizer = self.optimizer.stateless_apply(of_optimizer, grads, trainable)
        return {"loss": loss}, (trainable, non_trainable, of_optimizer, metrics)

    def step_of_torch(self, data):
        import torch

        x, y = data
        self.zero_grad()
        loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.scale_loss(loss).backward()
        grads = [v.value.grad for v in self.trainable_variables]
        with torch.no_grad():
            self.optimizer.apply(grads, self.trainable_variables)
        return {"loss": loss}


def test_training_step_of_ones_own():
    x, y = problems.data(32)
    found, start = [], None
    for stock in (True, False):
        model = OwnStep()
        if stock:
            model.train_step = lambda *given, model=model: keras.Model.train_step(model, *given)
        model(x)
        start = model.get_weights() if start is None else start
        model.set_weights(start)
        fit(compiled(model, AdaHessian(0.05, epsilon=0.1, update_interval=2)), x, y)
        found.append(weights(model))
    assert_close(*found)


def test_another_optimizer_in_the_middle():
    """Each begins where the last one ended, and is what it is on a model of its own."""
    x, y = problems.data(32)

    def optimizers():
        return [
            keras.optimizers.Adam(0.01), AdaHessian(0.05, epsilon=0.1, update_interval=2),
            keras.optimizers.SGD(0.01), AdaHessian(0.05, epsilon=0.1, num_samples=2),
        ]  # fmt: skip

    one = small()
    values = one.get_weights()
    for again, fresh in zip(optimizers(), optimizers(), strict=True):
        fit(compiled(one, again), x, y)
        other = small()
        other.set_weights(values)
        fit(compiled(other, fresh), x, y)
        assert_close(one.get_weights(), other.get_weights())
        values = other.get_weights()


def test_last_batch_that_is_smaller():
    """It weighs as much as any other, as with every optimizer of Keras."""
    x, y = problems.data(20)
    one, other = small(), small()
    other.set_weights(one.get_weights())
    for model in (one, other):
        compiled(model, AdaHessian(0.05, epsilon=0.1, update_interval=2))
    for _ in range(2):
        for start in (0, 8, 16):
            other.train_on_batch(x[start : start + 8], y[start : start + 8])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        one.fit(
            tf.data.Dataset.from_tensor_slices((x, y)).batch(8), epochs=2, shuffle=False, verbose=0
        )
    else:
        fit(one, x, y, epochs=2)
    assert int(one.optimizer._num_refreshes) == 3
    assert_close(weights(one), weights(other))


class Unused(keras.Model):
    """One of its layers is not part of the loss."""

    def __init__(self):
        super().__init__()
        self.out, self.unused = layers.Dense(3), layers.Dense(2)

    def call(self, x):
        x = layers.Flatten()(x)
        self.unused(x)
        return self.out(x)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_weights_without_a_gradient_stay():
    x, y = problems.data(16)
    model = Unused()
    model(x)
    compiled(model, AdaHessian(0.1, epsilon=0.1, update_interval=2))
    before = weights(model)
    fit(model, x, y)
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, weights(model), strict=True)]
    assert moved == [True, True, False, False]


def test_pure_float16():
    keras.config.set_dtype_policy("float16")
    x, y = problems.data(32)
    model = compiled(network(layers.Conv2D(8, 3), layers.Activation("tanh")), AdaHessian(0.01))
    before = weights(model)
    fit(model, x.astype("float16"), y.astype("float16"))
    for a, b in zip(before, weights(model), strict=True):
        assert a.dtype == "float16" and np.isfinite(b).all() and (a != b).any()
    assert all(np.isfinite(v).all() for v in problems.averages(model.optimizer, "exp_avg"))


def test_as_compile_does_it_by_default():
    """On TensorFlow Keras then compiles by XLA what it can."""
    x, y = problems.data(16)
    found, start = [], None
    for more in ({"jit_compile": "auto"}, {"jit_compile": BACKEND == "jax"}):
        keras.utils.set_random_seed(0)
        model = network(
            layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(),
            layers.MaxPooling2D(), layers.Dropout(0.2),
        )  # fmt: skip
        start = model.get_weights() if start is None else start
        model.set_weights(start)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        compiled(model, AdaHessian(0.01, epsilon=0.1, update_interval=2), loss, **more)
        fit(model, x, np.arange(16) % 3)
        found.append(weights(model))
    assert_close(*found, 1e-3)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has it not there")
def test_several_steps_in_one_execution():
    x, y = problems.data(56)
    found = []
    for steps in (1, 3):  # of 7
        model = small()
        compiled(model, AdaHessian(0.05, epsilon=0.1, update_interval=2), steps_per_execution=steps)
        fit(model, x, y)
        assert int(model.optimizer._num_refreshes) == 4
        found.append(weights(model))
    assert_close(*found)


def test_rate_set_by_a_callback():
    x, y = problems.data(24)
    model = compiled(small(), AdaHessian(0.1))
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 0.0)
    fit(model, x, y, callbacks=[callback])
    after_one = weights(model)
    fit(model, x, y, epochs=2, initial_epoch=1, callbacks=[callback])
    for a, b in zip(after_one, weights(model), strict=True):
        np.testing.assert_array_equal(a, b)


CONTINUE = """
import sys
import keras
import numpy as np
from adahessian.keras import second_order

folder = sys.argv[1]
model = second_order(keras.models.load_model(folder + "/model.keras"))
data = np.load(folder + "/data.npz")
model.fit(data["x"], data["y"], batch_size=8, shuffle=False, verbose=0)
np.savez(folder + "/found.npz", *[keras.ops.convert_to_numpy(v) for v in model.weights])
"""


def test_goes_on_bit_for_bit_in_a_new_process(tmp_path):
    """With what docs/keras.md says, and nothing else."""
    x, y = problems.data(40)
    model = compiled(small(), AdaHessian(0.05, update_interval=3), loss="mse")
    fit(model, x, y)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    fit(second_order(keras.models.load_model(tmp_path / "model.keras")), x, y)
    fit(model, x, y)
    command = [sys.executable, "-c", CONTINUE, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, v in zip(found, model.weights, strict=True):
        np.testing.assert_array_equal(found[name], ops.convert_to_numpy(v.value))


def test_goes_on_from_a_file_of_weights(tmp_path):
    """As ModelCheckpoint and BackupAndRestore write it: with the optimizer's state."""
    x, y = problems.data(40)
    model = compiled(small(), AdaHessian(0.05, update_interval=3))
    fit(model, x, y)
    model.save_weights(tmp_path / "all.weights.h5")
    other = compiled(small(), AdaHessian(0.05, update_interval=3))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "all.weights.h5")
    for m in (model, other):
        fit(m, x, y)
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "maker", [keras.models.clone_model, lambda m: keras.Model(m.inputs, m.outputs)]
)
def test_copies_of_a_model_train_or_say_what_they_need(maker):
    """On JAX a copy is no second_order model, and must not train the one it was copied from."""
    x, y = problems.data(16)
    original = compiled(small(), AdaHessian(0.1), loss="mse")
    before = original.get_weights()
    copy = maker(original)
    copy.compile(optimizer=AdaHessian(0.1), loss="mse", jit_compile=BACKEND == "jax")
    if BACKEND == "jax":
        with pytest.raises(RuntimeError, match="second_order"):
            copy.train_on_batch(x, y)  # a `fit` that fails loses the weights, with any optimizer
        second_order(copy)
    fit(copy, x, y)
    assert int(copy.optimizer.iterations) == 2
    shares = copy.trainable_variables[0] is original.trainable_variables[0]
    assert shares or all(
        (a == b).all() for a, b in zip(before, original.get_weights(), strict=True)
    )
