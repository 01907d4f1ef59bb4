"""Custom functions whose backward uses what their forward computed: constants to autograd."""

import warnings

import pytest
import torch
from support.second_derivative_uses import WITH_A_LOSS, by_a_closure, from_a_part, network
from torch.autograd import Function
from torch.nn import functional as F

from adahessian import AdaHessian

Y = F.one_hot(torch.arange(16) % 3, 3).double()
SAYS = (
    r"the backward method of \w+ "
    r"(uses a value that its forward method has computed|takes a value out of the graph)"
)


class FusedCrossEntropy(Function):
    """As fused losses do: the gradient is at hand in forward."""

    @staticmethod
    def forward(ctx, x):
        y = Y[: len(x)]
        p = x.softmax(-1)
        p -= y
        ctx.save_for_backward(p)
        return x.logsumexp(-1) - (x * y).sum(-1)

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        return grad[:, None] * p


class Attribute(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 2 * x
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return ctx.slope * grad


class WrittenTo(Function):
    @staticmethod
    def forward(ctx, x):
        slope = torch.zeros_like(x)
        slope[:] = 2 * x
        ctx.save_for_backward(slope)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return slope * grad


class AView(Function):
    """Within forward autograd takes a view of an input for a leaf of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.view(-1))
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x.view_as(grad) * grad


class WithoutAGraph(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            slope = 2 * x
        return slope * grad


class ByDetach(WithoutAGraph):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.detach() * 2


class ByNumPy(WithoutAGraph):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.from_numpy(2 * x.detach().cpu().numpy()).to(grad)


class SetUp(Function):
    """It gives what it saves as a second output."""

    @staticmethod
    def forward(x):
        return x**2, 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        (slope,) = ctx.saved_tensors
        return slope * grad


DOUBTFUL = {
    "a fused loss": lambda y: FusedCrossEntropy.apply(y).mean(),
    "an attribute": lambda y: Attribute.apply(y).mean(),
    "within": lambda y: (Attribute.apply(y).sin() * y).mean(),
    "written to": lambda y: WrittenTo.apply(y).mean(),
    "a view": lambda y: AView.apply(y).mean(),
    "no_grad": lambda y: WithoutAGraph.apply(y).mean(),
    "detach": lambda y: ByDetach.apply(y).mean(),
    "NumPy": lambda y: (ByNumPy.apply(y) * y).mean(),
    "an output": lambda y: SetUp.apply(y)[0].mean(),
}


class Rounded(Function):
    """What it saves moves with nothing: pieces, shapes, what came from elsewhere, an output."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.inside = (x.abs() < 1).to(x.dtype)
        ctx.sign = torch.sign(x)
        ctx.ones = torch.ones_like(x)
        out = x.exp()
        ctx.save_for_backward(weight, weight * 2, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        weight, twice, out = ctx.saved_tensors
        factor = (ctx.inside * ctx.sign + ctx.ones) * (weight + twice)
        return grad * out * factor / factor.detach().clamp(min=1e-3), None


class OfItsOwn(Function):
    """Its second derivative is written by hand, too."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, 3 * x**2)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return OfItsOwnBackward.apply(grad, *ctx.saved_tensors)


class OfItsOwnBackward(Function):
    @staticmethod
    def forward(ctx, grad, x, slope):
        ctx.save_for_backward(grad, x, slope)
        return grad * slope

    @staticmethod
    def backward(ctx, by):
        grad, x, slope = ctx.saved_tensors
        return by * slope, by * grad * 6 * x, None


class Masked(WithoutAGraph):
    """What its backward takes out of the graph moves with nothing."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        mask = (x.detach() > 0).to(grad)
        with torch.no_grad():
            mask = mask * torch.ones_like(x) * torch.sign(x).abs()
        x = x.detach().requires_grad_() if not x.requires_grad else x
        return 2 * x * grad * (mask + (1 - mask))


WEIGHT = torch.full((3,), 2.0, dtype=torch.float64)
FINE = {
    "pieces": lambda y: Rounded.apply(y, WEIGHT).mean(),
    "a mask": lambda y: Masked.apply(y).mean(),
    "its own": lambda y: OfItsOwn.apply(y).square().mean(),
    "torch's": lambda y: F.hardsigmoid(F.batch_norm(y, None, None, training=True)).square().mean(),
}


@pytest.mark.parametrize("loss", DOUBTFUL.values(), ids=DOUBTFUL)
@pytest.mark.parametrize("use", WITH_A_LOSS)
def test_it_is_warned_of(use, loss):
    with pytest.warns(UserWarning, match=SAYS):
        use(network(), loss)


@pytest.mark.parametrize("loss", FINE.values(), ids=FINE)
@pytest.mark.parametrize("use", WITH_A_LOSS)
def test_what_moves_with_nothing_is_not(use, loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(network(), loss)


def test_it_is_said_once():
    net = network()
    optimizer = AdaHessian(net.parameters(), lr=1e-6)

    def closure():
        optimizer.zero_grad()
        value = DOUBTFUL["within"](net(torch.ones(16, 4).double()))
        value.backward(create_graph=optimizer.needs_graph)
        return value

    with pytest.warns(UserWarning, match=SAYS):
        optimizer.step(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)


@pytest.mark.parametrize("name", ["a fused loss", "an attribute", "written to", "an output"])
def test_the_finite_difference_has_it(name):
    def plain(y):
        if name == "a fused loss":
            return F.cross_entropy(y, torch.arange(16) % 3)
        return y.square().mean()

    found = []
    for way, loss in ("double_backward", plain), ("finite_difference", DOUBTFUL[name]):
        samples = []

        def note(optimizer, params, estimates, samples=samples):
            samples.extend(e.clone() for e in estimates)

        net = network()
        optimizer = AdaHessian(net.parameters(), curvature=way)
        optimizer.register_curvature_hook(note)

        def closure(net=net, loss=loss, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(net(torch.linspace(-1, 1, 64).double().view(16, 4)))
            value.backward(create_graph=optimizer.needs_graph)
            return value

        optimizer.step(closure)
        found.append(samples)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_comparison_tells_how_much():
    net = network()
    optimizer = AdaHessian(net.parameters())

    def closure():
        optimizer.zero_grad()
        value = DOUBTFUL["a fused loss"](net(torch.linspace(-1, 1, 64).double().view(16, 4)))
        value.backward(create_graph=optimizer.needs_graph)
        return value

    with pytest.warns(UserWarning, match=SAYS):
        assert optimizer.curvature_error(closure).largest > 0.1


def test_the_comparison_tells_of_an_exact_product_that_is_zero_and_wrong():
    """Of a tensor that seems to have no curvature, beside others that have some."""
    p, alone = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([p, alone])

    def closure():
        optimizer.zero_grad()
        value = p.exp().sum() + Attribute.apply(alone).sum()
        value.backward(create_graph=optimizer.needs_graph)
        return value

    with pytest.warns(UserWarning, match=SAYS):
        error = optimizer.curvature_error(closure)
    assert error.flat.keys() == {1} and error.largest == error.flat[1] > 0.5


def test_it_is_warned_of_once():
    p = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = AdaHessian([p])

    def closure():
        optimizer.zero_grad()
        loss = (WithoutAGraph.apply(p) * p).sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.step(closure)
    assert sum("out of the graph" in str(w.message) for w in caught) == 1


def solved(y):
    """As of an implicit layer: the hook solves for the gradient, without a graph."""
    x = y.detach().requires_grad_()
    inner = x.sin() / 2

    def solve(grad):
        found = torch.zeros_like(grad)
        for _ in range(3):
            found = torch.autograd.grad(inner, x, found, retain_graph=True)[0] + grad
        return found

    y = y * 1
    y.register_hook(solve)
    return y.exp().mean()


def normalized(y):
    y = y * 1
    y.register_hook(lambda grad: grad / grad.detach().norm())
    return y.exp().mean()


def looked_at(y):
    seen = []
    y = y * 1
    y.register_hook(lambda grad: seen.append(grad.detach().numpy()))
    y.register_hook(lambda grad: grad * 2)
    return y.exp().mean()


@pytest.mark.parametrize("loss", [solved, normalized])
@pytest.mark.parametrize("use", [by_a_closure, from_a_part])
def test_a_hook_that_leaves_the_graph_is_warned_of(use, loss):
    with pytest.warns(UserWarning, match=f"the hook {loss.__name__}.* takes a value out of"):
        use(network(), loss)


@pytest.mark.parametrize("use", [by_a_closure, from_a_part])
def test_a_hook_that_only_looks_is_not(use):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(network(), looked_at)
