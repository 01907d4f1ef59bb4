"""What the experiments' files below `configs/` say about optimizers: their order and settings.

A run's own configuration holds one optimizer; which others stand beside it, in which order and
with which settings, only `configs/<dataset>/<model>.yaml` tells.
"""

from functools import cache
from pathlib import Path
from typing import Any

from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs"


def optimizer_order(dataset: str, model: str) -> list[str]:
    """All known optimizers, those of the experiment's file first, in the order of the files.

    After the experiment's own file come the others of the data set, then those of other data sets:
    an experiment without a file of its own has an order as well. The first name is the reference
    for the cost of a step.
    """
    files = _read()
    near = [files[place]["optimizers"] for place in _nearest_first(dataset, model)]
    return list(dict.fromkeys(name for optimizers in near for name in optimizers))


def nearest_with(
    dataset: str, model: str, optimizer: str
) -> tuple[tuple[str, str], dict[str, Any] | None]:
    """The experiment's file, or else the nearest one that has the optimizer.

    Returns:
        Its data set and model, and its content, None where no file has the optimizer.
    """
    for place in _nearest_first(dataset, model):
        if optimizer in _read()[place]["optimizers"]:
            return place, _read()[place]
    return (dataset, model), None


def _nearest_first(dataset: str, model: str) -> list[tuple[str, str]]:
    def distance(place: tuple[str, str]) -> tuple[bool, bool, bool]:
        return place != (dataset, model), place[0] != dataset, place[1] != model

    return sorted(_read(), key=distance)


@cache
def _read() -> dict[tuple[str, str], dict[str, Any]]:
    """The content of every experiment's file, by data set and model.

    What cannot be read is left out: `experiments.plans.load` says what is wrong with it.
    """
    found = {}
    for path in sorted(FOLDER.glob("*/*.yaml")):
        try:
            document = read_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, UserError):
            continue
        if isinstance(document, dict) and isinstance(document.get("optimizers"), dict):
            found[path.parent.name, path.stem] = document
    return found
