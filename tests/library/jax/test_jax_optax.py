# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""What optax asks of an optimizer, alone and inside its wrappers."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from support.jax_problems import PARAMS, assert_trees_close, derivatives, train

from adahessian.jax import adahessian, needs_hessian, value_grad_and_hessian


def parabola(p):
    return jnp.sum((p - jnp.array([1.0, -1.0, 1.0])) ** 2)


def matrix_parabola(p):
    return jnp.sum((p - jnp.array([[3.0, -2.0], [1.0, 4.0]])) ** 2)


def rosenbrock(p):
    return (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2


def mixed(p):
    vector, matrix = p
    return parabola(vector) + matrix_parabola(matrix)


@pytest.mark.parametrize("update_interval", [1, 4])
@pytest.mark.parametrize(
    ("fun", "start", "solution"),
    [
        (parabola, jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0])),
        (rosenbrock, jnp.zeros(2), jnp.ones(2)),
        (matrix_parabola, jnp.zeros((2, 2)), jnp.array([[3.0, -2.0], [1.0, 4.0]])),
        (
            mixed,
            (jnp.zeros(3), jnp.zeros((2, 2))),
            (jnp.array([1.0, -1.0, 1.0]), jnp.array([[3.0, -2.0], [1.0, 4.0]])),
        ),
    ],
    ids=["parabola", "rosenbrock", "matrix parabola", "mixed"],
)
def test_converges(fun, start, solution, update_interval):
    tx = adahessian(0.3, update_interval=update_interval)

    def step(carry, i):
        params, opt_state = carry
        _, grads, hessian = value_grad_and_hessian(
            fun, (params,), 0, step=i, refresh=needs_hessian(opt_state)
        )
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.jit(
        lambda: jax.lax.scan(step, (start, tx.init(start)), jnp.arange(20_000))
    )()
    assert_trees_close(params, solution, rtol=0.03, atol=0.03)


