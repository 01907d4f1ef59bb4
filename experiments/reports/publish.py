"""How results are shown as tables: on the screen, as Markdown, LaTeX and JSON, and in `docs/`.

A page in `docs/` holds a pair of comments, `<!-- NAME:begin -->` and `<!-- NAME:end -->`, for each
benchmark that it shows; what stands between them is written by the benchmark, never by hand.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.reports.text_table import Table, make_console, show
from experiments.runs.provenance import git_state
from experiments.runtime.paths import runs_root


def provenance(device: str, **more: Any) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        **git_state(),
        **more,
    }


def processor() -> str:
    """The processor's name; what the kernel calls the architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def sentence(origin: dict[str, Any]) -> str:
    """The provenance as a reader of the table wants it."""
    commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["dirty"] else "")
    return (
        f"{origin['machine']}, {origin['threads']} of {origin['cores']} cores (load "
        f"{origin['load']} at the end), torch {origin['torch']}, commit {commit}, {origin['date']}."
    )


def publish(
    name: str, tables: Sequence[Table], origin: dict[str, Any], data: Any, docs: Path | None
) -> None:
    """Print the tables; write `NAME.md` and `NAME.json` below `RUNS_ROOT`, and into `docs`."""
    console = make_console()
    show(tables, console)
    console.print(sentence(origin), markup=False)
    folder = runs_root() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    markdown = "\n".join([*(table.markdown() for table in tables), sentence(origin) + "\n"])
    (folder / f"{name}.md").write_text(markdown)
    content = {"provenance": origin, "data": data, "tables": [asdict(t) for t in tables]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"written: {folder / name}.md and .json", soft_wrap=True)
    if docs is not None:
        insert(docs, name, markdown)
        console.print(f"written: {docs}", soft_wrap=True)


def insert(page: Path, name: str, markdown: str) -> None:
    """Replace what stands between the marks of `name` on a page.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} ... {end}")
    page.write_text(f"{before}{begin}\n{markdown}\n{end}{after}")
