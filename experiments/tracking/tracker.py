"""Runs mirrored into wandb: the files first, wandb second.

A run's directory holds everything (`experiments.runs.directory`), and a `Tracker` copies it: when
it opens, it sends the rows of `metrics.jsonl` and `steps.jsonl` that wandb does not have, and then
each row as it is written. wandb's step is the training's; where an epoch and a logged step end
together, wandb gets one row of both. What was lost is sent when a tracker opens again, and nothing
is sent twice:

- Online, the server says which step it has last; only later ones are sent.
- Offline, a record is complete: every session writes a new one, from the first row on, and then
  removes the older ones. There is a single one to upload, and it has every epoch once.
- `python -m experiments.upload` (`make wandb-sync`) opens a tracker for every run that has
  not been uploaded to its end. It needs no record: it uploads runs that were trained without
  wandb, or whose server died, just as well.

Training never fails because of wandb, nor waits for it: a tracker works in a thread of its own
(importing wandb and starting its service takes about 2 seconds), which is waited for only at the
end, and no longer than `END_SECONDS`. An error is one line on stderr, and the tracker is off from
then on.

`WANDB_MODE` (online, offline, disabled) decides; where it is not set and wandb is installed: online
if there is a key and the server answers, else offline. wandb's other variables (`WANDB_PROJECT`,
`WANDB_ENTITY`, `WANDB_BASE_URL`, ...) work as everywhere, but for `WANDB_DIR`: records lie in the
run's directory.
"""

import fcntl
import functools
import json
import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any, Literal

from experiments.config import metrics
from experiments.config.metrics import Metric
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError, nearest
from experiments.plots import spectrum
from experiments.runs.metrics import best_row, read_json, read_metrics
from experiments.runs.storage import write_whole
from experiments.runtime import progress
from experiments.runtime.network import can_connect, first_hop
from experiments.tracking.identity import describe

MODES = ("online", "offline", "disabled")
# Other words that wandb takes. "shared" is for several processes that send; here only one does.
ALIASES = {"run": "online", "shared": "online", "dryrun": "offline"}
PROJECT = "adahessian"
END_SECONDS = 45  # what a short training waits at its end for a server that does not answer
EARLY_END_SECONDS = 15  # the same after an exception or a signal

# wandb may drop a setting that begins with `x_` in any version: settings it does not know are not
# sent.
SETTINGS = {
    "reinit": "create_new",  # no global run that a second training would finish
    "silent": True,
    "console": "off",
    "disable_git": True,  # our provenance is in the config, and nobody's diff is uploaded
    "disable_code": True,
    "init_timeout": 10,  # seconds; wandb takes about 11 more
    "finish_timeout": 15,  # seconds; what is not uploaded by then, a later opening sends
    "finish_timeout_raises": True,
    "symlink": False,
    "x_save_requirements": False,
    # By default the log is written every 15 s: a killed run would lose so much.
    "x_transaction_log_flush_interval": 1,
}


