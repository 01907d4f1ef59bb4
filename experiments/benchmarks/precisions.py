"""The numbers that a network can compute in, tensor cores emulated where there are none."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Precision:
    """In what numbers a network computes: its parameters', or autocast's."""

    name: str
    params: torch.dtype
    autocast: torch.dtype | None = None
    tf32: bool = False  # on a CPU emulated

    @property
    def key(self) -> torch.dtype | str:
        """Its name in `STEP_SIZES`."""
        return "tf32" if self.tf32 else self.autocast or self.params


class _Rounded(torch.autograd.Function):
    """Rounds to the 10 bits after the binary point that a tensor core reads; passes gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shifted = x * (2**13 + 1)  # Veltkamp: its lowest bits are beyond those to be kept
        return shifted - (shifted - x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _RoundedGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded: it is the input of the backward pass's products."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Rounded.apply(grad)


class EmulatedTF32(TorchFunctionMode):
    """Convolutions and matrix products as NVIDIA's tensor cores compute them in float32.

    Both factors are rounded to 10 bits, products are summed in float32: in the forward pass, the
    backward pass, and the derivative of the backward pass. So TF32 can be looked at without a GPU.
    """

    products = {torch.conv1d, torch.conv2d, torch.conv3d, F.linear, torch.matmul, Tensor.matmul}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.products:
            x, weight, *rest = args
            product = func(_Rounded.apply(x), _Rounded.apply(weight), *rest, **(kwargs or {}))
            return _RoundedGradient.apply(product)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def computing_in(precision: Precision, device: str) -> Iterator[None]:
    """Have a GPU read float32 as TF32 or not, in convolutions and matrix products alike.

    Without it torch does so in convolutions.
    """
    if device == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(allow_tf32=precision.tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


FLOAT64 = Precision("float64", torch.float64)
FLOAT32 = Precision("float32", torch.float32)
PRECISIONS = (
    FLOAT64,
    FLOAT32,
    Precision("TF32", torch.float32, tf32=True),
    Precision("bfloat16", torch.float32, torch.bfloat16),
)
