"""Where the library's tests compute: `pytest --device cuda tests/library`, else on the CPU."""

import torch


def device() -> str:
    return torch.get_default_device().type


def on_gpu() -> bool:
    return device() != "cpu"
