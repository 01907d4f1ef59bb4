"""Value, gradient and curvature estimate of any function."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adahessian.jax.probes import rademacher_like
from adahessian.jax.transform import not_real
from adahessian.jax_second_derivatives import check_second_derivatives


def value_grad_and_hessian(
    fun: Callable[..., Any],
    fun_input: tuple[Any, ...],
    rng: jax.Array | int,
    argnum: int = 0,
    *,
    step: int | jax.Array = 0,
    num_samples: int = 1,
    keep_samples: bool = False,
    has_aux: bool = False,
    refresh: bool | jax.Array = True,
    reverse: bool = False,
) -> tuple[Any, Any, Any]:
    """Return ``fun``'s value, its gradient and an estimate of its Hessian's diagonal.

    The estimate is Hutchinson's, z·Hz of Rademacher probes z (Eq. 8 of arXiv:2006.00719):
    unbiased, signed and unaveraged, which is what the optimizer's ``hessian=`` wants. Forward over
    reverse: value, gradient and Hz come out of one pass.

    Across devices average all three before the optimizer takes absolute values
    (``jax.lax.pmean(..., axis_name)``); with equal ``rng`` and ``step`` all devices draw one probe.

    Args:
        fun: a function to a scalar (with ``has_aux``: to a pair of a scalar and anything).
        fun_input: the tuple of its positional arguments. Those that are not differentiated may be
            of any kind.
        rng: a PRNG key, from which the seed of the probes is drawn (32 bits); or the seed itself,
            an int or a scalar integer array. torch's ``AdaHessian(seed=rng)`` draws the same
            probes in the same ``step``.
        argnum: which argument to differentiate: any pytree of real floating-point arrays.
        step: of the training, for the probes; may be traced. With a new key for each step it can
            be left out.
        num_samples: how many probes. Each one makes the compiled program longer.
        keep_samples: return the estimate of each probe, in an additional first axis, instead of
            their mean. The optimizer then takes absolute values before it averages over the
            samples, as torch's does.
        has_aux: see ``fun``.
        refresh: False leaves the curvature out and returns infinities in its place, which no
            optimizer takes for a curvature. A traced bool (:func:`adahessian.jax.needs_hessian`)
            makes it a ``lax.cond``, which costs convolutions on CPU more than it saves (the issue
            cited in the code): there decide outside of jit.
        reverse: reverse over reverse, for a loss with a ``jax.custom_vjp`` to which JAX "can't
            apply forward-mode autodiff": its forward rule calls the function itself, as in JAX's
            tutorial.

    Returns:
        (value, gradient, diagonal): a scalar (with ``has_aux``: (scalar, aux)) and two pytrees
        like the argument.

    Raises:
        TypeError: ``fun_input`` is not a tuple, ``argnum`` no int, the argument to differentiate a
            module of flax nnx, or ``fun`` no function to a scalar.
        ValueError: ``argnum`` or ``num_samples`` out of range, or a leaf of the argument that is
            not real floating-point; or a part of ``fun`` that JAX differentiates wrongly a second
            time: a ``custom_vjp`` that rounds and passes the gradient through, a sample of
            ``jax.random.gamma`` by its parameter.
    """
    point = _argument(fun_input, argnum)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    seed = _seed(rng)

    def loss(point):
        # A copy of the containers: those of flax nnx belong to the trace in which they were made.
        arguments = jax.tree.map(lambda leaf: leaf, fun_input)
        output = fun(*arguments[:argnum], point, *arguments[argnum + 1 :])
        if not has_aux:
            return output, None
        if not (isinstance(output, tuple) and len(output) == 2):
            raise TypeError(
                "with has_aux=True fun must return a pair of a scalar and anything, it returned "
                f"{type(output).__name__}"
            )
        return output

    def probe(sample):
        return rademacher_like(point, seed=seed, step=step, sample=sample)

    if isinstance(refresh, jax.core.Tracer) or refresh:
        check_second_derivatives(lambda point: loss(point)[0], point, reverse=reverse)
    with_samples = functools.partial(_with_samples, loss, probe, num_samples, reverse)
    without_samples = functools.partial(_without_samples, loss, num_samples)
    if not isinstance(refresh, jax.core.Tracer):
        value, aux, grad, samples = (with_samples if refresh else without_samples)(point)
    else:
        value, aux, grad, samples = jax.lax.cond(refresh, with_samples, without_samples, point)
    diagonal = samples if keep_samples else jax.tree.map(lambda s: s.mean(0), samples)
    return ((value, aux) if has_aux else value), grad, diagonal


def _with_samples(loss, probe, num_samples, reverse, point):
    """Return (value, aux, gradient, z·Hz of each probe in an additional first axis)."""

    def first_order(point):
        (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(point)
        return (value, grad), aux

    if reverse:
        (value, grad), transposed, aux = jax.vjp(first_order, point, has_aux=True)
        # H is symmetric.
        samples = _stacked(probe, num_samples, lambda z: transposed((jnp.zeros_like(value), z))[0])
        return value, aux, grad, samples

    if num_samples == 1:
        z = probe(0)
        (value, grad), (_, hz), aux = jax.jvp(first_order, (point,), (z,), has_aux=True)
        return value, aux, grad, jax.tree.map(lambda zi, hzi: (zi * hzi)[None], z, hz)

    # Unrolled, because XLA runs convolutions inside a loop up to 100 times slower on CPU
    # (https://github.com/jax-ml/jax/issues/12868).
    (value, grad), hvp, aux = jax.linearize(first_order, point, has_aux=True)
    samples = _stacked(probe, num_samples, lambda z: hvp(z)[1])
    return value, aux, grad, samples


def _stacked(probe, num_samples, product):
    samples = []
    for sample in range(num_samples):
        z = probe(sample)
        samples.append(jax.tree.map(jnp.multiply, z, product(z)))
    return jax.tree.map(lambda *s: jnp.stack(s), *samples)


def _without_samples(loss, num_samples, point):
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(point)
    # Made from the gradient, so that inside shard_map they vary over the same devices.
    nothing = jax.tree.map(
        lambda g: jnp.broadcast_to(jnp.full_like(g, jnp.inf), (num_samples, *g.shape)), grad
    )
    return value, aux, grad, nothing


def grad_and_hessian(
    fun: Callable[..., Any],
    fun_input: tuple[Any, ...],
    rng: jax.Array | int,
    argnum: int = 0,
    **options: Any,
) -> tuple[Any, ...]:
    """Return ``fun``'s gradient and curvature estimate, and with ``has_aux`` its aux.

    The arguments are those of :func:`value_grad_and_hessian`.
    """
    value, grad, diagonal = value_grad_and_hessian(fun, fun_input, rng, argnum, **options)
    return (grad, diagonal, value[1]) if options.get("has_aux") else (grad, diagonal)


def _argument(fun_input: tuple[Any, ...], argnum: int) -> Any:
    """Return the argument to differentiate, its leaves made arrays."""
    if not isinstance(fun_input, tuple):
        raise TypeError(
            "fun_input must be the tuple of fun's positional arguments, got "
            f"{type(fun_input).__name__}; for a single argument write (argument,)"
        )
    if not isinstance(argnum, int | np.integer):
        raise TypeError(f"argnum must be one int, got {argnum!r}")
    if not 0 <= argnum < len(fun_input):
        raise ValueError(f"argnum is {argnum}, but fun_input has {len(fun_input)} argument(s)")
    if _is_nnx_module(fun_input[argnum]):
        raise TypeError(
            f"argument {argnum} is a module of flax nnx: split its parameters off, "
            "graphdef, params, rest = nnx.split(model, nnx.Param, ...), differentiate those and "
            "merge them in the loss (docs/jax.md)"
        )
    for path, kind in not_real(fun_input[argnum]):
        raise ValueError(
            f"argument {argnum}{path} is {kind}: every leaf of the argument to differentiate must "
            "be a real floating-point array (pass the others by another argument)"
        )
    return jax.tree.map(jnp.asarray, fun_input[argnum])


def _is_nnx_module(argument: Any) -> bool:
    # Without an import: flax is not needed.
    kinds = type(argument).__mro__
    return any(k.__name__ == "Module" and k.__module__.startswith("flax.nnx") for k in kinds)


def _seed(rng: jax.Array | int) -> jax.Array | int:
    if isinstance(rng, int | np.integer):
        return rng
    if not isinstance(rng, jax.Array | np.ndarray):
        raise TypeError(f"rng must be a jax.random key or an int, got {type(rng).__name__}")
    if rng.ndim == 0 and jnp.issubdtype(rng.dtype, jnp.integer):
        return rng
    return jax.random.bits(rng, (), np.uint32)
