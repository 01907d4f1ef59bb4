"""Run ports of AdaHessian through the conformance vectors: `python -m adahessian.conformance`.

A port is `module:factory` (docs/conformance.md); without one, ours are checked. The exit code is 1
if a port fails a case. What it does not implement is no failure.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from adahessian.conformance.check import Factory, Outcome, check
from adahessian.conformance.recorded import cases

# What each of ours needs to be installed.
OURS = {
    "adahessian.conformance.torch_port:port": ("torch",),
    "adahessian.jax.conformance:port": ("jax", "optax"),
    "adahessian.keras.conformance:port": ("keras", os.environ.get("KERAS_BACKEND", "tensorflow")),
}


def load(name: str) -> Factory:
    """Return the factory that `module:factory` names.

    Raises:
        ValueError: there is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r} is not of the form module:factory")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error


def report(name: str, outcomes: Sequence[Outcome]) -> str:
    """Return a port's table as text, with a line that counts."""
    width = max(len(outcome.case) for outcome in outcomes)
    lines = [f"{o.case:{width}}  {o.verdict:15}  {o.remark}".rstrip() for o in outcomes]
    counts = [
        f"{sum(o.verdict == verdict for o in outcomes)} {verdict}"
        for verdict in ("passes", "fails", "error", "not implemented")
        if any(o.verdict == verdict for o in outcomes)
    ]
    return "\n".join([name, *lines, f"{len(outcomes)} cases: {', '.join(counts)}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m adahessian.conformance", description=__doc__)
    parser.add_argument("ports", nargs="*", metavar="module:factory")
    parser.add_argument("--cases", default="*", metavar="PATTERN", help="only those of this name")
    parser.add_argument("--rtol", type=float, help="instead of the cases' own, as below float64")
    parser.add_argument("--atol", type=float, help="likewise")
    parsed = parser.parse_args(arguments)
    installed = [
        name for name, needed in OURS.items() if all(find_spec(package) for package in needed)
    ]
    failed = False
    try:
        chosen, names = cases(parsed.cases), parsed.ports or installed
        if not names:
            raise ValueError("none of ours can run here: install torch, jax and optax, or Keras")
        for name in names:
            factory = load(name)
            outcomes = [check(factory, c, rtol=parsed.rtol, atol=parsed.atol) for c in chosen]
            print(report(name, outcomes), end="\n\n")
            failed |= any(outcome.is_bad for outcome in outcomes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
