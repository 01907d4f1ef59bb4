"""Functions without a second derivative, which torch cuts out of the graph without a word."""

from functools import partial

import pytest
import torch
from support.cubes import Cube, Saving
from support.second_derivative_uses import USES, WITH_A_LOSS, X, network, without_one
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributions import Beta, Dirichlet

from adahessian import AdaHessian
from adahessian.spectrum import GaussNewton

torch.manual_seed(0)


class UnderAutocast(Saving):
    @staticmethod
    @partial(torch.amp.custom_fwd, device_type="cpu")
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @partial(torch.amp.custom_bwd, device_type="cpu")
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class ByItsOtherName(Saving):
    @staticmethod
    @once_differentiable
    def vjp(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Adjoint(Saving):
    """Cubes, with a derivative that is solved for, as the adjoint method of an equation is."""

    @staticmethod
    @torch.no_grad()
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        adjoint = x.exp() * grad
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(at**3, at, adjoint)
        return found / x.exp()


class Silent(Saving):
    """Nobody said that its derivative builds no graph."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return 3 * x**2 * grad


LOSSES = {
    "at the end": lambda y: Cube.apply(y).mean(),
    "beside others": lambda y: Cube.apply(y).mean() + y.square().mean(),
    "before others": lambda y: Cube.apply(y).square().mean(),
    "custom_bwd": lambda y: UnderAutocast.apply(y).mean(),
    "vjp": lambda y: ByItsOtherName.apply(y).mean(),
    "Dirichlet": lambda y: Dirichlet(y.exp()).rsample().square().mean(),
    "Beta": lambda y: Beta(y[:, 0].exp(), y[:, 1].exp()).rsample().sin().mean(),
}


# What comes back to it needs a graph for it to be seen.
WITHOUT_GRAPH = {
    "detached": lambda y: Silent.apply(y).square().mean(),
    "adjoint": lambda y: Adjoint.apply(y).square().mean(),
}


# Without a closure the gradients' graph is all there is, and it has nothing of these.
NOT_IN_THE_GRAPH = ("at the end", "beside others", "custom_bwd", "vjp")


@pytest.mark.parametrize(
    ("use", "name"),
    [(u, n) for u in USES for n in LOSSES if u is not without_one or n not in NOT_IN_THE_GRAPH],
)
def test_it_is_refused(use, name):
    loss = LOSSES[name]
    with pytest.raises(RuntimeError, match="once_differentiable.*finite_difference"):
        use(network(), loss)


def test_gauss_newton_refuses_it_too():
    net = network()
    matrix = GaussNewton(
        lambda batch: Cube.apply(net(batch[0])), lambda y, batch: y.square().mean(), net, [(X,)]
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        matrix(torch.ones(matrix.size, dtype=torch.float64))


@pytest.mark.parametrize("loss", WITHOUT_GRAPH.values(), ids=WITHOUT_GRAPH)
@pytest.mark.parametrize("use", WITH_A_LOSS)
def test_a_derivative_without_a_graph_is_refused(use, loss):
    with pytest.raises(RuntimeError, match="backward method of .* builds no graph"):
        use(network(), loss)


def test_a_function_that_is_differentiable_is_not():
    class Fine(Function):
        @staticmethod
        def forward(ctx, x, _):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad, None

    class Stop(Function):
        """It sends nothing back."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    def loss(y):
        return Fine.apply(y, 1).square().mean() + (y * Stop.apply(y)).square().mean()

    for use in USES:
        use(network(), loss)


PLAIN = {
    "at the end": lambda y: (y**3).mean(),
    "beside others": lambda y: (y**3).mean() + y.square().mean(),
    "before others": lambda y: (y**3).square().mean(),
    "detached": lambda y: (y**3).square().mean(),
    "adjoint": lambda y: (y**3).square().mean(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_finite_difference_needs_none(name):
    steps = []
    losses = {"double_backward": PLAIN, "finite_difference": LOSSES | WITHOUT_GRAPH}
    for way in losses:
        net = network()
        optimizer = AdaHessian(net.parameters(), lr=0.1, curvature=way)

        def closure(net=net, loss=losses[way][name], optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(net(X))
            value.backward(create_graph=optimizer.needs_graph)
            return value

        optimizer.step(closure)
        steps.append(dict(net.named_parameters()))
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-5, atol=1e-7)
