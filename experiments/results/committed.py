"""Runs as committed data: written to `results/`, and read from there."""

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.experiment import WITHOUT_EFFECT
from experiments.errors import UserError
from experiments.runs import data, own_code, problem
from experiments.runs.metrics import best_row, read_json
from experiments.runs.reading import Run
from experiments.runs.storage import write_whole, writing

FOLDER = Path(__file__).parents[2] / "results"
DIVERGED = "diverged"
DIGITS = 5  # significant ones
META = ("dataset", "model", "optimizer", "signature", "protocol", "metrics", "headline")
META_ADDED = ("result_split", data.KEY)  # not in the files of earlier versions
SESSION = ("started", "commit", "dirty", "torch", "python", "device", "threads")
SESSION_ADDED = (own_code.KEY,)  # likewise


def export(
    runs: Sequence[Run], folder: Path, say: Callable[[str], None] = warnings.warn
) -> dict[Path, int]:
    """Write the runs that are done or diverged; returns how many went into which file.

    A file is of one problem (`experiments.runs.problem`): that of the runs in it already, or else
    of most of them.

    Args:
        runs: from which to choose.
        folder: that holds the files.
        say: is given a line for each run that is of another problem, and left out.

    Raises:
        UserError: a file that is there cannot be read.
    """
    groups: dict[Path, list[Run]] = {}
    written: dict[Path, int] = {}
    for run in runs:
        if run.state in ("done", DIVERGED):
            groups.setdefault(_path(folder, run.meta), []).append(run)
    for path, members in groups.items():
        content = _read(path) if path.exists() else {"runs": {}}
        members, meta = _of_one_problem(members, content.get("meta"), path, say)
        if not members:
            continue
        found = content["runs"] | {str(run.meta["seed"]): _entry(run) for run in members}
        config = members[0].config
        content = {
            "config": {key: config[key] for key in config if key not in WITHOUT_EFFECT},
            "meta": {key: meta[key] for key in META + META_ADDED if key in meta},
            "runs": {seed: found[seed] for seed in sorted(found, key=int)},
        }
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _text(content))
        written[path] = len(members)
    return written


def _of_one_problem(
    runs: list[Run], there: Mapping[str, Any] | None, path: Path, say: Callable[[str], None]
) -> tuple[list[Run], Mapping[str, Any]]:
    """The runs that a file takes, and what it says of them; `there`: what it says already."""
    # None stands for the runs that are in the file.
    items, metas = [*runs, *([None] if there else [])], [run.meta for run in runs]
    metas = [*metas, *([there] if there else [])]
    problems = problem.sort(items, [problem.identity(meta) for meta in metas])
    known, chosen = max(problems, key=lambda one: (None in one[1], len(one[1])))
    for other, members in problems:
        for run in filter(None, members if members is not chosen else ()):
            differs = f"{problem.words(other, [known])}, the others {problem.words(known, [other])}"
            say(f"left out of {path.name}, not comparable: {run.directory} ({differs})")
    taken = [run for run in chosen if run is not None]
    kept = {key: known[key] for key in (data.KEY,) if key in known}
    return taken, {**(taken[0].meta if taken else {}), **kept}


def read(folder: Path, root: Path) -> dict[Path, Run]:
    """The runs in all files of a folder, by the directory that each would have below a root.

    Raises:
        UserError: a file cannot be read.
    """
    found = {}
    for path in sorted(folder.glob("*/*/*.json")):
        content = _read(path)
        meta = content["meta"]
        parent = root / meta["dataset"] / meta["model"] / meta["optimizer"]
        for seed, entry in content["runs"].items():
            directory = parent / f"{meta['signature']}-s{seed}"
            found[directory] = _run(content, int(seed), entry, directory)
    return found


def _path(folder: Path, meta: dict[str, Any]) -> Path:
    name = f"{meta['optimizer']}-{meta['signature']}.json"
    return folder / meta["dataset"] / meta["model"] / name


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        content["runs"].items(), [content["meta"][key] for key in META]
        for optimizer in content["config"]["optimizers"].values():
            if changes := optimizer.get("after_epochs"):  # JSON has no numbers for keys
                optimizer["after_epochs"] = {int(epoch): new for epoch, new in changes.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            "restore it (git checkout), or remove it and export anew"
        ) from None
    return content


def _entry(run: Run) -> dict[str, Any]:
    rows = [row for row in run.rows if row.get("epoch", 0) > 0]
    split = f"{run.config['best_epoch_split']}/{run.headline.name}"
    keys = dict.fromkeys(["train/loss", run.test_key, split])
    # Where the result is measured at the end alone, as BLEU is, the other metrics are the curve.
    if len(run.evaluated) < len(rows):
        keys |= dict.fromkeys(key for row in rows for key in row if _is_measured(run, key))
    keys["time/epoch_seconds"] = None
    # Runs of earlier versions have no share, and few optimizers a count.
    keys |= {key: None for key in ("time/waited_share", "train/gradients") if run.series(key)}
    entry: dict[str, Any] = {
        "state": run.state,
        "sessions": [
            {k: s.get(k) for k in SESSION} | {k: s[k] for k in SESSION_ADDED if k in s}
            for s in run.meta["sessions"]
        ],
    }
    if rows and run.evaluated:
        best = best_row([row for row in rows if split in row], split, run.headline.direction)
        for name, row in (("last", run.evaluated[-1]), ("best", best)):
            entry[name] = {"epoch": row["epoch"], run.test_key: row[run.test_key]}
    return entry | {
        "training_seconds": _rounded(run.training_seconds()),
        "step_seconds": _rounded(run.step_seconds()),
        "steps": rows[-1].get("step", 0) if rows else 0,
        "curves": {key: [_rounded(row.get(key)) for row in rows] for key in keys},
    }


def _is_measured(run: Run, key: str) -> bool:
    """Whether a row's key is a metric of an evaluated split."""
    split, _, name = key.partition("/")
    return split != "train" and name in run.metrics


def _run(content: dict[str, Any], seed: int, entry: dict[str, Any], directory: Path) -> Run:
    """The run as read from its own files, without what the export leaves out."""
    curves = entry["curves"]
    epochs = max(map(len, curves.values()), default=0)
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"step": entry["steps"] * epoch // epochs, "epoch": epoch}
        row |= {key: values[epoch - 1] for key, values in curves.items()}
        row["time/step_seconds"] = entry["step_seconds"]
        rows.append({key: value for key, value in row.items() if value is not None})
    meta = {**content["meta"], "seed": seed, "sessions": entry["sessions"]}
    return Run(directory, meta, content["config"], rows, entry["state"])


def _rounded(value: float | None) -> float | None:
    """Five significant digits; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(content: dict[str, Any]) -> str:
    """JSON with lists of numbers on one line each."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    return re.sub(r"\[\s[^\[\]{}]*\]", _one_line, text) + "\n"


def _one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[0][1:-1].split())}]"
