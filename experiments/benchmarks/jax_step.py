"""What a step of AdaHessian costs in JAX, in steps of Adam, and beside torch on the same machine.

    python -m experiments.benchmarks.jax_step [--batch 128] [--repetitions 10] [--depth 20]

A jitted step of ResNet-20 on random 32 × 32 images: forward, backward, batch statistics, update.
The variants take turns within each repetition, so that load on the machine falls on all of them;
what is printed are medians over the repetitions, of the times and of their ratios to the Adam of
the same library. Both libraries use all the cores they see; limit them with taskset.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen

from adahessian import AdaHessian
from adahessian.jax import adahessian, needs_hessian, value_grad_and_hessian
from experiments.models.resnet_cifar import ResNetCifar


class Block(linen.Module):
    """The residual block of experiments/models/resnet_cifar.py."""

    channels: int
    stride: int

    @linen.compact
    def __call__(self, x):
        def conv_norm(x, kernel, stride):
            x = linen.Conv(self.channels, (kernel, kernel), stride, use_bias=False)(x)
            return linen.BatchNorm(use_running_average=False)(x)

        out = conv_norm(linen.relu(conv_norm(x, 3, self.stride)), 3, 1)
        if x.shape != out.shape:
            x = conv_norm(x, 1, self.stride)
        return linen.relu(out + x)


class ResNet(linen.Module):
    """The network of experiments/models/resnet_cifar.py, in training mode."""

    depth: int

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(16, (3, 3), use_bias=False)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=False)(x))
        for stage, channels in enumerate((16, 32, 64)):
            for index in range((self.depth - 2) // 6):
                x = Block(channels, 2 if stage > 0 and index == 0 else 1)(x)
        return linen.Dense(10)(x.mean((1, 2)))


def jax_step(
    depth: int, images: np.ndarray, labels: np.ndarray, update_interval: int | None
) -> Callable[[], None]:
    """Return a function that takes one step of AdaHessian, or with None of Adam."""
    model = ResNet(depth)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    second_order = update_interval is not None
    tx = adahessian(0.15, update_interval=update_interval) if second_order else optax.adam(1e-3)
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def loss(params, batch_stats):
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, mutable=["batch_stats"]
        )
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, changed["batch_stats"]

    def step(params, batch_stats, state, i, refresh):
        if second_order:
            (_, batch_stats), grads, hessian = value_grad_and_hessian(
                loss, (params, batch_stats), 0, step=i, has_aux=True, refresh=refresh
            )
            updates, state = tx.update(grads, state, params, hessian=hessian)
        else:
            (_, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params, batch_stats)
            updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), batch_stats, state, i + 1

    compiled = jax.jit(step, donate_argnums=(0, 1, 2, 3), static_argnums=4)
    carry = (variables["params"], variables["batch_stats"], tx.init(variables["params"]), 0)

    def take() -> None:
        nonlocal carry
        refresh = second_order and bool(needs_hessian(carry[2]))
        carry = jax.block_until_ready(compiled(*carry, refresh))

    take.num_params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return take


def torch_step(
    depth: int, images: np.ndarray, labels: np.ndarray, second_order: bool
) -> Callable[[], None]:
    """Return a function that takes one step of AdaHessian (``second_order``) or of Adam."""
    torch.manual_seed(0)
    model = ResNetCifar(depth, 10)
    images = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(labels, dtype=torch.int64)
    if second_order:
        optimizer = AdaHessian(model.parameters(), lr=0.15)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward(create_graph=second_order and optimizer.needs_graph)
        return loss

    def take() -> None:
        optimizer.step(closure)

    take.num_params = sum(p.numel() for p in model.parameters())
    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1, help="steps per repetition and variant")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    images = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, 10, arguments.batch).astype(np.int32)
    problem = (arguments.depth, images, labels)
    steps = {
        "jax adam": jax_step(*problem, update_interval=None),
        "jax adahessian": jax_step(*problem, update_interval=1),
        "jax between refreshes": jax_step(*problem, update_interval=10**6),
        "torch adam": torch_step(*problem, second_order=False),
        "torch adahessian": torch_step(*problem, second_order=True),
    }
    assert len({step.num_params for step in steps.values()}) == 1, "the networks differ"

    seconds = {name: [] for name in steps}
    warm_up = 2  # the variant between refreshes compiles its second program in its second step
    for repetition in range(warm_up + arguments.repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(arguments.steps):
                step()
            elapsed = (time.perf_counter() - start) / arguments.steps
            if repetition == 0:
                print(f"{name:22s} first step {elapsed:6.2f} s", flush=True)
            elif repetition >= warm_up:
                seconds[name].append(elapsed)

    print(
        f"\nResNet-{arguments.depth}, batch {arguments.batch}, "
        f"{arguments.size} × {arguments.size}, {jax.devices()[0].platform}; "
        f"jax {jax.__version__}, torch {torch.__version__}; "
        f"{arguments.repetitions} repetitions of {arguments.steps} step(s)"
    )
    for name, times in seconds.items():
        adam = seconds[name.split()[0] + " adam"]
        ratio = median(t / a for t, a in zip(times, adam, strict=True))
        print(
            f"{name:22s} median {1000 * median(times):9.1f} ms per step "
            f"({1000 * min(times):.1f} to {1000 * max(times):.1f}), "
            f"{ratio:5.2f} × Adam (median of the ratios)"
        )


if __name__ == "__main__":
    main()
