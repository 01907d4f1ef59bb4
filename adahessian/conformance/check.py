"""Runs a port through the cases and says where it fails, and by how much."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Step = Callable[[dict[str, Any]], dict[str, Any]]
Factory = Callable[[dict[str, Any]], Step]

# In the order in which a step makes them; a case expects one of the averages of the curvature.
QUANTITIES = (
    "exp_avg",
    "exp_hessian_diag_sq",
    "exp_hessian_diag_abs",
    "exp_hessian_diag",
    "params",
)


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        case: its name.
        verdict: "passes", "fails", "not implemented" (the factory raised NotImplementedError) or
            "error" (the port raised something else, or returned something else than arrays).
        remark: where it fails and by how much, or the message; empty where it passes.
    """

    case: str
    verdict: str
    remark: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the port is wrong, as opposed to right or without what the case asks for."""
        return self.verdict in ("fails", "error")


def check(
    factory: Factory, case: dict[str, Any], *, rtol: float | None = None, atol: float | None = None
) -> Outcome:
    """Run one case.

    Args:
        factory: takes the case without its expectations, as its file holds it (arrays are nested
            lists), and returns ``step``. ``step(given)`` takes a step's "probes" and "batches"
            and returns a dict with "params" after the step, and if it likes the averages that the
            case expects: one array for each parameter, nested lists or whatever has
            ``tolist()``. What the port does not have raises NotImplementedError.
        case: one of :func:`cases`.
        rtol, atol: instead of the case's own, for what computes in less than float64. An element
            may be off by atol + rtol · |expected|.
    """
    limits = (
        case["tolerance"]["rtol"] if rtol is None else rtol,
        case["tolerance"]["atol"] if atol is None else atol,
    )
    shown = {key: value for key, value in case.items() if key not in ("steps", "tolerance")}
    number = 0
    try:
        step = factory(shown)
        for number, record in enumerate(case["steps"], 1):
            given = {key: value for key, value in record.items() if key != "expected"}
            found = step(given)
            remark = _first_difference(found, record["expected"], case["params"], limits)
            if remark:
                return Outcome(case["name"], "fails", f"step {number}, {remark}")
    except NotImplementedError as reason:
        return Outcome(case["name"], "not implemented", str(reason))
    except Exception as error:  # whatever a stranger's code may raise is a line of the table
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(case["name"], "error", f"step {number}, {message}")
    return Outcome(case["name"], "passes")


def _first_difference(
    found: dict[str, Any],
    expected: dict[str, Any],
    params: list[dict[str, Any]],
    limits: tuple[float, float],
) -> str:
    if not isinstance(found, dict) or "params" not in found:
        raise TypeError('step must return a dict with "params"')
    quantities = [quantity for quantity in QUANTITIES if quantity in expected]
    if unknown := sorted(found.keys() - set(quantities)):
        raise TypeError(f"step returned {unknown[0]!r}, which is none of {', '.join(quantities)}")
    for quantity in quantities:
        if quantity not in found:
            continue
        arrays = list(found[quantity])
        if len(arrays) != len(params):
            raise TypeError(f"{len(arrays)} arrays in {quantity!r} for {len(params)} parameters")
        for param, array, right in zip(params, arrays, expected[quantity], strict=True):
            if size := _difference(_as_lists(array), right, limits):
                return f"{quantity} of {param['name']}: {size}"
    return ""


def _as_lists(array: Any) -> Any:
    return array.tolist() if hasattr(array, "tolist") else array


def _difference(found: Any, expected: Any, limits: tuple[float, float]) -> str:
    """Return by how much two arrays differ; empty where they do not."""
    if _shape(found) != _shape(expected):
        return f"shape {_shape(found)} instead of {_shape(expected)}"
    rtol, atol = limits
    worst, pair = 0.0, None
    for a, b in zip(_elements(found), _elements(expected), strict=True):
        excess = abs(a - b) / (atol + rtol * abs(b))
        excess = excess if math.isfinite(excess) else math.inf
        if excess > max(worst, 1.0):
            worst, pair = excess, (a, b)
    return f"{pair[0]:.6g} instead of {pair[1]:.6g}" if pair else ""


def _shape(array: Any) -> tuple[int, ...]:
    if not isinstance(array, list | tuple):
        return ()
    inner = {_shape(part) for part in array}
    if len(inner) > 1:
        raise TypeError("an array's rows differ in length")
    return (len(array), *(inner.pop() if inner else ()))


def _elements(array: Any) -> Iterator[float]:
    if isinstance(array, list | tuple):
        for part in array:
            yield from _elements(part)
    else:
        yield float(array)
