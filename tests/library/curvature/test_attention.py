"""A transformer: attention kernels without a second derivative, and activation checkpointing."""

import pytest
import torch
from support.device import on_gpu
from support.transformer import EVERY_KERNEL, Transformer
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from adahessian import AdaHessian

CURVATURES = ("double_backward", "finite_difference")
every_way_of_checkpointing = pytest.mark.parametrize(
    ("curvature", "reentrant"),
    [("double_backward", False), ("finite_difference", False), ("finite_difference", True)],
)


def train(model, curvature, steps, lr=0.1, dtype=torch.float32):
    """Train on counting: each token is the one before plus a step of 1 to 3, modulo 10."""
    model = model.to(dtype)
    optimizer = AdaHessian(model.parameters(), lr=lr, hessian_power=0.5, curvature=curvature)
    generator = torch.Generator().manual_seed(0)
    losses = []
    torch.manual_seed(1)
    for _ in range(steps):
        start, stride = (torch.randint(1, n, (32, 1), generator=generator) for n in (10, 4))
        tokens = (start + stride * torch.arange(13)) % 10

        def closure(tokens=tokens):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        losses.append(optimizer.step(closure).item())
    return losses, optimizer


def test_the_fast_kernel_trains_through_the_finite_difference():
    losses, _ = train(Transformer(), "finite_difference", 150)
    assert losses[-1] < 0.25 * losses[0]


def test_double_backward_names_the_ways_out():
    # On a GPU the flash kernel takes no float32.
    kernel = SDPBackend.EFFICIENT_ATTENTION if on_gpu() else SDPBackend.FLASH_ATTENTION
    with pytest.raises(RuntimeError, match="curvature='finite_difference'.*SDPBackend.MATH"):
        train(Transformer([kernel]), "double_backward", 1)


def test_the_fast_kernels_curvature_is_the_slow_ones():
    """Finite difference of the fast kernel against double backward of the plain formula."""
    states = []
    for curvature, kernels in zip(CURVATURES, [[SDPBackend.MATH], EVERY_KERNEL], strict=True):
        _, optimizer = train(Transformer(kernels), curvature, 1, dtype=torch.float64)
        states.append([s["exp_hessian_diag_sq"].sqrt() for s in optimizer.state.values()])
    for exact, approximate in zip(*states, strict=True):
        assert (approximate - exact).norm() < 1e-4 * exact.norm()


@every_way_of_checkpointing
def test_activation_checkpointing_changes_nothing(curvature, reentrant):
    """Also not the dropout, which checkpointing draws again."""
    kernels = [SDPBackend.MATH]
    plain, checkpointed = (
        train(Transformer(kernels, r, dropout=0.1), curvature, 5, dtype=torch.float64)
        for r in (None, reentrant)
    )
    assert checkpointed[0] == pytest.approx(plain[0], rel=1e-6)
    for s, t in zip(checkpointed[1].state.values(), plain[1].state.values(), strict=True):
        a, b = (x["exp_hessian_diag_sq"].sqrt() for x in (s, t))
        assert (a - b).norm() < 1e-5 * b.norm()


def train_checkpointed(curvature, reentrant):
    """Train a network whose first layers are checkpointed (or not: None); return the losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double()
    optimizer = AdaHessian(model.parameters(), curvature=curvature)
    x = torch.randn(16, 4, dtype=torch.float64, requires_grad=True)

    def closure():
        optimizer.zero_grad()
        if reentrant is None:
            y = model(x)
        else:
            y = model[3](checkpoint(model[:3], x, use_reentrant=reentrant))
        loss = (y - x.sum(dim=1, keepdim=True).detach()).square().mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return [optimizer.step(closure).item() for _ in range(4)]


@every_way_of_checkpointing
def test_checkpointed_batch_normalization(curvature, reentrant):
    """Double backward gives batch normalization a derivative of its own, which a forward that runs
    again within backward must not miss."""
    assert train_checkpointed(curvature, reentrant) == pytest.approx(
        train_checkpointed(curvature, None), rel=1e-6
    )


def test_reentrant_checkpointing_under_double_backward_is_refused():
    """Its inner backward drops create_graph. torch notices if there are parameters below; if not,
    the curvature inside would silently be zero."""
    for train_reentrantly in (
        lambda: train(Transformer([SDPBackend.MATH], True), "double_backward", 1),
        lambda: train_checkpointed("double_backward", True),
    ):
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            train_reentrantly()
