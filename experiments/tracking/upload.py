"""Sending the records of runs to a wandb server."""

from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError
from experiments.runs.layout import find
from experiments.runs.metrics import read_json, read_metrics
from experiments.runtime.network import can_connect, first_hop
from experiments.tracking import tracker as tracking


def check_server(root: Path) -> None:
    """Check that runs below `root` can be uploaded.

    Raises:
        UserError: wandb is not installed, there is no key, or the server does not answer.
    """
    try:
        wandb = tracking.load_wandb(root)
    except ImportError:
        raise UserError("wandb is not installed: pip install wandb") from None
    if not tracking.has_key(wandb):
        raise UserError(
            "no wandb key: `wandb login` stores the one of your account, "
            "or set WANDB_API_KEY; then ask again"
        )
    url = tracking.base_url(wandb)
    if not can_connect(first_hop(url)):
        raise UserError(f"{url} does not answer; WANDB_BASE_URL names another wandb server")


def find_runs(root: Path) -> Iterator[Path]:
    """The directories of runs that have metrics.

    Raises:
        UserError: there is none.
    """
    runs = find(root, holding="metrics.jsonl")
    if not runs:
        raise UserError(f"no run below {root}; RUNS_ROOT names another place")
    yield from runs


def is_uploaded(run: Path) -> bool:
    """Whether an earlier session or upload sent all rows of the run.

    A file that cannot be read says nothing: asking the server again does no harm.
    """
    try:
        rows = read_metrics(run / "metrics.jsonl")
        if not rows:
            return True
        return read_json(run / "wandb" / "uploaded.json")["epochs"] >= rows[-1]["epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def upload(run: Path) -> bool:
    """Send what the server lacks of one run and print it; returns whether that worked."""
    with tracking.Tracker(run, mode="online") as tracker:
        pass  # opening sends everything
    if tracker.uploaded:
        print(f"{run}: epochs 1 to {tracker.epochs}, {tracker.url}")
    return tracker.uploaded
