"""Nested tensors: sequences of different lengths in one, as attention takes them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian

FUNCTIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "gelu": F.gelu,  # no pieces
    "detach": lambda x: x * x.detach(),
    "sign": lambda x: x * torch.sign(x),
    "softmax": lambda x: F.softmax(F.relu(x), -1),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def ragged(layout=torch.jagged):
    torch.manual_seed(1)
    rows = [torch.randn(n, 4, dtype=torch.float64) for n in (3, 5, 1)]
    return torch.nested.nested_tensor(rows, layout=layout)


def product(function, x, curvature="finite_difference"):
    """z · Hz of each parameter, at the first step's probe."""
    net = network()
    params = list(net.parameters())
    optimizer = AdaHessian(params, lr=1e-3, curvature=curvature)
    found = []
    optimizer.register_curvature_hook(lambda _, __, samples: found.extend(samples))

    def closure():
        optimizer.zero_grad()
        out = function(net(x))
        loss = (out.values() if out.is_nested else out).sin().sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    optimizer.step(closure)
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_pieces_are_those_of_the_values(function):
    nested = ragged()
    for a, b in zip(product(function, nested), product(function, nested.values()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_ragged_dimension_may_be_another():
    def turned(x):
        return F.relu(x.transpose(1, 2)).transpose(1, 2)

    nested = ragged()
    for a, b in zip(product(turned, nested), product(F.relu, nested.values()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        (lambda x: x.amax(dim=-1), torch.jagged),
        (lambda x: F.relu(x * 1, inplace=True), torch.jagged),
        (lambda x: (x * 1).relu_(), torch.jagged),
        (F.relu, torch.strided),
    ],
    ids=["a reduction", "in place", "in place, by its name", "the older layout"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_others_are_refused_by_name(function, layout):
    with pytest.raises(
        RuntimeError, match=r"cannot freeze the pieces of (amax|relu_?) of a nested"
    ):
        product(function, ragged(layout))


def test_an_error_of_the_second_derivative_says_what_it_is():
    norm = nn.LayerNorm(5).double()
    with pytest.raises(RuntimeError) as raised:
        product(norm, ragged(), "double_backward")
    assert "finite_difference" in raised.value.__notes__[0]
