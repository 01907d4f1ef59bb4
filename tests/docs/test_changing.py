"""Every block of YAML in docs/changing.md, put into the digits' experiment, is one."""

from collections.abc import Mapping

import pytest
from docs.pages import ROOT, blocks
from support.harness import DIGITS

from experiments.config.experiment import write_yaml
from experiments.config.yaml_reader import read_yaml
from experiments.plans.load import parse, read_document, resolve
from experiments.training import optimizers

PAGE = ROOT / "docs" / "changing.md"
BLOCKS = [block for block in blocks(PAGE.read_text("utf-8")) if block.language == "yaml"]


def merged(base, more):
    if not isinstance(base, Mapping) or not isinstance(more, Mapping):
        return more
    return {**base, **{key: merged(base.get(key), value) for key, value in more.items()}}


def with_block(block):
    document, more = read_document(DIGITS), read_yaml(block.text)
    sections = ("schedule", "model", "dataset")
    named = [key for key in sections if {"name", "constructor"} & set(more.get(key, {}))]
    document = {key: value for key, value in document.items() if key not in named}
    return parse(merged(document, more), PAGE)


def load_text(text):
    return parse(read_yaml(text), PAGE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_a_block_is_part_of_an_experiment(block):
    config = with_block(block)
    for name in read_yaml(block.text).get("optimizers", config.optimizers):
        run = resolve(config, name, 1)
        optimizers.check(run)
        assert load_text(write_yaml(run)) == run  # a job and `make evaluate` read it again


def test_there_are_blocks():
    assert len(BLOCKS) >= 4
