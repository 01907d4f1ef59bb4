"""What a run leaves on disk and what it shows on the screen.

A run's directory, `<root>/<dataset>/<model>/<optimizer>/<signature>-s<seed>/`:

- `config.yaml`: the resolved configuration; `experiments.run` takes it like any other.
- `meta.json`: who this is (dataset, model, optimizer, signature, protocol, seed), the metrics
  with their directions, the number of parameters, and one entry per session: command, commit,
  versions, device.
- `metrics.jsonl`: one line per epoch: `step` and `epoch` (both counted from the start of the
  training, after that epoch), `learning_rate`, `train/*`, `val/*`, `test/*`, `hessian/*`, and
  `time/*` (seconds, and a share of them). Only `time/*` can differ between two identical runs. An
  interrupted and resumed run has the same lines as an uninterrupted one.
- `spectra/epoch-<epoch>.npz`, where spectra are asked for: see `experiments.measure`, and
  `experiments.monitor` for the other `hessian/*`.
- `checkpoint.pt`, `checkpoint.prev.pt`: see `experiments.checkpoint`.
- `attempts.jsonl`: how each attempt began and ended, see `experiments.attempts`.
- `lease.json`: who is training it now, see `experiments.lease`.
- `DONE`: the summary; its presence says that the run is complete.
- `wandb/`: what was sent to wandb, see `experiments.tracking`.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from experiments import attempts, checkpoint
from experiments.config import Config, UserError, write_yaml
from experiments.jsonlines import read_rows
from experiments.lease import Lease
from experiments.signature import protocol, signature


def runs_root() -> Path:
    """Where all runs live."""
    return Path(os.environ.get("RUNS_ROOT") or "runs")


def data_root() -> Path:
    """Where data sets are."""
    return Path(os.environ.get("DATA_ROOT") or "data")


class RunDirectory:
    """The directory of one run.

    Args:
        root: where all runs live.
        config: the resolved configuration, which gives the directory its name.
    """

    def __init__(self, root: Path, config: Config) -> None:
        self.config = config
        self.name = f"{signature(config)}-s{config.seed}"
        self.path = (
            root / config.dataset.name / config.model.label / config.optimizer_name / self.name
        )
        self.metrics_path = self.path / "metrics.jsonl"
        self.lease = Lease(self.path)

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Create the directory, keep other processes out of it, and record the attempt.

        Args:
            wait: for a process that is training the run, rather than refuse.

        Raises:
            LeaseHeld: another process is training the run.
            StorageError: the directory cannot be written.
        """
        with checkpoint.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with self.lease.held(wait), attempts.recorded(self.path):
            checkpoint.clean(self.path)
            yield

    def describe(
        self,
        session: dict[str, Any],
        metrics: dict[str, str],
        headline: str,
        parameters: int | None = None,
    ) -> None:
        """Write `config.yaml` and `meta.json`, keeping the sessions that were there."""
        config = self.config
        meta = {
            "dataset": config.dataset.name,
            "model": config.model.label,
            "optimizer": config.optimizer_name,
            "signature": signature(config),
            "protocol": protocol(config),
            "seed": config.seed,
            "metrics": dict(metrics),
            "headline": headline,
            "parameters": parameters,
            "sessions": [*(self.meta() or {}).get("sessions", []), session],
        }
        self._write("config.yaml", write_yaml(config))
        self._write("meta.json", json.dumps(meta, indent=2) + "\n")

    def meta(self) -> dict[str, Any] | None:
        path = self.path / "meta.json"
        return read_json(path) if path.exists() else None

    def append(self, row: dict[str, Any]) -> None:
        """Add a line to the metrics, on disk when this returns."""
        self.lease.check()
        with checkpoint.writing(self.metrics_path), self.metrics_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics_size(self) -> int:
        """Length of the metrics in bytes: what `cut_metrics` takes."""
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Forget the lines written after a checkpoint: they will be written again."""
        if self.metrics_size() < size:
            raise UserError(
                f"{self.metrics_path} is shorter than when the checkpoint was saved; "
                f"remove {self.path} to train this run anew"
            )
        self.lease.check()
        with checkpoint.writing(self.metrics_path), self.metrics_path.open("ab") as file:
            file.truncate(size)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save the state of the training; see `checkpoint.save`."""
        checkpoint.save(self.path, state, before_renaming=self.lease.check)

    def finish(self, headline: str, direction: str) -> None:
        """Write the summary and so mark the run as done."""
        rows = read_metrics(self.metrics_path)
        best = best_row(rows, f"{self.config.best_epoch_split}/{headline}", direction)
        summary = {
            "last_epoch": without_times(rows[-1]),
            "best_epoch": without_times(best),
            "best_epoch_split": self.config.best_epoch_split,
        }
        self._write("DONE", json.dumps(summary, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Write a whole file by rename: it is there complete or not at all."""
        temporary = self.path / f"{name}.tmp"
        self.lease.check()
        with checkpoint.writing(self.path / name):
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
            checkpoint.sync_directory(self.path)


class Onlooker(RunDirectory):
    """A run's directory for all but the first of several processes: it is read, never written."""

    @contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        yield

    def describe(self, *arguments: Any) -> None:
        pass

    def append(self, row: dict[str, Any]) -> None:
        pass

    def cut_metrics(self, size: int) -> None:
        pass

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        pass

    def finish(self, *arguments: str) -> None:
        pass


def read_json(path: Path) -> dict[str, Any]:
    """The content of a `meta.json` or `DONE`."""
    return json.loads(path.read_text())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a `metrics.jsonl`, which may be being written."""
    return read_rows(path)[0]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the keys that may differ between identical runs."""
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def best_row(rows: list[dict[str, Any]], key: str, direction: str) -> dict[str, Any]:
    """The row with the best value of `key`; the earliest of equals."""
    return (max if direction == "max" else min)(rows, key=lambda row: row[key])


def session(device: torch.device) -> dict[str, Any]:
    """Where and with what a training was started or continued."""
    return {
        "command": " ".join(["python -m experiments.run", *sys.argv[1:]]),
        **git_state(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_state() -> dict[str, Any]:
    """Commit of the harness and whether files differ from it; None outside of a repository.

    A snapshot of the code, which `slurm.submit` makes for a job, says of which commit it is.
    """
    if (of_snapshot := Path(__file__).parent.parent / "commit.json").exists():
        return read_json(of_snapshot)

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


# --------------------------------------------------------------------------------- the screen


class Progress:
    """A run's progress on stderr: a bar on a terminal, now and then a line anywhere else.

    Args:
        label: names the run.
        total: steps of the whole training.
    """

    line_every_seconds = 30

    def __init__(self, label: str, total: int, stream: IO[str] | None = None) -> None:
        self.label, self.total = label, total
        self.stream = stream or sys.stderr
        self.bar = None
        if self.stream.isatty():
            self.bar = self._make_bar()
        self.last_line = time.monotonic()

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self.stream),
            refresh_per_second=2,
        )
        self.task = bar.add_task(self.label, total=self.total, note="")
        return bar

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int) -> None:
        """`step` steps are done."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def note(self, text: str, last: bool = False) -> None:
        """Show the latest figures; off a terminal at most one line in a while, and the last."""
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, note=text)
        elif last or now - self.last_line >= self.line_every_seconds:
            self.last_line = now
            print(f"{self.label}: {text}", file=self.stream, flush=True)
