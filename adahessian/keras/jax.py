"""H·z on JAX: the model's own training step, differentiated in the direction of the probes.

An optimizer of Keras gets gradients without a history there. :func:`second_order` runs
``model.train_step`` up to the point where it hands the gradient to the optimizer, as a function of
the weights, forward over reverse: gradient and Hz come out of one pass. A ``train_step`` of one's
own may go on from what the optimizer returns, and then runs once more, with the true optimizer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from adahessian.jax_second_derivatives import check_second_derivatives
from adahessian.keras.probes import rademacher

_NOT_WRAPPED = (
    "on the JAX backend AdaHessian needs one line: from adahessian.keras import second_order; "
    "model = second_order(model), before or after model.compile. It serves the optimizer of "
    "model.compile alone: for a second one of a train_step of your own take another optimizer"
)
_NOT_OF_MODEL = (
    "the optimizer was built for the weights {names}, which are not among those that the model "
    "trains: make a new optimizer, and compile with it"
)
_OTHER_NUMBER = (
    "the optimizer was built for {built} weights, and gets the gradients of {given}: after layers "
    "were frozen or thawed make a new optimizer, and compile with it"
)
_OTHER_BACKENDS = (
    "Where this is a layer of Keras' own (int8, fake quantization), train on TensorFlow or torch, "
    "which have its derivative"
)


def scale_loss(optimizer: Any, loss: jax.Array) -> jax.Array:
    """Return the loss: :func:`second_order` has the way to H·z."""
    return loss


def number(scalar: Any) -> jax.Array:
    """Return an integer variable's value."""
    return jnp.asarray(scalar)


def where(condition: Any, this: Any, other: Any) -> jax.Array:
    """Return ``this`` where the condition holds; Keras' own turns float64 to float32."""
    return jnp.where(condition, this, other)


def samples(
    optimizer: Any, grads: Sequence[Any], variables: Sequence[Any]
) -> tuple[list[Any], dict[int, jax.Array]]:
    """Return the gradients, and what the training step has held.

    Raises:
        RuntimeError: nothing is held.
    """
    held = optimizer.held.samples
    if held is None:
        raise RuntimeError(_NOT_WRAPPED)
    return list(grads), held


def second_order(model: Any) -> Any:
    """Let the model's training step hand H·z to AdaHessian."""
    make_first_order = type(model).make_train_function.__get__(model)

    def make_train_function(force: bool = False) -> Any:
        optimizer = model.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        # By what only AdaHessian has: its module imports this one.
        if not hasattr(inner, "refresh_is_due"):
            return make_first_order(force)
        if model.train_function is None or force:
            model.train_function = model._make_function(_training_step(model, inner))

    model.make_train_function = make_train_function
    model.train_function = None  # one that was made without us, as where `fit` has asked for us
    return model


def _training_step(model: Any, inner: Any) -> Callable[[Any, Any], Any]:
    """Return the training step, (state, data) to (logs, state), compiled as Keras would."""
    compile_ = _compiler(model)
    if inner.update_interval == 1:
        return compile_(partial(_step, model, inner, True))
    if jax.default_backend() != "cpu":
        return compile_(partial(_step, model, inner, None))
    # On CPU XLA runs convolutions inside `cond` up to 100 times slower
    # (https://github.com/jax-ml/jax/issues/12868), so there are two programs, and the host reads
    # two scalars of the state before each step: it waits for the step before, which on CPU would
    # have had the same cores.
    programs = {due: compile_(partial(_step, model, inner, due)) for due in (True, False)}

    def train_step(state: Any, data: Any) -> Any:
        with _values(model.optimizer, state[2]):
            due = bool(inner.refresh_is_due())
        return programs[due](state, data)

    return train_step


def _compiler(model: Any) -> Callable[[Callable], Callable]:
    if model.run_eagerly or not model.jit_compile:
        return lambda function: function
    out_shardings = None
    if keras.distribution.distribution() is not None:
        out_shardings = (None, model._get_state_sharding_spec())
    return partial(jax.jit, donate_argnums=0, out_shardings=out_shardings)


def _step(model: Any, inner: Any, due: bool | None, state: Any, data: Any) -> Any:
    """Take a training step; ``due`` says whether it refreshes the curvature, None: by the state."""
    weights, non_trainable, of_optimizer, metrics = state
    optimizer = model.optimizer
    trained = _trained(model, inner)
    is_own = getattr(model.train_step, "__func__", None) is not keras.Model.train_step
    with _values(optimizer, of_optimizer):
        if due is None:
            due = inner.refresh_is_due()
        step = jnp.asarray(inner.iterations)
        scale = optimizer.scale_loss(jnp.ones(()))

    def gradient(weights: Any) -> Any:
        with _caught(optimizer) as calls:
            new = model.train_step((weights, non_trainable, of_optimizer, metrics), data)
        if len(calls) != 1:
            raise RuntimeError(
                "second_order needs a train_step that calls optimizer.stateless_apply once, this "
                f"one did {len(calls)} times"
            )
        (grads,) = calls
        if len(grads) != len(trained):
            raise RuntimeError(_OTHER_NUMBER.format(built=len(trained), given=len(grads)))
        logs, (_, new_non_trainable, _, new_metrics) = new
        return grads, None if is_own else (logs, new_non_trainable, new_metrics)

    def looked_at(weights: Any) -> Any:
        with _looked_at(model):
            return gradient(weights)

    with_samples = partial(_with_samples, looked_at, inner, trained, step, scale)
    without_samples = partial(_without_samples, gradient, inner)
    if isinstance(due, bool):
        results = (with_samples if due else without_samples)(weights)
    else:
        results = jax.lax.cond(due, with_samples, without_samples, weights)
    grads, products, rest = results
    inner.held.samples, inner.held.due = dict(enumerate(products)), due
    try:
        if is_own:
            # XLA computes once what both runs have in common.
            with _given(optimizer, grads):
                return model.train_step(state, data)
        logs, non_trainable, metrics = rest
        weights, of_optimizer = optimizer.stateless_apply(of_optimizer, grads, weights)
    finally:
        inner.held.samples = inner.held.due = None
    return logs, (weights, non_trainable, of_optimizer, metrics)


