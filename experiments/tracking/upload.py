"""Sending the records of runs to a wandb server."""

from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError
from experiments.runs.layout import find
from experiments.runs.metrics import read_json, read_metrics
from experiments.runtime.network import can_connect, first_hop
from experiments.tracking import tracker as tracking


def check_server(root: Path) -> None:
    """See that an upload of runs below `root` has a chance.

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
    """The directories of runs that have something to show.

    Raises:
        UserError: there is none.
    """
    runs = find(root, holding="metrics.jsonl")
    if not runs:
        raise UserError(f"no run below {root}; RUNS_ROOT names another place")
    yield from runs


def is_uploaded(run: Path) -> bool:
    """Whether an earlier session or upload of the run sent all its rows, to the last."""
    marker, rows = run / "wandb" / "uploaded.json", read_metrics(run / "metrics.jsonl")
    return not rows or (marker.exists() and read_json(marker)["epochs"] >= rows[-1]["epoch"])


def upload(run: Path) -> bool:
    """Send what is missing of one run, and say so; returns whether that worked."""
    with tracking.Tracker(run, mode="online") as tracker:
        pass  # opening sends everything
    if tracker.uploaded:
        print(f"{run}: epochs 1 to {tracker.sent}, {tracker.url}")
    return tracker.uploaded
