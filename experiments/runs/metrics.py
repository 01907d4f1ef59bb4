"""Reading a run's small files."""

import json
import math
from pathlib import Path
from typing import Any

from experiments.runs.jsonlines import read_rows


def read_json(path: Path) -> dict[str, Any]:
    """The content of a `meta.json` or `DONE`."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a `metrics.jsonl`, which may be being written."""
    return read_rows(path)[0]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the keys that may differ between identical runs."""
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def best_row(rows: list[dict[str, Any]], key: str, direction: str) -> dict[str, Any]:
    """The row with the best value of `key`, the earliest of equals; what is not finite is worst."""
    sign = 1 if direction == "max" else -1
    return max(rows, key=lambda row: sign * row[key] if math.isfinite(row[key]) else -math.inf)
