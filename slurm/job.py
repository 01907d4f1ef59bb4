"""What a job does: train its runs, and see to it that it is started again where that helps."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """The callable that submitit stores and starts: paths and strings only.

    It holds no progress: that is in the runs' directories. So a job that is started again, by a
    requeue, after a node's death, or by hand, goes on where its runs are.

    Attributes:
        configs: the `config.yaml` of each run.
        runs_root, data_root: absolute.
        name: of a job with a single run; the members of an array are submitted under a common one.
        folder: where it was submitted, to which a relative path in a configuration refers; the
            code comes from a copy, in which Python has started.
        until: of each run the epochs after which it is to pause; empty or None: none.
    """

    configs: list[str]
    runs_root: str
    data_root: str
    name: str = ""
    folder: str = ""
    until: Sequence[int | None] = ()

    def __call__(self) -> None:
        # submitit's handler, where it runs this: it asks Slurm (or the local controller) for a
        # requeue, and exits.
        handler = signal.getsignal(signal.SIGUSR2)
        requeue = handler if callable(handler) else lambda number, frame: None
        os.environ["RUNS_ROOT"], os.environ["DATA_ROOT"] = self.runs_root, self.data_root
        if self.folder:
            with suppress(OSError):  # not every node sees it, and few configurations need it
                os.chdir(self.folder)
        _rename_member(self.name)
        _export_ranks()
        until = self.until or [None] * len(self.configs)
        failed = [p for p, u in zip(self.configs, until, strict=True) if _train(p, requeue, u)]
        if failed:
            raise SystemExit(f"failed: {', '.join(failed)}")

    def checkpoint(self) -> Any:
        """What submitit stores for the next attempt: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _train(path: str, requeue: Callable[[int, None], None], until: int | None) -> int:
    """Train one run, or pause after so many epochs.

    Returns:
        Its exit code; or it leaves the process, to be started again.
    """
    # torch takes seconds to import: time in which submitit already answers signals.
    from experiments.errors import FAILED, USER_ERROR, UserError
    from experiments.plans.load import load
    from experiments.runs import attempts
    from experiments.runs.lease import job_id
    from experiments.runs.storage import StorageError
    from experiments.runtime import distributed, stopping
    from experiments.runtime.progress import say
    from experiments.training.session import train_unless_done

    sys.argv[1:] = [path]  # what this is, as a command of `experiments.run`: `meta.json` keeps it
    directory = Path(path).parent
    done = directory / "DONE"
    known = len(attempts.read(directory))

    def hopeless() -> bool:
        way = distributed.is_main() and attempts.hopeless(directory, job_id())
        if way:
            say(f"{directory}: ended {attempts.LIMIT} times alike without a new checkpoint "
                f"({way}); not again")  # fmt: skip
        return bool(way)

    try:
        config = load(path)
        if not done.exists() and hopeless():
            return FAILED
        return train_unless_done(config, wait=True, until=until)
    except stopping.Stopped as stop:
        say(str(stop))
        if (
            stop.signal != signal.SIGUSR2
        ):  # the sender of another one requeues it, or does not want to
            raise SystemExit(stop.exit_code) from None
        if done.exists():
            return 0
        requeue(stop.signal, None)
        raise SystemExit(0) from None  # of several processes the first one asks for all
    except Exception as error:
        if distributed.is_main() and not done.exists() and len(attempts.read(directory)) == known:
            attempts.record_end(directory, error)  # it died on the way to the training
        if isinstance(error, UserError) and not isinstance(error, StorageError):
            say(f"error: {error}")
            return USER_ERROR
        say(traceback.format_exc())
        if hopeless():
            return FAILED
        requeue(signal.SIGUSR2, None)
        raise


def _rename_member(name: str) -> None:
    """Name a member of a job array after its run; Slurm can do so once the member has begun."""
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    if name and first and "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"jobid={os.environ['SLURM_JOB_ID']}"
        with suppress(OSError, subprocess.TimeoutExpired):  # it is a name, and no more
            subprocess.run(["scontrol", "update", job, f"name={name}"], timeout=30)


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
