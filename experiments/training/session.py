"""One run from its directory to its end, whoever asks for it."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from experiments.config.experiment import Config
from experiments.errors import FAILED, UserError
from experiments.runs import checkpoint, data, own_code
from experiments.runs.directory import RunDirectory
from experiments.runs.layout import misplaced
from experiments.runs.provenance import git_state
from experiments.runs.storage import StorageError
from experiments.runtime import distributed, stopping
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root, runs_root
from experiments.runtime.progress import say
from experiments.runtime.threads import VARIABLE, threads_per_run
from experiments.tasks.registry import describe_data
from experiments.training import weights
from experiments.training.loop import NonFiniteLoss, train


def train_unless_done(
    config: Config, wait: bool = False, title: str = "", until: int | None = None
) -> int:
    """Train one run, or say that it is done; returns the exit code.

    Args:
        config: of the run.
        wait: while another process trains it, rather than refuse.
        title: see `RunDirectory`.
        until: epochs after which to pause; None: to the end.
    """
    device = build_device(config)
    if device.type == "cpu":
        torch.set_num_threads(threads_per_run())
    distributed.start(device)
    directory = RunDirectory(runs_root(), config, distributed.is_main(), title)
    if distributed.broadcast(say_if_done(directory)):
        return 0
    try:
        with stopping.listening(), directory.locked(wait):
            # It may be since we waited.
            if not distributed.broadcast(directory.done or directory.has_come(until)):
                _warn_of_other_threads(directory, device)
                _warn_of_other_code(directory)
                train(config, directory, data_root(), until)
    except stopping.Paused as pause:
        say(f"{directory.title}: {pause}")
    except NonFiniteLoss as error:
        say(f"error: {error}")
        return FAILED
    return 0


def say_if_done(directory: RunDirectory) -> bool:
    """Whether a run is done, which is said with the commit that it came from.

    Raises:
        UserError: it is done on other data than there are now; or the directory is a copy of
            another run's, done or not.
    """
    if why := misplaced(directory.path):
        raise UserError(f"{directory.path} is {why}; move it away to train this run")
    if not directory.done:
        return False
    try:
        meta = directory.meta() or {}
        then = (meta.get("sessions") or [{}])[-1].get("commit")
    except (StorageError, AttributeError):  # it is done all the same; reports say what is damaged
        meta, then = {}, None
    _check_data(directory, meta)
    now = git_state()["commit"]
    other = "" if then == now else f" (at commit {str(then)[:10]}; this is {str(now)[:10]})"
    own = own_code.differs(meta.get("sessions"), directory.config)
    say(f"done already: {directory.path}{other}{own and f' ({own})'}")
    return True


def _check_data(directory: RunDirectory, meta: Mapping[str, Any]) -> None:
    try:
        now = describe_data(directory.config, data_root())
    except UserError:  # they are not there or damaged: what is done is done
        return
    known = meta.get(data.KEY)
    if now and isinstance(known, Mapping) and weights.DIGEST in known:
        now = {**now, weights.DIGEST: known[weights.DIGEST]}  # a done run needs them no more
    data.refuse_other(directory.path, known, now)
    if meta and now and data.KEY not in meta and directory.writes:
        directory.complete(now)


def _warn_of_other_code(directory: RunDirectory) -> None:
    """Say where a training goes on with other code of the user's own than it began with."""
    if checkpoint.stamp(directory.path) is None or not directory.writes:
        return
    if own := own_code.differs((directory.meta() or {}).get("sessions"), directory.config):
        warnings.warn(f"{directory.path} was so far {own}. It goes on with that", stacklevel=2)


def _warn_of_other_threads(directory: RunDirectory, device: torch.device) -> None:
    """Say where a training goes on with another number of threads than it began with."""
    if device.type != "cpu" or checkpoint.stamp(directory.path) is None:
        return
    sessions = (directory.meta() or {}).get("sessions") or [{}]
    before, now = sessions[-1].get("threads"), torch.get_num_threads()
    if sessions[-1].get("device") == "cpu" and before not in (None, now):
        warnings.warn(
            f"{directory.path} was trained with {before} thread(s) so far and goes on with {now}: "
            f"rounding differs, and so will its results; {VARIABLE}={before} goes on as before",
            stacklevel=2,
        )
