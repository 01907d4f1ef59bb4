"""Random numbers by what they are for: functions of seed, epoch and position."""

import hashlib

import torch


def draw_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed of its own for each use: nothing drawn before, or elsewhere, can shift it."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator with `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(seed, epoch, purpose))
