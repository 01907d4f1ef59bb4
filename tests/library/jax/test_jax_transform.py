# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""The update rule as an optax transformation: what AdaHessian adds to other optimizers."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support.jax_problems import PARAMS, assert_trees_close, derivatives

from adahessian.jax import adahessian, block_average, needs_hessian, scale_by_adahessian


def test_missing_curvature_says_what_to_do():
    tx = adahessian(0.1)
    grads, _ = derivatives(PARAMS)
    with pytest.raises(ValueError, match="value_grad_and_hessian") as error:
        tx.update(grads, tx.init(PARAMS), PARAMS)
    assert "hessian=hessian" in str(error.value)


def test_curvature_that_does_not_fit():
    tx = adahessian(0.1)
    grads, hessian = derivatives(PARAMS)
    with pytest.raises(ValueError, match="hessian must be a tree like the gradients"):
        tx.update(grads, tx.init(PARAMS), PARAMS, hessian=hessian["conv"])
    kernel = hessian["dense"]["kernel"]
    for wrong, shape in (
        (kernel.T, r"\(4, 3\)"),
        ({"a": kernel}, "of dict"),
        (None, "of NoneType"),
    ):
        hessian["dense"]["kernel"] = wrong
        with pytest.raises(ValueError, match=rf"{shape} where .*'dense/kernel' has \(3, 4\)"):
            tx.update(grads, tx.init(PARAMS), PARAMS, hessian=hessian)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": jnp.ones(3)}, "the structure differs"),
        ({"a": jnp.ones(()), "b": jnp.ones(2)}, r"shape \(\) where the gradient 'a' has \(3,\)"),
    ],
)
def test_state_of_other_parameters_is_refused(other, message):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    tx = scale_by_adahessian()
    with pytest.raises(ValueError, match=f"state is of other parameters.*{message}"):
        tx.update(params, tx.init(other), hessian=params)
    frozen = {"a": jnp.ones(3), "b": None}
    with pytest.raises(ValueError, match="left out of both alike"):
        tx.update(frozen, tx.init(params), hessian=frozen)


def test_between_refreshes_the_curvature_is_ignored():
    tx = adahessian(0.1, update_interval=3)
    params, opt_state = PARAMS, tx.init(PARAMS)
    due = []
    for i in range(7):
        due.append(bool(needs_hessian(opt_state)))
        grads, hessian = derivatives(params, i)
        if not due[-1]:
            hessian = jax.tree.map(lambda h: h * jnp.nan, hessian)
        before = opt_state[0].exp_hessian_diag_sq
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        params = optax.apply_updates(params, updates)
        if not due[-1]:
            assert_trees_close(opt_state[0].exp_hessian_diag_sq, before, 0, 0)
    assert due == [True, False, False, True, False, False, True]
    assert int(opt_state[0].num_refreshes) == 3 and int(opt_state[0].step) == 7
    assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))


def test_needs_hessian_finds_every_state():
    two = {"a": adahessian(0.1, update_interval=2), "b": adahessian(0.1, update_interval=3)}
    tx = optax.partition(two, {"conv": "a", "dense": "b"})
    opt_state = tx.init(PARAMS)
    due = []
    for _ in range(7):
        due.append(bool(jax.jit(needs_hessian)(opt_state)))
        grads, hessian = derivatives(PARAMS)
        _, opt_state = tx.update(grads, opt_state, PARAMS, hessian=hessian)
    assert due == [True, False, True, True, True, False, True]
    with pytest.raises(ValueError, match="no state of AdaHessian"):
        needs_hessian(optax.adam(0.1).init(PARAMS))


def test_first_step_has_no_rounding_of_the_decay():
    """At t = 1 the bias correction cancels (1 − β₂), though 0.999 is no float32."""
    tx = scale_by_adahessian(eps=0.0)
    grads = {"w": jnp.array([3.0, -0.5])}
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads), hessian={"w": jnp.array([2.0, 4.0])})
    np.testing.assert_allclose(updates["w"], [1.5, -0.125], rtol=3e-7)