def never_fails(method: Callable) -> Callable:
    """On any exception in a tracker's method: print one line and turn the tracker off."""

    @functools.wraps(method)
    def guarded(self: "Tracker", *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            self._give_up(error)

    return guarded


class Tracker:
    """Mirrors one run into wandb, from entering the context to leaving it.

    Args:
        directory: of the run, with its `meta.json`.
        mode: one of `MODES`, at once and with nothing to fall back to; None: see the module's
            docstring.

    Attributes:
        uploaded: whether the server has all that was sent (from leaving the context on).
        url: of the run's page on the server, while and after it is online.

    Raises:
        UserError: `WANDB_MODE` is none of `MODES`.
    """

    server_failed = False  # once for the whole process: no run after that waits for it again

    def __init__(self, directory: Path, mode: str | None = None) -> None:
        self.directory = directory
        self.home = directory / "wandb"
        self.requested, self.fallback = mode or requested_mode(), mode is None
        self.run: Any = None
        self.online = self.uploaded = False
        self.url: str | None = None
        self.sent = self.epochs = 0  # the last step and epoch that wandb has
        self.open: dict[str, Any] = {}  # of the step that ends an epoch: goes with the epoch's row
        self.best: dict[str, Any] | None = None
        self.lock: IO[str] | None = None  # keeps out a second tracker, such as an upload
        self.calls: SimpleQueue = SimpleQueue()  # what the thread has to do, None at the end
        self.thread: Thread | None = None
        if self.fallback and self.requested != "disabled":
            self.thread = Thread(target=self._work, name="wandb", daemon=True)

    def __enter__(self) -> "Tracker":
        if self.thread:
            self.thread.start()
        self._do(self._open)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._finish)
        self._do(self._release)
        if self.thread:
            self.calls.put(None)
            self.thread.join(EARLY_END_SECONDS if error else END_SECONDS)
            if self.thread.is_alive():
                say("it hangs, and is left behind; `make wandb-sync` sends what is missing")

    def log(self, row: dict[str, Any]) -> None:
        """Send a row of an epoch, with its spectrum where there is one, or of a step."""
        self._do(self._log, row)

    def _do(self, method: Callable, *arguments: Any) -> None:
        if self.thread:
            self.calls.put((method, arguments))
        else:
            method(*arguments)

    def _work(self) -> None:
        while call := self.calls.get():
            method, arguments = call
            method(*arguments)

    @never_fails
    def _log(self, row: dict[str, Any]) -> None:
        if self.run is not None:
            self._send(row)

    def _send(self, row: dict[str, Any]) -> None:
        if _is_of_epoch(row):
            self._send_epoch(row)
        elif row["epoch"].is_integer():
            self.open = row
        elif row["step"] > self.sent:
            self.run.log(row, step=row["step"], commit=True)
            self.sent = row["step"]

    def _send_epoch(self, row: dict[str, Any]) -> None:
        name, direction = self.headline.name, self.headline.direction
        key = f"{self.config['best_epoch_split']}/{name}"
        if key in row:
            self.best = best_row([self.best or row, row], key, direction)
        opened, self.open = self.open, {}
        if row["step"] <= self.sent:
            self.epochs = row["epoch"]
            return
        ended = opened if opened.get("step") == row["step"] else {}
        whole = {**ended, **row, **self._media(row["epoch"])}
        # Without `commit` the row stays open until the next one, and is lost if the process dies.
        self.run.log(whole, step=row["step"], commit=True)
        self.sent, self.epochs = row["step"], row["epoch"]
        if self.best:
            # Not define_metric(summary="max"): the best value would replace the last one.
            keys = ["epoch", *(k for k in self.best if k.endswith(f"/{name}"))]
            self.run.summary.update({f"best/{k}": self.best[k] for k in keys})

    def _media(self, epoch: int) -> dict[str, Any]:
        """The spectral density of an epoch: a histogram, drawn over time, and a line plot."""
        path = self.directory / "spectra" / f"epoch-{epoch:04d}.npz"
        if not path.exists():
            return {}
        import wandb

        try:
            return {
                "hessian/density": wandb.Histogram(np_histogram=spectrum.histogram(path)),
                # No wandb.plot: it makes a Table, and logging a Table waits for the server.
                "hessian/density_plot": wandb.Image(spectrum.picture(path, epoch)),
            }
        except Exception as error:  # costs a picture, not the run
            say(f"{path} cannot be shown: {summarize(error)}")
            return {}

    @property
    def headline(self) -> Metric:
        return metrics.read(self.meta)[self.meta["headline"]]

    # --------------------------------------------------------------------------------- opening

    @never_fails
    def _open(self) -> None:
        mode = self._usable_mode()
        if mode == "disabled" or not self._acquire_lock():
            return
        self.meta = read_json(self.directory / "meta.json")
        self.config = read_yaml((self.directory / "config.yaml").read_text(encoding="utf-8"))
        self.run = self._start(mode)
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        # Not its own counter: earlier versions counted epochs there.
        self.sent = self.run.summary.get("step", 0) if self.run.resumed else 0
        steps, epochs = (read_metrics(self.directory / f"{n}.jsonl") for n in ("steps", "metrics"))
        for row in sorted([*steps, *epochs], key=lambda row: row["step"]):  # a step's row is first
            self._send(row)
        self._remove_older_records()

    def _usable_mode(self) -> Literal["disabled", "online", "offline"]:
        """The mode that is possible, given the requested one; loads wandb only if it is used."""
        mode = self.requested
        if mode == "disabled":
            return mode
        try:
            wandb = load_wandb(self.directory)
        except ImportError:
            if mode != "auto":
                say("not installed, so nothing is sent to it: pip install wandb")
            return "disabled"
        if mode == "offline":
            return mode
        if not has_key(wandb):
            if mode == "online":
                say(
                    "no key: recording offline. `wandb login` stores one, `make wandb-sync` uploads"
                )
            return "offline"
        url = base_url(wandb)
        if Tracker.server_failed and self.fallback:
            trouble = "has failed before"
        elif not can_connect(first_hop(url)):
            trouble = "does not answer"
        else:
            return "online"
        if not self.fallback:
            raise ConnectionError(f"{url} {trouble}")
        say(f"{url} {trouble}: recording offline, `make wandb-sync` uploads")
        return "offline"

    def _acquire_lock(self) -> bool:
        self.home.mkdir(exist_ok=True)
        self.lock = (self.home / ".lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is sending {self.directory}; `make wandb-sync` sends the rest")
            return False
        except OSError:  # a file system without locks
            pass
        return True

    def _start(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        known: dict[str, Any] = {
            key: value for key, value in SETTINGS.items() if key in wandb.Settings.model_fields
        }
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                dir=self.directory,
                mode=mode,
                # Without `resume`, a second record of an id overwrites the first on the server.
                resume="allow",
                settings=wandb.Settings(**known),
                **describe(self.directory, self.meta, self.config),
            )
        except Exception as error:
            if mode == "offline" or not self.fallback:
                raise
            Tracker.server_failed = True
            say(f"{summarize(error)}: recording offline, `make wandb-sync` uploads")
            wandb.teardown()  # or the id is "in use"
            return self._start("offline")
        self.online, self.url = mode == "online", run.url
        if self.fallback and self.url:
            say(self.url)
        return run

    def _remove_older_records(self) -> None:
        current = Path(self.run.dir).parent
        for record in records(self.directory):
            if record.resolve() != current.resolve():
                shutil.rmtree(record, ignore_errors=True)

    # --------------------------------------------------------------------------------- closing

    @never_fails
    def _finish(self) -> None:
        if self.run is None:
            return
        run, self.run = self.run, None
        # A run that an exception or a signal ended is not shown as finished.
        run.finish(exit_code=0 if (self.directory / "DONE").exists() else 1)
        if self.online:
            self.uploaded = True
            content = json.dumps({"epochs": self.epochs, "url": self.url})
            write_whole(self.home / "uploaded.json", content + "\n")

    def _release(self) -> None:
        if self.lock:
            self.lock.close()

    def _give_up(self, error: Exception) -> None:
        self.run = None
        if self.online:
            Tracker.server_failed = True
        say(
            f"{summarize(error)}. It is off for this run, whose files are complete; "
            "`make wandb-sync` sends what is missing"
        )
        try:
            load_wandb(self.directory).teardown(exit_code=1)
        except Exception:  # what is broken need not be shut down
            pass


