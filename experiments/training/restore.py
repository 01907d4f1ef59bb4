"""From a run's checkpoint back to its model."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from experiments.config.experiment import Config
from experiments.errors import UserError
from experiments.plans.load import load
from experiments.runs import checkpoint, own_code
from experiments.runs.data import KEY, refuse_other
from experiments.runs.layout import find
from experiments.runs.metrics import read_json
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root, runs_root
from experiments.tasks.registry import build_task, describe_data
from experiments.tasks.task import Task
from experiments.training import groups, weights

EVALUATE = "say which others are meant: `python -m experiments.evaluate RUN_DIR --data FOLDER`"


def name_of(directory: Path) -> str:
    """Data set, model, optimizer and run: the last parts of the path."""
    return "/".join(directory.resolve().parts[-4:])


def find_run(words: Sequence[str]) -> Path:
    """The directory that was named, or that of the run that finished last.

    Raises:
        UserError: there is none, or it has no checkpoint.
    """
    if len(words) > 1:
        raise UserError(f"one run directory at a time, got {' '.join(words)}")
    if words:
        directory = Path(words[0])
        if not (directory / "config.yaml").is_file():
            raise UserError(f"{directory} is no run's directory: it has no config.yaml")
    else:
        root = runs_root()
        done = find(root, holding="DONE")
        if not done:
            raise UserError(f"no finished run below {root}: name a run's directory")
        directory = max(done, key=lambda run: (run / "DONE").stat().st_mtime)
    return directory


def restore(
    directory: Path, device_name: str, data: Path | None = None
) -> tuple[Task, nn.Module, int]:
    """The task, the model with the weights that the run evaluates, and the epochs trained.

    Args:
        directory: of the run.
        device_name: where the model goes, as in a configuration.
        data: in place of DATA_ROOT, or of a `dataset.root` that is absolute; they may be others
            than those of the run.

    Raises:
        UserError: there is no checkpoint that can be read and fits, no data, or other data in
            DATA_ROOT.
    """
    if data is not None and not data.is_dir():  # a task may never look into it
        raise UserError(f"--data {data}: there is no such folder")
    config = load(directory / "config.yaml")
    state = checkpoint.look(directory)
    if state is None:
        raise UserError(f"{directory} has no checkpoint that can be read")
    known = state.get(KEY)
    if isinstance(known, Mapping):  # the weights that it began with are not looked at again
        known = {key: value for key, value in known.items() if key != weights.DIGEST}
    if data is None:
        refuse_other(directory, known, describe_data(config, data_root()), EVALUATE)
    with suppress(OSError, ValueError, AttributeError):  # what meta.json does not say is not known
        if own := own_code.differs(read_json(directory / "meta.json").get("sessions"), config):
            warnings.warn(f"{directory} was {own}", stacklevel=2)
    device = build_device(config.model_copy(update={"device": device_name}))
    if data is not None:
        task = build_task(_elsewhere(config, data), device, data)
        task.check_other(config, data_root(), known)
    else:
        task = build_task(config, device, data_root())
    model = task.build_model()
    groups.freeze(config, model)
    try:
        model.load_state_dict(state.get("evaluated") or state["model"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint in {directory} does not fit its config: {error}") from None
    position = state["position"]
    return task, model, position["epoch"] + position["step"] // task.steps_per_epoch


def _elsewhere(config: Config, data: Path) -> Config:
    """A configuration whose data lie in a folder, also where it names a place of its own."""
    dataset = config.dataset
    if not Path(getattr(dataset, "root", None) or "").expanduser().is_absolute():
        return config
    moved = dataset.model_copy(update={"root": str(data.absolute())})
    return config.model_copy(update={"dataset": moved})
