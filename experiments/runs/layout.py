"""Where a run lives below a root: `<dataset>/<model>/<optimizer>/<signature>-s<seed>`.

No other code knows this. `path_of` names the place of a configuration, `find` lists the places
that are there.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.config.experiment import FOLDER_NAME, Config
from experiments.config.signature import signature

# What a run that was begun may have left, whatever has become of its other files.
TRACES = ("meta.json", "DONE", "metrics.jsonl", "attempts.jsonl")
_NAME = re.compile(r"[0-9a-f]{8}-s\d+")


def path_of(config: Config) -> Path:
    """The directory of a resolved configuration's run, relative to the root."""
    name = f"{signature(config)}-s{config.seed}"
    return Path(config.dataset.name, config.model.label, config.optimizer_name, name)


def find(
    root: Path,
    dataset: str | None = None,
    model: str | None = None,
    holding: str | Sequence[str] = "",
) -> list[Path]:
    """The directories of the runs below a root, sorted.

    Args:
        root: where runs live; may not be there.
        dataset, model: only of these.
        holding: only those in which a file of this name is, or of one of these.
    """
    if not all(FOLDER_NAME.fullmatch(name) for name in (dataset, model) if name):
        return []  # no run's folder is called so
    names = [holding] if isinstance(holding, str) else holding
    places = root.glob(f"{dataset or '*'}/{model or '*'}/*/*")
    return sorted(
        path
        for path in places
        if _NAME.fullmatch(path.name) and (not holding or any(holds(path, name) for name in names))
    )


def misplaced(directory: Path) -> str:
    """Why a run's directory is not the one that its `meta.json` names; empty where it is.

    Nor where that cannot be read: whoever reads the run says so.
    """
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        place = [meta[key] for key in ("dataset", "model", "optimizer")]
        place.append(f"{meta['signature']}-s{meta['seed']}")
        sound = all(isinstance(name, str) and "/" not in name for name in place)
        if not sound or not _NAME.fullmatch(place[-1]):  # it names no place at all
            return ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if list(directory.absolute().parts[-4:]) == place:
        return ""
    return f"a copy, or moved: its meta.json says {'/'.join(place)}"


def find_seeds(root: Path, config: Config, holding: str = "") -> list[Path]:
    """As `find`: the runs that differ from a configuration in the seed alone."""
    of_group = path_of(config).name.rpartition("-s")[0]
    found = find(root, config.dataset.name, config.model.label, holding)
    return [
        path
        for path in found
        if path.parent.name == config.optimizer_name and path.name.rpartition("-s")[0] == of_group
    ]


def holds(directory: Path, name: str) -> bool:
    """Whether a file is in a run's directory; True also where that may not be looked at."""
    try:
        return (directory / name).exists()
    except OSError:  # whoever reads the directory will say so
        return True
