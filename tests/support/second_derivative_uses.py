"""The ways to ask for an exact product, of a small network."""

import torch
from torch import nn

from adahessian import AdaHessian
from adahessian.functional import value_grad_and_hessian
from adahessian.spectrum import Hessian

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double()


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def by_a_closure(net, loss):
    optimizer = AdaHessian(net.parameters())

    def closure():
        optimizer.zero_grad()
        value = loss(net(X))
        value.backward(create_graph=optimizer.needs_graph)
        return value

    optimizer.step(closure)


def without_one(net, loss):
    optimizer = AdaHessian(net.parameters())
    loss(net(X)).backward(create_graph=True)
    optimizer.step()


def from_a_part(net, loss):
    optimizer = AdaHessian(net.parameters(), curvature_fraction=0.5)
    loss(net(X)).backward()
    optimizer.step(curvature_closure=lambda a, b: loss(net(X[round(16 * a) : round(16 * b)])))


def by_the_function(net, loss):
    params = dict(net.named_parameters())
    value_grad_and_hessian(
        lambda given: loss(torch.func.functional_call(net, given, (X,))), (params,)
    )


def by_a_spectrum(net, loss):
    matrix = Hessian(lambda: loss(net(X)), net)
    matrix(torch.ones(matrix.size, dtype=torch.float64))


# The loss shows them what it is made of.
WITH_A_LOSS = (by_a_closure, from_a_part, by_the_function, by_a_spectrum)
USES = (*WITH_A_LOSS, without_one)
