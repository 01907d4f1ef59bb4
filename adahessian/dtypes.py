"""The types of numbers that a device has."""

import functools

import torch


@functools.cache
def widest(device: torch.device) -> torch.dtype:
    """Return the type to sum in on a device: float64, or float32 where it has none (Apple's)."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64
