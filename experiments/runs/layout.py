"""Where a run lives below a root: `<dataset>/<model>/<optimizer>/<signature>-s<seed>`.

No other code knows this. `path_of` names the place of a configuration, `find` lists the places
that are there.
"""

import re
from pathlib import Path

from experiments.config.experiment import Config
from experiments.config.signature import signature

_NAME = re.compile(r"[0-9a-f]{8}-s\d+")


def path_of(config: Config) -> Path:
    """The directory of a resolved configuration's run, relative to the root."""
    name = f"{signature(config)}-s{config.seed}"
    return Path(config.dataset.name, config.model.label, config.optimizer_name, name)


def find(
    root: Path, dataset: str | None = None, model: str | None = None, holding: str = ""
) -> list[Path]:
    """The directories of the runs below a root, sorted.

    Args:
        root: where runs live; may not be there.
        dataset, model: only of these.
        holding: only those in which a file of this name is.
    """
    places = root.glob(f"{dataset or '*'}/{model or '*'}/*/*")
    return sorted(
        path
        for path in places
        if _NAME.fullmatch(path.name) and (not holding or holds(path, holding))
    )


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
