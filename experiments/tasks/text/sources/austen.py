"""Jane Austen's six novels, from Debian's package of R's `janeaustenr`; a line is a paragraph.

Chapters are held out as wholes. R keeps a vector of lines for each novel, in a file of compressed
blocks in XDR (R Internals, "Serialization Formats"), of which the few kinds that occur are read.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Example, Rules, side
from experiments.tasks.text.sources.debian_packages import DebianPackages
from experiments.tasks.text.sources.source import Raw

PACKAGES = DebianPackages("austen", ("r-cran-janeaustenr",), megabytes=2)
fetch, versions = PACKAGES.fetch, PACKAGES.versions
FILE = "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
RULES = Rules(held_out=0.08, near_duplicates=None)
STRINGS, STRING = 16, 9  # R's types of a vector of strings, and of one
_CHAPTER = re.compile(r"(chapter|letter) [ivxl\d]+\.?$", re.IGNORECASE)
_VOLUME = re.compile(r"volume [iv]+$", re.IGNORECASE)


def read(root: Path, languages: tuple[str, ...]) -> Raw:
    """The paragraphs, split by chapters.

    Raises:
        UserError: the package is damaged.
    """
    folder = PACKAGES.folder(root)
    path = folder / FILE
    splits: dict[str, list[Example]] = {"train": [], "val": [], "test": []}
    try:
        for novel in read_novels(path.read_bytes()):
            for paragraphs in chapters(novel):
                part = side(" ".join(paragraphs), RULES.held_out)
                splits[part] += [(paragraph,) for paragraph in paragraphs]
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {error}; remove {folder}; {PACKAGES.how}"
        ) from None
    return Raw("public domain (MIT for the package)", splits=splits, rules=RULES,
               versions=versions(root))  # fmt: skip


def read_novels(content: bytes) -> Iterator[list[str]]:
    """The vectors of strings in one of R's databases.

    Raises:
        ValueError, struct.error, zlib.error: it is none, or damaged.
    """
    while content:
        (size,) = struct.unpack(">I", content[:4])
        stream = zlib.decompressobj()
        block = stream.decompress(content[4:])
        if len(block) != size or not stream.eof:
            raise ValueError("a block is not complete")
        yield _strings(block)
        content = stream.unused_data


def _strings(block: bytes) -> list[str]:
    """A vector of strings, serialized by version 2 or 3."""
    if not block.startswith(b"X\n"):
        raise ValueError("a block is not XDR")
    (version,) = struct.unpack_from(">i", block, 2)
    place = 14
    if version == 3:  # the name of an encoding follows
        place += 4 + struct.unpack_from(">i", block, place)[0]
    flags, count = struct.unpack_from(">ii", block, place)
    if flags & 0xFF != STRINGS:
        raise ValueError(f"a block has R's type {flags & 0xFF}, not strings")
    place += 8
    lines = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", block, place)
        if flags & 0xFF != STRING or place + 8 + length > len(block):
            raise ValueError("a string is not complete")
        place += 8
        lines.append(block[place : place + max(length, 0)].decode("utf-8"))
        place += max(length, 0)  # -1: missing
    return lines


def chapters(lines: list[str]) -> Iterator[list[str]]:
    """The paragraphs of each chapter; what stands before the first one is left out."""
    found: list[list[str]] = []
    paragraph: list[str] = []
    for line in [*lines, ""]:
        text = line.strip()
        if _CHAPTER.match(text) or _VOLUME.match(text):
            found.append([])
        elif text:
            paragraph.append(text)
        elif paragraph:
            if found:
                found[-1].append(" ".join(paragraph))
            paragraph = []
    yield from (chapter for chapter in found if chapter)
