"""A program with numbers, as on one device that has all of them, and to an end."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_MOST_ROUNDS = 64  # of a loop that goes on by a value
# Of the devices' business alone; of one device the sum, the mean and the largest are its own.
_BETWEEN_DEVICES = frozenset(
    {"pvary", "pcast", "reshard", "sharding_constraint", "mesh_cast", "pmax", "pmin"}
    | {"psum", "psum_invariant", "all_gather_invariant"}
)
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})


def evaluate(program: core.ClosedJaxpr, *inputs: Any) -> list[Any]:
    """Return a program's outputs for arrays that lie on no mesh, whichever it was traced for."""
    return _evaluate(program.jaxpr, program.consts, inputs)


def _evaluate(program: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    known = dict(zip([*program.constvars, *program.invars], [*consts, *inputs], strict=True))

    def value(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else known[v]

    for eqn in program.eqns:
        outputs = _outputs(eqn, [value(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [value(v) for v in program.outvars]


def _outputs(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _BETWEEN_DEVICES:
        return inputs
    if name in _INLINED:
        (program,) = core.jaxprs_in_params(params)
        return _evaluate(program, getattr(params["jaxpr"], "consts", ()), inputs)
    if name == "cond":
        return jax.lax.switch(inputs[0], [_of(b) for b in params["branches"]], *inputs[1:])
    if name == "scan":
        return _scan(params, inputs)
    if name == "while":
        return _while(params, inputs)
    # What is laid out over devices is here laid out over none.
    params = {k: None if k.endswith("sharding") else v for k, v in params.items()}
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def _of(program: core.ClosedJaxpr) -> Any:
    return lambda *inputs: evaluate(program, *inputs)


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's inputs are constants, and how many are carried on."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # jax 0.12
    return len(list(consts)), len(list(carry))


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    before, carried = scan_counts(params)

    def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = evaluate(params["jaxpr"], *inputs[:before], *carry, *xs)
        return outputs[:carried], outputs[carried:]

    middle = before + carried
    carry, ys = jax.lax.scan(
        body, inputs[before:middle], inputs[middle:], params["length"], params["reverse"]
    )
    return [*carry, *ys]


def _while(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    """Return what a loop ends with, differentiable backward, too; NaN if it does not end soon."""
    of_cond = params["cond_nconsts"]
    of_body = of_cond + params["body_nconsts"]

    def goes_on(values: list[Any]) -> Any:
        return evaluate(params["cond_jaxpr"], *inputs[:of_cond], *values)[0]

    def body(values: list[Any], _: None) -> tuple[list[Any], None]:
        new = evaluate(params["body_jaxpr"], *inputs[of_cond:of_body], *values)
        more = goes_on(values)
        return [jax.lax.select(more, a, b) for a, b in zip(new, values, strict=True)], None

    values = jax.lax.scan(body, inputs[of_body:], length=_MOST_ROUNDS)[0]
    nothing = jnp.where(goes_on(values), jnp.nan, 0.0)
    return [v + nothing.astype(v.dtype) if _is_float(v) else v for v in values]


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)
