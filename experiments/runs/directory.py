"""What a run leaves on disk.

A run's directory, named by `experiments.runs.layout`, holds:

- `config.yaml`: the resolved configuration; `experiments.run` takes it like any other.
- `meta.json`: who this is (dataset, model, optimizer, signature, protocol, seed), the metrics (see
  `experiments.config.metrics`), the `headline` among them and the split on which it is the run's
  result, the number of parameters, one entry per session (command, commit, versions, device), and
  what the data are (see `experiments.runs.data`).
- `metrics.jsonl`: one line per epoch: `step` and `epoch` (both counted from the start of the
  training, after that epoch), `learning_rate`, `train/*`, `val/*`, `test/*`, `hessian/*`, and
  `time/*` (seconds, and a share of them). Only `time/*` can differ between two identical runs. An
  interrupted and resumed run has the same lines as an uninterrupted one.
- `steps.jsonl`: one line per `log_every_steps` steps, see `experiments.training.step_log`. It goes
  with the checkpoint as `metrics.jsonl` does.
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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config, write_yaml
from experiments.config.signature import protocol, signature
from experiments.errors import UserError
from experiments.runs import attempts, checkpoint, data, lease
from experiments.runs.labels import titles
from experiments.runs.layout import path_of
from experiments.runs.lease import Lease
from experiments.runs.metrics import best_row, read_json, read_metrics, without_times
from experiments.runs.storage import StorageError, write_whole, writing


class RunDirectory:
    """The directory of one run.

    Args:
        root: where all runs live.
        config: the resolved configuration, which gives the directory its name.
        writes: whether this process records the run. Of several processes that train one run, only
            the first does; for the others every method that would write does nothing.
        title: of the run among those that it is trained with, see `experiments.runs.labels`.
    """

    def __init__(self, root: Path, config: Config, writes: bool = True, title: str = "") -> None:
        self.config = config
        self.writes = writes
        self.title = title or titles([config])[0]
        self.path = root / path_of(config)
        self.name = self.path.name
        self.metrics_path = self.path / "metrics.jsonl"
        self.steps_path = self.path / "steps.jsonl"
        self.lease = Lease(self.path)
        self._has_saved = False

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def has_come(self, epochs: int | None) -> bool:
        """Whether the run has been trained and evaluated for so many epochs; None: for all."""
        if epochs is None:
            return self.done
        return any(row.get("epoch", 0) >= epochs for row in read_metrics(self.metrics_path))

    @contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Create the directory, keep other processes out of it, and record the attempt.

        Args:
            wait: for a process that is training the run, rather than refuse.

        Raises:
            LeaseHeld: another process is training the run.
            StorageError: the directory cannot be written.
        """
        if not self.writes:
            yield
            return
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with self.lease.held(wait), attempts.recorded(self.path):
            checkpoint.clean(self.path)
            lease.clean(self.path)
            yield

    def describe(
        self,
        session: dict[str, Any],
        metrics: Any,
        headline: str,
        parameters: int | None = None,
        data_is: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `config.yaml` and `meta.json`, keeping the sessions that were there.

        Args:
            session: this one, see `experiments.runs.provenance`.
            metrics: what the task measures, as `experiments.config.metrics.dump` has it.
            headline: the name of the metric that reports show.
            parameters: of the model, how many numbers.
            data_is: what it is trained on, see `experiments.runs.data`.
        """
        if not self.writes:
            return
        config, before = self.config, self.meta() or {}
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
            "sessions": [*before.get("sessions", []), session],
        }
        if known := data_is or before.get(data.KEY):
            meta[data.KEY] = known
        self._write("config.yaml", write_yaml(config))
        self._write("meta.json", json.dumps(meta, indent=2) + "\n")

    def complete(self, data_is: Mapping[str, Any]) -> None:
        """Note on which data a run is that an earlier version finished, if that can be written."""
        if self.lease.path.exists():  # whoever left it there: that is not worth the waiting
            return
        with suppress(UserError), self.lease.held(wait=False):
            meta = read_json(self.path / "meta.json")
            self._write("meta.json", json.dumps({**meta, data.KEY: data_is}, indent=2) + "\n")

    def meta(self) -> dict[str, Any] | None:
        """What `meta.json` holds; None, with a warning, where it is damaged.

        Raises:
            StorageError: it may not be read.
        """
        path = self.path / "meta.json"
        try:
            meta = read_json(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError:
            meta = None
        sessions = meta.get("sessions", []) if isinstance(meta, dict) else None
        if not isinstance(sessions, list) or not all(isinstance(one, dict) for one in sessions):
            warnings.warn(f"{path} is damaged, and counts as missing", stacklevel=2)
            return None
        return meta

    def append(self, row: dict[str, Any]) -> None:
        """Add a line to the metrics, on disk when this returns."""
        self._append(self.metrics_path, row, on_disk=True)

    def append_step(self, row: dict[str, Any]) -> None:
        """Add a line to the steps; it is on disk with the next checkpoint, which it belongs to."""
        self._append(self.steps_path, row, on_disk=False)

    def _append(self, path: Path, row: dict[str, Any], on_disk: bool) -> None:
        if not self.writes:
            return
        self.lease.check()
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            if on_disk:
                os.fsync(file.fileno())

    def metrics_size(self) -> int:
        """Length of the metrics in bytes: what `cut_metrics` takes."""
        return _size(self.metrics_path)

    def steps_size(self) -> int:
        """Length of the steps in bytes, likewise."""
        return _size(self.steps_path)

    def cut_metrics(self, size: int, steps_size: int = 0) -> None:
        """Forget the lines of both written after a checkpoint: they will be written again."""
        if not self.writes:
            return
        for path, kept in ((self.metrics_path, size), (self.steps_path, steps_size)):
            if _size(path) < kept:
                raise UserError(
                    f"{path} is shorter than when the checkpoint was saved; "
                    f"remove {self.path} to train this run anew"
                )
            if path == self.steps_path and not path.exists():  # a run that logs no steps has none
                continue
            self.lease.check()
            with writing(path), path.open("ab") as file:
                file.truncate(kept)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save the state of the training, and read back the first one; see `checkpoint.save`."""
        if not self.writes:
            return
        if self.steps_path.exists():
            with writing(self.steps_path), self.steps_path.open("ab") as file:
                os.fsync(file.fileno())
        checkpoint.save(self.path, state, self.lease.check, read_back=not self._has_saved)
        self._has_saved = True

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to go on from, None for the beginning; see `checkpoint.load`.

        Who does not write gets None.
        """
        return checkpoint.load(self.path, self.lease.check) if self.writes else None

    def finish(
        self, headline: str, direction: str, samples: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Write the summary and so mark the run as done; `samples`: see `Task.samples`."""
        if not self.writes:
            return
        rows = read_metrics(self.metrics_path)
        key = f"{self.config.best_epoch_split}/{headline}"
        best = best_row([row for row in rows if key in row], key, direction)
        summary = {
            "last_epoch": without_times(rows[-1]),
            "best_epoch": without_times(best),
            "best_epoch_split": self.config.best_epoch_split,
            **({"samples": samples} if samples else {}),
        }
        self._write("DONE", json.dumps(summary, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        self.lease.check()
        write_whole(self.path / name, text)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
