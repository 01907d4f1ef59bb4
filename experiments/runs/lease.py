"""A lease: at most one process writes to a run's directory, on whatever node it runs.

The lease is a file with its owner in it. Making it is atomic (a hard link), so one process wins.

- Under one kernel the owner's `flock` decides, and nothing else: it is alive while it holds that,
  however long it is frozen and however the clock is set, and dead as soon as it has let go.
- Across nodes `flock` may not reach. The owner touches the file every few seconds; it is dead when
  nobody has touched it for a minute, by the clock that stamps the files or as watched from here.
  Clocks of two machines are never compared.

An owner on another node that was frozen long enough to be taken for dead may wake up. So it asks
`check` before every write, and stops if the lease is no longer its own. What remains is a freeze of
more than `STALE_SECONDS` between that question and the write, a few microseconds apart.
"""

import fcntl
import json
import os
import platform
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs.storage import StorageError, discard, reading, writing
from experiments.runtime import stopping
from experiments.runtime.progress import say

NAME = "lease.json"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
MISSED_BEATS = 3
LITTER_SECONDS = 3600.0
POLL_SECONDS = 1.0

# Whoever a damaged lease belongs to: it is dead when nobody has touched it for a minute.
NOBODY: dict[str, Any] = {"token": "", "host": "", "pid": 0, "job": None, "kernel": ""}


class LeaseHeld(UserError):
    """Another process, alive, is training this run."""


class LeaseLost(UserError):
    """This process was taken for dead, and another one goes on with the run."""


class Lease:
    """The right to write to a directory.

    Args:
        directory: where the lease's file is; must exist when the lease is taken.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self.token: str | None = None

    @contextmanager
    def held(self, wait: bool) -> Iterator[None]:
        """Hold the lease.

        Args:
            wait: for an owner that is alive, until it is done or dead; otherwise refuse.

        Raises:
            LeaseHeld: an owner is alive and `wait` is false.
            StorageError: the lease cannot be written.
            Stopped: a signal asked to stop while waiting.
        """
        self.token = uuid.uuid4().hex
        temporary = self.path.with_name(f"lease.{self.token}.tmp")
        with writing(self.path):  # over NFS, an exclusive flock needs the right to write
            file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _held.add(file)
        try:
            try:
                owner = {"token": self.token, **_identity(), "flock": _lock(file)}
                with writing(self.path):
                    os.write(file, json.dumps(owner).encode())
                    os.fsync(file)  # a power cut must not leave a lease without an owner
                self._take(temporary, file, wait)
            finally:
                discard(temporary)
            released = threading.Event()
            heart = threading.Thread(target=_beat, args=(file, released), daemon=True)
            heart.start()
            try:
                yield
            finally:
                released.set()
                heart.join()
                with suppress(OSError):  # a file system that is away: others see a dead lease
                    if (read(self.path) or NOBODY)["token"] == self.token:
                        self._bury(self.token)
        finally:
            self.token = None
            _held.discard(file)
            os.close(file)

    def check(self) -> None:
        """Make sure that the lease is still ours, where we have taken it.

        Raises:
            LeaseLost: it is not; nothing may be written any more.
        """
        if self.token is None:
            return
        with reading(self.path):
            owner = read(self.path)
        if owner is None or owner["token"] != self.token:
            raise LeaseLost(
                f"{self.path.parent} has been taken over by {describe(owner)}, because this "
                f"process did not move for {STALE_SECONDS:.0f} s; it stops without writing"
            )

    def _take(self, temporary: Path, file: int, wait: bool) -> None:
        watch = _Watch(self.path)
        said = False
        while True:
            try:
                os.utime(file)  # or it would be born as old as the waiting was long
                return os.link(temporary, self.path)
            except FileExistsError:
                if temporary.stat().st_nlink == 2:
                    return None  # NFS sent the request twice, and reports on the second
            except OSError as error:
                raise StorageError(
                    f"cannot make a hard link at {self.path}: {error.strerror}; runs need a file "
                    "system that has them (RUNS_ROOT moves runs)"
                ) from error
            with reading(self.path):
                owner = read(self.path)
                if owner is None:
                    continue
                if watch.dead(owner):
                    self._bury(owner["token"], _decides_here(owner))
                    continue
            if not wait and watch.alive:
                raise LeaseHeld(
                    f"another process is training {self.path.parent}: {describe(owner)}"
                )
            if not said:
                said = True
                say(f"waiting for {describe(owner)}, which holds {self.path}", sys.stdout)
            if number := stopping.requested():
                raise stopping.Stopped(number)
            time.sleep(POLL_SECONDS)

    def _bury(self, token: str, let_go: bool = False) -> None:
        """Remove a dead lease, and no other: somebody may have replaced it a moment ago.

        Args:
            token: of the dead one.
            let_go: whether it is dead because its flock was let go. Then whoever has that flock
                now is the one who buries it, and nobody else touches it meanwhile.
        """
        try:
            file = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            if let_go and not (_lock(file) and _is_at(file, self.path)):
                return  # another one is at it, or has been
            self._remove(token)
        finally:
            os.close(file)

    def _remove(self, token: str) -> None:
        aside = self.path.with_name(f"lease.{self.token}.dead")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        try:
            if (read(aside) or NOBODY)["token"] != token:
                os.link(aside, self.path)  # its owner notices if someone else was faster still
        except FileExistsError:
            pass
        finally:
            discard(aside)


class _Watch:
    """Whether the owner of a lease is dead, by what this process sees of it over time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: tuple[str, int] | None = None
        self.since = 0.0
        self.alive = False  # known to be: a heartbeat was seen, or is fresh by the same clock

    def dead(self, owner: dict[str, Any]) -> bool:
        try:
            here = owner["kernel"] == _identity()["kernel"]
            if here and _has_let_go(self.path, owner["token"]):
                return True
            if _decides_here(owner):
                self.alive = True
                return False
            beat = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if self.seen != (owner["token"], beat):
            self.alive = self.seen is not None
            self.seen, self.since = (owner["token"], beat), time.monotonic()
        age, watched = file_clock(self.path.parent) - beat / 1e9, time.monotonic() - self.since
        if here and abs(age) <= STALE_SECONDS:
            self.alive = True
        # The server's clock may be set, too: it counts together with a few beats that do not come.
        stale = age > STALE_SECONDS and watched > MISSED_BEATS * HEARTBEAT_SECONDS
        return stale or watched > STALE_SECONDS


