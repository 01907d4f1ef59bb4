"""Writing a run's files so that a full disk is named and a kill leaves no half of one."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
        reason = error.strerror or error
        if isinstance(error, FileExistsError):  # as Python says of a folder that cannot be made
            reason = f"{error.filename} is no folder, or a link to what is not there"
        raise StorageError(
            f"cannot write {path}: {reason}. What was saved before stays: make room, or make it "
            "writable, and give the same command again"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file that cannot be read, which says nothing of what is in it.

    Raises:
        StorageError: in place of any OSError, and of a want of memory.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        raise StorageError(f"cannot read {path}: {reason}") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: there complete or not at all, also after a power cut.

    Raises:
        StorageError: it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            discard(temporary)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8, as `replacing` does.

    Raises:
        StorageError: it cannot be written; what was there before stays.
    """
    with replacing(path) as file:
        file.write(text.encode())


def discard(path: Path) -> None:
    """Remove what is of no use, if it can be removed: that hides no error and is none itself."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Force the names in a directory to disk, so that renames outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems know no such thing
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
