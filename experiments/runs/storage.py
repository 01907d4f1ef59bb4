"""Writing a run's files so that a full disk is named and a kill leaves no half of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import UserError


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


def write_whole(path: Path, text: str) -> None:
    """Write a text file by rename: it is there complete or not at all, also after a power cut.

    Raises:
        StorageError: it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Force the names in a directory to disk, so that renames outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
