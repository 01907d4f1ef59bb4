"""Checkpoints that survive a kill at any moment and a damaged file.

A checkpoint is written beside the current one, forced to disk, and moved into place by rename;
the one before it stays as `checkpoint.prev.pt`. A checksum of the whole file is the comment of its
zip archive, so that damage is told from everything else that can keep a file from being loaded.

torch is imported where it is needed: `make status` asks for a checkpoint's time stamp, and need not
wait for torch.
"""

import io
import os
import random
import time
import uuid
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from experiments.errors import UserError
from experiments.runs.storage import StorageError, discard, reading, sync_directory, writing

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
SEAL = b"crc32=%08x"
SEAL_LENGTH = len(SEAL % 0xFFFFFFFF)
CHUNK = 2**20  # bytes
# torch's words for an archive that it cannot find its way in.
BROKEN_ARCHIVE = "PytorchStreamReader failed"


def save(
    directory: Path,
    state: dict[str, Any],
    before_renaming: Callable[[], None] | None = None,
    read_back: bool = False,
) -> None:
    """Make `state` the checkpoint of `directory`; tensors and plain Python values only.

    Args:
        directory: of the run.
        state: what to save.
        before_renaming: called when the new file is complete, and may raise to leave the old.
        read_back: whether to load the new file before it takes the place of the old.

    Raises:
        UserError: there is something in it that could not be loaded again.
        StorageError: the old checkpoint stays.
    """
    import torch

    check(state)
    temporary = directory / f"checkpoint.{uuid.uuid4().hex}.tmp.pt"
    try:
        with writing(directory / CURRENT):
            with temporary.open("w+b") as file:
                try:
                    torch.save(state, file)
                except RuntimeError as error:  # torch's "unexpected pos" hides a full disk
                    raise error.__context__ or error from None
                _seal(file)
                file.flush()
                os.fsync(file.fileno())
            if read_back:
                if damage := _damage(temporary):
                    raise OSError(f"what was written is not what is there ({damage})")
                _load(temporary, mmap=True)
            if before_renaming:
                before_renaming()
            # A kill between the two renames leaves only the previous one, which `load` takes.
            if (directory / CURRENT).exists():
                os.replace(directory / CURRENT, directory / PREVIOUS)
            os.replace(temporary, directory / CURRENT)
            sync_directory(directory)
    finally:
        discard(temporary)


def load(directory: Path, before_renaming: Callable[[], None] | None = None) -> Any:
    """The newest checkpoint that can be read, on the CPU; for who alone may write there.

    A damaged file is set aside under a name of its own, with a warning, before it can take the
    place of a good one. With none left the run starts from the beginning, which gives the same
    result, later.

    Args:
        directory: of the run.
        before_renaming: called before a file is set aside, and may raise to leave it.

    Returns:
        What was saved, or None where there is none.

    Raises:
        StorageError: a file is there and cannot be read at all, which is no damage.
        UserError: a file is sound and torch refuses what is in it, which is no damage either.
    """

    def set_aside(path: Path, damage: str) -> None:
        if before_renaming:
            before_renaming()
        moment = time.strftime("%Y-%m-%dT%H-%M-%S")
        aside = path.with_name(f"{path.stem}.damaged-{moment}-{uuid.uuid4().hex[:8]}.pt")
        warnings.warn(
            f"{path} is damaged ({damage}); it is kept as {aside.name}, and the run goes back to "
            "what was saved before it",
            stacklevel=4,
        )
        with writing(path):
            os.replace(path, aside)

    return _newest(directory, set_aside)


def look(directory: Path) -> Any:
    """As `load`, for who only looks: what is damaged is passed over and stays where it is."""

    def pass_over(path: Path, damage: str) -> None:
        warnings.warn(f"{path} is damaged ({damage}); passed over", stacklevel=4)

    return _newest(directory, pass_over)