def test_magnitudes_before_or_after_samples_and_blocks():
    grads = {"kernel": jnp.ones((3, 1, 1))}
    hessian = {"kernel": jnp.array([[1.0, -1.0, 3.0], [1.0, 1.0, 1.0]]).reshape(2, 3, 1, 1)}
    for averaging, d in (("abs", 8 / 6), ("signed", 1.0)):
        tx = scale_by_adahessian(eps=0.0, averaging=averaging)
        updates, _ = tx.update(grads, tx.init(grads), hessian=hessian)
        np.testing.assert_allclose(updates["kernel"], np.full((3, 1, 1), 1 / d), rtol=1e-6)


def test_block_axes_by_function_and_by_tree():
    """Kernels of attention are (features, heads, head features): no convolution."""
    params = {
        "attention": {"query": {"kernel": jnp.ones((3, 2, 2))}},
        "conv": {"kernel": jnp.ones((3, 2, 2))},
    }
    hessian = jax.tree.map(lambda p: jnp.arange(1.0, 13.0).reshape(p.shape), params)
    names = []

    def by_function(name, array):
        names.append(name)
        return () if name.startswith("attention") and array.ndim == 3 else None

    by_tree = {"attention": {"query": {"kernel": ()}}, "conv": {"kernel": None}}
    for block_axes in (by_function, by_tree):
        tx = scale_by_adahessian(eps=0.0, block_axes=block_axes)
        updates, _ = tx.update(params, tx.init(params), hessian=hessian)
        for key, d in (
            ("attention", hessian["attention"]["query"]["kernel"]),
            ("conv", block_average(hessian["conv"]["kernel"], "kernel")),
        ):
            (update,) = jax.tree.leaves(updates[key])
            np.testing.assert_allclose(update, 1 / d, rtol=1e-6)
    assert names == ["attention/query/kernel", "conv/kernel"]
    bad = scale_by_adahessian(block_axes={"conv": ()})
    with pytest.raises(ValueError, match="block_axes must be a function"):
        bad.update(params, bad.init(params), hessian=hessian)


def test_weight_decay_and_its_mask():
    grads, hessian = derivatives(PARAMS)

    def first_update(**options):
        tx = adahessian(0.1, **options)
        return tx.update(grads, tx.init(PARAMS), PARAMS, hessian=hessian)[0]

    plain = first_update()
    decayed = first_update(
        weight_decay=0.5, weight_decay_mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)
    )
    expected = jax.tree.map(lambda u, p: u - 0.05 * p * (p.ndim > 1), plain, PARAMS)
    assert_trees_close(decayed, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, "b2 must be in"),
        ({"eps": float("nan")}, "eps must be finite"),
        ({"hessian_power": 1.5}, "hessian_power must be in"),
        ({"averaging": "mean"}, "averaging must be 'abs' or 'signed'"),
        ({"update_interval": 0}, "update_interval must be an int of at least 1"),
        ({"update_interval": 2.0}, "update_interval must be an int"),
        ({"update_clip": 0.0}, "update_clip must be None or finite and above 0, got 0.0"),
        ({"block_size": "conv"}, "block_size must be"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        adahessian(0.1, **options)


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (jnp.zeros(3, jnp.int32), "int32"),
        (jnp.zeros(3, jnp.complex64), "complex64"),
        (jnp.tanh, r"\w+"),  # the activation of a module of Equinox
    ],
)
def test_refuses_parameters_that_are_not_real(leaf, kind):
    with pytest.raises(ValueError, match=rf"parameter \['n'\] is {kind}: AdaHessian is"):
        adahessian(0.1).init({"n": leaf})


def test_names_keep_a_key_that_is_called_value():
    names = []

    def block_axes(name, array):
        names.append(name)

    tx = adahessian(0.1, block_axes=block_axes)
    params = {"attention": {"value": jnp.ones(3)}}
    tx.update(params, tx.init(params), params, hessian=params)
    assert names == ["attention/value"]


def test_integers_of_numpy():
    tx = adahessian(0.1, update_interval=np.int64(2))
    params = {"w": jnp.ones(3)}
    _, opt_state = tx.update(params, tx.init(params), params, hessian=params)
    assert not needs_hessian(opt_state)
