"""What autograd takes as constant is constant: the finite difference is the exact product."""

import warnings

import pytest
import torch
from support.losses_with_constants import LOSSES, STATES
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian, CurvatureWarning
from adahessian.curvature.compare import compare_products
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.gates import Gates
from adahessian.curvature.hutchinson import Probes

# torch's own advice.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # in torch.func.jvp
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of vmap
]


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_the_product_is_exact(loss):
    net = network()
    params = list(net.parameters())

    def closure():
        for p in params:
            p.grad = None
        value = loss(net)
        value.backward(create_graph=True)
        return value

    assert compare_products(closure, params, Probes(params, seed=0, step=0)).largest < 1e-4


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_no_alarm_of_the_check(loss):
    net = network()
    optimizer = AdaHessian(net.parameters(), lr=0.0, curvature="finite_difference")

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("error", CurvatureWarning)
        optimizer.step(closure)
        optimizer.step(closure)


def test_spectral_normalization_in_training():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16)), nn.Tanh(), nn.Linear(16, 4)
    ).double()
    params = list(net.parameters())

    def closure():
        for p in params:
            p.grad = None
        value = net(STATES).exp().mean()
        value.backward(create_graph=True)
        return value

    assert compare_products(closure, params, Probes(params, seed=0, step=0)).largest < 1e-4


def test_backward_of_what_is_no_scalar_is_refused_as_torch_does():
    net = network()
    optimizer = AdaHessian(net.parameters(), curvature="finite_difference")

    def closure():
        optimizer.zero_grad()
        loss = net(STATES).square()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        optimizer.step(closure)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_the_forward_pass_renormalizes(kind):
    """The gradient is that of the rows as they then are. torch leaves them 1e-7 below the norm:
    only float32's step is longer. The sum of a bag is that of an embedding, whose product is known.
    """
    torch.manual_seed(1)
    embedding = kind(20, 6, max_norm=1.0, **({"mode": "sum"} if kind is nn.EmbeddingBag else {}))
    params = list(embedding.parameters())
    tokens = torch.randint(20, (16, 3))

    def loss(rows):
        return rows.exp().pow(2).mean()

    def closure():
        embedding.zero_grad()
        rows = embedding(tokens)
        value = loss(rows if kind is nn.EmbeddingBag else rows.sum(1))
        value.backward()
        return value

    assert embedding.weight.norm(dim=1).max() > 1.5
    way = FiniteDifference(closure, params)
    way.evaluate()
    (z,) = Probes(params, seed=0, step=0).keep()
    found = way.product(z)[params[0]]
    rows = params[0].detach().double().requires_grad_()
    (g,) = torch.autograd.grad(loss(rows[tokens].sum(1)), rows, create_graph=True)
    (exact,) = torch.autograd.grad(g, rows, z[params[0]].double())
    assert rows[tokens.unique()].norm(dim=1).max() < 1 + 1e-6
    assert (found - exact).norm() < 0.01 * exact.norm()


PADDED = torch.tensor([[3, 4, 0, 0], [5, 0, 0, 0], [1, 2, 3, 19]])


def looked_up(embedding):
    return embedding(PADDED)


def with_max_norm(embedding):
    return F.embedding(PADDED, embedding.weight, 0, max_norm=2.0)


def by_the_operator(embedding):
    return torch.embedding(embedding.weight, PADDED, padding_idx=0)


def as_output_layer_too(embedding):
    return embedding(PADDED) @ embedding.weight.t()


