"""Closures that freeze and thaw parameters, as those of adversarial networks do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double()


def train(curvature, first, toggle, steps=4):
    torch.manual_seed(0)
    generator = nn.Linear(2, 3).double()
    judge = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizers = [
        AdaHessian(m.parameters(), lr=0.02, curvature=curvature) for m in (generator, judge)
    ]

    def real(optimizer, noise):
        if toggle:
            judge.requires_grad_(True)
        optimizer.zero_grad()
        loss = F.softplus(-judge(X)).mean() + F.softplus(judge(generator(noise).detach())).mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    def fooled(optimizer, noise):
        if toggle:
            judge.requires_grad_(False)
        optimizer.zero_grad()
        loss = F.softplus(-judge(generator(noise))).mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    for _ in range(steps):
        noise = torch.randn(16, 2).double()
        turns = [(optimizers[0], fooled), (optimizers[1], real)]
        for optimizer, closure in turns if first == "generator" else turns[::-1]:
            optimizer.step(lambda c=closure, o=optimizer, n=noise: c(o, n))
    judge.requires_grad_(True)
    refreshes = optimizers[1].state[judge[0].weight]["num_refreshes"]
    return [*generator.parameters(), *judge.parameters()], int(refreshes)


@pytest.mark.parametrize("first", ["generator", "judge"])
@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_it_makes_no_difference(curvature, first):
    expected, _ = train(curvature, first, toggle=False)
    found, refreshes = train(curvature, first, toggle=True)
    assert refreshes == 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_what_stays_frozen_takes_no_part(curvature):
    """Also in a precision that is none of ours, and with an interval."""
    base, head = nn.Linear(3, 4).requires_grad_(False).bfloat16(), nn.Linear(4, 1)
    optimizer = AdaHessian(
        [{"params": base.parameters()}, {"params": head.parameters()}],
        curvature=curvature,
        update_interval=3,
    )
    evaluations = []

    def closure():
        evaluations[-1] += 1
        optimizer.zero_grad()
        loss = head(base(X.bfloat16()).float()).square().mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    for _ in range(9):
        evaluations.append(0)
        optimizer.step(closure)
    assert all(n == 1 for i, n in enumerate(evaluations) if i % 3)
    assert not optimizer.state.get(base.weight)
