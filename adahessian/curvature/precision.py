"""In which precision a gradient is computed, and the step of the finite difference for it."""

from typing import Any

import torch

# The step h of the finite difference, by the precision in which the gradient is computed:
# truncation grows like h, rounding like 1/h. docs/curvature.md has the errors over a zoo of
# networks, and how they change with h.
STEP_SIZES: dict[torch.dtype | str, float] = {
    torch.float64: 1e-8,
    torch.float32: 4e-5,
    "tf32": 1e-3,
    torch.bfloat16: 3e-3,
    torch.float16: 3e-3,
}

# That of central differences, whose truncation grows like h².
CENTRAL_STEP_SIZES: dict[torch.dtype | str, float] = {
    torch.float64: 1e-6,
    torch.float32: 3e-4,
    "tf32": 1.5e-3,
    torch.bfloat16: 3e-3,
    torch.float16: 3e-3,
}


def coarsest(
    dtypes: set[torch.dtype | str], called: set[str], *, on_tensor_cores: bool
) -> torch.dtype | str:
    """Return the key of ``STEP_SIZES`` for a gradient.

    Args:
        dtypes: of what it is computed from.
        called: the torch functions that its loss called.
        on_tensor_cores: whether the device reads float32 as TF32 where torch lets it.
    """
    if on_tensor_cores and torch.float32 in dtypes and rounds_to_tf32(called):
        dtypes = dtypes | {"tf32"}
    return max(dtypes, key=STEP_SIZES.__getitem__)


def rounds_to_tf32(called: set[str]) -> bool:
    """Whether one of these torch functions reads float32 as TF32, as torch is set up on a GPU.

    That is the default for convolutions and recurrent layers, but not for matrix products.
    """
    backends: Any = torch.backends  # torch gives some of them their attributes at run time
    kinds = {
        backends.cudnn.conv: any(name.startswith("conv") for name in called),
        backends.cudnn.rnn: not called.isdisjoint({"lstm", "gru", "rnn_tanh", "rnn_relu"}),
        backends.cuda.matmul: True,
    }
    return any(used and kind.fp32_precision == "tf32" for kind, used in kinds.items())
