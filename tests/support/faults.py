"""Faults at any call that changes a run's directory: a kill, an error, a power cut."""

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.errors import UserError

KILLED, REFUSED, FAILED = 9, 3, 4
NAMES = ("replace", "rename", "link", "unlink", "mkdir", "fsync", "write")


class Calls:
    """Counts the calls below a directory that change something, and interferes with one of them.

    Args:
        root: of what is watched.
        at: the number of the call, counted from 1; 0: none.
        happen: called in its place with its name; returns whether it is made all the same.
    """

    def __init__(self, root: Path, at: int = 0, happen: Callable[[str], bool] | None = None):
        self.root, self.at, self.happen = str(root), at, happen
        self.names: list[str] = []
        self.before: Callable[[str, Any], None] = lambda name, place: None

    def made(self, name: str, place: Any) -> bool:
        """Whether a call is to be made; `place` is a path or a descriptor."""
        if isinstance(place, int):
            place = os.readlink(f"/proc/self/fd/{place}")
        if not str(place).startswith(self.root):
            return True
        self.before(name, place)
        self.names.append(name)
        return len(self.names) != self.at or self.happen(name)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the calls of this process."""
        originals = {name: getattr(os, name) for name in NAMES}
        opened, opened_low = pathlib.Path.open, os.open

        def open_low(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.made("open", os.path.abspath(path))
            return opened_low(path, flags, *arguments, **named)

        def watch(name: str) -> Callable:
            def call(place: Any, *arguments: Any, **named: Any) -> Any:
                return originals[name](place, *arguments, **named) if self.made(name, place) else 0

            return call

        def open_watched(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self.made("open", path.absolute()):
                return opened(path, mode, *arguments, **named)
            return _File(opened(path, mode, *arguments, **named), path.absolute(), self)

        for name in NAMES:
            setattr(os, name, watch(name))
        pathlib.Path.open, os.open = open_watched, open_low
        try:
            yield
        finally:
            for name in NAMES:
                setattr(os, name, originals[name])
            pathlib.Path.open, os.open = opened, opened_low


class _File:
    """A file whose changes are counted."""

    def __init__(self, file: Any, path: Path, calls: Calls) -> None:
        self.file, self.path, self.calls = file, path, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def write(self, content: Any) -> int:
        return self.file.write(content) if self.calls.made("write", self.path) else len(content)

    def flush(self) -> None:
        if self.calls.made("flush", self.path):
            self.file.flush()

    def truncate(self, size: int) -> None:
        if self.calls.made("truncate", self.path):
            self.file.truncate(size)

    def close(self) -> None:
        try:
            self.calls.made("close", self.path)
        finally:
            self.file.close()


def kill(name: str) -> bool:
    """The process is gone before the call is made: SIGKILL, out of memory."""
    os._exit(KILLED)


def fail(number: int) -> Callable[[str], bool]:
    """The call raises an error of the operating system."""

    def happen(name: str) -> bool:
        raise OSError(number, os.strerror(number))

    return happen


class Disk:
    """What a disk holds for certain: contents that were synced, names in synced directories.

    Args:
        calls: it watches.
    """

    def __init__(self, calls: Calls) -> None:
        self.root, self.calls = Path(calls.root), calls
        self.contents: dict[int, bytes] = {}  # by inode, as of now
        self.synced: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.kept: list[int] = []  # descriptors, so that no inode is used again
        self.look()
        self.synced, self.names = dict(self.contents), self.listing()
        calls.before = self.before_call

    def listing(self) -> dict[str, int]:
        return {str(p): p.stat().st_ino for p in self.root.rglob("*") if p.is_file()}

    def look(self) -> None:
        for path, inode in self.listing().items():
            descriptor = os.open(path, os.O_RDONLY)
            if inode not in self.contents:
                self.kept.append(os.dup(descriptor))
            with open(descriptor, "rb") as file:
                self.contents[inode] = file.read()

    def before_call(self, name: str, place: str) -> None:
        self.look()
        if name == "fsync" and os.path.isdir(place):
            inside = {path: inode for path, inode in self.listing().items()
                      if os.path.dirname(path) == place}  # fmt: skip
            others = {path: inode for path, inode in self.names.items()
                      if os.path.dirname(path) != place}  # fmt: skip
            self.names = others | inside
        elif name == "fsync":
            inode = os.stat(place).st_ino
            self.synced[inode] = self.contents[inode]

    def cut(self, names: str, contents: str) -> Callable[[str], bool]:
        """The power is cut before the call is made.

        Args:
            names: `now`: all renames are on disk; `synced`: none since a directory was synced.
            contents: `now`: all writes are on disk; `lost`: none since a file was synced; `zeros`:
                their lengths are.
        """

        def content(inode: int) -> bytes:
            now, synced = self.contents[inode], self.synced.get(inode, b"")
            if contents == "now":
                return now
            return synced if contents == "lost" else synced + bytes(max(len(now) - len(synced), 0))

        def happen(name: str) -> bool:
            self.calls.made = lambda name, place: True  # from here on, this is the disk
            there = self.listing() if names == "now" else self.names
            found = {path: content(inode) for path, inode in there.items()}
            for path in self.listing():
                Path(path).unlink()
            for path, text in found.items():
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(text)
            os._exit(KILLED)

        return happen


def in_child(function: Callable[[], Any]) -> int:
    """Call a function in a forked process; its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            function()
            code = 0
        except UserError as error:
            print(f"refused: {error}", file=sys.stderr)
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
