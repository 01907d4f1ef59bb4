"""Random numbers by purpose: functions of seed, epoch and position alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def draw_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed for one purpose; nothing drawn before or elsewhere can change it."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator seeded by `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(seed, epoch, purpose))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator, from which torchvision draws, and restore it afterwards.

    Only the CPU's: `torch.manual_seed` would touch the GPU's, which a forked process must not.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
