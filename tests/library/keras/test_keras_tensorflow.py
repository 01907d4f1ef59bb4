"""What is TensorFlow's own: graphs, conditions, replicas, XLA, the stopped gradient."""

import functools

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
from tensorflow.core.framework import attr_value_pb2

from adahessian.keras import tensorflow_derivatives as derivatives


def test_moments_stop_what_the_second_pass_opens(float64, monkeypatch):
    """Without the remedy the product is wrong, so TensorFlow still needs it."""
    monkeypatch.setattr(derivatives, "_is_of_moments", lambda op: False)
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
    with derivatives.opened([graph]):
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
    model = network(layers.Conv2D(2, 3), layers.Lambda(tf.nn.local_response_normalization))
    with pytest.raises(RuntimeError, match="no derivative of LRNGrad \\(gradient_tape.*needs"):
        compiled(model, AdaHessian(0.1)).train_on_batch(*problems.data())


def test_recomputation_is_refused():
    model = network(layers.Dense(2), layers.Lambda(keras.remat(tf.tanh), output_shape=(6, 6, 2)))
    with pytest.raises(RuntimeError, match="computed again .* take smaller batches"):
        compiled(model, AdaHessian(0.1)).train_on_batch(*problems.data())


def shaped(function, x):
    y = function(x)
    y.set_shape(x.shape)
    return y


@tf.custom_gradient
def numpy_sine(x):
    def of_numpy(function):
        return shaped(lambda x: tf.numpy_function(function, [x], x.dtype), x)

    return of_numpy(np.sin), lambda upstream: upstream * of_numpy(np.cos)


def python_sine(x):
    return shaped(lambda x: tf.py_function(tf.sin, [x], x.dtype), x)


@pytest.mark.parametrize(("function", "kind"), [(numpy_sine, "PyFunc"), (python_sine, "EagerPy")])
def test_python_code_on_the_way_is_refused(function, kind):
    """The derivative of what it returns would be zero without a word; before the weights it may."""
    x, y = problems.data()
    model = network(layers.Lambda(function, output_shape=(6, 6, 2)))
    compiled(model, AdaHessian(0.1)).train_on_batch(x, y)
    model = network(layers.Dense(2), layers.Lambda(function, output_shape=(6, 6, 2)))
    with pytest.raises(RuntimeError, match=f"no derivative of {kind}.*replace the layer"):
        compiled(model, AdaHessian(0.1)).train_on_batch(x, y)


@functools.partial(tf.function, reduce_retracing=True)
def product(function, point, direction):
    """Return H·z of Σ function(x)², as a step differentiates it."""
    (g,) = tf.gradients(tf.reduce_sum(function(point) ** 2), point)
    with derivatives.opened([tf.compat.v1.get_default_graph()]):
        (product,) = tf.gradients(g, point, direction)
    return product


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest", "lanczos3"])
def test_resizing(method, antialias):
    """Linear, so that Hz of its square is the gradient of that square at z."""

    def resize(x):
        return tf.image.resize(x, (7, 3), method, antialias=antialias)

    x, z = tf.random.normal((2, 1, 5, 5, 2), seed=0)
    with tf.GradientTape() as tape:
        tape.watch(z)
        square = tf.reduce_sum(resize(z) ** 2)
    np.testing.assert_allclose(product(resize, x, z), tape.gradient(square, z), atol=1e-4)


def test_fake_quantization_in_a_constant_range():
    """Ranges that are trained: test_keras_quantized.py."""
    x, z = tf.random.normal((2, 50), seed=0)
    found = product(lambda x: tf.quantization.fake_quant_with_min_max_args(x, -0.5, 0.7), x, z)
    within = (x.numpy() > -0.5) & (x.numpy() < 0.7)
    np.testing.assert_allclose(found, 2 * within * z.numpy(), rtol=1e-6)


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


REPLICATED = {
    "refreshes": dict(update_interval=3),
    "signed samples": dict(num_samples=2, averaging="signed", block_size=None),
    "ema": dict(use_ema=True, weight_decay=0.1, update_interval=2),
}


def replicated(strategy, start, layer, compiling, **options):
    """Return weights and v of a model that a strategy has trained, and its optimizer."""
    x, y = problems.data(64)
    with strategy.scope():
        model = network(layers.Conv2D(4, 3), layer(), layers.Activation("tanh"))
        model.set_weights(start)  # equal seeds are other weights in another strategy
        optimizer = AdaHessian(0.01, epsilon=0.1, **options)
        compiled(model, optimizer, loss=keras.losses.MeanSquaredError(), **compiling)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return weights(model) + problems.averages(optimizer, "exp_hessian_diag_sq"), optimizer


def replicas_and_one(layer=layers.Identity, compiling=None, **options):
    start = network(layers.Conv2D(4, 3), layer(), layers.Activation("tanh")).get_weights()
    compiling = compiling or {}
    return [
        replicated(strategy, start, layer, compiling, **options)
        for strategy in (tf.distribute.get_strategy(), two_replicas())
    ]


