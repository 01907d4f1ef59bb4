"""The tasks by name."""

from pathlib import Path

import torch

from experiments.config.experiment import Config
from experiments.tasks import Task
from experiments.tasks.image_classification.task import ImageClassification

TASKS = {"image_classification": ImageClassification}


def build_task(config: Config, device: torch.device, data_root: Path) -> Task:
    """The configured task with its data loaded."""
    return TASKS[config.task](config, device, data_root)
