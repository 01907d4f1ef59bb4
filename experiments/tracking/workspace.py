"""The runs side by side, on wandb or in the terminal."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.config import metrics
from experiments.config.metrics import Metric
from experiments.errors import UserError
from experiments.runs.metrics import read_json, read_metrics
from experiments.runs.storage import write_whole, writing
from experiments.tracking import tracker

TITLES = {
    "test": "Test",
    "val": "Validation",
    "train": "Training",
    "hessian": "Curvature",
    "step": "Single steps",
    "time": "Time",
}


def write_workspace(root: Path, runs: Sequence[Path]) -> str:
    """Write the project's workspace, the same one every time; returns its address.

    Raises:
        UserError: the server refuses.
    """
    try:
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr

        entity = os.environ.get("WANDB_ENTITY") or tracker.load_wandb(root).Api().default_entity
        project = os.environ.get("WANDB_PROJECT") or tracker.PROJECT
        address = root / "wandb" / f"workspace-{entity}-{project}"
        workspace = None
        if address.exists():
            try:
                workspace = workspaces.Workspace.from_url(
                    address.read_text(encoding="utf-8").strip()
                )
            except Exception:  # somebody deleted it
                pass
        workspace = workspace or workspaces.Workspace(entity=entity, project=project)
        workspace.name = "Optimizers side by side"
        declared, results = read_metas(runs)
        workspace.sections = make_sections(metric_keys(runs), declared)
        workspace.settings = workspaces.WorkspaceSettings(x_axis="epoch", max_runs=100)
        workspace.runset_settings = workspaces.RunsetSettings(
            groupby=[expr.Metric("Group")],  # the seeds of one configuration: mean and spread
            pinned_columns=[
                f"summary:{prefix}{key}" for key in results for prefix in ("best/", "")
            ],
        )
        workspace.save()
    except Exception as error:
        raise UserError(f"the workspace was not written: {tracker.summarize(error)}") from None
    with writing(address):
        address.parent.mkdir(exist_ok=True)
    write_whole(address, workspace.url + "\n")
    return workspace.url


def read_metas(runs: Iterable[Path]) -> tuple[dict[str, Metric], list[str]]:
    """The metrics that any run declares, by name, and the keys of the runs' results."""
    declared: dict[str, Metric] = {}
    results: list[str] = []
    for run in runs:
        try:
            meta = read_json(run / "meta.json")
            declared |= metrics.read(meta)
            results.append(metrics.result_key(meta))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged run has no say in how the others are shown
    return declared, list(dict.fromkeys(results))


def metric_keys(runs: Iterable[Path]) -> list[str]:
    """The keys in any run's rows, without counters and the learning rate."""
    keys: set[str] = set()
    for run in runs:
        with suppress(OSError):  # as in `read_metas`
            for name in ("metrics.jsonl", "steps.jsonl"):
                keys.update(key for row in read_metrics(run / name) for key in row)
    if any((run / "spectra").exists() for run in runs):
        keys.add("hessian/density_plot")
    return sorted(key for key in keys if "/" in key)


def make_sections(keys: Sequence[str], declared: Mapping[str, Metric]) -> list[Any]:
    """One section for each split or kind, one panel for each metric, or family of metrics.

    Args:
        keys: of the metrics, sorted.
        declared: by the runs, by name; what is to be minimized has a logarithmic axis.
    """
    from wandb_workspaces.reports import v2 as reports
    from wandb_workspaces.workspaces import Section

    known = [key for name in TITLES for key in keys if kind(key) == name]
    by_kind = known + [key for key in keys if key not in known]
    sections = []
    for name, members in groupby(by_kind, kind):
        panels = []
        # hessian/layer_trace/conv1.weight, ... are lines of one panel.
        for family, lines in groupby(members, lambda key: "/".join(key.split("/")[:2])):
            if family == "hessian/density_plot":
                panels.append(reports.MediaBrowser(title="Spectral density", media_keys=[family]))
                continue
            name_of_metric = family.split("/")[1]
            metric = declared.get(name_of_metric)
            words = name_of_metric.replace("_", " ")
            panels.append(
                reports.LinePlot(
                    title=f"{TITLES.get(name, name)}: {words}",
                    x="epoch",
                    y=list(lines),
                    title_x="epoch",
                    title_y=words if metric else "seconds" if words.endswith("seconds") else None,
                    log_y=metric is not None and metric.direction == "min",
                )
            )
        sections.append(Section(name=TITLES.get(name, name), panels=panels, is_open=True))
    return sections


def kind(key: str) -> str:
    return key.split("/")[0]


def show_locally(root: Path, runs: Sequence[Path]) -> int:
    """The terminal view of all runs; outside of a terminal, print where the report is."""
    report = root / "report.html"
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or not installed():
        print(report if report.exists() else f"`make report` writes {report}")
        return 0
    words = [sys.executable, "-m", "wandb", "leet", str(gather(root, runs))]
    return subprocess.run(words).returncode


def installed() -> bool:
    return shutil.which("wandb", path=str(Path(sys.executable).parent)) is not None


def gather(root: Path, runs: Sequence[Path]) -> Path:
    """A folder of links to the record of each run, as wandb's terminal view expects it.

    A run without an up-to-date record gets one, from its files.
    """
    folder = root / "wandb" / "all"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for run in runs:
        if not has_current_record(run):
            with tracker.Tracker(run, mode="offline"):
                pass  # opening records everything
        for record in tracker.records(run):
            (folder / record.name).symlink_to(record.resolve())
    return folder


def has_current_record(run: Path) -> bool:
    """Whether the run's record was written after its last row, or at the same time."""
    written = [file.stat().st_mtime for file in (run / "wandb").glob("*run-*/*.wandb")]
    tolerance = 5  # seconds; a record is written up to a second after the row
    return bool(written) and max(written) + tolerance > (run / "metrics.jsonl").stat().st_mtime
