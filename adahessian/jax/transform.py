"""The AdaHessian update rule as an optax gradient transformation."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adahessian.jax.averaging import (
    BlockAxes,
    BlockSize,
    attention_kernels,
    block_average,
    check_block_size,
)

MISSING_HESSIAN = (
    "AdaHessian needs the curvature beside the gradient. Get it with\n"
    "    value, grads, hessian = value_grad_and_hessian(loss, (params, batch), rng)\n"
    "and pass it on: tx.update(grads, opt_state, params, hessian=hessian), in flax nnx "
    "optimizer.update(model, grads, hessian=hessian), in linen state.apply_gradients(grads=grads, "
    "hessian=hessian) with the TrainState of adahessian.jax.train_state."
)

_OTHER_STATE = (
    "the optimizer's state is of other parameters than the gradients: {what}. Make it by "
    "tx.init(params), or restore it into what that returns; parameters that are not trained are "
    "left out of both alike (optax.masked, optax.partition)"
)

_FLATTENED = (
    "hessian is a tree ({hessian}), but the gradients are one array of shape {grad}: optax.flatten "
    "makes a vector of the gradients alone. Leave it out: the curvature is averaged over blocks of "
    "arrays, whose shapes it takes away"
)


class ScaleByAdaHessianState(NamedTuple):
    """State of :func:`scale_by_adahessian`; the counters are int32 scalars."""

    step: jax.Array  # updates so far
    num_refreshes: jax.Array  # of the curvature, so far
    steps_to_refresh: jax.Array  # 0: the next update refreshes the curvature
    exp_avg: optax.Updates  # float32, or float64 where the parameter is
    exp_hessian_diag_sq: optax.Updates  # likewise


def adahessian(
    learning_rate: optax.ScalarOrSchedule = 0.15,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    hessian_power: float = 1.0,
    *,
    block_size: BlockSize = "kernel",
    block_axes: BlockAxes = None,
    averaging: str = "abs",
    update_interval: int = 1,
    update_clip: float | None = None,
    wait: bool = False,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaHessian (Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, AAAI 2021, arXiv:2006.00719).

    With the gradient g and the estimate ``hessian`` = z · Hz of the same batch, one step t is

    .. code-block:: text

        m ← β₁ m + (1 − β₁) g                         exp_avg                 (Eq. 7, 11)
        d = mean over samples and block of |hessian|   the curvature           (Eq. 8 to 10)
        v ← β₂ v + (1 − β₂) d²                        exp_hessian_diag_sq     (Eq. 11)
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ʳ)         r: refreshes of d so far
        θ ← θ − lr · (clip(m̂ / (v̂^(hessian_power / 2) + eps), update_clip) + weight_decay · θ)

    as in :class:`adahessian.AdaHessian` (torch). Example::

        tx = adahessian(0.15)
        opt_state = tx.init(params)

        @jax.jit
        def train_step(params, opt_state, batch, step):
            value, grads, hessian = value_grad_and_hessian(loss, (params, batch), 0, step=step)
            updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
            return optax.apply_updates(params, updates), opt_state, value

    Differences from the paper: its Eq. 10 averages z · Hz with its sign; the code that produced its
    image results averages the magnitudes, and so do we by default (``averaging``). With
    ``update_interval`` above 1 we apply β₂ and its bias correction once a refresh, not once a step.

    Args:
        learning_rate: a scalar or a schedule. 0.15 is the paper's value for image classification.
        b1: decay of the gradient's running average, in [0, 1).
        b2: decay of the squared curvature's running average, in [0, 1).
        eps: added to the denominator, outside the power.
        weight_decay: decoupled: each step shrinks the parameters by learning rate · weight_decay.
        hessian_power: the paper's k in [0, 1]; 0 leaves momentum SGD.
        block_size: what the curvature is averaged over, see :mod:`adahessian.jax.averaging`.
        block_axes: the axes to average over, for arrays that are not laid out as flax's layers: a
            function of an array's name ("encoder/heads/kernel") and the array, or a tree like the
            parameters. For each array it gives a tuple of axes, () for none or None for the
            default.
        averaging: "abs" is the mean of \|z · Hz\|; "signed" the mean of z · Hz, in which the
            off-diagonal noise of the probe cancels (the paper's Eq. 10).
        update_interval: steps between refreshes of the curvature, from the first step on; the
            steps between ignore ``hessian``. :func:`needs_hessian` says which.
        update_clip: bound of each element of m̂ / denominator, as Sophia-H's
            (arXiv:2305.14342); None, as in the paper, for none. An element then moves by at most
            learning rate · update_clip, besides the weight decay.
        wait: elements without any curvature so far do not move, except by weight decay. For
            curvature of a part of the batch (:func:`part_of_batch`), which torch's optimizer knows
            by itself.
        weight_decay_mask: a tree of bools, or a function from the parameters to one: what decays.

    Returns:
        A transformation with ``update(grads, state, params, *, hessian)``. ``hessian`` is a tree
        like the gradients, of signed unaveraged estimates, with or without an additional first
        axis for samples (``keep_samples``). An array of it that is not finite (the norm of a zero
        vector has no second derivative) is left out: that v̂ stays what it is. Before the first
        finite one v is infinite, and the array does not move (but with ``hessian_power=0``). Where
        no array of it is finite, the refresh stays due. Nothing warns, within jit or without.

    Raises:
        ValueError: an option out of range; on updating also a missing ``hessian`` or one whose
            structure or shapes do not fit.
    """
    return optax.chain(
        scale_by_adahessian(
            b1,
            b2,
            eps,
            hessian_power,
            block_size=block_size,
            block_axes=block_axes,
            averaging=averaging,
            update_interval=update_interval,
            update_clip=update_clip,
            wait=wait,
        ),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_adahessian(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    hessian_power: float = 1.0,
    *,
    block_size: BlockSize = "kernel",
    block_axes: BlockAxes = None,
    averaging: str = "abs",
    update_interval: int = 1,
    update_clip: float | None = None,
    wait: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide the gradient's running average by the curvature's; see :func:`adahessian`.

    The updates have the dtype of the gradients and point uphill.
    """
    _check_options(b1, b2, eps, hessian_power, averaging, update_interval, update_clip)
    check_block_size(block_size)

    def update(updates, state, params=None, *, hessian=None, **extra_args):
        del params, extra_args
        named, treedef = flatten_with_names(updates)
        hessians = flatten_hessian(hessian, named, treedef)
        axes = _flatten_block_axes(block_axes, named, treedef)
        attention = attention_kernels({name for name, _ in named})
        exp_avgs = _flatten_average(state.exp_avg, named, treedef)
        exp_hessian_diag_sqs = _flatten_average(state.exp_hessian_diag_sq, named, treedef)

        diagonals: dict[int, jax.Array] = {}
        for i, (name, grad) in enumerate(named):
            if not is_masked(grad):
                d = _magnitude(hessians[i], grad, exp_hessian_diag_sqs[i].dtype, averaging)
                along = () if axes[i] is None and name in attention else axes[i]
                diagonals[i] = block_average(d, block_size, name=name, block_axes=along)
        finite = {i: jnp.isfinite(d * d).all() for i, d in diagonals.items()}
        due = state.steps_to_refresh <= 0
        # With nothing to go by (`refresh=False` at a step that needed it), it stays due.
        refresh = due & functools.reduce(jnp.logical_or, finite.values(), jnp.bool_(False))
        step = cast(jax.Array, optax.safe_increment(state.step))
        num_refreshes = jnp.where(
            refresh, optax.safe_increment(state.num_refreshes), state.num_refreshes
        )
        waited = (refresh | ~due).astype(jnp.int32)
        steps_left = jnp.where(refresh, update_interval, state.steps_to_refresh) - waited
        bias_correction1 = _bias_correction(b1, step)
        bias_correction2 = _bias_correction(b2, num_refreshes)

        directions = [grad for _, grad in named]
        for i, d in diagonals.items():
            grad, m, v = directions[i], exp_avgs[i], exp_hessian_diag_sqs[i]
            m = (m + (1 - b1) * (grad.astype(m.dtype) - m)).astype(m.dtype)
            refreshed = _refreshed(v, d, finite[i], b2, _bias_correction(b2, state.num_refreshes))
            v = jnp.where(refresh, refreshed, jnp.where(num_refreshes > 0, v, jnp.inf))
            v = v.astype(exp_hessian_diag_sqs[i].dtype)
            denom = _power(v / bias_correction2, hessian_power / 2) + eps
            direction = m / bias_correction1 / denom
            if update_clip is not None:
                direction = jnp.clip(direction, -update_clip, update_clip)
            if wait:
                direction = jnp.where(v > 0, direction, 0)
            directions[i] = direction.astype(grad.dtype)
            exp_avgs[i], exp_hessian_diag_sqs[i] = m, v

        state = ScaleByAdaHessianState(
            step=step,
            num_refreshes=num_refreshes,
            steps_to_refresh=steps_left.astype(jnp.int32),
            exp_avg=treedef.unflatten(exp_avgs),
            exp_hessian_diag_sq=treedef.unflatten(exp_hessian_diag_sqs),
        )
        return treedef.unflatten(directions), state

    return optax.GradientTransformationExtraArgs(_init, update)


def needs_hessian(opt_state: Any) -> jax.Array:
    """Return whether the coming update refreshes the curvature, a bool scalar that may be traced.

    Args:
        opt_state: the state of any optimizer with AdaHessian inside. With several of them
            (``optax.partition``) it tells whether one of them refreshes.

    Raises:
        ValueError: there is no AdaHessian inside.
    """

    def found(node):
        return isinstance(node, ScaleByAdaHessianState)

    states = [node for node in jax.tree.leaves(opt_state, is_leaf=found) if found(node)]
    if not states:
        raise ValueError(
            f"no state of AdaHessian in {jax.tree.structure(opt_state)}: needs_hessian takes what "
            "tx.init or tx.update returned"
        )
    # The leaf, not the field: flax nnx wraps each array of an optimizer's state.
    return functools.reduce(
        jnp.logical_or, [jax.tree.leaves(s.steps_to_refresh)[0] <= 0 for s in states]
    )


def _init(params: optax.Params) -> ScaleByAdaHessianState:
    for path, kind in not_real(params):
        raise ValueError(
            f"parameter {path} is {kind}: AdaHessian is defined for real floating-point parameters "
            "(leave others out with optax.masked; of Equinox's modules take eqx.filter(model, "
            "eqx.is_inexact_array))"
        )

    # Each call makes new buffers: a buffer that stands in two places cannot be donated.
    def counter():
        return jnp.zeros((), jnp.int32)

    def average():
        return jax.tree.map(zeros_for_average, params)

    return ScaleByAdaHessianState(counter(), counter(), counter(), average(), average())


def not_real(tree: Any) -> Iterator[tuple[str, str]]:
    """Yield place and kind of each leaf that is no real floating-point array or number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        kind = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(kind, jnp.floating):
            yield jax.tree_util.keystr(path), getattr(kind, "__name__", str(kind))


def zeros_for_average(param: jax.Array) -> jax.Array:
    """Return zeros like ``param``, but never below float32."""
    return jnp.zeros_like(param, jnp.promote_types(jnp.result_type(param), jnp.float32))


def _magnitude(hessian: jax.Array, grad: jax.Array, dtype: Any, averaging: str) -> jax.Array:
    """Return what is to be averaged over blocks: z · Hz or its magnitude, mean over samples."""
    hessian = jnp.asarray(hessian, dtype)
    if averaging == "abs":
        hessian = jnp.abs(hessian)
    return hessian.mean(0) if hessian.ndim > grad.ndim else hessian


def _refreshed(
    v: jax.Array, d: jax.Array, finite: jax.Array, beta2: float | jax.Array, seen: jax.Array
) -> jax.Array:
    """Return the running average after a refresh; ``seen`` is 1 − β₂ʳ before it.

    With d² = v / (1 − β₂ʳ) the corrected average stays what it is: so where d is not finite. An
    average that has not begun is infinite then, and its first d counts for the refreshes before.
    """
    average = jnp.where(seen > 0, v / jnp.where(seen > 0, seen, 1), jnp.inf)
    squared = jnp.where(finite, d * d, average)
    v = jnp.where(jnp.isinf(v), seen * squared, v)
    return jnp.where(jnp.isinf(squared), jnp.inf, beta2 * v + (1 - beta2) * squared)


def _bias_correction(beta: float | jax.Array, count: jax.Array) -> jax.Array:
    """Return 1 − betaᵗ, without the cancellation that costs float32 four digits at t = 1."""
    # 0 · log 0 is no number.
    exponent = jnp.maximum(count, 1).astype(float) * jnp.log1p(beta - 1.0)
    return jnp.where(count > 0, -jnp.expm1(exponent), 0.0)


def _power(array: jax.Array, exponent: float | jax.Array) -> jax.Array:
    is_half = isinstance(exponent, float) and exponent == 0.5
    return jnp.sqrt(array) if is_half else array**exponent


def is_masked(node: Any) -> bool:
    """Whether a node stands for an array that a wrapper keeps to itself."""
    return isinstance(node, optax.MaskedNode)


def flatten_with_names(updates: optax.Updates) -> tuple[list[tuple[str, Any]], Any]:
    """Return (name, array) pairs and the tree's structure, in which a masked node is a leaf.

    With masked nodes as leaves, a tree that is not masked (hessian, block_axes) fits as well.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_masked)
    named = []
    for path, leaf in paths:
        # An nnx.State's arrays are the attribute `value` of its leaves.
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):
            path = path[:-1]
        named.append((jax.tree_util.keystr(path, simple=True, separator="/"), leaf))
    return named, treedef


def flatten_hessian(hessian: Any, named: list[tuple[str, Any]], treedef: Any) -> list[Any]:
    """Return the curvature's arrays in the order of the gradients'.

    Raises:
        ValueError: there is none, or its structure or a shape does not fit.
    """
    if hessian is None:
        raise ValueError(MISSING_HESSIAN)
    try:
        leaves = treedef.flatten_up_to(hessian)
    except ValueError as error:
        raise ValueError(
            f"hessian must be a tree like the gradients, but its structure differs: {error}"
        ) from error
    for (name, grad), leaf in zip(named, leaves, strict=True):
        if is_masked(grad):
            continue
        shape = _shape(leaf)
        if grad.shape not in (shape, shape[1:]):  # the latter: one estimate for each sample
            if not name and isinstance(shape, str):
                raise ValueError(_FLATTENED.format(hessian=shape, grad=grad.shape))
            raise ValueError(
                f"hessian has shape {shape} where the gradient {name!r} has {grad.shape}"
            )
    return leaves


def _shape(node: Any) -> tuple[int, ...] | str:
    """Return the shape of an array; of None or a tree in its place the type's name."""
    is_leaf = jax.tree_util.all_leaves([node])
    return jnp.shape(node) if is_leaf else f"of {type(node).__name__}"


def _flatten_average(average: Any, named: list[tuple[str, Any]], treedef: Any) -> list[Any]:
    """Return an average's arrays in the order of the gradients'.

    Raises:
        ValueError: it is of other parameters. Some shapes would broadcast without a word.
    """
    try:
        leaves = treedef.flatten_up_to(average)
    except ValueError as error:
        raise ValueError(_OTHER_STATE.format(what=f"the structure differs: {error}")) from error
    for (name, grad), leaf in zip(named, leaves, strict=True):
        if not is_masked(grad) and _shape(leaf) != grad.shape:
            what = f"shape {_shape(leaf)} where the gradient {name!r} has {grad.shape}"
            raise ValueError(_OTHER_STATE.format(what=what))
    return leaves


def _flatten_block_axes(
    block_axes: BlockAxes, named: list[tuple[str, Any]], treedef: Any
) -> list[tuple[int, ...] | None]:
    if block_axes is None:
        return [None] * len(named)
    if callable(block_axes):
        return [None if is_masked(leaf) else block_axes(name, leaf) for name, leaf in named]
    try:
        return treedef.flatten_up_to(block_axes)
    except ValueError as error:
        raise ValueError(
            "block_axes must be a function (name, array) -> axes or a tree of tuples like the "
            f"parameters: {error}"
        ) from error


def _check_options(b1, b2, eps, hessian_power, averaging, update_interval, update_clip) -> None:
    """Raise ValueError if an option is out of range; arrays (inject_hyperparams) pass unseen."""

    def require(name: str, value: Any, valid: Callable[[Any], bool], allowed: str) -> None:
        if not isinstance(value, jax.Array) and not valid(value):
            raise ValueError(f"{name} must be {allowed}, got {value!r}")

    for name, beta in (("b1", b1), ("b2", b2)):
        require(name, beta, lambda b: 0 <= b < 1, "in [0, 1)")
    require("eps", eps, lambda e: 0 <= e < float("inf"), "finite and at least 0")
    require("hessian_power", hessian_power, lambda k: 0 <= k <= 1, "in [0, 1]")
    require(
        "update_clip",
        update_clip,
        lambda c: c is None or 0 < c < float("inf"),
        "None or finite and above 0",
    )
    require("averaging", averaging, lambda a: a in ("abs", "signed"), "'abs' or 'signed'")
    require(
        "update_interval",
        update_interval,
        lambda n: isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n >= 1),
        "an int of at least 1",
    )
