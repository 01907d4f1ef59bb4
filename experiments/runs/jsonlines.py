"""Reading files of one JSON object a line, which somebody else may be writing."""

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows that can be read, and what is wrong with the others; none where there is no file.

    A process that was killed can leave half a line; resuming cuts it off.
    """
    if not path.exists():
        return [], ""
    rows, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return rows, f"{damaged} damaged line(s) in {path.name}" if damaged else ""
