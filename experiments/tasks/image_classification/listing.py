"""The images below a folder: which there are, and that each can be trained on.

    FOLDER/<class>/*.JPEG

What is wrong with a file is named before the first step. For that the header of every image is read
once, in threads; that it was is remembered below `RUNS_ROOT`, as long as no folder changes.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.errors import UserError
from experiments.runtime.paths import runs_root
from experiments.runtime.progress import say
from experiments.runtime.threads import cores

SUFFIXES = (".jpeg", ".jpg", ".png")
LAYOUT = "docs/imagenet.md says how the folders must look"
# What file managers, notebooks and archives leave: never meant as data.
LITTER = {"thumbs.db", "desktop.ini", "__macosx", "lost+found"}
# Pillow's modes of 16 bits and more, which it would clip to 8.
CLIPPED = ("I", "F")
THREADS_PER_CORE, MOST_THREADS = 4, 32
MANY = 20_000  # images whose headers take long enough to say so
SETTLED_SECONDS = 5  # a folder that was changed a moment ago may be changed again unseen


@dataclass(frozen=True)
class Listing:
    """The images below a folder.

    Attributes:
        folder: holds a folder for each class.
        classes: their names, sorted: a label is an index into them.
        names: `(n,)`, bytes, relative to `folder`, sorted. An array, not a list: the workers share
            its memory, while reference counts of a million objects would copy a list's.
        labels: `(n,)`, int64.
        digest: of the names and sizes of all files, in hex.
    """

    folder: Path
    classes: list[str]
    names: np.ndarray
    labels: Tensor
    digest: str

    @classmethod
    def read(cls, folder: Path) -> "Listing":
        """List a folder with one scan of each class, and look at every header once.

        Raises:
            UserError: the folder, or a class in it, is missing or empty; something in it is no
                image that can be trained on; or images would be left out.
        """
        try:
            stamps = {folder: os.stat(folder).st_mtime_ns}
            classes, skipped = _classes(folder)
            found = []
            for name in classes:
                stamps[folder / name] = os.stat(folder / name).st_mtime_ns
                images, more = _images(folder / name)
                found.append(images)
                skipped += more
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read: {error.strerror}. Put the images "
                f"there, or set DATA_ROOT; {LAYOUT}"
            ) from None
        if len(classes) < 2:
            there = f"a single folder ({classes[0]})" if classes else "no folders"
            raise UserError(f"{folder} has {there} of classes in it; {LAYOUT}")
        for name, images in zip(classes, found, strict=True):
            if not images:
                raise UserError(
                    f"{folder / name} has no images ({', '.join(SUFFIXES)}) in it; {LAYOUT}"
                )
        if skipped:
            say(f"{folder}: {skipped} hidden files, folders and others are left out")
        names = [os.fsencode(f"{name}/{image}") for name, images in zip(classes, found, strict=True)
                 for image in images]  # fmt: skip
        counts = torch.tensor([len(images) for images in found])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        return cls(folder, classes, np.array(names), labels, _checked(folder, names, stamps))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> "Listing":
        chosen = self.names[indices.numpy()]
        return Listing(self.folder, self.classes, chosen, self.labels[indices], self.digest)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.names[index]))


@lru_cache(maxsize=2)
def _both(root: Path, *stamps: int) -> tuple[Listing, Listing]:
    train, test = (Listing.read(root / part) for part in ("train", second(root)))
    check_same_classes(train, test)
    return train, test


def read_both(root: Path) -> tuple[Listing, Listing]:
    """The listings of `root/train` and `root/val`, once for all runs of a process.

    Raises:
        UserError: as `Listing.read`, or the classes of the two differ.
    """
    stamps = []
    with suppress(OSError):  # which `Listing.read` names
        stamps = [os.stat(root / part).st_mtime_ns for part in ("train", second(root))]
    return _both(root.absolute(), *stamps)


def second(root: Path) -> str:
    """The folder that is evaluated: `val`, or `test` where there is only that."""
    return "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"


def describe(root: Path) -> dict[str, Any] | None:
    """What is below `root`, as part of a run's identity; None where it is not there.

    Raises:
        UserError: as `read_both`.
    """
    if not (root / "train").exists():
        return None
    train, test = read_both(root)
    both = hashlib.sha256(f"{train.digest} {test.digest}".encode()).hexdigest()
    return {"classes": len(train.classes), "train": len(train), "val": len(test),
            "digest": both[:16]}  # fmt: skip


def check_same_classes(train: Listing, test: Listing) -> None:
    """Raise UserError unless training and evaluation know the same classes."""
    for one, other in ((train, test), (test, train)):
        if missing := sorted(set(one.classes) - set(other.classes)):
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UserError(
                f"{other.folder} lacks {len(missing)} of the {len(one.classes)} classes in "
                f"{one.folder} ({shown}); {LAYOUT}"
            )


# ------------------------------------------------------------------------------------ the scan


def _classes(folder: Path) -> tuple[list[str], int]:
    """The folders of classes, sorted, and how many other entries there are.

    Raises:
        UserError: images lie beside the classes.
    """
    classes, skipped = [], 0
    for entry in _entries(folder):
        if entry is None:
            skipped += 1
        elif entry.is_dir():
            classes.append(entry.name)
        elif is_image(entry.name):
            raise UserError(
                f"{entry.path} lies in no folder of a class: {folder} is sorted in part; {LAYOUT}"
            )
        else:
            skipped += 1
    return sorted(classes), skipped


def _images(folder: Path) -> tuple[list[str], int]:
    """The images of a class, sorted, and how many other files there are.

    Raises:
        UserError: an image would be left out.
    """
    images, skipped = [], 0
    for entry in _entries(folder):
        if entry is None:
            skipped += 1
        elif entry.is_dir():
            raise UserError(
                f"{entry.path} is a folder inside a class: what is in it would be left out; "
                f"{LAYOUT}"
            )
        elif entry.name.lower().endswith(SUFFIXES):
            images.append(entry.name)
        elif is_image(entry.name):
            raise UserError(
                f"{entry.path} would be left out because of its ending: convert it to one of "
                f"{', '.join(SUFFIXES)}, or move it away"
            )
        else:
            skipped += 1
    return sorted(images), skipped


def _entries(folder: Path) -> Iterator[os.DirEntry | None]:
    """What is in a folder; None for what is hidden or litter."""
    with os.scandir(folder) as entries:
        for entry in entries:
            litter = entry.name.startswith(".") or entry.name.lower() in LITTER
            yield None if litter else entry


def is_image(name: str) -> bool:
    """Whether a file's ending is one that Pillow knows."""
    return os.path.splitext(name)[1].lower() in Image.registered_extensions()


