"""Checkpoints that survive a kill at any moment and a damaged file.

A checkpoint is written beside the current one, forced to disk, and moved into place by rename;
the one before it stays as `checkpoint.prev.pt`.
"""

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"


def save(directory: Path, state: dict[str, Any]) -> None:
    """Make `state` the checkpoint of `directory`; tensors and plain Python values only."""
    temporary = directory / "checkpoint.tmp.pt"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    # A kill between the two renames leaves only the previous one, which `load` then takes.
    if (directory / CURRENT).exists():
        os.replace(directory / CURRENT, directory / PREVIOUS)
    os.replace(temporary, directory / CURRENT)
    sync_directory(directory)


def load(directory: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None where there is none.

    A damaged file is passed over with a warning. With none left the run starts from the
    beginning, which gives the same result, later.
    """
    for name in (CURRENT, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        try:
            # torch reads past a flipped bit; the archive's own checksums do not.
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"wrong checksum of {damaged}")
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damage has no type: it can surface anywhere in the reader
            warnings.warn(
                f"{path} is damaged ({error}); going back to what was saved before it",
                stacklevel=2,
            )
    return None


def random_state() -> dict[str, Any]:
    """The states of torch's generators; the harness draws from no others."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo every draw since `random_state`; GPU states where there are as many GPUs as then."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def sync_directory(directory: Path) -> None:
    """Force the names in a directory to disk, so that renames outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
