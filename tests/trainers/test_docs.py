"""The examples of docs/trainers.md run, one after another, as they stand there."""

import re
from pathlib import Path

import pytest
from timm.optim import get_optimizer_class
from timm.optim._optim_factory import default_registry

from adahessian import AdaHessian

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval:UserWarning"),
]


def test_examples_of_the_documentation(monkeypatch):
    monkeypatch.setattr(default_registry, "_optimizers", {**default_registry._optimizers})
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, f"docs/trainers.md: {block.splitlines()[0]}", "exec"), names)
    assert get_optimizer_class("adahessian", bind_defaults=False) is AdaHessian
