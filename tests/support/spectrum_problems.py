"""A network with everything that makes a Hessian awkward, for the tests of the spectrum."""

import torch
from torch import nn
from torch.nn import functional as F

CURVATURES = ["double_backward", "finite_difference"]


class Network(nn.Module):
    """Convolution, batch normalization, ReLU, dropout, a frozen and an unused parameter."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.frozen = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(3 * 9, 4)

    def forward(self, x):
        h = self.dropout(torch.relu(self.bn(self.conv(x)) * self.frozen))
        return self.out(h.flatten(1))


def network(dropout=0.0):
    torch.manual_seed(0)
    return Network(dropout).double()


def data(n=24):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 5, 5, generator=g).double(), torch.randint(4, (n,), generator=g)


def batches(*sizes):
    x, y = data(sum(sizes))
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def loss_of(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]
