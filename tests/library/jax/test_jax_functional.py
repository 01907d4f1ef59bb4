# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""The curvature estimator of adahessian.jax against dense Hessians."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np

from adahessian.jax import grad_and_hessian, rademacher_like, value_grad_and_hessian

# Two leaves of one shape whose only curvature is between them, two that are ordinary.
POINT = {
    "a": jnp.array([0.3, -0.2, 0.5]),
    "b": jnp.array([0.1, 0.4, -0.6]),
    "w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2),
    "c": jnp.array(0.7),
}
X = jax.random.normal(jax.random.key(1), (4, 3))


def loss(p, x):
    return jnp.sum(p["a"] * p["b"]) + jnp.mean(jnp.tanh(x @ p["w"] + p["c"]) ** 2)


def dense_diagonal():
    flat, unravel = jax.flatten_util.ravel_pytree(POINT)
    hessian = jax.hessian(lambda v: loss(unravel(v), X))(flat)
    return unravel(jnp.diag(hessian)), hessian


def test_value_gradient_and_one_probe_are_exact():
    value, grad, diagonal = jax.jit(lambda p, x: value_grad_and_hessian(loss, (p, x), 5, step=9))(
        POINT, X
    )
    assert value == pytest.approx(float(loss(POINT, X)), rel=1e-6)
    expected = jax.grad(loss)(POINT, X)
    z, unravel = jax.flatten_util.ravel_pytree(rademacher_like(POINT, seed=5, step=9))
    hz = unravel(z * (dense_diagonal()[1] @ z))
    for key in POINT:
        np.testing.assert_allclose(grad[key], expected[key], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(diagonal[key], hz[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by", ["step", "key", "samples"])
def test_converges_to_the_dense_diagonal(by):
    """One probe for both of a and b would give them ±1, a constant one the row sums."""
    n = 4000
    num_samples = 8 if by == "samples" else 1

    def estimate(i):
        rng, step = (0, i) if by == "step" else (jax.random.key(i), 0)
        return grad_and_hessian(loss, (POINT, X), rng, step=step, num_samples=num_samples)[1]

    many = jax.jit(lambda steps: jax.lax.map(estimate, steps))(jnp.arange(n // num_samples))
    mean = jax.tree.map(lambda e: e.mean(0), many)
    diagonal, hessian = dense_diagonal()
    variance = jnp.sum(hessian**2, axis=1) - jnp.diag(hessian) ** 2
    _, unravel = jax.flatten_util.ravel_pytree(POINT)
    error = unravel(jnp.sqrt(variance / n))  # standard error, element by element
    for key in POINT:
        distance = jnp.abs(mean[key] - diagonal[key])
        assert bool(jnp.all(distance <= 4.5 * error[key] + 1e-6)), key


def test_samples_can_be_kept():
    kept = grad_and_hessian(loss, (POINT, X), 3, num_samples=3, keep_samples=True)[1]
    mean = grad_and_hessian(loss, (POINT, X), 3, num_samples=3)[1]
    for key in POINT:
        assert kept[key].shape == (3, *POINT[key].shape)
        np.testing.assert_allclose(kept[key].mean(0), mean[key], rtol=1e-6)
    first = grad_and_hessian(loss, (POINT, X), 3)[1]
    alone = grad_and_hessian(loss, (POINT, X), 3, keep_samples=True)[1]
    for key in POINT:
        np.testing.assert_allclose(kept[key][0], first[key], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(alone[key][0], first[key])
    assert np.abs(kept["w"][0] - kept["w"][1]).max() > 0.01


def test_keys_old_keys_and_seeds():
    new = grad_and_hessian(loss, (POINT, X), jax.random.key(4))[1]
    old = grad_and_hessian(loss, (POINT, X), jax.random.PRNGKey(4))[1]
    jax.tree.map(np.testing.assert_array_equal, new, old)
    one = grad_and_hessian(loss, (POINT, X), 7)[1]
    other = grad_and_hessian(loss, (POINT, X), jnp.int32(7))[1]
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_aux_and_inputs_of_any_kind():
    def fun(ids, p, key, name):
        noise = jax.random.normal(key, (3,))
        rows = p["table"][ids]
        return jnp.sum((rows + noise) ** 2), {"ids": ids, "name": len(name), "key": key}

    ids = jnp.array([0, 2, 2])
    p = {"table": jnp.ones((4, 3)), "unused": jnp.ones(2)}
    (value, aux), grad, diagonal = value_grad_and_hessian(
        fun, (ids, p, jax.random.key(0), "batch"), 0, argnum=1, has_aux=True
    )
    assert value.shape == () and aux["name"] == 5
    np.testing.assert_array_equal(aux["ids"], ids)
    # Diagonal Hessian: one probe is exact. Token 2 occurs twice.
    np.testing.assert_allclose(
        diagonal["table"], np.array([2.0, 0.0, 4.0, 0.0])[:, None].repeat(3, 1), rtol=1e-6
    )
    np.testing.assert_array_equal(diagonal["unused"], np.zeros(2))
    np.testing.assert_array_equal(grad["unused"], np.zeros(2))
    again = grad_and_hessian(fun, (ids, p, jax.random.key(0), "batch"), 0, argnum=1, has_aux=True)
    assert len(again) == 3 and again[2]["name"] == 5


def test_linear_functions_and_python_floats():
    value, grad, diagonal = value_grad_and_hessian(lambda x: 3.0 * x, (2.0,), 0)
    assert (float(value), float(grad), float(diagonal)) == (6.0, 3.0, 0.0)


@pytest.mark.parametrize("keep_samples", [False, True])
def test_refresh_leaves_the_curvature_out(keep_samples):
    traces = []

    def counted(p, x):
        traces.append(None)
        return loss(p, x), x.sum()

    options = {"has_aux": True, "num_samples": 2, "keep_samples": keep_samples}

    @jax.jit
    def compute(refresh):
        return value_grad_and_hessian(counted, (POINT, X), 0, refresh=refresh, **options)

    with_it = compute(True)
    without = compute(False)
    static = value_grad_and_hessian(counted, (POINT, X), 0, refresh=False, **options)
    for result in (without, static):
        np.testing.assert_allclose(result[0][0], with_it[0][0], rtol=1e-6)
        for key in POINT:
            np.testing.assert_allclose(result[1][key], with_it[1][key], rtol=1e-5, atol=1e-7)
            assert result[2][key].shape == with_it[2][key].shape
            assert jnp.isinf(result[2][key]).all()
    assert with_it[2]["w"].any()
    assert len(traces) == 4  # two branches and a look before them, and the static call


def test_bfloat16():
    p = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), POINT)
    value, grad, diagonal = value_grad_and_hessian(loss, (p, X.astype(jnp.bfloat16)), 0)
    assert value.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves((grad, diagonal)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([POINT, X], 0), TypeError, "for a single argument write"),
        (((POINT, X), 0, (0, 1)), TypeError, "argnum must be one int"),
        (((POINT, X), 0, 2), ValueError, r"argnum is 2, but fun_input has 2 argument\(s\)"),
        ((({"n": jnp.arange(3)},), 0), ValueError, r"argument 0\['n'\] is int32: every leaf"),
        ((({"n": 3},), 0), ValueError, r"argument 0\['n'\] is int: every leaf"),
        ((({"k": jax.random.key(0)},), 0), ValueError, r"argument 0\['k'\] is key<fry>"),
        (((jnp.ones(2, jnp.complex64),), 0), ValueError, "is complex64"),
        (((POINT, X), "seed"), TypeError, "rng must be"),
        (((POINT, X), -1), ValueError, "seed must be from 0"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        value_grad_and_hessian(loss, *arguments)


def test_refuses_no_samples_and_no_scalar():
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        value_grad_and_hessian(loss, (POINT, X), 0, num_samples=0)
    with pytest.raises(TypeError, match="scalar"):
        value_grad_and_hessian(lambda x: x, (jnp.ones(2),), 0)
    with pytest.raises(TypeError, match="must return a pair of a scalar and anything"):
        value_grad_and_hessian(lambda x: x.sum(), (jnp.ones(2),), 0, has_aux=True)


@jax.custom_vjp
def half_square(x):
    return x**2 / 2


# As JAX's tutorial has it: the forward rule calls the function.
half_square.defvjp(lambda x: (half_square(x), x), lambda x, g: (g * x,))


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("within_jit", [False, True])
def test_a_custom_vjp_that_forbids_forward_mode(within_jit, num_samples):
    def loss(p, square):
        return jnp.sum(jnp.sin(square(p["w"])) * p["w"])

    def compute(square):
        point = {"w": jnp.array([0.3, -0.7, 1.1])}
        return value_grad_and_hessian(
            lambda p: loss(p, square), (point,), 0, num_samples=num_samples, reverse=True
        )

    compute = jax.jit(compute, static_argnums=0) if within_jit else compute
    found, expected = compute(half_square), compute(lambda x: x**2 / 2)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_refresh_that_is_known_needs_no_cond():
    due = jnp.bool_(True)
    found = value_grad_and_hessian(loss, (POINT, X), 0, refresh=due)
    jax.tree.map(np.testing.assert_array_equal, found, value_grad_and_hessian(loss, (POINT, X), 0))
    program = jax.make_jaxpr(lambda p: value_grad_and_hessian(loss, (p, X), 0, refresh=due))(POINT)
    assert "cond[" not in str(program)


def test_a_module_of_nnx_is_to_be_split():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="nnx.split"):
        value_grad_and_hessian(lambda m, x: m(x).sum(), (model, X), 0)
