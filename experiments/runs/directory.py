"""What a run leaves on disk and what it shows on the screen.

A run's directory, `<root>/<dataset>/<model>/<optimizer>/<signature>-s<seed>/`:

- `config.yaml`: the resolved configuration; `experiments.run` takes it like any other.
- `meta.json`: who this is (dataset, model, optimizer, signature, protocol, seed), the metrics (see
  `experiments.config.metrics`), the `headline` among them and the split on which it is the run's
  result, the number of parameters, and one entry per session: command, commit, versions, device.
- `metrics.jsonl`: one line per epoch: `step` and `epoch` (both counted from the start of the
  training, after that epoch), `learning_rate`, `train/*`, `val/*`, `test/*`, `hessian/*`, and
  `time/*` (seconds, and a share of them). Only `time/*` can differ between two identical runs. An
  interrupted and resumed run has the same lines as an uninterrupted one.
- `spectra/epoch-<epoch>.npz`, where spectra are asked for: see `experiments.training.curvature`,
  and `experiments.training.monitor` for the other `hessian/*`.
- `checkpoint.pt`, `checkpoint.prev.pt`: see `experiments.runs.checkpoint`.
- `attempts.jsonl`: how each attempt began and ended, see `experiments.runs.attempts`.
- `lease.json`: who is training it now, see `experiments.runs.lease`.
- `DONE`: the summary; its presence says that the run is complete.
- `wandb/`: what was sent to wandb, see `experiments.tracking.tracker`.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config, write_yaml
from experiments.config.signature import protocol, signature
from experiments.errors import UserError
from experiments.runs import attempts, checkpoint
from experiments.runs.lease import Lease
from experiments.runs.metrics import best_row, read_json, read_metrics, without_times


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
        metrics: Any,
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
            "metrics": metrics,
            "headline": headline,
            "result_split": config.result_split,
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


# --------------------------------------------------------------------------------- the screen
