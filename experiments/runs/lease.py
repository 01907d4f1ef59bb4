"""A lease: at most one process writes to a run's directory, on whatever node it runs.

The lease is a file with its owner in it. Making it is atomic (a hard link), so one process wins.
The owner touches it every few seconds; a lease that nobody has touched for a minute is dead, and
so is one whose owner lived under this very kernel and has let go of its `flock`, which needs no
waiting. `flock` alone is not enough: on some shared file systems it does not reach other nodes.

An owner that was frozen long enough to be taken for dead may wake up. So it asks `check` before
every write, and stops if the lease is no longer its own. What remains is a freeze of more than
`STALE_SECONDS` between that question and the write, a few microseconds apart.
"""

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs.storage import StorageError, writing
from experiments.runtime import stopping

NAME = "lease.json"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
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
        with writing(self.path), temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"token": self.token, **_identity()}))
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a lease without an owner
        with temporary.open("r+") as file:  # over NFS, an exclusive flock needs the right to write
            try:
                with suppress(OSError):  # a file system without flock: the heartbeat has to do
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._take(temporary, wait)
            finally:
                temporary.unlink()
            released = threading.Event()
            heart = threading.Thread(target=_beat, args=(file, released), daemon=True)
            heart.start()
            try:
                yield
            finally:
                released.set()
                heart.join()
                if (read(self.path) or NOBODY)["token"] == self.token:
                    self.path.unlink()
                self.token = None

    def check(self) -> None:
        """Make sure that the lease is still ours, where we have taken it.

        Raises:
            LeaseLost: it is not; nothing may be written any more.
        """
        if self.token is None:
            return
        owner = read(self.path)
        if owner is None or owner["token"] != self.token:
            raise LeaseLost(
                f"{self.path.parent} has been taken over by {describe(owner)}, because this "
                f"process did not move for {STALE_SECONDS:.0f} s; it stops without writing"
            )

    def _take(self, temporary: Path, wait: bool) -> None:
        watch = _Watch(self.path)
        said = False
        while True:
            try:
                return os.link(temporary, self.path)
            except FileExistsError:
                if temporary.stat().st_nlink == 2:
                    return None  # NFS sent the request twice, and reports on the second
            except OSError as error:
                raise StorageError(
                    f"cannot make a hard link at {self.path}: {error.strerror}; runs need a file "
                    "system that has them (RUNS_ROOT moves runs)"
                ) from error
            owner = read(self.path)
            if owner is None:
                continue
            if watch.dead(owner):
                self._bury(owner["token"])
                continue
            if not wait and watch.alive:
                raise LeaseHeld(
                    f"another process is training {self.path.parent}: {describe(owner)}"
                )
            if not said:
                said = True
                print(f"waiting for {describe(owner)}, which holds {self.path}", flush=True)
            if number := stopping.requested():
                raise stopping.Stopped(number)
            time.sleep(POLL_SECONDS)

    def _bury(self, token: str) -> None:
        """Remove a dead lease, and no other: somebody may have replaced it a moment ago."""
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
            aside.unlink()


class _Watch:
    """Whether the owner of a lease is dead, by what this process sees of it over time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: tuple[str, int] | None = None
        self.since = 0.0
        self.alive = False  # known to be: a heartbeat was seen, or is fresh by the same clock

    def dead(self, owner: dict[str, Any]) -> bool:
        try:
            beat = self.path.stat().st_mtime_ns
            here = owner["kernel"] == _identity()["kernel"]
            if here and _has_let_go(self.path, owner["token"]):
                return True
        except FileNotFoundError:
            return False
        # A beat counts when it is seen to change, by this process's own clock: the clocks of two
        # machines differ, and that of this one may be set while the owner lives.
        if self.seen != (owner["token"], beat):
            self.alive = self.seen is not None
            self.seen, self.since = (owner["token"], beat), time.monotonic()
        if here and abs(time.time() - beat / 1e9) <= STALE_SECONDS:
            self.alive = True
        return time.monotonic() - self.since > STALE_SECONDS


def _has_let_go(path: Path, token: str) -> bool:
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return _owner(file.read())["token"] == token


def _beat(file: Any, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(file.fileno())  # our file, even if its name belongs to another one now
        except OSError:
            pass  # the file system is away: if it stays so, others may take over, and we notice


def _identity() -> dict[str, Any]:
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = platform.node()
    return {"host": platform.node(), "pid": os.getpid(), "job": job_id(), "kernel": kernel}


def job_id() -> str | None:
    """The job this process belongs to, as Slurm names it; submitit's where it is a local one."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")


def alive(directory: Path) -> bool:
    """Whether somebody is training this run, to tell people: for nodes whose clocks agree."""
    path = directory / NAME
    try:
        owner, age = read(path), time.time() - path.stat().st_mtime
        if owner is None or age > STALE_SECONDS:
            return False
        return owner["kernel"] != _identity()["kernel"] or not _has_let_go(path, owner["token"])
    except FileNotFoundError:
        return False


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
