"""The page of what was measured on GPUs: `python -m experiments.benchmarks.gpu_report`.

Puts the tables below `results/gpu/`, part by part and machine by machine, between the marks of
`docs/gpu.md`. What stands around them is written by hand.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu import PARTS, REPOSITORY, RESULTS
from experiments.reports.publish import insert, sentence
from experiments.reports.render import markdown
from experiments.reports.sections import Grid, Section, Text

PAGE = REPOSITORY / "docs" / "gpu.md"


def read(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The files of each part, by machine; no dry runs."""
    found: dict[str, list[dict[str, Any]]] = {part.name: [] for part in PARTS}
    for file in sorted(results.glob("*.json")):
        if not file.name.startswith("cpu."):
            content = json.loads(file.read_text(encoding="utf-8"))
            found[content["part"]].append(content)
    return found


def render(contents: Sequence[dict[str, Any]]) -> str:
    """A part's tables from all machines, each with its origin."""
    blocks: list[Grid | Text] = []
    for content in contents:
        for table in content["tables"]:
            blocks.append(Grid(table["title"], table["columns"], table["rows"], table["note"]))
        if content["failure"]:
            blocks.append(Text(f"{content['command']}: {content['failure']}."))
        blocks.append(Text(f"{sentence(content['provenance'])} {content['seconds']:.0f} s."))
    return markdown.render([Section("", blocks or [Text("Not measured yet.")])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: results/gpu")
    parser.add_argument("--docs", type=Path, default=PAGE, help="default: docs/gpu.md")
    options = parser.parse_args(arguments)
    for name, contents in read(options.results).items():
        insert(options.docs, f"gpu-{name}", render(contents))
    print(f"written: {options.docs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
