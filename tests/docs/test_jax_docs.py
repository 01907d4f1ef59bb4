"""The examples of docs/jax.md run, one after another, as they stand there."""

import re
from pathlib import Path

import pytest

pytest.importorskip("flax", reason="needs the extra: pip install adahessian[jax]")


def test_examples_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "jax.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 8
    names = {}
    for block in blocks:
        exec(compile(block, f"docs/jax.md: {block.splitlines()[0]}", "exec"), names)
