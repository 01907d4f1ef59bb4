"""The configurations of text fit their tasks, and say the paper's settings."""

import pytest
from support.harness import REPOSITORY

from experiments.plans.load import load, resolve
from experiments.training import optimizers

CONFIGS = REPOSITORY / "configs"
TEXT = ("task: translation", "task: language_modeling")
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")
               if any(line in TEXT for line in path.read_text().splitlines()))  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_optimizer_of_the_file_can_be_made(name):
    config = load(CONFIGS / name)
    assert {"adamw", "adahessian"} <= config.optimizers.keys()
    for optimizer in config.optimizers:
        optimizers.check_optimizer(resolve(config, optimizer, 1))


def test_the_papers_rates_are_those_of_its_scripts():
    config = load(CONFIGS / "iwslt14/transformer-small.yaml")
    for optimizer, first, peak in (("adamw", 1e-7, 0.0015), ("adahessian", 3.1333e-6, 0.047)):
        rate = [config.optimizers[optimizer].lr * config.schedule.relative_rate(step, 1000, 55)
                for step in (0, 4000, 8000, 32000)]  # fmt: skip
        assert rate == pytest.approx([first, (first + peak) / 2, peak, peak / 2], rel=1e-3)
