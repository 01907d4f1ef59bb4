"""Texts in archives as they are published: tar, zip, or a folder that somebody unpacked."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.errors import UserError


class RawArchives:
    """Files by their names, whichever of the archives and folders in them they are in.

    Args:
        paths: archives and folders.
        corpus: for messages.
    """

    def __init__(self, paths: Sequence[Path], corpus: str) -> None:
        self.paths, self.corpus = paths, corpus

    def lines(self, name: str) -> list[str]:
        """A file's lines, without the ends.

        Raises:
            UserError: it is in none of the archives or several times, damaged or no UTF-8.
        """
        found = []
        for path in self.paths:
            try:
                found += list(_files(path, name))
            except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
                reason = str(error).split("\n")[0] or type(error).__name__
                raise UserError(f"{self.corpus}: {path} cannot be read: {reason}") from None
        places = ", ".join(map(str, self.paths))
        if len(found) != 1:
            count = f"{len(found)} times" if found else "not"
            raise UserError(f"{self.corpus}: {name} is {count} in {places}")
        try:
            return found[0].decode("utf-8").split("\n")[: -1 if found[0].endswith(b"\n") else None]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.corpus}: {name} in {places} is not UTF-8: {error.reason} at byte "
                f"{error.start}"
            ) from None


def _files(path: Path, name: str) -> Iterator[bytes]:
    """The contents of all files of a name."""
    if path.is_dir():
        yield from (one.read_bytes() for one in path.rglob(name) if one.is_file())
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.rpartition("/")[2] == name:
                    yield archive.read(member)
    else:
        with tarfile.open(path, "r:*", encoding="utf-8") as archive:
            for member in archive:
                if member.isfile() and member.name.rpartition("/")[2] == name:
                    if (file := archive.extractfile(member)) is not None:
                        yield file.read()
