"""What is torch's own: the gradient computed where the loss is scaled."""

import keras
import numpy as np
import pytest
from library.keras import problems
from library.keras.problems import compiled, network, weights

from adahessian.keras import AdaHessian

if keras.backend.backend() != "torch":
    pytest.skip("of the torch backend", allow_module_level=True)

import torch
from keras import layers


def test_loss_scale_optimizer_is_refused():
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(network(), AdaHessian(0.1))
    with pytest.raises(RuntimeError, match="LossScaleOptimizer"):
        model.train_on_batch(*problems.data())


def test_no_second_derivative_is_said():
    model = compiled(network(layers.Dense(2, "hard_sigmoid")), AdaHessian(0.1))
    with pytest.raises(RuntimeError, match="hardsigmoid_backward is not .* Replace the layer"):
        model.train_on_batch(*problems.data())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Cubes(layers.Layer):
    def call(self, x):
        return Cube.apply(x)


def test_a_function_without_one_that_torch_does_not_name_is_said():
    model = compiled(network(layers.Dense(2), Cubes()), AdaHessian(0.1))
    with pytest.raises(RuntimeError, match="Cube is once_differentiable.* Replace the layer"):
        model.train_on_batch(*problems.data())


def test_a_function_that_comes_later_is_looked_at():
    model = network(layers.Dense(2), layer := Cubes())
    layer.call = lambda x: x
    compiled(model, AdaHessian(0.1)).train_on_batch(*problems.data())
    del layer.call
    with pytest.raises(RuntimeError, match="Cube is once_differentiable"):
        model.train_on_batch(*problems.data())


@keras.ops.custom_gradient
def softplus(x):
    """The example of Keras' documentation: the gradient uses what the forward has computed."""
    e = keras.ops.exp(x)

    def gradient(*args, upstream):
        return upstream * (1 - 1 / (1 + e))

    return keras.ops.log(1 + e), gradient


def test_custom_gradient_of_keras(float64):
    model = network(layers.Dense(4), layers.Lambda(softplus))
    x, y = problems.data()
    found = problems.magnitudes_by_optimizer(compiled(model, problems.looking()), x, y)
    expected = problems.magnitudes_by_differences(model, x, y)
    assert problems.relative_error(found, expected) < 1e-6


@keras.ops.custom_gradient
def noisy(x):
    noise = torch.rand(x.shape)
    return x * noise, lambda *args, upstream: upstream * noise


def test_custom_gradient_that_is_random_is_refused():
    model = compiled(network(layers.Dense(4), layers.Lambda(noisy)), AdaHessian(0.1))
    with pytest.raises(RuntimeError, match="custom_gradient computes something else"):
        model.train_on_batch(*problems.data())


def test_weight_norm_is_warned_of():
    linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 4))
    model = compiled(network(layers.TorchModuleWrapper(linear)), AdaHessian(0.1))
    with pytest.warns(UserWarning, match="second derivative of weight_norm is wrong"):
        model.train_on_batch(*problems.data())


def test_loop_of_ones_own():
    x, y = (torch.tensor(a) for a in problems.data())
    found = []
    for own in (False, True):
        model = network(layers.Dense(4, activation="tanh"))
        optimizer = AdaHessian(0.1, update_interval=2)
        compiled(model, optimizer)
        if own:
            optimizer.build(model.trainable_variables)
        for _ in range(3):
            if not own:
                model.train_on_batch(x, y)
                continue
            model.zero_grad()
            loss = problems.mean_square(y, model(x, training=True)).mean()
            optimizer.scale_loss(loss).backward()
            grads = [v.value.grad for v in model.trainable_variables]
            with torch.no_grad():
                optimizer.apply(grads, model.trainable_variables)
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def backward(optimizer, model, x, y):
    """Begin a step of one's own: the loss through the optimizer, its gradient by the weights."""
    optimizer.build(model.trainable_variables)
    loss = problems.mean_square(torch.tensor(y), model(torch.tensor(x))).mean()
    optimizer.scale_loss(loss).backward()


