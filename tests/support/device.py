"""Where the library's tests compute: `pytest --device cuda tests/library`, else on the CPU."""

import torch


def device() -> str:
    return torch.get_default_device().type


def on_gpu() -> bool:
    return device() != "cpu"


def random_state() -> torch.Tensor:
    """That of the generator there."""
    return torch.cuda.get_rng_state() if on_gpu() else torch.get_rng_state()


def set_random_state(state: torch.Tensor) -> None:
    torch.cuda.set_rng_state(state) if on_gpu() else torch.set_rng_state(state)
