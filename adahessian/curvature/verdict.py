"""What a check of the finite difference has found, in words (:mod:`adahessian.curvature.check`)."""

import math
import warnings
from collections.abc import Mapping

from torch import Tensor

from adahessian.curvature.check import AccuracyCheck


class CurvatureWarning(UserWarning):
    """The curvature of a tensor is wrong, or can be.

    ``warnings.simplefilter("error", adahessian.CurvatureWarning)`` makes it an error, which leaves
    parameters and state unchanged.
    """


class Verdict:
    """What a check has found, on its way to the host; to be told when it has arrived.

    Args:
        accuracy: the check.
        names: of the parameters.

    Attributes:
        accuracy: the check, where the host can read it.
    """

    def __init__(self, accuracy: AccuracyCheck, names: Mapping[Tensor, str]) -> None:
        self._names = names
        self.accuracy, self._arrival = accuracy.sent()

    def tell(self) -> bool:
        """Warn of what is wrong; return whether a product is, so that another h may help."""
        if self._arrival is not None:
            self._arrival.synchronize()
        found = self.accuracy
        if found.doubt is not None and found.doubt:
            _warn(
                "the second evaluation of the closure is not the first one's computation: its loss "
                "is too far from the first. This refresh of the curvature is left out. "
                f"{_REPEATABLE}"
            )
        if found.failed is None or found.zeros is None or found.slope is None:
            return found.doubt is not None and bool(found.doubt)
        noise = [] if found.noise is None else found.noise.tolist()
        # What is not finite is named for what it is.
        noisy = [i for i, part in enumerate(noise) if _MOST_NOISE < part < math.inf]
        if noisy:
            names = _list([self._names[found.params[i]] for i in noisy])
            _warn(
                "evaluated twice at the same parameters the closure has gradients that differ, for "
                f"{names} by up to {max(noise[i] for i in noisy):.0%} of H·z, which is so far off: "
                "it changes something outside of the model's modules (a running average, a queue), "
                "has a generator of its own, or torch's kernels are not deterministic here. "
                f"{_REPEATABLE}"
            )
        likely = f" Likely: {found.cause}." if found.cause else ""
        failed = found.failed.nonzero().flatten().tolist()
        if failed:
            assert found.disagreements is not None
            names = _list([self._names[found.params[i]] for i in failed])
            _warn(
                f"the finite difference is wrong for {names}: over two steps H·z differs by "
                f"{float(found.disagreements.max()):.0%}. The gradient jumps, at a kink or a step "
                f"that is not frozen, or no step size suits the model.{likely} {_WAYS_OUT}"
            )
        elif float(found.slope) > found.slope_tolerance:
            _warn(
                f"along the probe {float(found.slope):.0%} of the loss's change is not what its "
                "gradient says, so that H·z may be wrong: a straight-through estimator or another "
                "function whose derivative is not its own, or a value that autograd takes as "
                f"constant and that moves with the parameters.{likely} {_WAYS_OUT}"
            )
        zeros = zip(found.params, found.zeros.tolist(), strict=True)
        by_hand = [self._names[p] for p, is_zero in zeros if is_zero and p in found.unseen]
        if by_hand:
            _warn(
                f"H·z is exactly zero for {_list(by_hand)}, whose gradient is not: no backward "
                "pass has brought it. Was it computed by hand, of detached values? The finite "
                f"difference takes these as constants. {_WAYS_OUT}"
            )
        return bool(failed)


_MOST_NOISE = 0.05  # of a product: evaluations that follow are further off
_REPEATABLE = (
    "curvature='finite_difference' needs a closure that computes the same function of the "
    "parameters each time, its noise from the global generators."
)
_WAYS_OUT = (
    "Use curvature='double_backward', or optimizer.curvature_error(closure) to see how far it is; "
    "check_interval=0 says no more of it."
)


def _list(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} others)" if len(names) > 1 else "")


def _warn(message: str) -> None:
    warnings.warn(message, CurvatureWarning, stacklevel=2)
