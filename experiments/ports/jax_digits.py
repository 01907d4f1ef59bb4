"""Train a small convolutional network on scikit-learn's digits with JAX: Adam beside AdaHessian.

    python -m experiments.ports.jax_digits [--epochs 20] [--seeds 1 2 3]

Needs the extra [jax] and scikit-learn; nothing is downloaded. Both optimizers start from the same
parameters and see the same batches; a step of the one follows a step of the other, so that load on
the machine falls on both.
"""

import argparse
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adahessian.jax import adahessian, value_grad_and_hessian

BATCH_SIZE = 128
LEARNING_RATES = {"adam": 0.005, "adahessian": 0.15}


class Network(nnx.Module):
    """Two convolutions and two dense layers; images (batch, 8, 8, 1) to logits (batch, 10)."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.dense1 = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.dense2 = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()

    data = load()
    accuracies = {name: [] for name in LEARNING_RATES}
    times = {name: [] for name in LEARNING_RATES}
    for seed in arguments.seeds:
        for name, (accuracy, seconds) in train(data, arguments.epochs, seed).items():
            accuracies[name].append(accuracy)
            times[name].append(seconds)
    print(f"\nmean of {len(arguments.seeds)} seeds after {arguments.epochs} epochs:")
    for name in LEARNING_RATES:
        print(
            f"  {name:10s} test accuracy {mean(accuracies[name]):.4f} "
            f"({min(accuracies[name]):.4f} to {max(accuracies[name]):.4f}), "
            f"{1000 * median(times[name]):.1f} ms per step"
        )


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images, test images, training labels and test labels."""
    digits = load_digits()
    images = (digits.images[..., None] / 8 - 1).astype(np.float32)
    return tuple(
        train_test_split(
            images, digits.target, test_size=360, random_state=0, stratify=digits.target
        )
    )


def train(data: tuple, epochs: int, seed: int) -> dict[str, tuple[float, float]]:
    """Train with both optimizers; return each one's test accuracy and median seconds per step."""
    images, test_images, labels, test_labels = data
    steps_per_epoch = len(images) // BATCH_SIZE
    graphdef, start = nnx.split(Network(nnx.Rngs(seed)))

    def loss(params, images, labels):
        logits = nnx.merge(graphdef, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def accuracy(params):
        logits = nnx.merge(graphdef, params)(test_images)
        return jnp.mean(logits.argmax(-1) == test_labels)

    optimizers, params, states, step_functions = {}, {}, {}, {}
    for name, make in (("adam", optax.adam), ("adahessian", adahessian)):
        schedule = optax.cosine_decay_schedule(LEARNING_RATES[name], epochs * steps_per_epoch)
        optimizers[name] = make(schedule)
        params[name], states[name] = start, optimizers[name].init(start)
        step_functions[name] = make_step(loss, optimizers[name], seed, second_order=name != "adam")

    seconds = {name: [] for name in optimizers}
    order = np.random.default_rng(seed)
    step = 0
    for epoch in range(epochs):
        permutation = order.permutation(len(images))[: steps_per_epoch * BATCH_SIZE]
        losses = {name: [] for name in optimizers}
        for chosen in permutation.reshape(-1, BATCH_SIZE):
            for name, step_function in step_functions.items():
                start_time = time.perf_counter()
                params[name], states[name], value = step_function(
                    params[name], states[name], images[chosen], labels[chosen], step
                )
                losses[name].append(float(value))  # waits for the step
                seconds[name].append(time.perf_counter() - start_time)
            step += 1
        line = "   ".join(
            f"{name}: loss {mean(losses[name]):.4f} test {accuracy(params[name]):.4f}"
            for name in optimizers
        )
        print(f"seed {seed} epoch {epoch + 1:3d}   {line}", flush=True)
    return {
        name: (float(accuracy(params[name])), median(seconds[name][1:]))  # the first one compiles
        for name in optimizers
    }


def make_step(
    loss: Callable, tx: optax.GradientTransformation, seed: int, second_order: bool
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Return the jitted step: (params, state, images, labels, step) to (params, state, loss)."""

    @jax.jit
    def train_step(params, state, images, labels, step):
        if second_order:
            value, grads, hessian = value_grad_and_hessian(
                loss, (params, images, labels), seed, step=step
            )
            updates, state = tx.update(grads, state, params, hessian=hessian)
        else:
            value, grads = jax.value_and_grad(loss)(params, images, labels)
            updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return train_step


if __name__ == "__main__":
    main()
