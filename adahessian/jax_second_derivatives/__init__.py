"""What JAX differentiates once, and takes for constant in the derivative of that, without a word.

The rule of a ``jax.custom_vjp`` gives a function's gradient. H·z needs the derivative of its output
as well, and JAX takes that from the code of the forward rule: of a straight-through rounding, or of
a spike with a surrogate gradient, it is zero. So it is where the rule of a ``jax.custom_jvp``
computes the output by itself, and in loops whatever it does: there JAX forgets the rule once it has
the gradient. torch takes the given gradient for both.

For :mod:`adahessian.jax` and for Keras on JAX, which has no optax.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Of floats to floats: integers and truth values are no floats anyway.
_PIECEWISE_CONSTANT = frozenset({"round", "floor", "ceil", "sign", "stop_gradient"})
# Beside a part that varies, as where a layer quantizes its input by its maximum: x - x % s, too.
_ROUNDING = frozenset({"round", "floor", "ceil", "sign", "rem"})
_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})
_TO_BE_LOOKED_AT = _CUSTOM | _ROUNDING | {"random_gamma"}

_LOST = (
    "a function ({places}) has a gradient by a rule of its own (custom_vjp, custom_jvp, "
    "custom_gradient) and rounds, or is constant otherwise, so that JAX has no derivative of its "
    "output: curvature would be missing without a word. Write it without a rule: "
    "s + jax.lax.stop_gradient(f(x) - s), with an s of the same gradient (x itself where that is "
    "passed through); where the rule is the derivative, let JAX take it"
)
_GAMMA = (
    "JAX's second derivative of random.gamma (within beta, dirichlet and t, too) by its parameters "
    "is off by tens of per cent: hold them constant (jax.lax.stop_gradient), or take another "
    "distribution"
)


def check_second_derivatives(function: Callable[..., Any], *args: Any, reverse: bool) -> None:
    """Refuse a function whose gradient JAX differentiates wrongly; it is traced once for that.

    Args:
        function: of the arguments to differentiate.
        args: pytrees of floating-point arrays.
        reverse: whether the gradient is to be differentiated in reverse.

    Raises:
        ValueError: there is such a part.
    """
    try:
        program = jax.make_jaxpr(function)(*args).jaxpr
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        return  # Python decides by values, as it may outside of jit: there is no one program
    _varying(program, [True] * len(program.invars), partial(_check, reverse))


def _varying(
    program: Any, inputs: Sequence[bool], look: Any = None, in_loop: bool = False
) -> list[bool]:
    """Return which outputs of a program vary with those inputs.

    ``look`` gets each operation that may need it, each of its inputs that varies, and whether it is
    in a loop.
    """
    moving = {v for v, does in zip(program.invars, inputs, strict=True) if does}
    for eqn in program.eqns:
        varies = [_is_in(v, moving) for v in eqn.invars]
        if any(varies):
            outputs = _varying_outputs(eqn, varies, look, in_loop)
            pairs = zip(eqn.outvars, outputs, strict=True)
            moving |= {v for v, does in pairs if does and _is_float(v)}
    return [_is_in(v, moving) for v in program.outvars]


def _varying_outputs(eqn: Any, inputs: list[bool], look: Any, in_loop: bool) -> list[bool]:
    name, everything = eqn.primitive.name, [True] * len(eqn.outvars)
    if look and name in _TO_BE_LOOKED_AT:
        for v in {v for v, does in zip(eqn.invars, inputs, strict=True) if does}:
            look(eqn, v, in_loop)
    if name in _PIECEWISE_CONSTANT:
        return [False] * len(eqn.outvars)
    if name in _CUSTOM:
        return everything
    programs = list(core.jaxprs_in_params(eqn.params))
    in_loop = in_loop or name in ("scan", "while")
    carries = name == "while" or bool(eqn.params.get("num_carry"))
    if carries:  # what comes out goes in again
        inputs = [True] * len(inputs)
    outputs = [carries or not programs] * len(eqn.outvars)
    for program in programs:
        # Before those of the program stand what the operation keeps to itself, as a condition.
        before = len(inputs) - len(program.invars)
        found = _varying(program, inputs[before:], look, in_loop) if before >= 0 else everything
        if len(found) == len(outputs):
            outputs = [a or b for a, b in zip(outputs, found, strict=True)]
    return outputs


def _check(reverse: bool, eqn: Any, v: Any, in_loop: bool) -> None:
    """Raise ValueError if ``v`` has a gradient here that JAX differentiates wrongly."""
    name = eqn.primitive.name
    if name == "random_gamma":
        raise ValueError(_GAMMA)
    if name not in _CUSTOM:
        return
    (program,) = core.jaxprs_in_params(eqn.params)
    varies, rounds = _rounds(program, [u is v for u in eqn.invars])
    # Most functions vary by their code: a look at their derivatives would be for nothing.
    if varies and not rounds:
        return
    has_gradient, has_derivative = _derivatives(eqn, v, reverse, in_loop)
    if has_gradient and not has_derivative:
        raise ValueError(_LOST.format(places=_places(eqn, program)))


def _rounds(program: Any, inputs: Sequence[bool]) -> tuple[bool, bool]:
    """Return whether a program varies with those inputs, and whether its own code rounds them."""
    found: list[str] = []
    outputs = _varying(program, inputs, lambda eqn, *_: found.append(eqn.primitive.name))
    return any(outputs), not _ROUNDING.isdisjoint(found)


def _derivatives(eqn: Any, v: Any, reverse: bool, in_loop: bool) -> tuple[bool, bool]:
    """Return whether a function has a gradient by ``v``, and its output then all its derivative."""
    invars = list(dict.fromkeys(u for u in eqn.invars if not isinstance(u, core.Literal)))
    outvars = [o for o in eqn.outvars if _is_float(o)]
    info = core.DebugInfo("custom rule", "a function with a rule of its own", None, None)
    alone = core.Jaxpr((), invars, outvars, [eqn], debug_info=info)
    call = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
    if in_loop:
        call = partial(_in_loop, call)
    place = invars.index(v)
    args, upstream = [u.aval for u in invars], [o.aval for o in outvars]

    def of_input(args: list[Any]) -> tuple[Any, Callable]:
        return jax.vjp(lambda x: call(*args[:place], x, *args[place + 1 :]), args[place])

    def gradient(args: list[Any], upstream: list[Any]) -> Any:
        return of_input(args)[1](upstream)

    def output(args: list[Any]) -> Any:
        return of_input(args)[0]

    def derivative(args: list[Any], upstream: list[Any], direction: Any) -> Any:
        def output_of(x: Any) -> Any:
            return output([*args[:place], x, *args[place + 1 :]])

        if reverse:
            return jax.vjp(output_of, args[place])[1](upstream)
        return jax.jvp(output_of, (args[place],), (direction,))[1]

    fixed, given = [False] * len(args), [True] * len(upstream)
    by_upstream = jax.make_jaxpr(gradient)(args, upstream).jaxpr
    if not any(_varying(by_upstream, [*fixed, *given])):
        return False, False
    # What JAX differentiates for the output: a function that calls itself still has its rule there.
    only = [place == i for i in range(len(args))]
    if _rounds(jax.make_jaxpr(output)(args).jaxpr, only)[1]:
        return True, False
    program = jax.make_jaxpr(derivative)(args, upstream, v.aval).jaxpr
    return True, any(_varying(program, [*fixed, *(reverse for _ in given), not reverse]))


def _places(eqn: Any, program: Any) -> str:
    """Return where a function was called: the innermost lines outside of JAX and of us."""
    inside = str(Path(jax.__file__).parent), str(Path(__file__).parents[1])
    frames = [
        f"{frame.file_name}:{frame.line_num}"
        for frame in eqn.source_info.traceback.frames
        if not frame.file_name.startswith(inside)
    ]
    # JAX itself calls what is nothing but a rule within jit.
    return f"called at {', from '.join(frames[:3])}" if frames else program.debug_info.func_src_info


def _in_loop(call: Callable[..., Any], *args: Any) -> Any:
    _, outputs = jax.lax.scan(lambda _, xs: (None, call(*xs)), None, [x[None] for x in args])
    return [o[0] for o in outputs]


def _is_in(v: Any, moving: set[Any]) -> bool:
    return not isinstance(v, core.Literal) and v in moving


def _is_float(v: Any) -> bool:
    return hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.inexact)
