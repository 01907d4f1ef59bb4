"""What is JAX's own: the wrapped training step, its programs, distributions."""

import keras
import numpy as np
import pytest
from keras import layers
from library.keras import problems
from library.keras.problems import compiled, network, weights

from adahessian.keras import AdaHessian, second_order

if keras.backend.backend() != "jax":
    pytest.skip("of the JAX backend", allow_module_level=True)

import jax
import jax.numpy as jnp


def test_forgotten_second_order_is_named():
    model = network()
    model.compile(optimizer=AdaHessian(0.1), loss="mse")
    with pytest.raises(RuntimeError, match="model = second_order\\(model\\)"):
        model.train_on_batch(*problems.data())


def test_nothing_is_assigned_to_a_model_within_a_trace():
    class OfNnx(keras.Sequential):  # as all are with KERAS_NNX_ENABLED
        def __setattr__(self, name, value):
            assert name != "compute_loss_and_updates"
            super().__setattr__(name, value)

    model = compiled(OfNnx(network().layers), AdaHessian(0.1))
    model.train_on_batch(*problems.data())
    assert "compute_loss_and_updates" not in vars(model)


def test_a_second_optimizer_of_a_step_is_told_that_it_cannot():
    class Two(keras.Sequential):
        def train_step(self, state, data):
            weights, *others = state
            ones = [jnp.ones_like(w) for w in weights]
            self.second.stateless_apply([v.value for v in self.second.variables], ones, weights)

    model = second_order(Two(network().layers))
    model.second = AdaHessian(0.1)
    model.second.build(model.trainable_variables)
    model.compile(optimizer=AdaHessian(0.1), loss="mse")
    with pytest.raises(RuntimeError, match="the optimizer of model.compile alone"):
        model.train_on_batch(*problems.data())


class OfTheFirst(keras.Sequential):
    """Trains its first weights, as a generator's: the optimizer has no others."""

    def train_step(self, state, data):
        weights, non_trainable, of_optimizer, metrics = state
        x, y = data
        count = len(self.optimizer._trainable_variables)

        def loss(first):
            all_weights = [*first, *weights[count:]]
            return jnp.mean((self.stateless_call(all_weights, non_trainable, x)[0] - y) ** 2)

        value, grads = jax.value_and_grad(loss)(weights[:count])
        first, of_optimizer = self.optimizer.stateless_apply(of_optimizer, grads, weights[:count])
        return {"loss": value}, ([*first, *weights[count:]], non_trainable, of_optimizer, metrics)


