import pytest
import torch
from support.harness import DIGITS

from experiments.errors import UserError
from experiments.models.convnet import ConvNet
from experiments.plans.load import load


def test_shape_depth_and_the_independence_of_images():
    model = ConvNet(4, 10, 1)
    assert sum(p.ndim > 1 for p in model.parameters()) == 4
    x = torch.randn(5, 1, 8, 8)
    assert model(x).shape == (5, 10)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]))


def test_the_configuration_names_it():
    config = load(DIGITS, ["model.name=convnet", "model.depth=3"])
    assert config.model.label == "convnet3"
    with pytest.raises(UserError, match="depth 1: a convnet has 2 layers or more"):
        load(DIGITS, ["model.name=convnet", "model.depth=1"])
