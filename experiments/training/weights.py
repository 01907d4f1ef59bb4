"""Weights to begin with: those of another run, or of a file."""

import hashlib
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.experiment import Config
from experiments.errors import UserError
from experiments.plans.load import load
from experiments.runs import checkpoint
from experiments.runs.data import KEY
from experiments.runtime.paths import expanded
from experiments.tasks.task import Task

# Under which a state dict lies in the files of others.
INSIDE = ("evaluated", "model", "state_dict", "model_state_dict")
DIGEST = "initial weights"
# What DistributedDataParallel and torch.compile put before the names.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def initialize(config: Config, model: nn.Module) -> str | None:
    """Copy the weights that `init_from` names into the model.

    Returns:
        A hash of them, part of the run's identity; None where it names none.

    Raises:
        UserError: there are none, or they do not fit.
    """
    spec = config.init_from
    if spec is None:
        return None
    found, own = _read(expanded(spec.path, "init_from.path")), tensors(model)
    for pattern in spec.skip:
        if not any(fnmatchcase(name, pattern) for name in own):
            raise UserError(f"init_from.skip: '{pattern}' matches no tensor of the model")
    chosen = {n: t for n, t in own.items() if not any(fnmatchcase(n, p) for p in spec.skip)}
    shapes = {name: (_shape(found.get(name)), tuple(t.shape)) for name, t in chosen.items()}
    wrong = [f"{name} {there} instead of {here}"
             for name, (there, here) in shapes.items() if there != here]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"init_from: {spec.path} does not fit the model: it has {', '.join(wrong[:3])}{more}; "
            "init_from.skip leaves tensors as they are initialized"
        )
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in chosen.items():
            tensor.copy_(found[name])
            digest.update(name.encode())
            data = found[name].contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(memoryview(data))
    return digest.hexdigest()[:16]


def check_data(config: Config, task: Task, data_root: Path) -> None:
    """Refuse the weights of a run on whose data the model would know something else.

    What a text model knows, it knows by the numbers of its vocabulary. Whoever leaves tensors out
    by `init_from.skip` has thought of that.

    Raises:
        UserError: the vocabulary is another one.
    """
    spec = config.init_from
    if spec is None or spec.skip:
        return
    path = expanded(spec.path, "init_from.path")
    if not (path / "config.yaml").is_file():
        return
    other = load(path / "config.yaml")
    if other.task != config.task:
        return
    state = checkpoint.look(path) or {}
    try:
        task.check_other(other, data_root, state.get(KEY))
    except UserError as error:
        raise UserError(
            f"init_from: {spec.path}: {error}. Or leave out the tensors that depend on the "
            "vocabulary (init_from.skip)"
        ) from None


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state, by name; not what modules add of their own (extra state)."""
    return {n: value for n, value in model.state_dict().items() if isinstance(value, Tensor)}


def _shape(tensor: Tensor | None) -> Any:
    return "nothing" if tensor is None else tuple(tensor.shape)


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors by name of a run's directory or of a file."""
    if path.is_dir():
        state = checkpoint.look(path)
        if state is None:
            raise UserError(f"init_from.path: {path} has no checkpoint that can be read")
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has one for every way in which a file can be none
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"init_from.path: {path} cannot be read: {said}") from None
    while isinstance(state, Mapping):
        found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if found:
            return {WRAPPERS.sub("", name): tensor for name, tensor in found.items()}
        state = next((state[key] for key in INSIDE if state.get(key)), None)
    raise UserError(f"init_from.path: {path} holds no state dict of a model")
