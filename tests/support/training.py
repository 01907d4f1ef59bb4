"""Trainings in this process, and what two of them must have in common."""

import torch

from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.training import loop


def result(directory):
    """What must not depend on interruptions: metrics without times, weights, summary and steps."""
    rows = [without_times(row) for row in read_metrics(directory.metrics_path)]
    weights = torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"]
    steps = directory.steps_path.read_text() if directory.steps_path.exists() else ""
    return rows, weights, (directory.path / "DONE").read_text() + steps


def assert_equal(one, other):
    assert one[0] == other[0] and one[2] == other[2]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


OVERRIDES = ("optimizers.adahessian.update_interval=3", "checkpoint_every_steps=2")


def train_here(root, config):
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, root)
    return directory
