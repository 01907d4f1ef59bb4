"""The closed-form second derivative of batch normalization is torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian, probes
from adahessian.curvature.second_derivatives import SecondDerivatives

SHAPES = [(6, 3), (4, 3, 7), (5, 3, 4, 2), (3, 3, 2, 3, 2)]


def inputs(shape):
    g = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64, requires_grad=True)

    return 1 + 2 * draw(*shape).detach().requires_grad_(), draw(shape[1]), draw(shape[1])


def fast(x, weight, bias, *statistics, **options):
    with SecondDerivatives():
        return F.batch_norm(
            x, *(statistics or (None, None)), weight, bias, training=True, **options
        )


def first_and_second(function, x, weight, bias):
    """Return output, gradients, and the gradient of a function of these gradients."""
    x = x.detach().requires_grad_()
    y = function(x, weight, bias)
    grads = torch.autograd.grad((y**3).sum(), (x, weight, bias), create_graph=True)
    vector = [torch.cos(torch.arange(g.numel())).view_as(g).double() for g in grads]
    seconds = torch.autograd.grad(grads, (x, weight, bias), vector)
    return [y, *grads, *seconds]


@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_derivatives(shape):
    ours = first_and_second(fast, *inputs(shape))
    torchs = first_and_second(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), *inputs(shape)
    )
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_numerical_differentiation(shape):
    x, weight, bias = inputs(shape)
    assert torch.autograd.gradgradcheck(fast, (x.detach().requires_grad_(), weight, bias))


@pytest.mark.parametrize("needed", [(True, True, True), (False, True, True), (True, False, False)])
def test_third_derivatives(needed):
    """A gradient penalty's curvature. torch's own batch norm raises an error here."""
    values = [t.detach().requires_grad_(n) for t, n in zip(inputs(SHAPES[2]), needed, strict=True)]
    asked = [t for t in values if t.requires_grad]

    def penalty(*_):
        loss = fast(*values).tanh().square().sum()
        return sum(g.square().sum() for g in torch.autograd.grad(loss, asked, create_graph=True))

    assert torch.autograd.gradcheck(penalty, asked)
    assert torch.autograd.gradgradcheck(penalty, asked)


def test_zero_weight_and_constant_channel():
    """Divisions by the weight or the variance would give infinities here."""
    x, weight, bias = inputs((4, 3, 5, 5))
    x = x.detach()
    x[:, 1] = 2.0
    weight = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ours = first_and_second(fast, x, weight, bias)
    torchs = first_and_second(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), x, weight, bias
    )
    for a, b in zip(ours, torchs, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.detach().abs().max()))


def test_running_statistics_and_memory_format():
    x, weight, bias = inputs((4, 3, 5, 5))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = x.detach().to(memory_format=memory_format)
        mean, var = torch.zeros(3).double(), torch.ones(3).double()
        expected_mean, expected_var = mean.clone(), var.clone()
        y = fast(images, weight, bias, mean, var, momentum=0.3)
        with torch.backends.cudnn.flags(enabled=False):  # its kernel rounds otherwise
            expected = F.batch_norm(
                images, expected_mean, expected_var, weight, bias, training=True, momentum=0.3
            )
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        assert torch.equal(mean, expected_mean) and torch.equal(var, expected_var)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3).bfloat16()],
)
def test_what_the_closed_form_does_not_cover_goes_the_usual_way(layer):
    x = torch.randn(4, 3, 5, 5, dtype=next(iter(layer.buffers())).dtype, requires_grad=True)
    with SecondDerivatives():
        y = layer(x)
    assert type(y.grad_fn).__name__.startswith(("NativeBatchNorm", "CudnnBatchNorm"))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_a_single_value_per_channel_is_refused_as_torch_refuses_it(shape):
    """Regression: the running variance became NaN, without a word."""
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3)
    optimizer = AdaHessian(norm.parameters())

    def closure():
        loss = norm(torch.ones(shape)).square().sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        optimizer.step(closure)
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_the_dense_hessian(dim):
    """torch's own second derivative is off by tens of per cent."""
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3), dim=dim).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    params = list(layer.parameters())
    optimizer = AdaHessian(params, lr=0.0, seed=1)
    estimates = {}
    optimizer.register_curvature_hook(
        lambda o, params, found: estimates.update(
            {p: e.clone() for p, e in zip(params, found, strict=True)}
        )
    )

    def closure():
        optimizer.zero_grad()
        loss = (layer(x) ** 3).sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    optimizer.step(closure)
    z = probes.rademacher_like(params, seed=1, step=0)
    h, gradients = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, zp in zip(params, z, strict=True):
                p.add_(zp, alpha=sign * h)
        # CUDA's kernel of weight_norm computes its norms in float32, too little for differences.
        bias, g, v = params
        norms = v.norm(dim={0: 1, 1: 0, None: (0, 1)}[dim], keepdim=True)
        plain = F.linear(x, v * g / norms, bias)
        gradients.append(torch.autograd.grad((plain**3).sum(), params))
        with torch.no_grad():
            for p, zp in zip(params, z, strict=True):
                p.sub_(zp, alpha=sign * h)
    for p, zp, plus, minus in zip(params, z, *gradients, strict=True):
        expected = zp * (plus - minus) / (2 * h)
        torch.testing.assert_close(estimates[p], expected, rtol=1e-6, atol=1e-6)
