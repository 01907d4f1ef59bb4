"""From a run's checkpoint back to its model."""

from pathlib import Path

from torch import nn

from experiments.errors import UserError
from experiments.plans.load import load
from experiments.runs import checkpoint
from experiments.runtime.device import build_device
from experiments.runtime.paths import data_root
from experiments.tasks.registry import build_task
from experiments.tasks.task import Task
from experiments.training import groups


def name_of(directory: Path) -> str:
    """Data set, model, optimizer and run: the last parts of the path."""
    return "/".join(directory.resolve().parts[-4:])


def restore(directory: Path, device_name: str) -> tuple[Task, nn.Module, int]:
    """The task, the model with the weights that the run evaluates, and the epochs trained."""
    config = load(directory / "config.yaml")
    state = checkpoint.look(directory)
    if state is None:
        raise UserError(f"{directory} has no checkpoint that can be read")
    device = build_device(config.model_copy(update={"device": device_name}))
    task = build_task(config, device, data_root())
    model = task.build_model()
    groups.freeze(config, model)
    try:
        model.load_state_dict(state.get("evaluated") or state["model"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint in {directory} does not fit its config: {error}") from None
    position = state["position"]
    return task, model, position["epoch"] + position["step"] // task.steps_per_epoch
