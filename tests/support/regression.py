"""A task of its own: regression, measured by its mean absolute error, with no accuracy anywhere.

This file is its folder; `LINE` is its line in the registry. A training takes milliseconds.
"""

from typing import ClassVar, Literal

import torch
from torch import nn

from experiments.config.experiment import Config, DatasetSection, ModelSection
from experiments.config.metrics import LOSS, Metric
from experiments.config.sections import NotNegative, Positive
from experiments.runtime import distributed
from experiments.tasks.randomness import generator
from experiments.tasks.task import Task

LINE = ("support.regression.RegressionConfig", "support.regression.Regression")
MAE = Metric("mae", "min", unit="mm", scale=1000, digits=1)
EVALUATION_BATCH_SIZE = 20


class Line(DatasetSection):
    name: Literal["line"]
    train_size: Positive
    validation_size: NotNegative
    test_size: NotNegative


class Linear(ModelSection):
    name: Literal["linear"]
    width: Positive

    @property
    def label(self):
        return f"linear{self.width}"


class RegressionConfig(Config):
    metrics = (LOSS, MAE)
    headline = MAE
    split_needs: ClassVar = {
        "val": "dataset.validation_size > 0",
        "test": "dataset.test_size > 0",
    }

    task: Literal["regression"]
    dataset: Line
    model: Linear

    @property
    def evaluation_splits(self):
        sizes = {"val": self.dataset.validation_size, "test": self.dataset.test_size}
        return tuple(split for split, size in sizes.items() if size)


class Regression(Task):
    def __init__(self, config, device, data_root):
        super().__init__(config, device, data_root)
        sizes = config.dataset
        truth = torch.linspace(-1, 1, config.model.width).unsqueeze(1)
        self.splits = {}
        for seed, (name, size) in enumerate(
            [("train", sizes.train_size), ("val", sizes.validation_size), ("test", sizes.test_size)]
        ):
            drawn = torch.Generator().manual_seed(seed)
            x = torch.randn(size, config.model.width, generator=drawn, dtype=self.dtype)
            self.splits[name] = (x, x @ truth.to(self.dtype))
        self.steps_per_epoch = self.count_steps(sizes.train_size, "points")

    def build_model(self):
        return self.place(nn.Linear(self.config.model.width, 1))

    def training_batches(self, epoch, first_step):
        x, y = self.splits["train"]
        order = torch.randperm(len(x), generator=generator(self.config.seed, epoch, "order"))
        for indices in order.split(self.config.batch_size)[first_step:]:
            chosen = distributed.shard(indices)
            yield x[chosen], y[chosen]

    def evaluation_batches(self, split):
        pairs = zip(*(t.split(EVALUATION_BATCH_SIZE) for t in self.splits[split]), strict=True)
        return distributed.rank_batches(pairs)

    def loss(self, model, batch):
        x, y = batch
        return nn.functional.mse_loss(model(x), y), {"weight": torch.tensor(len(x))}

    def evaluate(self, model, batch):
        """The error is measured where a split is evaluated, not in the training."""
        x, y = batch
        return {**super().evaluate(model, batch), "error": (model(x) - y).abs().sum()}

    def summarize(self, totals):
        measured = super().summarize(totals)
        if "error" in totals:
            measured["mae"] = totals["error"] / totals["weight"]
        return measured


FILE = """
task: regression
dataset: {name: line, train_size: 50, validation_size: 40, test_size: 30}
model: {name: linear, width: 3}
epochs: 6
batch_size: 16
schedule: {drops: [0.5], factor: 0.1, stepped_at_epoch_start: false}
best_epoch_split: val
optimizers:
  sgd: {constructor: torch.optim.SGD, lr: 0.1, weight_decay: 0, weight_decay_divided_by_lr: false}
  adahessian: {constructor: adahessian.AdaHessian, lr: 0.1, weight_decay: 0,
               weight_decay_divided_by_lr: false}
"""
