"""Texts in files, a sentence or a paragraph a line."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Example


def read_lines(path: Path) -> list[str]:
    """A file's lines, see `lines_of`.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return lines_of(content, path)


def lines_of(content: bytes, name: Path | str) -> list[str]:
    """The lines of a file's content; blanks around and between words are one, empty lines stay.

    Args:
        content: in UTF-8, with any ends of lines.
        name: of the file, for messages.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [" ".join(line.split()) for line in (lines if lines[-1] else lines[:-1])]


def read_parallel(paths: Sequence[Path]) -> list[Example]:
    """The lines of files that say the same in several languages.

    Raises:
        UserError: one cannot be read, or they have different numbers of lines.
    """
    sides = [read_lines(path) for path in paths]
    if len({len(side) for side in sides}) > 1:
        counts = " and ".join(
            f"{path.name} {len(side)}" for path, side in zip(paths, sides, strict=True)
        )
        raise UserError(
            f"{paths[0].parent}: lines that belong together have the same number, and there are "
            f"{counts}"
        )
    return list(zip(*sides, strict=True))


def stamp(paths: Iterable[Path]) -> dict[str, str]:
    """What a source of files has for versions: a hash of their names, sizes and times."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return {"files": hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}
