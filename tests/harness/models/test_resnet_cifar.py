import math

import pytest
import torch

from experiments.models.resnet_cifar import ResNetCifar


@pytest.mark.parametrize(("depth", "count"), [(20, 272_474), (32, 466_906)])
def test_parameter_counts_are_those_of_the_released_code(depth, count):
    assert sum(p.numel() for p in ResNetCifar(depth, 10).parameters()) == count


@pytest.mark.parametrize(
    ("depth", "channels", "size", "classes"), [(8, 1, 8, 10), (14, 3, 32, 100)]
)
def test_shapes(depth, channels, size, classes):
    model = ResNetCifar(depth, classes, channels)
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == depth - 1
    assert all(m.bias is None for m in convolutions)


def test_convolutions_start_with_the_released_spread():
    torch.manual_seed(0)
    model = ResNetCifar(20, 10)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            kernel, out = module.kernel_size[0], module.out_channels
            expected = math.sqrt(2 / (kernel * kernel * out))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("depth", [2, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match="6n\\+2"):
        ResNetCifar(depth, 10)


def test_it_can_be_differentiated_twice():
    model = ResNetCifar(8, 10)
    loss = model(torch.randn(4, 3, 8, 8)).logsumexp(1).sum()
    params = list(model.parameters())
    grads = torch.autograd.grad(loss, params, create_graph=True)
    products = torch.autograd.grad(grads, params, [torch.ones_like(p) for p in params])
    assert all(p.isfinite().all() for p in products)
