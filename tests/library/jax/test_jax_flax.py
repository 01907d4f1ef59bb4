# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""flax: nnx.Optimizer as it is, and linen's TrainState."""

import pytest

pytest.importorskip("flax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from adahessian.jax import adahessian, needs_hessian, value_grad_and_hessian
from adahessian.jax.train_state import TrainState

IMAGES = jax.random.normal(jax.random.key(0), (16, 6, 6, 1))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).astype(jnp.int32)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(jnp.tanh(self.norm(self.conv(x))).mean((1, 2)))


def test_nnx_optimizer():
    model = NnxModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adahessian(0.15, update_interval=2), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def train_step(model, optimizer, images):
        traces.append(None)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest, images):
            model = nnx.merge(graphdef, params, rest)
            return cross_entropy(model(images)), nnx.state(model, nnx.BatchStat)

        refresh = needs_hessian(optimizer.opt_state)
        (value, batch_stats), grads, hessian = value_grad_and_hessian(
            loss,
            (params, rest, images),
            0,
            step=optimizer.step[...],
            has_aux=True,
            refresh=refresh,
        )
        optimizer.update(model, grads, hessian=hessian)
        nnx.update(model, batch_stats)
        return value, refresh

    losses, due = [], []
    mean_before = model.norm.mean[...]
    for _ in range(30):
        value, refresh = train_step(model, optimizer, IMAGES)
        losses.append(float(value))
        due.append(bool(refresh))
    assert due[:4] == [True, False, True, False] and len(traces) == 1
    assert losses[-1] < 0.7 * losses[0]
    assert not np.allclose(mean_before, model.norm.mean[...])


def test_train_state():
    class LinenModel(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = jnp.tanh(linen.Conv(4, (3, 3))(x)).mean((1, 2))
            return linen.Dense(2)(x)

    model = LinenModel()
    params = model.init(jax.random.key(0), IMAGES)["params"]
    tx = adahessian(0.15)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def loss(params):
        return cross_entropy(state.apply_fn({"params": params}, IMAGES))

    @jax.jit
    def train_step(state):
        value, grads, hessian = value_grad_and_hessian(loss, (state.params,), 0, step=state.step)
        return state.apply_gradients(grads=grads, hessian=hessian), value

    first, value = train_step(state)
    _, grads, hessian = value_grad_and_hessian(loss, (params,), 0)
    updates, _ = tx.update(grads, tx.init(params), params, hessian=hessian)
    expected = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), first.params, expected
    )
    assert first.tx is tx and int(first.step) == 1 and isinstance(first, TrainState)
    for _ in range(30):
        first, last = train_step(first)
    assert last < 0.7 * value


class AttentionByNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.mixer = nnx.MultiHeadAttention(2, 6, 4, decode=False, rngs=rngs)
        self.query = nnx.Conv(3, 4, (5,), rngs=rngs)


class AttentionByLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Conv(4, (5,), name="query")(linen.MultiHeadDotProductAttention(2)(x, x))


def params_of(kind):
    if kind == "nnx":
        return nnx.state(AttentionByNnx(nnx.Rngs(0)), nnx.Param)
    return AttentionByLinen().init(jax.random.key(0), jnp.ones((1, 3, 6)))["params"]


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("block_size", ["kernel", "row", 3])
def test_attention_has_nothing_spatial(kind, block_size):
    """Its kernels are (features, heads, head features), and its biases have two axes."""
    params = params_of(kind)
    tx = adahessian(1.0, eps=0.0, block_size=block_size)
    hessian = jax.tree.map(lambda p: 1 + jnp.arange(float(p.size)).reshape(p.shape), params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(tx.update)(ones, tx.init(params), params, hessian=hessian)
    seen = set()
    for (path, update), d in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(hessian), strict=True
    ):
        expected, name = d, jax.tree_util.keystr(path)
        if block_size == 3:
            if d.size % 3 or d.ndim > 1 and not ("mixer" in name or "Attention" in name):
                continue
            expected = jnp.broadcast_to(d.reshape(-1, 3).mean(1, keepdims=True), (d.size // 3, 3))
            expected = expected.reshape(d.shape)
        elif d.ndim == 3 and d.shape[0] == 5:  # the convolution that is called "query"
            expected = jnp.broadcast_to(d.mean(0, keepdims=True), d.shape)
        seen.add(d.ndim)
        np.testing.assert_allclose(-1 / update, expected, rtol=1e-5, err_msg=name)
    assert 3 in seen