def apply(optimizer, model):
    with torch.no_grad():
        optimizer.apply([v.value.grad for v in model.trainable_variables])
    return problems.averages(optimizer, "exp_hessian_diag_sq")


def test_products_add_as_gradients_do(float64):
    """Over the losses of one step, not over those of a step that was given up."""
    x, y = problems.data()
    model = network(layers.Dense(4, activation="tanh"))
    model.zero_grad()
    optimizer = problems.looking()
    backward(optimizer, model, x, y)
    expected = apply(optimizer, model)

    model.zero_grad()
    optimizer = problems.looking()
    backward(optimizer, model, x * 3, y)
    model.zero_grad()
    for part in (slice(0, 8), slice(8, 16)):
        backward(optimizer, model, x[part], y[part])
    for a, b in zip(apply(optimizer, model), expected, strict=True):
        np.testing.assert_allclose(a, 4 * b)  # squares of sums of two means


def test_what_others_train_gets_its_gradient():
    """A layer under another optimizer, a parameter that Keras does not know, and an input."""
    x, y = problems.data()
    found = []
    for make in (lambda: keras.optimizers.SGD(0.1), lambda: AdaHessian(0.1)):
        model, factor = network(layers.Dense(4)), torch.ones((), requires_grad=True)
        optimizer, image = make(), torch.tensor(x, requires_grad=True)
        optimizer.build(model.trainable_variables[:2])
        model.zero_grad()
        loss = problems.mean_square(torch.tensor(y), model(image) * factor).mean()
        optimizer.scale_loss(loss).backward()
        found.append([v.value.grad for v in model.trainable_variables] + [factor.grad, image.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_two_of_one_loss_are_refused():
    x, y = problems.data()
    model, optimizers = network(layers.Dense(4)), [AdaHessian(0.1), AdaHessian(0.1)]
    optimizers[0].build(model.trainable_variables[:2])
    optimizers[1].build(model.trainable_variables[2:])
    loss = problems.mean_square(torch.tensor(y), model(torch.tensor(x))).mean()
    with pytest.raises(RuntimeError, match="let one AdaHessian train all the weights"):
        optimizers[1].scale_loss(optimizers[0].scale_loss(loss))


def test_weights_of_another_model_are_named():
    optimizer = AdaHessian(0.1)
    compiled(network(), optimizer).train_on_batch(*problems.data())
    with pytest.raises(ValueError, match="Unknown variable"):
        compiled(network(), optimizer).train_on_batch(*problems.data())


def test_without_a_weight_to_train_keras_warns():
    model = network()
    model.trainable = False
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        compiled(model, AdaHessian(0.1)).train_on_batch(*problems.data())


def test_gradient_that_came_another_way_is_refused():
    x, y = problems.data()
    model, optimizer = network(), AdaHessian(0.1)
    backward(optimizer, model, x, y)
    optimizer.held.samples.popitem()
    with pytest.raises(RuntimeError, match="has not come through optimizer.scale_loss"):
        apply(optimizer, model)


def test_optimizer_that_knows_no_weights_says_so():
    with pytest.raises(RuntimeError, match=r"optimizer.build\(model.trainable_variables\)"):
        AdaHessian(0.1).scale_loss(torch.ones(()))


def test_two_optimizers_take_turns():
    """Their products are held apart."""
    x, y = (torch.tensor(a) for a in problems.data())
    models = [network(), network(layers.Dense(4))]
    optimizers = [AdaHessian(0.1), AdaHessian(0.1)]
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.build(model.trainable_variables)
        loss = problems.mean_square(y, model(x)).mean()
        optimizer.scale_loss(loss).backward()
    for model, optimizer in zip(models, optimizers, strict=True):
        grads = [v.value.grad for v in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(grads, model.trainable_variables)
        assert int(optimizer._num_refreshes) == 1