def _is_of_epoch(row: dict[str, Any]) -> bool:
    """Whether a row is one of `metrics.jsonl`; those of `steps.jsonl` have fractions of epochs."""
    return isinstance(row["epoch"], int)


def records(directory: Path) -> list[Path]:
    """wandb's own directories in a run's directory, one per session that is still of use."""
    return sorted((directory / "wandb").glob("*run-*-*"))


# ------------------------------------------------------------------------------------ wandb itself


def load_wandb(place: Path) -> Any:
    """Import wandb without its messages; it takes seconds, so only where it is used.

    Args:
        place: for the logs of wandb's service, which would else be in the user's home.

    Raises:
        ImportError: it is not installed.
    """
    import wandb

    os.environ.setdefault("WANDB_CACHE_DIR", str(place.absolute()))

    wandb.setup(wandb.Settings(silent=True))
    return wandb


def requested_mode() -> str:
    """`WANDB_MODE`, or "auto" where it is not set or empty.

    The variable then holds the mode, or is gone: wandb reads it again, and refuses an empty one.

    Raises:
        UserError: it is none of `MODES`, nor another word for one.
    """
    mode = os.environ.pop("WANDB_MODE", "")
    if not mode:
        return "auto"
    os.environ["WANDB_MODE"] = mode = ALIASES.get(mode, mode)
    if mode not in MODES:
        raise UserError(f"WANDB_MODE = '{mode}': {nearest(mode, MODES)}")
    return mode


def has_key(wandb: Any) -> bool:
    return wandb.login(prompt=False, verify=False)


def base_url(wandb: Any) -> str:
    return wandb.setup().settings.base_url


def summarize(error: Exception) -> str:
    """The error in a line: the first ones may say no more than that something is invalid."""
    text = textwrap.shorten(str(error), 200, placeholder=" ...").rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@functools.cache
def say(text: str) -> None:
    """One line on stderr, each text once."""
    progress.say(f"wandb: {text}")
