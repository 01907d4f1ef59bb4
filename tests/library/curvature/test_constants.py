"""What autograd takes as constant is constant: the finite difference is the exact product."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adahessian import AdaHessian, CurvatureWarning
from adahessian.curvature.compare import compare_products
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.gates import Gates
from adahessian.curvature.hutchinson import Probes

# torch's own advice.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")

torch.manual_seed(0)
STATES, NEXT, ACTIONS = torch.randn(32, 6).double(), torch.randn(32, 6).double(), torch.randn(32, 4)


def q_learning(net):
    """The target is the network's own."""
    with torch.no_grad():
        target = 1 + 0.9 * net(NEXT).max(1).values
    return F.mse_loss(net(STATES)[:, 0], target + 0.1)


def divided_by_item(net):
    loss = net(STATES).square().mean()
    return loss.exp() / loss.item()


def divided_by_float(net):
    loss = net(STATES).square().mean()
    return loss.exp() / float(loss)


def divided_by_data(net):
    loss = net(STATES).square().mean()
    return loss.exp() / loss.data


def policy_gradient(net):
    policy = Normal(net(STATES), net(STATES).exp())
    actions = policy.sample()
    return -(policy.log_prob(actions) * actions.square().sum(1, keepdim=True)).mean()


def weighted_by_gradient(net):
    first, second = net(STATES).square().mean(), net(NEXT).exp().mean()
    (g,) = torch.autograd.grad(second, net[0].weight, retain_graph=True)
    return first + second / g.norm()


def weighted_by_norms(net):
    with torch.no_grad():
        weights = torch.stack([p.norm() for p in net.parameters()])
    return sum(w * p.pow(4).sum() for w, p in zip(weights.unbind(), net.parameters(), strict=True))


def written_in_place(net):
    buffer = torch.zeros(32, 4).double()
    with torch.no_grad():
        buffer.add_(net(STATES))
        buffer[0] = net(NEXT)[0]
    return (net(STATES) * buffer).exp().mean()


def concatenated(net):
    with torch.no_grad():
        old = net(NEXT)
    return torch.cat([net(STATES), old], 1).square().exp().mean()


def steered(net):
    loss = net(STATES).square().mean()
    return loss * 2 if loss.item() > 1e9 else loss.exp()


# Written to values of the graph so that autograd does not see it: what it adds is a constant.


def clamped(net):
    y = net(STATES).square() * 1
    with torch.no_grad():
        y.clamp_(min=0.1)
    return y.log().square().mean()


def scaled_through_data(net):
    y = net(STATES) * 1
    y.data.mul_(2).add_(y.data**2)
    return y.pow(3).mean()


def other_data(net):
    y = net(STATES) * 1
    y.data = y.data.clamp(min=0.1)
    return y.pow(3).mean()


def a_mask_and_a_column(net):
    y = net(STATES) * 1
    with torch.no_grad():
        y[y < 0] = 0.7
        y[:, 0].fill_(1)
        y.view(-1)[1::2] *= 2
    return y.pow(3).mean()


def by_a_view(net):
    y = net(STATES) * 1
    half = y[:, 1:]
    with torch.no_grad():
        half.exp_()
        nn.init.constant_(y[3], 0.3)
    return y.pow(3).mean()


def several_at_once(net):
    y = [net(STATES) * 1, net(NEXT) * 1]
    with torch.no_grad():
        torch._foreach_mul_(y, 2.0)
    return sum(one.pow(3).mean() for one in y)


def cut_off(net):
    y = net(STATES) * 1
    with torch.no_grad():
        kept = y.clone().requires_grad_()
        y.detach_()
    return (net(NEXT) * y).pow(2).mean() + kept.mean()


def rectified(net):
    y = net(STATES) * 1
    with torch.no_grad():
        F.relu(y, inplace=True)
        torch.sigmoid_(y)
    return y.pow(3).mean()


def masked_to_infinity(net):
    y = net(STATES) * 1
    with torch.no_grad():
        y.masked_fill_(y < 0, -torch.inf)
    return y.softmax(1).square().mean()


def small_variances(net):
    y = net(STATES)
    return F.gaussian_nll_loss(y[:, :1], NEXT[:, :1], y[:, 1:2].exp(), eps=1.0)


def clamped_in_a_checkpoint(net):
    return checkpoint(lambda x: clamped(lambda _: net(x)), STATES, use_reentrant=False)


def beside_a_kernel_with_kinks(net):
    loss = F.multi_margin_loss(net(STATES).square(), ACTIONS.argmax(1))
    return sum((f(net) for f in (clamped, a_mask_and_a_column, scaled_through_data)), loss)


WRITTEN_UNSEEN = [
    clamped, scaled_through_data, other_data, a_mask_and_a_column, by_a_view, several_at_once,
    cut_off, rectified, masked_to_infinity, small_variances, clamped_in_a_checkpoint,
    beside_a_kernel_with_kinks,
]  # fmt: skip


def solved_without_a_graph(net):
    """As an equilibrium's layer is: the solution is a leaf of a graph of its own."""
    with torch.no_grad():
        z = net(STATES).sin()
    z.requires_grad_()
    (gradient,) = torch.autograd.grad((z**3).sum(), z, create_graph=True)
    return (net(STATES) * gradient * z).square().mean()


def a_leaf_by_its_attribute(net):
    z = net(STATES).detach() * 2
    z.requires_grad = True
    return (net(STATES) * z**2).square().mean()


def an_expanded_leaf(net):
    with torch.no_grad():
        z = net(STATES)[:1].sin().expand(32, -1)
    z.requires_grad_()
    return (net(STATES) * z).square().mean()


def without_inference_mode(net):
    y = net(STATES) * 1
    with torch.inference_mode():
        y.mul_(2)
    return y.pow(3).mean()


LOSSES = [
    an_expanded_leaf, without_inference_mode,
    solved_without_a_graph, a_leaf_by_its_attribute,
    *WRITTEN_UNSEEN,
    q_learning, divided_by_item, divided_by_float, divided_by_data, policy_gradient,
    weighted_by_gradient, weighted_by_norms, written_in_place, concatenated, steered,
]  # fmt: skip


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
