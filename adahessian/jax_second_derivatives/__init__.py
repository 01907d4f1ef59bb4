"""What JAX differentiates once, and takes for constant in the derivative of that, without a word.

The rule of a ``jax.custom_vjp`` gives a function's gradient. H·z needs the derivative of its output
as well, and JAX takes that from the code of the forward rule: of a straight-through rounding, or of
a spike with a surrogate gradient, it is zero. So it is where the rule of a ``jax.custom_jvp``
computes the output by itself, and in loops whatever it does: there JAX (0.10, not 0.12) forgets the
rule once it has the gradient. torch takes the given gradient for both.

Which operations cut the derivative off the program tells; whether that matters (of
``sign(x) * log1p(abs(x))`` it does not) only numbers do: the function alone is run with some. A
gradient without a derivative of the output at the same place is lost (a clip that passes all
gradients). Another gradient than the code's is, where that is not the output's own: along a line
it does not add up to the output's change. Reversed and clipped gradients are nobody's derivative,
but nothing of their output is lost.

For :mod:`adahessian.jax` and for Keras on JAX, which has no optax.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from adahessian.jax_second_derivatives.evaluation import scan_counts
from adahessian.jax_second_derivatives.trial import loses

# Of floats to floats: integers and truth values are no floats anyway.
_PIECEWISE_CONSTANT = frozenset({"round", "floor", "ceil", "sign", "stop_gradient"})
_ROUNDING = frozenset({"round", "floor", "ceil", "sign", "rem"})  # x - x % s, too
_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})
_CLIPPING = frozenset({"max", "min", "clamp"})

_LOST = (
    "a function ({places}) has a gradient by a rule of its own (custom_vjp, custom_jvp, "
    "custom_gradient) that is not the derivative of its code, which rounds, compares or is "
    "constant otherwise: JAX has no derivative of its output, or a part, and curvature would be "
    "missing without a word. Write it without a rule: s + jax.lax.stop_gradient(f(x) - s), with an "
    "s of the same gradient (x itself where that is passed through); where the rule is the "
    "derivative, let JAX take it"
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

    ``look`` gets each operation, each of its inputs that varies, and whether it is in a loop.
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
    if look:
        for v in {v for v, does in zip(eqn.invars, inputs, strict=True) if does}:
            look(eqn, v, in_loop)
    if name in _PIECEWISE_CONSTANT:
        return [False] * len(eqn.outvars)
    if name in _CUSTOM:
        return everything
    programs = list(core.jaxprs_in_params(eqn.params))
    in_loop = in_loop or name in ("scan", "while")
    carries = name == "while" or (name == "scan" and scan_counts(eqn.params)[1] > 0)
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
    varies, cuts = _cuts(program, [u is v for u in eqn.invars])
    # Most functions vary by all of their code: a look at their derivatives would be for nothing.
    if (cuts or not varies) and _is_lost(eqn, v, reverse, in_loop):
        raise ValueError(_LOST.format(places=_places(eqn, program)))


def _cuts(program: Any, inputs: Sequence[bool]) -> tuple[bool, set[str]]:
    """Return whether a program varies with those inputs, and which operations of its own cut them.

    They round, compare, or take a place (argmax), perhaps beside a part that varies.
    """
    found: set[str] = set()

    def look(eqn: Any, *_: Any) -> None:
        name, one_operation = eqn.primitive.name, not list(core.jaxprs_in_params(eqn.params))
        to_other_kind = one_operation and not all(map(_is_float, eqn.outvars))
        if to_other_kind or name in _PIECEWISE_CONSTANT | _ROUNDING | _CLIPPING:
            found.add(name)

    outputs = _varying(program, inputs, look)
    return any(outputs), found


def _is_lost(eqn: Any, v: Any, reverse: bool, in_loop: bool) -> bool:
    """Return whether a function has a gradient by ``v``, and its output not all its derivative."""
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
        return of_input(args)[1](upstream)[0]

    def output(args: list[Any]) -> Any:
        return of_input(args)[0]

    def output_of(args: list[Any]) -> Callable:
        return lambda x: output([*args[:place], x, *args[place + 1 :]])

    def of_output(args: list[Any], upstream: list[Any]) -> Any:
        return jax.vjp(output_of(args), args[place])[1](upstream)[0]

    def along(args: list[Any], direction: Any) -> Any:
        return jax.jvp(output_of(args), (args[place],), (direction,))[1]

    def varies(function: Callable, given: Any) -> bool:
        program = jax.make_jaxpr(function)(args, given).jaxpr
        return any(_varying(program, [i >= len(args) for i, _ in enumerate(program.invars)]))

    if not varies(gradient, upstream):
        return False
    if not (varies(of_output, upstream) if reverse else varies(along, v.aval)):
        return True
    # What JAX differentiates for the output: a function that calls itself still has its rule there.
    by_code = jax.make_jaxpr(output)(args)
    cuts = _cuts(by_code.jaxpr, [place == i for i in range(len(args))])[1]
    if not cuts:
        return False
    by_rule = jax.make_jaxpr(gradient)(args, upstream)
    lost = loses(by_rule, by_code, place, len(args), complete=cuts <= _CLIPPING)
    return not _ROUNDING.isdisjoint(cuts) if lost is None else lost


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
