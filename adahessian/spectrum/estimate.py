"""A value with its standard error."""

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A random estimate (floats, or tensors for a diagonal) and its standard error."""

    value: float | Tensor
    standard_error: float | Tensor
    num_matvecs: int
