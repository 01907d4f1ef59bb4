"""The optax transformation as a port for :mod:`adahessian.conformance`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adahessian.conformance.check import Step
from adahessian.conformance.layouts import declared_axes
from adahessian.conformance.problems import is_of_another_rule, loss, num_batches
from adahessian.jax.functional import value_grad_and_hessian
from adahessian.jax.transform import ScaleByAdaHessianState, adahessian, needs_hessian


def port(case: dict[str, Any]) -> Step:
    """Return ours: gradients and H·z by JAX, at its own parameters and along its own probes."""
    if is_of_another_rule(case):
        raise NotImplementedError("other rules than AdaHessian's")
    options, optimizer = case["options"], _optimizer(case)

    def part(params: list[jax.Array], batch: int) -> jax.Array:
        return loss(case, params, batch, jnp, dtype=jnp.float64)

    @functools.partial(jax.jit, static_argnames="refresh")
    def advance(params: Any, opt_state: Any, number: Any, refresh: bool) -> tuple[Any, Any]:
        parts = [
            value_grad_and_hessian(
                functools.partial(part, batch=batch),
                (params,),
                options["seed"],
                step=number,
                num_samples=options["num_samples"],
                keep_samples=True,
                refresh=refresh,
            )
            for batch in range(num_batches(case["problem"]))
        ]
        _, grads, hessian = jax.tree.map(lambda *arrays: sum(arrays), *parts)
        updates, opt_state = optimizer.update(grads, opt_state, params, hessian=hessian)
        return optax.apply_updates(params, updates), opt_state

    with jax.enable_x64(True):
        params = [jnp.asarray(param["value"], jnp.float64) for param in case["params"]]
        opt_state, number = optimizer.init(params), 0

    def step(given: dict[str, Any]) -> dict[str, Any]:
        nonlocal params, opt_state, number
        with jax.enable_x64(True):
            refresh = bool(needs_hessian(opt_state))
            params, opt_state = advance(params, opt_state, number, refresh)
        number += 1
        return {"params": params, **_averages(opt_state)}

    return step


def _optimizer(case: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
    options, params = case["options"], case["params"]

    def of(options: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        block_size, (b1, b2) = options["block_size"], options["betas"]
        return adahessian(
            options["lr"],
            b1,
            b2,
            options["eps"],
            options["weight_decay"],
            options["hessian_power"],
            block_size=block_size,
            block_axes=[declared_axes(param["axes"], block_size) for param in params],
            averaging=options["averaging"],
            update_interval=options["update_interval"],
            update_clip=options.get("update_clip"),
        )

    optimizer = of(options)
    if any(param["options"] for param in params):
        each: dict[Any, Any] = {
            i: of({**options, **param["options"]}) for i, param in enumerate(params)
        }
        optimizer = optax.partition(each, list(each))
    before = [optax.scale(-1.0)] if options["maximize"] else []
    if options["max_grad_norm"] is not None:
        before.append(optax.clip_by_global_norm(options["max_grad_norm"]))
    return optax.chain(*before, optimizer)


def _averages(opt_state: Any) -> dict[str, Any]:
    """Return each parameter's averages, from the one optimizer that has it."""

    def found(node: Any) -> bool:
        return isinstance(node, ScaleByAdaHessianState)

    states = [node for node in jax.tree.leaves(opt_state, is_leaf=found) if found(node)]
    averages = {}
    for name in ("exp_avg", "exp_hessian_diag_sq"):
        # A parameter of another one is a masked node there, which has no leaves.
        columns = zip(*(getattr(state, name) for state in states), strict=True)
        averages[name] = [jax.tree.leaves(column)[0] for column in columns]
    return averages
