"""Whether a gradient by a rule and the derivative of the output differ, tried with numbers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from adahessian.jax_second_derivatives.evaluation import evaluate

# Not to be run with numbers that are made up: kernels may read outside of their arrays.
_NOT_RUN = frozenset({"pallas_call", "ffi_call", "pure_callback", "io_callback"})
_LARGEST = 2**28  # elements of a function that is run
_REACH = 8  # the numbers end here: beyond what is clipped at 1 or 6
_PARTS = 8  # of a line along which the derivative is added up
_SEEN: dict[str, list[bool]] = {}  # by their program, what was found of functions


def loses(by_rule: Any, by_code: Any, place: int, num_args: int, complete: bool) -> bool | None:
    """Return whether an output's derivative lacks what the gradient has; None if it cannot be run.

    It does where it is zero and the gradient is not. Where it is another one, it does unless it is
    the output's own (``complete`` says that it is): along a line it adds up to the output's change.

    Args:
        by_rule: the gradient, a program of the arguments and of what its outputs have as gradients.
        by_code: the output, a program of the arguments.
        place: of the argument by which is differentiated.
        num_args: how many arguments there are.
        complete: whether nothing in ``by_code`` is constant where its value jumps.
    """
    trial = _Trial(by_rule, by_code, place, num_args)
    if sum(aval.size for aval in by_rule.in_avals) > _LARGEST:
        return None
    # A thread of its own: on no mesh, and in no function that is being traced.
    with ThreadPoolExecutor(1) as thread:
        found = partial(thread.submit, _found, jnp.result_type(float) == jnp.float64)
        compared = found(trial.compared).result()
        if compared is None or compared[0] or complete or not compared[1]:
            return compared and compared[0]
        jumps = found(trial.jumps).result()
        return jumps and jumps[0]


def _found(x64: bool, question: Callable[[Any], list[jax.Array]]) -> list[bool] | None:
    try:
        with jax.enable_x64(x64), jax.debug_nans(False), jax.debug_infs(False):
            program = jax.make_jaxpr(question)(0.0)
            text = str(program)
            if text not in _SEEN and _NOT_RUN.isdisjoint(_names(program.jaxpr)):
                answers = jax.jit(core.jaxpr_as_fun(program))(0.0)
                _SEEN[text] = [bool(answer) for answer in jax.device_get(answers)]
            return _SEEN.get(text)
    except Exception:  # code of others: what some devices lack
        return None


class _Trial(NamedTuple):
    """A function's gradient and output at points of one argument; the other arguments stay.

    ``zero`` is known when the program runs: what is known before would be computed for each use.
    """

    by_rule: Any
    by_code: Any
    place: int
    num_args: int

    def drawn(self, zero: Any) -> tuple[list[Any], list[Any]]:
        """Return arguments, and gradients of the outputs."""
        drawn = [_made_up(i + zero, aval) for i, aval in enumerate(self.by_rule.in_avals, 1)]
        return drawn[: self.num_args], drawn[self.num_args :]

    def points(self, zero: Any) -> jax.Array:
        """Return what the argument is in turn: small and large, of all signs and positive."""
        aval, last = self.by_rule.in_avals[self.place], len(self.by_rule.in_avals)
        x, *waves = (_made_up(i + zero, aval) for i in (self.place + 1, last + 1, last + 2))
        a, b = (_REACH * (0.8 * jnp.sign(wave) + 0.2 * wave) for wave in waves)
        return jnp.stack([a, x, b, jnp.abs(x), jnp.abs(b)]).astype(aval.dtype)

    def compared(self, zero: Any) -> list[jax.Array]:
        """Return whether the output's derivative is zero where the gradient is not; is another."""
        args, upstream = self.drawn(zero)

        def at(x: Any) -> tuple[Any, Any]:
            (g,) = evaluate(self.by_rule, *self._with(args, x), *upstream)
            d = self._back(args, x, upstream)
            return _beyond(g, d, g).any(where=d == 0), _beyond(g, d, abs(g) + abs(d)).any()

        return [found.any() for found in jax.lax.map(at, self.points(zero))]

    def jumps(self, zero: Any) -> list[jax.Array]:
        """Return whether the output's changes are other than its derivative adds up to."""
        args, upstream = self.drawn(zero)

        def along(line: tuple[Any, Any]) -> jax.Array:
            start, end = line

            def at(t: Any) -> list[Any]:  # by two steps backward: there may be no way forward
                back = partial(self._back, args, start + t * (end - start))
                return jax.vjp(back, upstream)[1](end - start)[0]

            slopes = jax.lax.map(at, ((jnp.arange(_PARTS) + 0.5) / _PARTS).astype(start.dtype))
            outputs = zip(self._output(args, start), self._output(args, end), slopes, strict=True)
            found = [_beyond(b - a, c.mean(0), b - a, 0.1).any() for a, b, c in outputs]
            return jnp.stack(found).any()

        points = self.points(zero)
        return [jax.lax.map(along, (points[:-1], points[1:])).any()]

    def _with(self, args: list[Any], x: Any) -> list[Any]:
        return [*args[: self.place], x, *args[self.place + 1 :]]

    def _output(self, args: list[Any], x: Any) -> list[Any]:
        return evaluate(self.by_code, *self._with(args, x))

    def _back(self, args: list[Any], x: Any, upstream: list[Any]) -> Any:
        return jax.vjp(partial(self._output, args), x)[1](upstream)[0]


def _beyond(a: Any, b: Any, size: Any, tolerance: float | None = None) -> jax.Array:
    """Return where two arrays differ, compared with the largest ``size``.

    Where one of them is no number, they do not.
    """
    size = jnp.abs(size)
    largest = jnp.max(size, initial=0, where=jnp.isfinite(size))
    allowed = float(jnp.finfo(a.dtype).eps) ** 0.25 if tolerance is None else tolerance
    return jnp.abs(a - b) > allowed * largest


def _made_up(number: Any, aval: Any) -> jax.Array:
    """Return an array of this kind: numbers between -1 and 1, either truth value, or ones."""
    if jnp.issubdtype(aval.dtype, jnp.inexact) or aval.dtype == bool:
        waves = jnp.sin(number * jnp.arange(1.0, 1.0 + aval.size)).reshape(aval.shape)
        return waves > 0 if aval.dtype == bool else waves.astype(aval.dtype)
    is_number = jnp.issubdtype(aval.dtype, jnp.number)
    return jax.lax.full(aval.shape, int(is_number), aval.dtype)  # the others: keys of jax.random


def _names(program: Any) -> Iterator[str]:
    """Yield the names of all operations of a program."""
    for eqn in program.eqns:
        yield eqn.primitive.name
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _names(inner)
