"""Conformance vectors: recorded AdaHessian trajectories that any implementation can replay.

``vectors/*.json`` holds one case a file, made by a slow oracle in float64; other languages read
those alone. ``python -m adahessian.conformance module:factory`` runs an implementation in Python
through them. docs/conformance.md has the format, the probes' hash and an example of a factory.
"""

from adahessian.conformance.check import Outcome, check
from adahessian.conformance.recorded import cases

__all__ = ["Outcome", "cases", "check"]
