# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""Four devices take the step that one takes with the whole batch.

The number of CPU devices is read when JAX starts: the test runs this file in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adahessian.jax import adahessian, block_average, needs_hessian, value_grad_and_hessian

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
PARAMS = {"w": np.array([0.5, -0.3, 0.8], np.float32), "b": np.float32(0.1)}
TX = adahessian(0.1, update_interval=2)


def loss(p, x):
    return jnp.mean(jnp.tanh(x @ p["w"] + p["b"]) ** 2)


def compute(params, opt_state, x, step):
    return value_grad_and_hessian(loss, (params, x), 0, step=step, refresh=needs_hessian(opt_state))


def apply(params, opt_state, grads, hessian):
    updates, opt_state = TX.update(grads, opt_state, params, hessian=hessian)
    return optax.apply_updates(params, updates), opt_state


def whole_batch_step(params, opt_state, x, step):
    _, grads, hessian = compute(params, opt_state, x, step)
    return apply(params, opt_state, grads, hessian)


def per_device_step(params, opt_state, x, step):
    _, grads, hessian = jax.lax.pmean(compute(params, opt_state, x, step), "data")
    return apply(params, opt_state, grads, hessian)


def varying_step(params, opt_state, x, step):
    local = jax.lax.pcast(params, "data", to="varying")
    _, grads, hessian = jax.lax.pmean(compute(local, opt_state, x, step), "data")
    return apply(params, opt_state, grads, hessian)


def wrong_order_step(params, opt_state, x, step):
    _, grads, hessian = compute(params, opt_state, x, step)
    grads, hessian = jax.lax.pmean((grads, jax.tree.map(jnp.abs, hessian)), "data")
    return apply(params, opt_state, grads, hessian)


def train(step, x):
    params, opt_state = jax.tree.map(jnp.asarray, PARAMS), TX.init(PARAMS)
    for i in range(4):
        params, opt_state = step(params, opt_state, x, i)
    return jax.tree.map(np.asarray, params)


def close(a, b):
    return all(np.allclose(a[key], b[key], rtol=1e-5, atol=1e-6) for key in PARAMS)


def check():
    assert jax.device_count() == 4
    expected = train(jax.jit(whole_batch_step), X)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(X, NamedSharding(mesh, P("data")))

    # jit alone: the batch is laid out over the devices, and the code is that of one.
    assert close(train(jax.jit(whole_batch_step), sharded), expected)

    def over_devices(step, **options):
        specs = {"in_specs": (P(), P(), P("data"), P()), "out_specs": P()}
        return jax.jit(jax.shard_map(step, mesh=mesh, **specs, **options))

    assert close(train(over_devices(varying_step), sharded), expected)
    assert close(train(over_devices(per_device_step, check_vma=False), sharded), expected)
    wrong = train(over_devices(wrong_order_step, check_vma=False), sharded)
    assert not close(wrong, expected), "the order of mean and absolute value makes no difference"

    for axis_type in (AxisType.Auto, AxisType.Explicit):
        check_samples(jax.make_mesh((4,), ("data",), axis_types=(axis_type,)))

    replicated = jax.pmap(per_device_step, "data", in_axes=(None, None, 0, None), out_axes=None)
    assert close(train(replicated, X.reshape(4, 2, 3)), expected)


def check_samples(mesh):
    """Several probes, of parameters that vary over the devices or are laid out over them."""

    def sharded(w, x):
        local = jax.lax.pcast(w, "data", to="varying")
        estimate = value_grad_and_hessian(product_loss, (local, x), 0, num_samples=2)
        return jax.lax.pmean(estimate, "data")

    def product_loss(w, x):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    w = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)
    expected = value_grad_and_hessian(product_loss, (w, X), 0, num_samples=2)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    specs = {"in_specs": (P(), P("data")), "out_specs": P()}
    found = [jax.jit(jax.shard_map(sharded, mesh=mesh, **specs))(w, x)]
    with jax.set_mesh(mesh):
        over_devices = jax.device_put(w, NamedSharding(mesh, P(None, "data")))
        everywhere = jax.device_put(X, NamedSharding(mesh, P()))
        found.append(
            jax.jit(lambda w, x: value_grad_and_hessian(product_loss, (w, x), 0, num_samples=2))(
                over_devices, everywhere
            )
        )
        for block_size in ("row", 5):
            # A choice between arrays that are laid out in two ways is refused.
            averaged = jax.jit(lambda w, b=block_size: jnp.where(w > w, w, block_average(w, b)))
            np.testing.assert_allclose(averaged(over_devices), averaged(w), rtol=1e-5, atol=1e-6)
    for result in found:
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-6)


def test_four_devices():
    tests = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check()