@pytest.mark.parametrize("rows", [looked_up, with_max_norm, by_the_operator, as_output_layer_too])
@pytest.mark.parametrize("norm", [nn.Identity(), nn.ReLU(), nn.PReLU()], ids=str)
@pytest.mark.parametrize("index", [0, -20])
def test_the_row_of_padding_stands_still_where_it_is_looked_up(rows, norm, index):
    """Its gradient is set to zero, and the loss depends on it: a mean over all tokens."""
    torch.manual_seed(1)
    embedding = nn.Embedding(20, 6, padding_idx=index).double()
    nn.init.normal_(embedding.weight, std=0.5)
    hidden = nn.Sequential(nn.LazyLinear(5), norm).double()
    hidden(rows(embedding).mean(1))
    params = [*embedding.parameters(), *hidden[0].parameters()]

    def closure():
        for p in params:
            p.grad = None
        loss = hidden(rows(embedding).mean(1)).exp().square().mean()
        loss.backward(create_graph=True)
        return loss

    probes = Probes(params, seed=0, step=0)
    assert compare_products(closure, params, probes).largest < 1e-4
    optimizer = AdaHessian(params, lr=0.1, curvature="finite_difference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.step(closure)


class Padded(nn.Module):
    """Smooth, and its mean is over the padding, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 6, padding_idx=0), nn.Linear(6, 3)
        nn.init.normal_(self.embedding.weight)

    def forward(self, tokens):
        return self.out(self.embedding(tokens).mean(1)).tanh()


class Ensemble(nn.Module):
    """Three of them, by vmap."""

    def __init__(self):
        super().__init__()
        self.base = [Padded()]  # in a list: its parameters are none of ours
        stacked, _ = torch.func.stack_module_state([Padded() for _ in range(3)])
        self.names = list(stacked)
        self.stacked = nn.ParameterList(nn.Parameter(p.detach()) for p in stacked.values())

    def forward(self, tokens):
        def one(params):
            named = dict(zip(self.names, params, strict=True))
            return torch.func.functional_call(self.base[0], named, (tokens,))

        return torch.vmap(one)(tuple(self.stacked)).mean(0)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("kind", [Padded, Ensemble])
def test_padding_that_comes_after_the_recorded_batch(kind, fraction):
    """A smooth network is not recorded at each step."""
    tokens = torch.randint(1, 20, (32, 5))
    padded, labels = tokens.clone(), torch.randint(3, (32,))
    padded[:, 2:] = 0
    found = []
    for way in ("double_backward", "finite_difference"):
        torch.manual_seed(1)
        net = kind().double()
        optimizer = AdaHessian(
            net.parameters(), lr=0.01, curvature=way, block_size=None, curvature_fraction=fraction
        )
        for batch in (tokens, padded, padded):

            def part(start, stop, batch=batch, net=net):
                rows = slice(round(32 * start), round(32 * stop))
                return F.cross_entropy(3 * net(batch[rows]), labels[rows])

            def closure(part=part, optimizer=optimizer):
                optimizer.zero_grad()
                loss = part(0, 1)
                loss.backward(create_graph=optimizer.needs_graph)
                return loss

            if fraction == 1:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step(curvature_closure=part)
        found.append([optimizer.state[p]["exp_hessian_diag_sq"] for p in net.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-9)


def test_what_takes_a_type_or_a_shape_alone_is_not_recorded():
    x = torch.ones(3, 4, requires_grad=True)
    gates = Gates()
    with gates:
        y = x * torch.ones(3, 1).to(x) * torch.ones(1).expand_as(x) * torch.zeros_like(x)
        (y * x.new_ones(4)).sum().backward()
    assert not gates.met_pieces


def test_an_expanded_constant_is_replayed_as_such():
    """Kernels round by the strides of what they get."""
    x = torch.ones(3, 4, requires_grad=True)
    gates, strides = Gates(), []
    for _ in range(2):
        with gates:
            constant = x.data.sum(0).expand(3, 4)
            frozen = gates._held_still(constant)
        strides.append(frozen.stride())
        assert torch.equal(frozen, torch.full((3, 4), 3.0))
        x.data += 1
        gates.rewind()
    assert strides == [(0, 1), (0, 1)]


def test_a_gradient_of_another_loss_is_no_part_of_the_slope():
    """It passes the same parameters on its way, whatever the data: no alarm of the check."""
    for seed in range(8):
        net = network()
        x = torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        optimizer = AdaHessian(net.parameters(), lr=0.0, curvature="finite_difference")

        def closure(net=net, x=x, optimizer=optimizer):
            optimizer.zero_grad()
            value = net(x).exp().mean()
            (g,) = torch.autograd.grad(value, net[0].weight, retain_graph=True)
            value = net(x + 1).square().mean() + value / g.norm()
            value.backward()
            return value

        with warnings.catch_warnings():
            warnings.simplefilter("error", CurvatureWarning)
            optimizer.step(closure)
