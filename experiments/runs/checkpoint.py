"""Checkpoints that survive a kill at any moment and a damaged file.

A checkpoint is written beside the current one, forced to disk, and moved into place by rename;
the one before it stays as `checkpoint.prev.pt`.

torch is imported where it is needed: `make status` asks for a checkpoint's time stamp, and need not
wait for torch.
"""

import os
import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs.storage import StorageError, sync_directory, writing

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
DAMAGED = "checkpoint.damaged.pt"


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
    import torch

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
        UserError: a file is sound and torch refuses what is in it, which is no damage either.
    """
    import torch

    for name in (CURRENT, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        if damage := _damage(path):
            warnings.warn(
                f"{path} is damaged ({damage}); going back to what was saved before it",
                stacklevel=2,
            )
            with writing(path):
                os.replace(path, directory / DAMAGED)
            continue
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # of any type: what was saved may hold any object
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{path} is complete, but torch does not load it: {reason}. Nothing was changed"
            ) from error
    return None


def _damage(path: Path) -> str:
    """What is wrong with the file of a checkpoint; empty for a sound one.

    torch reads past a flipped bit; the archive's own checksums do not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:  # damage has no type: it can surface anywhere in the reader
        return str(error) or type(error).__name__
    return f"wrong checksum of {damaged}" if damaged else ""


def clean(directory: Path) -> None:
    """Remove what a killed process left half written; for who alone may write there."""
    for pattern in ("checkpoint.*.tmp.pt", "*.part"):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


def stamp(directory: Path) -> int | None:
    """When the checkpoint was saved, in nanoseconds: changes with each new one."""
    try:
        return (directory / CURRENT).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def random_state() -> dict[str, Any]:
    """The states of torch's generators; the harness draws from no others."""
    import torch

    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo every draw since `random_state`; GPU states where there are as many GPUs as then."""
    import torch

    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