# --------------------------------------------------------------------------------- the headers


def _checked(folder: Path, names: Sequence[bytes], stamps: dict[Path, int]) -> str:
    """The digest of a folder whose every header is sound, looked at or remembered.

    Raises:
        UserError: naming the first that is not, and how many there are.
    """
    listed = hashlib.sha256(b"\n".join(names))
    listed.update(json.dumps([*stamps.values()]).encode())
    place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    memory = runs_root() / ".data" / f"{place}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["listed"] == listed.hexdigest() and isinstance(known["digest"], str):
            return known["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it is looked at again
    if len(names) > MANY:
        say(f"{folder}: looking at the headers of {len(names)} images, once")
    paths = [os.path.join(os.fsencode(folder), name) for name in names]
    with ThreadPoolExecutor(min(THREADS_PER_CORE * cores(), MOST_THREADS)) as pool:
        found = list(pool.map(_look, paths, chunksize=64))
    if problems := [problem for problem in found if isinstance(problem, str)]:
        others = f" ({len(problems)} of {len(names)} images in {folder} are like that)"
        raise UserError(problems[0] + (others if len(problems) > 1 else ""))
    digest = hashlib.sha256()
    for name, size in zip(names, found, strict=True):
        digest.update(b"%d %b\n" % (size, name))
    if max(stamps.values()) / 1e9 < time.time() - SETTLED_SECONDS:
        content = {"folder": str(folder.absolute()), "listed": listed.hexdigest(),
                   "digest": digest.hexdigest()[:16]}  # fmt: skip
        with suppress(OSError):  # a torn one is looked past
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return digest.hexdigest()[:16]


def _look(path: bytes) -> int | str:
    """The size of an image's file in bytes; or in words, why it cannot be trained on."""
    shown = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe waits for its other end
            return f"{shown} is no image that can be read: it is no file"
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            with Image.open(file) as image:
                width, height, mode = *image.size, image.mode
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"{shown} is too large to be decoded: {error}"
    except (OSError, SyntaxError, ValueError) as error:
        return f"{shown} is no image that can be read: {error}"
    except Exception as error:  # whatever a damaged header leads a decoder to
        return f"{shown} is no image that can be read: {type(error).__name__}: {error}"
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        return f"{shown} is too large to be decoded: {width} x {height} pixels"
    if mode.partition(";")[0] in CLIPPED:
        return f"{shown} has more than 8 bits per channel (Pillow's mode {mode}): convert it"
    return size
