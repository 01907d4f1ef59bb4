"""On which data a run was trained: part of its identity, beside what its signature says.

`meta.json` and the checkpoint hold what the task says of its data (`Task.describe_data`): classes,
counts and a hash. Runs of earlier versions hold nothing; the first data that they meet are theirs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UserError

KEY = "data"


REMEDY = "RUNS_ROOT to another place for new runs"


def refuse_other(
    directory: Path, known: Any, now: Mapping[str, Any] | None, remedy: str = REMEDY
) -> None:
    """Refuse data on which a run was not begun.

    Args:
        directory: of the run.
        known: what it was trained on, None where nothing says so.
        now: what there is now, None where nothing says so.
        remedy: what can be set besides DATA_ROOT.

    Raises:
        UserError: with both descriptions.
    """
    if isinstance(known, Mapping) and now is not None and dict(known) != dict(now):
        raise UserError(
            f"{directory} was trained on other data: {words(known)}; here is {words(now)}. Set "
            f"DATA_ROOT to the data it was trained on, or {remedy}"
        )


def words(data: Mapping[str, Any]) -> str:
    """A description in words: `2 classes, 40 train, 8 val (digest 0123456789abcdef)`."""
    counts = ", ".join(f"{value} {key}" for key, value in data.items() if key != "digest")
    return f"{counts} (digest {data['digest']})" if "digest" in data else counts
