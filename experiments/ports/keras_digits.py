"""Train a small convolutional network on scikit-learn's digits with Keras: Adam beside AdaHessian.

    KERAS_BACKEND=jax python -m experiments.ports.keras_digits [--epochs 20] [--seeds 1 2 3]

Needs the extra [keras], one of its backends and scikit-learn; nothing is downloaded. Both
optimizers start from the same weights and see the same batches. `make keras-digits` runs it on each
backend.
"""

import argparse
import time
from statistics import mean, median
from typing import Any

BATCH_SIZE = 128
LEARNING_RATES = {"adam": 0.005, "adahessian": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--update-interval", type=int, default=1)
    arguments = parser.parse_args()

    import keras

    data = load()
    accuracies = {name: [] for name in LEARNING_RATES}
    seconds = {name: [] for name in LEARNING_RATES}
    cpu_seconds = {name: [] for name in LEARNING_RATES}
    for seed in arguments.seeds:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed)
        start = network().get_weights()
        for name in LEARNING_RATES:
            accuracy, of_wall, of_cpu = train(name, start, data, seed, arguments)
            accuracies[name].append(accuracy)
            seconds[name].append(of_wall)
            cpu_seconds[name].append(of_cpu)
            print(f"seed {seed} {name}: test accuracy {accuracy:.4f}", flush=True)
    backend = keras.backend.backend()
    print(f"{backend}: mean of {len(arguments.seeds)} seeds after {arguments.epochs} epochs")
    for name in LEARNING_RATES:
        print(
            f"  {name:10s} test accuracy {mean(accuracies[name]):.4f} "
            f"({min(accuracies[name]):.4f} to {max(accuracies[name]):.4f}), "
            f"{median(seconds[name]):.2f} s per epoch, {median(cpu_seconds[name]):.2f} s of CPU"
        )
    pairs = zip(cpu_seconds["adahessian"], cpu_seconds["adam"], strict=True)
    ratios = [ours / adam for ours, adam in pairs]
    print(
        f"  a step costs {median(ratios):.2f} of Adam's in CPU time "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def load() -> tuple[Any, Any, Any, Any]:
    """Return training images, test images, training labels and test labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., None] / 8 - 1).astype("float32")
    return tuple(
        train_test_split(
            images, digits.target, test_size=360, random_state=0, stratify=digits.target
        )
    )


def network() -> Any:
    """Return two convolutions with batch normalization and two dense layers."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def train(
    name: str, start: list[Any], data: tuple, seed: int, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Train from the weights ``start``; return test accuracy and median seconds per epoch.

    The seconds are those of the wall and of the CPU, all threads together.
    """
    import keras
    import numpy as np

    from adahessian.keras import AdaHessian, second_order

    images, test_images, labels, test_labels = data
    steps = len(images) // BATCH_SIZE
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATES[name], arguments.epochs * steps)
    if name == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = AdaHessian(rate, update_interval=arguments.update_interval, seed=seed)
    model = second_order(network())
    model.set_weights(start)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    order, times = np.random.default_rng(seed), []
    for _ in range(arguments.epochs):
        chosen = order.permutation(len(images))[: steps * BATCH_SIZE]
        begun = time.perf_counter(), time.process_time()
        model.fit(images[chosen], labels[chosen], BATCH_SIZE, shuffle=False, verbose=0)
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    _, accuracy = model.evaluate(test_images, test_labels, verbose=0)
    of_wall, of_cpu = zip(*(times[1:] or times), strict=True)  # the first one compiles
    return float(accuracy), median(of_wall), median(of_cpu)


if __name__ == "__main__":
    main()
