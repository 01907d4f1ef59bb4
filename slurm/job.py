"""What a job does: train its runs, and see to it that it is started again where that helps."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Job:
    """The callable that submitit stores and starts: paths and strings only.

    It holds no progress. That is in the runs' directories, so whoever starts it again, by a
    requeue, after a node's death, or by hand, starts it where its runs stand.

    Attributes:
        configs: the `config.yaml` of each run.
        runs_root, data_root: absolute.
    """

    configs: list[str]
    runs_root: str
    data_root: str

    def __call__(self) -> None:
        # submitit's handler, where it runs this: it asks Slurm (or the local controller) for a
        # requeue, and exits.
        handler = signal.getsignal(signal.SIGUSR2)
        requeue = handler if callable(handler) else lambda number, frame: None
        os.environ["RUNS_ROOT"], os.environ["DATA_ROOT"] = self.runs_root, self.data_root
        _export_ranks()
        failed = [path for path in self.configs if _train(path, requeue)]
        if failed:
            raise SystemExit(f"failed: {', '.join(failed)}")

    def checkpoint(self) -> Any:
        """What submitit stores for the next attempt: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _train(path: str, requeue: Callable[[int, None], None]) -> int:
    """Train one run; returns its exit code, or leaves the process to be started again."""
    # torch takes seconds to import: time in which submitit already answers signals.
    from experiments.errors import FAILED, USER_ERROR, UserError
    from experiments.plans.load import load
    from experiments.runs import attempts
    from experiments.runs.checkpoint import StorageError
    from experiments.runs.directory import RunDirectory
    from experiments.runs.lease import job_id
    from experiments.runtime import distributed, stopping
    from experiments.runtime.paths import runs_root
    from experiments.training.session import train_unless_done

    config = load(path)
    directory = RunDirectory(runs_root(), config)

    def hopeless() -> bool:
        way = distributed.is_main() and attempts.hopeless(directory.path, job_id())
        if way:
            print(f"{directory.path}: ended {attempts.LIMIT} times alike without a new checkpoint "
                  f"({way}); not again", file=sys.stderr)  # fmt: skip
        return bool(way)

    if not directory.done and hopeless():
        return FAILED
    try:
        return train_unless_done(config, wait=True)
    except stopping.Stopped as stop:
        print(stop, file=sys.stderr)
        if stop.signal != signal.SIGUSR2:  # whoever sends another requeues it himself, or will not
            raise SystemExit(stop.exit_code) from None
        if directory.done:
            return 0
        requeue(stop.signal, None)
        raise SystemExit(0) from None  # of several processes the first one asks for all
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, StorageError):
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR
        traceback.print_exc()
        if hopeless():
            return FAILED
        requeue(signal.SIGUSR2, None)
        raise


def _export_ranks() -> None:
    """Tell torch.distributed about the other processes of this job, in its own words."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return  # called without submitit, in one process
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        # Which GPU is whose, `experiments.runtime.distributed` says: submitit would count from 0
        # on nodes where Slurm gave us others.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
