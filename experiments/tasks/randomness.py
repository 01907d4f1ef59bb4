"""Random numbers by purpose: functions of seed, epoch and position alone."""

import hashlib

import torch


def draw_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed for one purpose; nothing drawn before or elsewhere can change it."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator seeded by `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(seed, epoch, purpose))