def file_clock(directory: Path) -> float:
    """Now, in seconds, by the clock that stamps files there: on a shared file system the server's.

    Where nothing may be written it is this machine's.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, prefix="clock.", suffix=".part") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _lock(file: int) -> bool:
    """Take the flock of one's own file; whether the file system knows such a thing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # the heartbeat has to do
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _decides_here(owner: dict[str, Any]) -> bool:
    """Whether an owner's flock is seen from this process, and tells whether it is alive."""
    return bool(owner.get("flock")) and owner["kernel"] == _identity()["kernel"]


_held: set[int] = set()


def _close_in_child() -> None:
    """A flock is shared with forked processes, and would outlive the owner with any of them."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _has_let_go(path: Path, token: str) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return _owner(file.read())["token"] == token


def _beat(file: int, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(file)  # our file, even if its name belongs to another one now
        except OSError:
            pass  # the file system is away: if it stays so, others may take over, and we notice


def _identity() -> dict[str, Any]:
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        kernel = platform.node()
    return {"host": platform.node(), "pid": os.getpid(), "job": job_id(), "kernel": kernel}


def job_id() -> str | None:
    """The job this process belongs to, as Slurm names it; submitit's where it is a local one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{kind}_ID") for kind in ("JOB", "TASK"))
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")


def alive(directory: Path) -> bool:
    """Whether somebody is training this run, to tell people."""
    path = directory / NAME
    try:
        owner = read(path)
        if owner is None:
            return False
        if _decides_here(owner):
            return not _has_let_go(path, owner["token"])
        return file_clock(directory) - path.stat().st_mtime <= STALE_SECONDS
    except FileNotFoundError:
        return False


def clean(directory: Path) -> None:
    """Remove what processes left that were killed while they took the lease.

    Who waits for it touches its file all the time.
    """
    now = file_clock(directory)
    for pattern in ("lease.*.tmp", "lease.*.dead"):
        for path in directory.glob(pattern):
            with suppress(OSError):
                if now - path.stat().st_mtime > LITTER_SECONDS:
                    path.unlink()


def read(path: Path) -> dict[str, Any] | None:
    """The owner in a lease's file: `NOBODY` in a damaged one; None where there is no file."""
    try:
        return _owner(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


def _owner(text: str) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except ValueError:
        return NOBODY
    return owner if isinstance(owner, dict) and NOBODY.keys() <= owner.keys() else NOBODY


def describe(owner: dict[str, Any] | None) -> str:
    """An owner in words."""
    if owner is None or owner is NOBODY:
        return "nobody known"
    job = f"job {owner['job']}, " if owner["job"] else ""
    return f"{job}process {owner['pid']} on {owner['host']}"