def test_traces_once_and_keeps_the_state_as_it_was():
    tx = adahessian(optax.cosine_decay_schedule(0.1, 10), update_interval=2, weight_decay=0.01)
    _, opt_state, traces = train(tx, PARAMS, 5)
    assert traces == 1

    def kinds(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    assert kinds(opt_state) == kinds(tx.init(PARAMS)) == kinds(jax.jit(tx.init)(PARAMS))


@pytest.mark.parametrize("initialize", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_buffers_can_be_donated(initialize):
    tx = adahessian(0.1)
    params = jax.tree.map(jnp.copy, PARAMS)

    def step(params, opt_state):
        grads, hessian = derivatives(params)
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        return optax.apply_updates(params, updates), opt_state

    donating = jax.jit(step, donate_argnums=(0, 1))
    opt_state = initialize(tx.init)(params)
    for _ in range(2):
        old = opt_state
        params, opt_state = donating(params, opt_state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_dtype(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = adahessian(0.1, weight_decay=0.1)
    grads, hessian = derivatives(params)
    updates, opt_state = jax.jit(tx.update)(grads, tx.init(params), params, hessian=hessian)
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    averages = (opt_state[0].exp_avg, opt_state[0].exp_hessian_diag_sq)
    assert all(m.dtype == jnp.float32 for m in jax.tree.leaves(averages))


def test_bfloat16_follows_float32():
    """With averages below float32, β₂ = 0.999 would round to 1 and the curvature stand still."""
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    _, low_state, _ = train(adahessian(1e-3), low, 50)
    _, state, _ = train(adahessian(1e-3), jax.tree.map(lambda p: p.astype(jnp.float32), low), 50)
    for ours, exact in zip(
        jax.tree.leaves(low_state[0].exp_hessian_diag_sq),
        jax.tree.leaves(state[0].exp_hessian_diag_sq),
        strict=True,
    ):
        np.testing.assert_allclose(ours, exact, rtol=0.1, atol=0.02 * float(exact.max()))


def test_inject_hyperparams():
    options = {"weight_decay": 0.01, "hessian_power": 0.7, "update_interval": 2}
    plain, state, _ = train(adahessian(0.1, **options), PARAMS, 4)
    injected = optax.inject_hyperparams(adahessian)(optax.constant_schedule(0.1), **options)
    params, injected_state, traces = train(injected, PARAMS, 4)
    assert traces == 1
    assert_trees_close(params, plain, rtol=1e-4, atol=1e-6)
    assert_trees_close(injected_state.inner_state[0], state[0], rtol=1e-4, atol=1e-6)
    # An int block size is no hyperparameter that can change: it must be declared static.
    with pytest.raises(ValueError, match="static_args"):
        optax.inject_hyperparams(adahessian)(0.1, block_size=4).init(PARAMS)
    static = optax.inject_hyperparams(adahessian, static_args=("block_size",))(0.1, block_size=4)
    train(static, PARAMS, 1)


def test_inject_hyperparams_into_bfloat16():
    """In the parameters' dtype, optax's default for hyperparameters, β₂ would be 1."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    injected = optax.inject_hyperparams(adahessian, hyperparam_dtype=jnp.float32)(0.1)
    ours, opt_state, _ = train(injected, params, 3)
    _, plain, _ = train(adahessian(0.1), params, 3)
    assert_trees_close(opt_state.inner_state[0], plain[0], rtol=0.02, atol=1e-3)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(ours))


def test_injected_interval_counts_from_the_next_refresh():
    tx = optax.inject_hyperparams(adahessian)(0.1, update_interval=3)
    _, opt_state, _ = train(tx, PARAMS, 1)
    opt_state.hyperparams["update_interval"] = jnp.int32(1)
    due = []
    for _ in range(5):
        due.append(bool(needs_hessian(opt_state)))
        grads, hessian = derivatives(PARAMS)
        _, opt_state = tx.update(grads, opt_state, PARAMS, hessian=hessian)
    assert due == [False, False, True, True, True]


def test_map_params():
    tx = adahessian(0.1)
    mapped = optax.tree.map_params(
        tx, lambda _: "param", tx.init(PARAMS), transform_non_params=lambda _: "other"
    )
    assert set(jax.tree.leaves(mapped[0].exp_avg)) == {"param"}
    assert mapped[0].step == mapped[0].num_refreshes == mapped[0].steps_to_refresh == "other"


def test_state_survives_a_checkpoint():
    tx = adahessian(0.1, update_interval=3)
    params, opt_state, _ = train(tx, PARAMS, 5)
    as_bytes = flax.serialization.to_bytes(opt_state)
    restored = [
        flax.serialization.from_bytes(tx.init(PARAMS), as_bytes),
        pickle.loads(pickle.dumps(opt_state)),
    ]
    grads, hessian = derivatives(params, 5)
    expected = tx.update(grads, opt_state, params, hessian=hessian)
    for state in restored:
        assert_trees_close(tx.update(grads, state, params, hessian=hessian), expected, 0, 0)


def test_state_survives_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    tx = adahessian(0.1)
    _, opt_state, _ = train(tx, PARAMS, 2)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", opt_state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(PARAMS))
    assert jax.tree.structure(restored) == jax.tree.structure(opt_state)
    assert_trees_close(restored, opt_state, 0, 0)


def test_chain_hands_the_curvature_on_and_clips_the_gradient_only():
    tx = optax.chain(optax.clip_by_global_norm(1e-3), adahessian(0.1))
    grads, hessian = derivatives(PARAMS)
    _, opt_state = tx.update(grads, tx.init(PARAMS), PARAMS, hessian=hessian)
    _, alone = adahessian(0.1).update(grads, adahessian(0.1).init(PARAMS), PARAMS, hessian=hessian)
    assert_trees_close(opt_state[1][0].exp_hessian_diag_sq, alone[0].exp_hessian_diag_sq)
    assert optax.tree.norm(opt_state[1][0].exp_avg) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("compatible", [False, True])
def test_masked_and_partition(compatible):
    """The curvature is passed whole, or masked by optax; other leaves go their own way."""
    labels = {"conv": {"kernel": "adahessian", "bias": "none"}, "dense": "none"}
    tx = optax.partition(
        {"adahessian": adahessian(0.1), "none": optax.set_to_zero()},
        labels,
        mask_compatible_extra_args=compatible,
    )
    grads, hessian = derivatives(PARAMS)
    opt_state = tx.init(PARAMS)
    assert bool(needs_hessian(opt_state))
    updates, opt_state = jax.jit(tx.update)(grads, opt_state, PARAMS, hessian=hessian)
    alone = adahessian(0.1)
    expected, _ = alone.update(grads, alone.init(PARAMS), PARAMS, hessian=hessian)
    np.testing.assert_allclose(
        updates["conv"]["kernel"], expected["conv"]["kernel"], rtol=1e-5, atol=1e-7
    )
    assert not updates["conv"]["bias"].any() and not updates["dense"]["kernel"].any()

    mask = {"conv": True, "dense": {"kernel": False}}
    masked = optax.masked(adahessian(0.1), mask, mask_compatible_extra_args=compatible)
    updates, _ = masked.update(grads, masked.init(PARAMS), PARAMS, hessian=hessian)
    assert_trees_close(updates["conv"], expected["conv"], rtol=1e-5)
    np.testing.assert_array_equal(updates["dense"]["kernel"], grads["dense"]["kernel"])


def test_a_flattened_gradient_has_no_blocks():
    tx = optax.flatten(adahessian())
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"of shape \(8,\): optax.flatten"):
        tx.update(params, tx.init(params), params, hessian=params)


def test_apply_if_finite_skips_a_step():
    tx = optax.apply_if_finite(adahessian(0.1, update_interval=2), 3)
    grads, hessian = derivatives(PARAMS)
    before = tx.init(PARAMS)
    broken = jax.tree.map(lambda g: g * jnp.nan, grads)
    updates, after = jax.jit(tx.update)(broken, before, PARAMS, hessian=hessian)
    assert not any(u.any() for u in jax.tree.leaves(updates))
    assert_trees_close(after.inner_state, before.inner_state, 0, 0)
    assert bool(needs_hessian(after))
    updates, after = jax.jit(tx.update)(grads, after, PARAMS, hessian=hessian)
    assert all(u.any() for u in jax.tree.leaves(updates)) and not bool(needs_hessian(after))


def test_curvature_that_is_not_finite_can_be_shown_to_apply_if_finite():
    """The recipe of docs/jax.md: optax looks at the gradient alone."""
    tx = optax.apply_if_finite(adahessian(0.1), 3)
    grads, hessian = derivatives(PARAMS)
    hessian["dense"]["kernel"] = hessian["dense"]["kernel"].at[0, 0].set(jnp.inf)
    grads = jax.tree.map(lambda g, h: jnp.where(jnp.isfinite(h).all(), g, jnp.nan), grads, hessian)
    before = tx.init(PARAMS)
    _, after = tx.update(grads, before, PARAMS, hessian=hessian)
    assert_trees_close(after.inner_state, before.inner_state, 0, 0)


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        tx = adahessian(0.1, hessian_power=0.5, update_interval=2, weight_decay=0.1)
        train(tx, PARAMS, 2, num_samples=2)
