"""The tables of a benchmark: on the screen, as Markdown and JSON, and in `docs/`.

A page in `docs/` holds a pair of comments, `<!-- NAME:begin -->` and `<!-- NAME:end -->`, for each
benchmark that it shows; what stands between them is written by the benchmark, never by hand.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.reports.render import markdown, terminal
from experiments.reports.sections import Grid, Section, Text
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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def sentence(origin: dict[str, Any]) -> str:
    """The provenance as a sentence below the tables."""
    commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["dirty"] else "")
    return (
        f"{origin['machine']}, {origin['threads']} of {origin['cores']} cores (load "
        f"{origin['load']} at the end), torch {origin['torch']}, commit {commit}, {origin['date']}."
    )


def publish(
    name: str, tables: Sequence[Grid], origin: dict[str, Any], data: Any, docs: Path | None
) -> None:
    """Print the tables; write `NAME.md` and `NAME.json` below `RUNS_ROOT`, and into `docs`."""
    section = Section("", [*tables, Text(sentence(origin))])
    text = markdown.render([section])
    say: Callable[[str], None] = print
    try:
        console = terminal.make_console()
    except ModuleNotFoundError:  # a bare machine, where rich is missing, can run a benchmark, too
        print(text)
    else:
        terminal.show(section, console)
        say = partial(console.print, soft_wrap=True)
    folder = runs_root() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    shown = [
        {"title": t.title, "columns": t.columns, "rows": t.rows, "note": t.note} for t in tables
    ]
    content = {"provenance": origin, "data": data, "tables": shown}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"written: {folder / name}.md and .json")
    if docs is not None:
        insert(docs, name, text)
        say(f"written: {docs}")


def insert(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of `name` on a page.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} ... {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