@functools.cache
def two_replicas():
    """One strategy for all tests: in one process the reductions of two meet."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_are_one_model(name):
    """Two replicas with half of each batch do what one does with the whole."""
    (one, _), (two, optimizer) = replicas_and_one(**REPLICATED[name])
    if name == "refreshes":
        assert int(optimizer._num_refreshes.numpy()) == 3
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def synchronized():
    return layers.BatchNormalization(synchronized=True)


def test_replicas_that_accumulate_are_refused():
    with pytest.raises(RuntimeError, match="take larger batches"):
        replicas_and_one(gradient_accumulation_steps=2)


def test_statistics_of_the_whole_batch_cannot_be_skipped():
    with pytest.raises(RuntimeError, match="take update_interval=1"):
        replicas_and_one(synchronized, update_interval=2)


def test_loop_of_ones_own():
    """In one tf.function; the gradient may come from a function within it."""
    x, y = problems.data(24)
    found = []
    for own in (False, "one function", "two functions"):
        model = network(layers.Conv2D(4, 3), layers.LayerNormalization(), layers.Activation("tanh"))
        optimizer = AdaHessian(0.05, epsilon=0.1, update_interval=2)
        compiled(model, optimizer)

        def gradient(x, y, model=model):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(problems.mean_square(y, model(x, training=True)))
            return tape.gradient(loss, model.trainable_variables)

        inner = tf.function(gradient) if own == "two functions" else gradient

        @tf.function
        def step(x, y, model=model, optimizer=optimizer, inner=inner):
            optimizer.apply(inner(x, y), model.trainable_variables)

        if own:
            optimizer.build(model.trainable_variables)
        for i in range(3):
            part = slice(8 * i, 8 * i + 8)
            (step if own else model.train_on_batch)(x[part], y[part])
        found.append(weights(model))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_optimizers_of_one_model(float64):
    """Each has the curvature by its own weights, whatever the other has done before."""
    x, y = problems.data()
    model = network(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Activation("tanh"))
    halves = [model.trainable_variables[:2], model.trainable_variables[2:]]
    optimizers = [problems.looking(), problems.looking()]
    other = network(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Activation("tanh"))
    other.set_weights(model.get_weights())
    for optimizer, half in zip(optimizers, halves, strict=True):
        optimizer.build(half)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(problems.mean_square(y, model(x, training=True)))
        grads = tape.gradient(loss, model.trainable_variables)
        for optimizer, part, half in zip(optimizers, (grads[:2], grads[2:]), halves, strict=True):
            optimizer.apply(part, half)
            for v in half:
                v.assign(v * 2)

    step(x, y)
    other.layers[0].trainable = False
    expected = problems.magnitudes_by_differences(other, x, y)
    found = [np.sqrt(v) for v in problems.averages(optimizers[1], "exp_hessian_diag_sq")]
    assert problems.relative_error(found, expected) < 1e-6


class InAFunction(layers.Layer):
    """A normalization that its author has decorated, or put into a branch."""

    def __init__(self, how):
        super().__init__()
        self.how, self.normalization = how, layers.LayerNormalization()
        self.function = tf.function(self.normalization)

    def build(self, shape):
        self.normalization.build(shape)

    def call(self, x):
        if self.how == "function":
            return self.function(x)
        if self.how == "branch":
            return tf.cond(tf.reduce_sum(x) < 1e9, lambda: self.normalization(x), lambda: x)
        mapped = {"loop": tf.map_fn, "vectorized": tf.vectorized_map}[self.how]
        return mapped(self.normalization, x)


@pytest.mark.parametrize("how", ["function", "branch", "loop", "vectorized"])
def test_moments_in_functions_that_the_step_calls(how, float64):
    model = network(layers.Conv2D(4, 3), InAFunction(how), layers.Activation("tanh"))
    x, y = problems.data()
    found = problems.magnitudes_by_optimizer(compiled(model, problems.looking()), x, y)
    expected = problems.magnitudes_by_differences(model, x, y)
    assert problems.relative_error(found, expected) < 1e-6


def test_private_names_do_what_we_need():
    """FuncGraph.captures and _functions, Operation._set_attr and _clear_attr."""
    seen = {}
    variable = tf.Variable(2.0)
    inner = tf.function(lambda x: x * 3.0)

    @tf.function
    def function():
        y = tf.stop_gradient(variable * 1.0)
        inner(y)
        graph = tf.compat.v1.get_default_graph()
        seen["called"] = [f.graph for f in graph._functions.values()]
        seen["captured"] = [inner for outer, inner in graph.captures if outer is variable.handle]
        name = attr_value_pb2.AttrValue(s=derivatives._NAMES["StopGradient"].encode())
        y.op._set_attr(derivatives._GRADIENT_OF, name)
        (opened,) = tf.gradients(y, seen["captured"][0])
        y.op._clear_attr(derivatives._GRADIENT_OF)
        seen["closed"] = tf.gradients(y, seen["captured"][0])
        return opened

    assert float(function()) == 1.0
    assert len(seen["captured"]) == 1 and seen["closed"] == [None]
    (graph,) = seen["called"]
    assert "Mul" in {op.type for op in graph.get_operations()}
