"""Reads the recorded cases."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vectors"


def cases(pattern: str = "*") -> list[dict[str, Any]]:
    """Return the cases by name, as their files hold them.

    Args:
        pattern: of their names, as a shell's: "hwio-*".

    Raises:
        ValueError: no case has such a name.
    """
    files = sorted((FOLDER / "cases").glob(f"{pattern}.json"))
    if not files:
        raise ValueError(f"no case is named {pattern!r}; their names are those in {FOLDER}/cases")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
