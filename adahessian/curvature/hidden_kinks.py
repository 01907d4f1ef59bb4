"""Looks for piecewise operations that run out of the gates' reach.

Private to :mod:`adahessian.curvature.replay`.
"""

import warnings

from adahessian import _torch
from adahessian.curvature.gates import Gates
from adahessian.curvature.kernels import UNFROZEN, hidden_piece

# Functions of torch whose pieces have no part in the gradient: they guard a division with a clamp,
# mask what has no number, or say only whether.
_HARMLESS = frozenset("cosine_similarity isclose allclose scaled_dot_product_attention".split())


class HiddenKinks(_torch.TorchDispatchMode):
    """Looks for piecewise operations that run where :class:`Gates` cannot intercept them.

    It sees every operation, which costs a few microseconds each, so it is used for a single
    evaluation of each optimizer.

    Attributes:
        found: there are some that :class:`Kernels` can freeze.
    """

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self._gates = gates
        self.found = False
        self._unfrozen: dict[str, str] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = _torch.kernel_name(func)
        inside = self._gates.inside
        with _torch.below_torch_functions():  # the gates have seen the call that led here
            out = func(*args, **kwargs)
            if inside == "a gate":
                return out
            given = _torch.kernel_arguments(func, args, kwargs)
            if not self.found:
                self.found = hidden_piece(name, given, out, inside in _HARMLESS)
            if name in UNFROZEN and UNFROZEN[name](given):
                self._unfrozen.setdefault(name, inside or "an extension")
        return out

    def warn(self) -> None:
        """Report what cannot be frozen."""
        for name, inside in self._unfrozen.items():
            warnings.warn(
                f"the finite difference cannot freeze {name} inside {inside}: where it changes its "
                "piece between the two evaluations, the curvature is wrong. Write it with "
                "functions of torch.nn.functional, or use curvature='double_backward'.",
                stacklevel=2,
            )
