"""Mixed precision: bfloat16 autocast with both curvatures, float16 with a GradScaler."""

import pytest
import torch
from support.device import device
from support.stepping import take_step
from torch import nn
from torch.amp import GradScaler

from adahessian import AdaHessian
from adahessian.curvature.precision import coarsest, rounds_to_tf32
from adahessian.curvature.replay import Replay


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    )
    return model, torch.randn(64, 1, 8, 8), torch.randint(10, (64,))


def make_closure(model, optimizer, x, y, dtype=torch.bfloat16):
    def closure():
        optimizer.zero_grad()
        with torch.autocast(device(), dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return closure


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_bfloat16_autocast_trains(curvature):
    model, x, y = problem()
    optimizer = AdaHessian(model.parameters(), lr=0.05, curvature=curvature)
    closure = make_closure(model, optimizer, x, y)
    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]
    assert all(s["exp_hessian_diag_sq"].dtype == torch.float32 for s in optimizer.state.values())


def test_bfloat16_finite_difference_against_double_backward():
    model, x, y = problem()
    optimizer = AdaHessian(model.parameters())
    error = optimizer.curvature_error(make_closure(model, optimizer, x, y))
    assert error.median < 0.1 and abs(error.mean_ratio - 1) < 0.05


def test_autocast_around_the_step():
    """Outside of the closure autocast keeps its cast weights: stale ones give zero curvature."""
    diagonals = []
    for around in (False, True):
        model, x, y = problem()
        optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
        closure = make_closure(model, optimizer, x, y)
        with torch.autocast(device(), dtype=torch.bfloat16, enabled=around):
            optimizer.step(closure)
        diagonals.append([s["exp_hessian_diag_sq"] for s in optimizer.state.values()])
    for inside, outside in zip(*diagonals, strict=True):
        assert (outside > 0).any()
        assert torch.equal(inside, outside)


def scaled_steps(scaler, model, optimizer, x, y, num_steps):
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward(create_graph=optimizer.needs_graph)
        scaler.step(optimizer)
        scaler.update()


def test_the_loss_scale_is_taken_out_of_gradient_and_curvature():
    """Regression: REF, DAV, TIMM, JET, KOZ: the curvature keeps the scale, 65,536."""
    results = []
    for enabled in (False, True):
        model, x, y = problem()
        optimizer = AdaHessian(model.parameters(), lr=0.05, update_interval=2, max_grad_norm=1.0)
        scaler = GradScaler(device(), init_scale=65536.0, enabled=enabled)
        scaled_steps(scaler, model, optimizer, x, y, 6)
        results.append(list(model.parameters()))
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)


def test_an_overflowed_step_is_skipped_whole():
    model, x, y = problem()
    optimizer = AdaHessian(model.parameters(), lr=0.05, update_interval=3)
    scaler = GradScaler(device(), init_scale=4.0)
    scaled_steps(scaler, model, optimizer, x, y, 1)
    before = [p.detach().clone() for p in model.parameters()]
    steps = [s["step"].item() for s in optimizer.state.values()]
    scaled_steps(scaler, model, optimizer, x * torch.inf, y, 1)
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert p.grad is None or not p.grad.requires_grad
    assert [s["step"].item() for s in optimizer.state.values()] == steps
    assert optimizer.param_groups[0]["step"] == 1 and scaler.get_scale() == 2.0


def test_an_overflow_in_the_curvature_alone_is_left_out_with_a_warning():
    x = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([x])
    scaler = GradScaler(device(), init_scale=2.0**100)
    # At this scale the gradient is finite, the second derivative is not.
    loss = x.sum() - 1e-10 * torch.cos(1e10 * (x - 1)).sum()
    scaler.scale(loss).backward(create_graph=True)
    assert x.grad.isfinite().all()
    with pytest.warns(UserWarning, match="overflow at the loss scale"):
        scaler.step(optimizer)
    assert torch.equal(x, torch.ones(3)) and not optimizer.state


def test_unscaling_first_is_refused_with_the_way_out():
    model, x, y = problem()
    optimizer = AdaHessian(model.parameters())
    scaler = GradScaler(device())
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward(create_graph=True)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="max_grad_norm"):
        scaler.step(optimizer)


@pytest.mark.parametrize("unscale", [True, False])
def test_a_step_that_raised_leaves_nothing_of_the_scaler(unscale):
    """Regression: later steps were unscaled by its factor, or refused, whoever called them."""
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = AdaHessian([x], lr=0.1)
    scaler = GradScaler(device(), init_scale=1024.0)
    scaler.scale((x**4).sum()).backward(create_graph=unscale)  # else the graph is missing
    if unscale:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscale_" if unscale else "no gradient has a graph"):
        scaler.step(optimizer)
    take_step(optimizer, [x], lambda x: (x**4).sum())
    expected = torch.tensor([1.0, -2.0], requires_grad=True)
    take_step(AdaHessian([expected], lr=0.1), [expected], lambda x: (x**4).sum())
    assert torch.equal(x, expected)


def test_finite_difference_refuses_a_grad_scaler_and_names_bfloat16():
    model, x, y = problem()
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    scaler = GradScaler(device())
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    with pytest.raises(RuntimeError, match="bfloat16"):
        scaler.step(optimizer)


def test_what_reads_float32_as_tf32_on_a_gpu():
    """torch's default there: convolutions and recurrent layers do, matrix products do not."""
    conv, matmul = {"relu", "conv2d"}, {"linear", "matmul"}
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.backends.cudnn.flags(allow_tf32=True):
            assert rounds_to_tf32(conv) and rounds_to_tf32({"lstm"})
            assert not rounds_to_tf32(matmul)
        with torch.backends.cudnn.flags(allow_tf32=False):
            assert not rounds_to_tf32(conv)
            torch.set_float32_matmul_precision("high")
            assert rounds_to_tf32(matmul)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        ({torch.float64}, torch.float64),  # tensor cores leave it alone
        ({torch.float32}, "tf32"),
        ({torch.float64, torch.float32}, "tf32"),
        ({torch.float32, torch.bfloat16}, torch.bfloat16),
    ],
)
def test_only_float32_is_read_as_tf32(dtypes, expected):
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert coarsest(dtypes, {"conv2d"}, on_tensor_cores=True) == expected
        assert coarsest(dtypes, {"conv2d"}, on_tensor_cores=False) in dtypes


def test_the_coarsest_precision_sets_the_step():
    model, x, y = problem()
    params = list(model.parameters())
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        optimizer = AdaHessian(params, curvature="finite_difference")
        replay = Replay(make_closure(model, optimizer, x, y, dtype), params)
        replay.record()
        assert replay.precision(params) == expected


def test_tf32_is_mentioned(monkeypatch):
    model, x, y = problem()
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    monkeypatch.setattr(Replay, "precision", lambda self, params: "tf32")
    closure = make_closure(model, optimizer, x, y, None)
    with pytest.warns(UserWarning, match="allow_tf32 = False"):
        optimizer.step(closure)
    optimizer.step(closure)  # once is enough
