"""Checkpoints that survive a kill at any moment and a damaged file.

A checkpoint is written beside the current one, forced to disk, and moved into place by rename;
the one before it stays as `checkpoint.prev.pt`.
"""

import os
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments.errors import UserError

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
DAMAGED = "checkpoint.damaged.pt"


class StorageError(UserError):
    """A file that cannot be written or read: the disk is full, read-only, or away."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that cannot be written.

    Raises:
        StorageError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; the last good checkpoint stays. "
            "Make room or writable, then the same command goes on from there"
        ) from error


def save(
    directory: Path, state: dict[str, Any], before_renaming: Callable[[], None] | None = None
) -> None:
    """Make `state` the checkpoint of `directory`; tensors and plain Python values only.

    Args:
        directory: of the run.
        state: what to save.
        before_renaming: called when the new file is complete, and may raise to leave the old.

    Raises:
        StorageError: the old checkpoint stays.
    """
    temporary = directory / f"checkpoint.{uuid.uuid4().hex}.tmp.pt"
    try:
        with writing(directory / CURRENT):
            with temporary.open("wb") as file:
                try:
                    torch.save(state, file)
                except RuntimeError as error:  # torch's "unexpected pos" hides a full disk
                    raise error.__context__ or error from None
                file.flush()
                os.fsync(file.fileno())
            if before_renaming:
                before_renaming()
            # A kill between the two renames leaves only the previous one, which `load` takes.
            if (directory / CURRENT).exists():
                os.replace(directory / CURRENT, directory / PREVIOUS)
            os.replace(temporary, directory / CURRENT)
            sync_directory(directory)
    finally:
        temporary.unlink(missing_ok=True)


def load(directory: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None where there is none.

    A damaged file is set aside as `checkpoint.damaged.pt`, with a warning, before it can take
    the place of a good one. With none left the run starts from the beginning, which gives the
    same result, later.

    Raises:
        StorageError: a file is there and cannot be read at all, which is no damage.
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
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # damage has no type: it can surface anywhere in the reader
            warnings.warn(
                f"{path} is damaged ({error}); going back to what was saved before it",
                stacklevel=2,
            )
            with writing(path):
                os.replace(path, directory / DAMAGED)
    return None


def clean(directory: Path) -> None:
    """Remove what a killed process left half written; for who alone may write there."""
    for path in directory.glob("checkpoint.*.tmp.pt"):
        path.unlink(missing_ok=True)


def stamp(directory: Path) -> int | None:
    """When the checkpoint was saved, in nanoseconds: changes with each new one."""
    try:
        return (directory / CURRENT).stat().st_mtime_ns
    except FileNotFoundError:
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
