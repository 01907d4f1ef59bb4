"""Where runs and data are."""

import os
from pathlib import Path


def runs_root() -> Path:
    """Where all runs live."""
    return Path(os.environ.get("RUNS_ROOT") or "runs")


def data_root() -> Path:
    """Where data sets are."""
    return Path(os.environ.get("DATA_ROOT") or "data")
