"""Where runs and data are."""

import os
from pathlib import Path

from experiments.errors import UserError


def runs_root() -> Path:
    """Where all runs live."""
    return expanded(os.environ.get("RUNS_ROOT") or "runs", "RUNS_ROOT")


def data_root() -> Path:
    """Where data sets are."""
    return expanded(os.environ.get("DATA_ROOT") or "data", "DATA_ROOT")


def expanded(path: str, where: str) -> Path:
    """A path that no shell has read, with the folder that its `~` stands for.

    Args:
        path: of the environment, or of a configuration.
        where: that is, for the message.

    Raises:
        UserError: it is that of a user whom nobody knows.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{where} = {path}: nobody here is called so") from None