def test_a_step_that_trains_a_part_of_the_weights():
    x, y = problems.data()
    frozen, part = (network(layers.Conv2D(4, 3), layers.ReLU()) for _ in range(2))
    frozen.layers[-1].trainable = False
    compiled(frozen, AdaHessian(0.1)).fit(x, y, batch_size=8, shuffle=False, verbose=0)
    part = OfTheFirst(part.layers)
    optimizer = AdaHessian(0.1)
    optimizer.build(part.trainable_variables[:2])
    compiled(part, optimizer).fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(part.get_weights(), frozen.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_weights_that_the_optimizer_was_not_built_for():
    model = network(layers.Dense(4))
    optimizer = AdaHessian(0.1)
    for trainable, message in ((False, None), (True, "built for 2 weights"), (None, "not among")):
        if trainable is None:
            optimizer = AdaHessian(0.1)
            optimizer.build(model.trainable_variables)
            model = network()
        model.layers[0].trainable = trainable is not False
        compiled(model, optimizer)
        if message is None:
            model.train_on_batch(*problems.data())
            continue
        with pytest.raises(RuntimeError, match=message):
            model.train_on_batch(*problems.data())


def test_other_optimizers_train_as_ever():
    x, y = problems.data()
    found = []
    for wrap in (lambda model: model, second_order):
        model = wrap(network())
        model.compile(optimizer=keras.optimizers.Adam(0.1), loss="mse")
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


class Counting(layers.Layer):
    """Counts how often it is traced."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


@pytest.mark.parametrize("on_cpu", [True, False])
def test_programs(on_cpu, monkeypatch):
    """On CPU one for each kind of step, elsewhere one with both; they do the same."""
    x, y = problems.data(40)
    if not on_cpu:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    Counting.calls = 0
    model = network(layers.Conv2D(4, 3), Counting(), layers.Activation("tanh"))
    Counting.calls = 0
    compiled(model, AdaHessian(0.01, update_interval=3, num_samples=2))
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer._num_refreshes) == 4  # of 10 steps
    assert (
        Counting.calls <= 4
    )  # building the optimizer symbolically is one, a look at the loss another
    expected = network(layers.Conv2D(4, 3), layers.Activation("tanh"))
    compiled(expected, AdaHessian(0.01, update_interval=3, num_samples=2), jit_compile=False)
    expected.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(weights(model), weights(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def one_device():
    return None


def data_parallel():
    return keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))


def model_parallel():
    devices = keras.distribution.list_devices("cpu")
    layouts = keras.distribution.LayoutMap(
        keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    )
    layouts[".*dense/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layouts)


def test_distributions():
    """Of the batch, and of a weight: the same training."""
    x, y = problems.data(32)
    found = []
    for make in (one_device, data_parallel, model_parallel):
        keras.utils.clear_session()
        keras.distribution.set_distribution(make())
        try:
            model = network(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU())
            compiled(model, AdaHessian(0.05, epsilon=0.1, update_interval=2))
            model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
            kernel = model.trainable_variables[-2].value
            assert kernel.sharding.is_fully_replicated == (make is not model_parallel)
            found.append(weights(model))
        finally:
            keras.distribution.set_distribution(None)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


class TwoSteps(keras.Model):
    """A training step that calls the optimizer twice."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(layers.Flatten()(x))

    def train_step(self, state, data):
        _, state = super().train_step(state, data)
        return super().train_step(state, data)


def test_step_with_two_updates_is_refused():
    model = TwoSteps()
    compiled(model, AdaHessian(0.1))
    with pytest.raises(RuntimeError, match="once, this one did 2 times"):
        model.train_on_batch(*problems.data())


class GoesOn(keras.Model):
    """A training step that uses the new weights and state: clips, averages, reports."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, use_bias=False)
        self.teacher = self.add_weight((72, 3), "zeros", trainable=False, name="teacher")

    def call(self, x):
        return self.dense(layers.Flatten()(x))

    def train_step(self, state, data):
        weights, non_trainable, of_optimizer, metrics = state
        x, y = data[:2]

        def loss(weights):
            return problems.mean_square(y, self.stateless_call(weights, non_trainable, x)[0]).mean()

        grads = jax.grad(loss)(weights)
        weights, of_optimizer = self.optimizer.stateless_apply(of_optimizer, grads, weights)
        weights = [w.clip(-0.1, 0.1) for w in weights]
        of_optimizer = [v + 1 if v.ndim == 2 else v for v in of_optimizer]
        logs = {"largest": abs(weights[0]).max()}
        return logs, (weights, [weights[0] * 2], of_optimizer, metrics)


class Neglects(GoesOn):
    train_step = keras.Model.train_step


@pytest.mark.parametrize("interval", [1, 2])
def test_step_goes_on_from_the_update(interval, monkeypatch):
    if interval == 2:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    keras.utils.set_random_seed(0)
    x, y = problems.data()
    model, expected = GoesOn(), Neglects()
    for m in (model, expected):
        m(x)
    expected.set_weights(model.get_weights())
    options = dict(epsilon=0.1, update_interval=interval)
    compiled(expected, AdaHessian(0.1, **options)).train_on_batch(x, y)
    logs = compiled(model, AdaHessian(0.1, **options)).train_on_batch(x, y, return_dict=True)
    (kernel,), (teacher,) = weights(model), problems.others(model)
    np.testing.assert_allclose(kernel, weights(expected)[0].clip(-0.1, 0.1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(teacher, kernel * 2)
    assert logs["largest"] == abs(kernel).max() == np.float32(0.1)
    (v,), (other,) = (
        problems.averages(m.optimizer, "exp_hessian_diag_sq") for m in (model, expected)
    )
    np.testing.assert_allclose(v, other + 1, rtol=1e-5)


def test_private_names_do_what_we_need():
    """Trainer._make_function takes a step, (state, data) to (logs, state)."""
    model = network()
    model.compile(optimizer="sgd", loss="mse")
    function = model._make_function(lambda state, data: (data, state))
    assert function(1, iter([2])) == (2, 1)
    assert callable(model._get_state_sharding_spec)
