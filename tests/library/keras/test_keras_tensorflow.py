"""What is TensorFlow's own: graphs, conditions, replicas, XLA, the stopped gradient."""

import keras
import numpy as np
import pytest
from keras import layers
from library.keras import problems
from library.keras.problems import compiled, network, weights

from adahessian.keras import AdaHessian

if keras.backend.backend() != "tensorflow":
    pytest.skip("of the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from adahessian.keras import tensorflow as door


def test_moments_stop_what_the_second_pass_opens(float64, monkeypatch):
    """Without the remedy the product is wrong, so TensorFlow still needs it."""
    monkeypatch.setattr(door, "_is_of_moments", lambda op: False)
    model = network(layers.Conv2D(4, 3), layers.LayerNormalization(), layers.Activation("tanh"))
    x, y = problems.data()
    found = problems.magnitudes_by_optimizer(compiled(model, problems.looking()), x, y)
    expected = problems.magnitudes_by_differences(model, x, y)
    assert problems.relative_error(found, expected) > 1e-3


@tf.function
def first_and_second_derivative(x):
    mean = tf.reduce_mean(x)
    variance = tf.reduce_mean(tf.math.squared_difference(x, tf.stop_gradient(mean)))
    loss = variance * mean + tf.stop_gradient(mean) * x[0] ** 2
    (g,) = tf.gradients(loss, x)
    graph = tf.compat.v1.get_default_graph()
    with door._open_moments([graph]):
        (opened,) = tf.gradients(g, x)
    (closed,) = tf.gradients(g, x)
    return g, opened, closed


def test_only_moments_are_opened_and_only_for_the_second_pass():
    """What a model stops on purpose stays constant; the graph is left as it was."""
    x = np.array([1.0, 3.0])
    _, opened, closed = first_and_second_derivative(tf.constant(x))
    # loss = var·mean + [mean]·x₀²: H·1 by hand, [ ] constant in every derivative.
    # g_j = (2/n)(x_j − mean)·mean + var/n + 2[mean] x₀ δ_j0
    n, mean = 2, 2.0
    centred = x - mean
    # H·1 of var·mean: shifting all x changes mean by 1 and the centred values not at all.
    product = (2 / n) * centred + np.array([2 * mean, 0.0])
    np.testing.assert_allclose(opened, product)
    assert np.abs(closed - product).max() > 0.1


def test_eager_steps_are_refused():
    x, y = problems.data()
    with pytest.raises(RuntimeError, match="eager TensorFlow: compile without run_eagerly"):
        compiled(network(), AdaHessian(0.1), run_eagerly=True).train_on_batch(x, y)


def test_gradients_from_elsewhere_are_refused():
    """Where the weights are not found in the graph, the product would be zero without a word."""
    model = network()
    optimizer = AdaHessian(0.1)

    @tf.function
    def step(*grads):
        optimizer.apply(grads, model.trainable_variables)

    with pytest.raises(RuntimeError, match="no graph from the weights"):
        step(*[tf.ones(v.shape) for v in model.trainable_variables])


def test_no_second_derivative_is_said():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(2, 3),
         layers.UpSampling2D(2, interpolation="bicubic"), layers.Flatten(), layers.Dense(3)]
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="no second derivative"):
        compiled(model, AdaHessian(0.1)).train_on_batch(*problems.data())


class Counting(layers.Layer):
    """Counts how often it is traced."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


def test_one_trace_and_few_products():
    x, y = problems.data(40)
    model = compiled(network(Counting()), AdaHessian(0.01, update_interval=3))
    model.fit(x, y, batch_size=8, verbose=0)
    traced = Counting.calls
    model.fit(x, y, batch_size=8, verbose=0)
    assert Counting.calls == traced
    assert int(model.optimizer._num_refreshes) == 4  # of 10 steps


@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"steps_per_execution": 3}], ids=lambda o: next(iter(o))
)
def test_same_by_xla_and_by_several_steps_in_one(options):
    x, y = problems.data(48)
    found = []
    for more in ({}, options):
        model = network(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU())
        model = compiled(model, AdaHessian(0.01, epsilon=0.1, update_interval=2), **more)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_replicas_are_one_model():
    """Two replicas with half of each batch do what one does with the whole."""
    x, y = problems.data(64)
    found, start = [], None
    strategies = [tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])]
    for strategy in strategies:
        with strategy.scope():
            model = network(layers.Conv2D(4, 3), layers.Activation("tanh"))
            start = model.get_weights() if start is None else start
            model.set_weights(start)  # equal seeds are other weights in another strategy
            optimizer = AdaHessian(0.01, epsilon=0.1, update_interval=3)
            compiled(model, optimizer, loss=keras.losses.MeanSquaredError())
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        assert int(optimizer._num_refreshes.numpy()) == 3
        found.append(weights(model) + problems.averages(optimizer, "exp_hessian_diag_sq"))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_private_names_do_what_we_need():
    """FuncGraph.captures, Operation._set_attr and _clear_attr."""
    seen = {}
    variable = tf.Variable(2.0)

    @tf.function
    def function():
        y = tf.stop_gradient(variable * 1.0)
        graph = tf.compat.v1.get_default_graph()
        seen["captured"] = [inner for outer, inner in graph.captures if outer is variable.handle]
        y.op._set_attr(door._GRADIENT_OF, door.attr_value_pb2.AttrValue(s=door._OPENED.encode()))
        (opened,) = tf.gradients(y, seen["captured"][0])
        y.op._clear_attr(door._GRADIENT_OF)
        seen["closed"] = tf.gradients(y, seen["captured"][0])
        return opened

    assert float(function()) == 1.0
    assert len(seen["captured"]) == 1 and seen["closed"] == [None]
