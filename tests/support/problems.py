"""Small smooth losses over parameters of every rank, for comparison with the dense Hessian."""

import torch
from torch.nn import functional as F


def conv_problem():
    """A network with tensors of rank 0 to 5 whose loss is smooth; float64, 88 parameters.

    Returns:
        (params, loss): initial parameters, and the loss as a function of them.
    """
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.5 * torch.randn(*shape, generator=g, dtype=torch.float64)

    # conv3d, conv2d, conv1d, linear, bias, scale
    params = [draw(2, 1, 1, 2, 2), draw(2, 2, 2, 2), draw(2, 2, 3), draw(3, 8), draw(3), draw(())]
    x = draw(4, 1, 2, 6, 6)
    y = torch.tensor([0, 1, 2, 1])

    def loss(conv3d, conv2d, conv1d, linear, bias, scale):
        h = torch.tanh(F.conv3d(x, conv3d))[:, :, 0]  # 4, 2, 5, 5
        h = torch.tanh(F.conv2d(h, conv2d))  # 4, 2, 4, 4
        h = torch.tanh(F.conv1d(h.flatten(2), conv1d, stride=4))  # 4, 2, 4
        return F.cross_entropy(scale * h.flatten(1) @ linear.T + bias, y)

    return params, loss


def quadratic(diagonal):
    """Return x -> ½ Σ diagonal·x², whose Hessian is diagonal: one probe is exact."""

    def loss(x):
        return 0.5 * (diagonal * x * x).sum()

    return loss


def coupled_quadratic(n=6, seed=0):
    """Return (hessian, loss) for two tensors of one shape (n,) with strong coupling.

    The loss is ½ xᵀ H x over x = (a, b). An estimator that gives a and b the same probe, or a
    constant one, is far from diag(H) here.
    """
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(2 * n, 2 * n, generator=g, dtype=torch.float64)
    hessian = m @ m.T / n

    def loss(a, b):
        x = torch.cat([a, b])
        return 0.5 * x @ hessian @ x

    return hessian, loss