def _trained(model: Any, inner: Any) -> list[int]:
    """Return where the optimizer's weights are among the model's, of which it may have a part."""
    places = {id(v): place for place, v in enumerate(model.trainable_variables)}
    if lost := [v.path for v in inner._trainable_variables if id(v) not in places]:
        raise RuntimeError(_NOT_OF_MODEL.format(names=", ".join(lost)))
    return [places[id(v)] for v in inner._trainable_variables]


def _with_samples(
    gradient: Callable, inner: Any, trained: Sequence[int], step: Any, scale: Any, weights: Any
) -> Any:
    """Return (gradient, z · Hz of the unscaled loss for each weight and probe, the rest)."""
    probes = [
        rademacher(
            [weights[place].shape for place in trained],
            [weights[place].dtype.name for place in trained],
            seed=inner.seed,
            step=step,
            sample=sample,
            tensor_indices=range(len(trained)),
        )
        for sample in range(inner.num_samples)
    ]
    vectors = []
    for probe in probes:
        vector = [jnp.zeros_like(w) for w in weights]
        for place, z in zip(trained, probe, strict=True):
            # z is scaled, not the product: in float16 the product may be too large.
            vector[place] = (z / scale).astype(z.dtype)
        vectors.append(vector)
    if len(vectors) == 1:
        grads, hz, rest = jax.jvp(gradient, (weights,), (vectors[0],), has_aux=True)
        products = [hz]
    else:
        # Unrolled, because of the same slowness inside loops.
        grads, derivative, rest = jax.linearize(gradient, weights, has_aux=True)
        products = [derivative(vector) for vector in vectors]
    drawn = [
        [z * h for z, h in zip(probe, hz, strict=True)]
        for probe, hz in zip(probes, products, strict=True)
    ]
    return grads, [jnp.stack(of_weight) for of_weight in zip(*drawn, strict=True)], rest


def _without_samples(gradient: Callable, inner: Any, weights: Any) -> Any:
    grads, rest = gradient(weights)
    zeros = [jnp.zeros((inner.num_samples, *g.shape), g.dtype) for g in grads]
    return grads, zeros, rest


def _values(optimizer: Any, values: Sequence[jax.Array]) -> Any:
    """Return a context in which the optimizer's variables have these values."""
    pairs = list(zip(optimizer.variables, values, strict=True))
    return keras.StatelessScope(state_mapping=pairs)


@contextmanager
def _caught(optimizer: Any) -> Iterator[list[Any]]:
    """Yield a list that gets the gradients instead of the optimizer, which changes nothing."""
    calls: list[Any] = []

    def stateless_apply(optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        calls.append(list(grads))
        return trainable_variables, optimizer_variables

    with _replaced(optimizer, stateless_apply):
        yield calls


@contextmanager
def _looked_at(model: Any) -> Iterator[None]:
    """Let Keras' own method have its loss looked at, which is then differentiated."""
    compute = model.compute_loss_and_updates

    def compute_loss_and_updates(trainable_variables: Any, *args: Any, **kwargs: Any) -> Any:
        def loss(weights: Any) -> Any:
            return compute(weights, *args, **kwargs)[0]

        try:
            check_second_derivatives(loss, trainable_variables, reverse=False)
        except ValueError as error:
            raise RuntimeError(f"{error}. {_OTHER_BACKENDS}") from error
        return compute(trainable_variables, *args, **kwargs)

    # Past the models of NNX, which refuse an assignment within a trace.
    attributes = vars(model)
    attributes["compute_loss_and_updates"] = compute_loss_and_updates
    try:
        yield
    finally:
        del attributes["compute_loss_and_updates"]


def _given(optimizer: Any, grads: Sequence[Any]) -> Any:
    """Return a context in which the optimizer takes its step with these gradients."""
    apply = optimizer.stateless_apply

    def stateless_apply(optimizer_variables: Any, _: Any, trainable_variables: Any) -> Any:
        return apply(optimizer_variables, grads, trainable_variables)

    return _replaced(optimizer, stateless_apply)


@contextmanager
def _replaced(optimizer: Any, stateless_apply: Callable) -> Iterator[None]:
    optimizer.stateless_apply = stateless_apply
    try:
        yield
    finally:
        del optimizer.stateless_apply