def _newest(directory: Path, on_damage: Callable[[Path, str], None]) -> Any:
    for name in (CURRENT, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        if damage := _damage(path):
            on_damage(path, damage)
            continue
        try:
            return _load(path)
        except _BrokenArchive as error:
            on_damage(path, str(error))
    return None


class _BrokenArchive(Exception):
    """torch cannot find its way in an archive without a seal, as earlier versions left them."""


def _load(path: Path, mmap: bool = False) -> Any:
    import torch

    try:
        with reading(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except Exception as error:  # of any type: what was saved may hold any object
        reason = " ".join(str(error).split())[:300]
        if reason.startswith(BROKEN_ARCHIVE) and _sealed(path) is None:
            raise _BrokenArchive(reason) from None
        raise UserError(
            f"{path} is complete, but torch does not load it: {reason}. Nothing was changed"
        ) from error


# -------------------------------------------------------------------------------------- damage


def _damage(path: Path) -> str:
    """What is wrong with the file of a checkpoint; empty for a sound one.

    Only what is in the file counts: that it cannot be read is a StorageError.
    """
    sealed = _sealed(path)
    if sealed is not None:
        return "" if sealed else "its checksum is another one"
    # Before there was a seal, or damage to that as well: the archive's own checksums. They leave
    # out its directory, whose damage can surface as any exception.
    try:
        with reading(path), _Readable(path) as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except StorageError:
        raise
    except Exception as error:
        return str(error) or type(error).__name__
    return f"wrong checksum of {damaged}" if damaged else ""


class _Readable(io.FileIO):
    """A file that tells its own errors from those of whoever is led astray by its content."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path, self.size = path, os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.size:  # a damaged length is not worth the memory
            size = self.size
        with reading(self.path):
            return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:  # of a place that no file has
            raise zipfile.BadZipFile(f"a record at {offset}") from error


def _seal(file: BinaryIO) -> None:
    """Give an archive its checksum as a comment, which is the last thing in it."""
    file.seek(-2, os.SEEK_END)  # the comment's length, 0 as torch leaves it
    file.write(SEAL_LENGTH.to_bytes(2, "little"))
    file.seek(0)
    file.write(SEAL % _checksum(iter(lambda: file.read(CHUNK), b"")))


def _sealed(path: Path) -> bool | None:
    """Whether a file has the checksum that it says; None where it says none."""
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - SEAL_LENGTH
        if size < 0:
            return None
        file.seek(size)
        seal = file.read()
        if not seal.startswith(SEAL[: SEAL.index(b"%")]):
            return None
        file.seek(0)
        chunks = (file.read(min(CHUNK, size - at)) for at in range(0, size, CHUNK))
        return seal == SEAL % _checksum(chunks)


def _checksum(chunks: Iterator[bytes]) -> int:
    value = 0
    for chunk in chunks:
        value = zlib.crc32(chunk, value)
    return value


# ------------------------------------------------------------------------- what can be loaded


def check(state: dict[str, Any]) -> None:
    """Refuse what could not be loaded again, before there is anything to lose.

    Raises:
        UserError: naming the entry and its type.
    """
    if found := _refused(state, ""):
        entry, kind = found
        raise UserError(
            f"{entry} of the training's state is a {kind}, which torch does not load again "
            "(weights_only): the run could not be resumed. A checkpoint holds tensors, numbers, "
            "texts, and dicts and lists of them"
        )


def _refused(value: Any, path: str) -> tuple[str, str] | None:
    """Path and type of the first entry that does not come back; None if all do."""
    import torch

    kind = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None)):
        return None
    parts: Iterable[tuple[Any, Any]] = ()
    if kind in (dict, OrderedDict):
        parts = [*((f"key {key!r}", key) for key in value), *value.items()]
    elif kind in (list, tuple):
        parts = enumerate(value)
    elif not _comes_back(value):
        return path, f"{kind.__module__}.{kind.__qualname__}"
    for name, part in parts:
        if found := _refused(part, f"{path}.{name}" if path else str(name)):
            return found
    return None


def _comes_back(value: Any) -> bool:
    import torch

    try:
        torch.save(value, content := io.BytesIO())
        content.seek(0)
        torch.load(content, weights_only=True)
    except MemoryError:
        raise
    except Exception:  # whatever an object does when it is pickled
        return False
    return True


# ---------------------------------------------------------------------------------- the others


def clean(directory: Path) -> None:
    """Remove what a killed process left half written; for who alone may write there."""
    for pattern in ("checkpoint.*.tmp.pt", "*.part"):
        for path in directory.glob(pattern):
            discard(path)


def stamp(directory: Path) -> int | None:
    """When the checkpoint was saved, in nanoseconds: changes with each new one."""
    try:
        return (directory / CURRENT).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def seed_generators(seed: int) -> None:
    """Begin all generators anew, below 2**63: torch's, Python's and numpy's."""
    import numpy
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def random_state() -> dict[str, Any]:
    """The states of these generators; the harness draws from torch's, others' code from any."""
    import numpy
    import torch

    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kind, keys, *rest = numpy.random.get_state()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": devices,
        "python": random.getstate(),
        "numpy": (kind, numpy.asarray(keys).tolist(), *rest),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo every draw since `random_state`; GPU states where there are as many GPUs as then."""
    import numpy
    import torch

    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "python" in state:  # checkpoints of earlier versions have torch's alone
        random.setstate(state["python"])
        numpy.random.set_state(state["numpy"])
