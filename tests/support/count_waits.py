"""Prints as JSON what waits for the device in each step of some trainings on a pretended one."""

import io
import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from support import pretend_device
from support.harness import small_config

from adahessian import AdaHessian
from experiments.runs.directory import RunDirectory
from experiments.runtime.progress import Progress
from experiments.tasks.task import Task
from experiments.training import loop
from experiments.training.position import Position

PART, DIFFERENCE = {"curvature_fraction": 0.5}, {"curvature": "finite_difference"}
ALONE = {
    "AdamW": (torch.optim.AdamW, {}),
    "exact": (AdaHessian, {}),
    "finite difference": (AdaHessian, DIFFERENCE),
    "exact, part": (AdaHessian, PART),
    "finite difference, part": (AdaHessian, {**PART, **DIFFERENCE}),
    "checked": (AdaHessian, {**DIFFERENCE, "check_interval": 2}),
    "interval": (AdaHessian, {"update_interval": 2, "num_samples": 2}),
    "clipped": (AdaHessian, {"max_grad_norm": 1.0}),
    "one by one": (AdaHessian, {"foreach": False}),
    "weight decay, signed rows": (
        AdaHessian, {"weight_decay": 0.1, "averaging": "signed", "block_size": "row"},
    ),
}  # fmt: skip
IN_THE_HARNESS = {
    "sgd": ("sgd",),
    "sgd, clipped and averaged": ("sgd", "optimizers.sgd.max_grad_norm=1.0", "average.decay=0.9"),
    "adamw": ("adamw",),
    "exact": ("adahessian",),
    "finite difference": ("adahessian", "optimizers.adahessian.curvature=finite_difference"),
    "part": ("adahessian", "optimizers.adahessian.curvature_fraction=0.5"),
    "statistics": ("adahessian", "curvature_statistics=true", "micro_batches=2", "log_layers=true"),
}
LOGGED, STEPS = 2, 5  # of the harness's steps every second has a row


def alone(optimizer_class, options):
    """A plain loop: what waits in each of its steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(36, 3),
    )  # fmt: skip
    model = pretend_device.to_device(model)
    images = pretend_device.Pretended(torch.randn(64, 1, 8, 8))
    labels = pretend_device.Pretended(torch.randint(3, (64,)))
    optimizer = optimizer_class(model.parameters(), **options)

    def loss(start, stop):
        part = slice(round(start * len(images)), round(stop * len(images)))
        return torch.nn.functional.cross_entropy(model(images[part]), labels[part])

    def closure():
        optimizer.zero_grad()
        value = loss(0.0, 1.0)
        value.backward(create_graph=getattr(optimizer, "needs_graph", False))
        return value

    found = []
    for _ in range(8):
        pretend_device.waits.clear()
        more = {"curvature_closure": loss} if "curvature_fraction" in options else {}
        optimizer.step(closure, **more)
        pretend_device.step_done()
        found.append(dict(pretend_device.waits))
    return found


class Watching(Progress):
    """Notes at each step what has waited since the one before."""

    def __init__(self):
        super().__init__("", 1, io.StringIO())
        self.found = []

    def step(self, step):
        self.found.append(dict(pretend_device.waits))
        pretend_device.waits.clear()
        pretend_device.step_done()
        if step == STEPS:
            raise KeyboardInterrupt


def in_the_harness(device, optimizer, *overrides):
    """The first steps of an epoch: what waits up to the end of each, with what follows the last."""
    settings = (f"log_every_steps={LOGGED}", "batch_size=32", *overrides)
    config = small_config(*settings, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as root:
        directory, watching = RunDirectory(Path(root), config), Watching()
        loop.build_device = lambda config: device
        Task.place = lambda task, model: pretend_device.to_device(model)
        with directory.locked():
            training = loop.build(config, directory, Path(root))
            pretend_device.waits.clear()
            # Wrappers cannot be pickled, and a checkpoint may wait.
            loop.save = loop.checkpoint.check = lambda *_: None
            with suppress(KeyboardInterrupt):
                loop.train_epoch(training, Position(), watching)
            return watching.found, directory.steps_path.read_text().count("\n")


if __name__ == "__main__":
    with pretend_device.in_use() as device:
        result = {"alone": {name: alone(*case) for name, case in ALONE.items()}}
        result["harness"] = {n: in_the_harness(device, *c) for n, c in IN_THE_HARNESS.items()}
    json.dump(result, sys.stdout, indent=1)
