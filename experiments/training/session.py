"""One run from its directory to its end, whoever asks for it."""

import sys

from experiments.config.experiment import Config
from experiments.errors import FAILED
from experiments.runs.directory import Onlooker, RunDirectory
from experiments.runs.provenance import git_state
from experiments.runtime import distributed, stopping
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root, runs_root
from experiments.training.loop import NonFiniteLoss, train


def train_unless_done(config: Config, wait: bool = False) -> int:
    """Train one run, or say that it is done; returns the exit code.

    Args:
        config: of the run.
        wait: while another process trains it, rather than refuse.
    """
    distributed.start(build_device(config))
    directory = (RunDirectory if distributed.is_main() else Onlooker)(runs_root(), config)
    if distributed.broadcast(directory.done):
        print(f"done already: {directory.path}{_other_commit(directory)}", file=sys.stderr)
        return 0
    try:
        with stopping.listening(), directory.locked(wait):
            if not distributed.broadcast(directory.done):  # it may be since we waited
                train(config, directory, data_root())
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


def _other_commit(directory: RunDirectory) -> str:
    then, now = directory.meta()["sessions"][-1]["commit"], git_state()["commit"]
    return "" if then == now else f" (at commit {str(then)[:10]}; this is {str(now)[:10]})"
