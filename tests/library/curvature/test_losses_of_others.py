"""Losses as people write them, from many fields: both ways to H·z are one product in float64."""

import random

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from adahessian.curvature.compare import compare_products
from adahessian.curvature.hutchinson import Probes

CASES = {}


def case(function):
    """Register what makes a module and its loss."""
    CASES[function.__name__] = function
    return function


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def mlp(inner, *sizes):
    layers = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), inner()]
    return nn.Sequential(*layers[:-1])


def functional(net, params, x):
    return torch.func.functional_call(net, params, (x,))


@case
def gradient_penalty():
    net, real, fake = mlp(lambda: nn.LeakyReLU(0.2), 6, 16, 1), randn(8, 6), randn(8, 6)

    def loss():
        between = (0.4 * real + 0.6 * fake).requires_grad_()
        (g,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
        return net(fake).mean() - net(real).mean() + 10 * (g.norm(dim=1) - 1).square().mean()

    return net, loss


def meta_learning(second_order):
    net, (x, x2), (y, y2) = mlp(nn.Tanh, 3, 8, 1), randn(2, 5, 3), randn(2, 5, 1)

    def loss():
        params = dict(net.named_parameters())
        inner = F.mse_loss(functional(net, params, x), y)
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=second_order)
        adapted = {k: p - 0.1 * g for (k, p), g in zip(params.items(), grads, strict=True)}
        return F.mse_loss(functional(net, adapted, x2), y2)

    return net, loss


@case
def maml():
    return meta_learning(second_order=True)


@case
def first_order_maml():
    return meta_learning(second_order=False)


@case
def normalizing_flow():
    net = nn.ModuleList([mlp(nn.ReLU, 2, 8, 4) for _ in range(3)])
    net.register_parameter("mix", nn.Parameter(torch.eye(4) + 0.1 * torch.randn(4, 4)))
    data = randn(8, 4)

    def loss():
        x, log_det = data, 0.0
        for layer in net:
            a, b = x.chunk(2, 1)
            shift, scale = layer(a).chunk(2, 1)
            x = torch.cat([b * scale.tanh().exp() + shift, a], 1) @ net.mix
            log_det = log_det + scale.tanh().sum(1) + torch.linalg.slogdet(net.mix)[1]
        return (x.square().sum(1) / 2 - log_det).mean()

    return net, loss


@case
def gaussian_process():
    net = nn.ParameterDict({"length": torch.zeros(3), "noise": torch.tensor(-2.0)})
    x, y = randn(12, 3), randn(12)

    def loss():
        scaled = x / net["length"].exp()
        kernel = torch.exp(-torch.cdist(scaled, scaled).square() / 2)
        kernel = kernel + net["noise"].exp() * torch.eye(12, dtype=torch.float64)
        zero = torch.zeros(12, dtype=torch.float64)
        return -torch.distributions.MultivariateNormal(zero, kernel).log_prob(y)

    return net, loss


@case
def proximal_policy():
    net, states = mlp(nn.Tanh, 4, 16, 3), randn(16, 4)
    actions, advantages, old = torch.randint(3, (16,)), randn(16), -1 - torch.rand(16)

    def loss():
        policy = torch.distributions.Categorical(logits=net(states))
        ratio = (policy.log_prob(actions) - old).exp()
        clipped = ratio.clamp(0.8, 1.2)
        gain = torch.min(ratio * advantages, clipped * advantages).mean()
        return -gain - 0.01 * policy.entropy().mean()

    return net, loss


@case
def actor_critic():
    net = nn.ModuleDict({"actor": mlp(nn.ReLU, 4, 16, 4), "critic": nn.Linear(6, 2)})
    net.register_parameter("temperature", nn.Parameter(torch.zeros(())))
    states = randn(16, 4)

    def loss():
        mean, scale = net["actor"](states).chunk(2, 1)
        policy = torch.distributions.Normal(mean, scale.clamp(-5, 2).exp())
        raw = policy.rsample()
        action = raw.tanh()
        log = (policy.log_prob(raw) - torch.log(1 - action.square() + 1e-6)).sum(1)
        value = net["critic"](torch.cat([states, action], 1)).min(1).values
        heat = net.temperature
        return (heat.exp().detach() * log - value).mean() - (heat * (log.detach() - 2)).mean()

    return net, loss


@case
def hard_gumbel_codes():
    net, x = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 6)]), randn(8, 6)
    return net, lambda: F.mse_loss(net[1](F.gumbel_softmax(net[0](x), hard=True)), x)


@case
def radiance_field():
    net, points, colours = mlp(nn.ReLU, 6, 16, 4), randn(5, 7, 3), torch.rand(5, 3).double()

    def loss():
        out = net(torch.cat([points.sin(), points.cos()], -1))
        opacity = 1 - (-0.1 * F.relu(out[..., 3] + 1)).exp()
        passed = torch.cumprod(F.pad(1 - opacity + 1e-10, (1, 0), value=1.0), 1)[:, :-1]
        rendered = ((opacity * passed)[..., None] * out[..., :3].sigmoid()).sum(1)
        return F.mse_loss(rendered, colours)

    return net, loss


@case
def fourier_operator():
    net = nn.ParameterDict({"weight": 0.3 * torch.randn(3, 3, 4, 2), "skip": torch.randn(3, 3)})
    x = randn(2, 3, 16)

    def loss():
        waves = torch.fft.rfft(x)
        out = torch.zeros_like(waves)
        weight = torch.view_as_complex(net["weight"])
        out[..., :4] = torch.einsum("bif,iof->bof", waves[..., :4], weight)
        return F.gelu(torch.fft.irfft(out, n=16) + net["skip"] @ x).square().mean()

    return net, loss


@case
def graph_attention():
    net = nn.ModuleDict({"node": nn.Linear(4, 8), "edge": nn.Linear(16, 1), "out": nn.Linear(8, 3)})
    x, (source, target), y = randn(10, 4), torch.randint(10, (2, 30)), torch.randint(3, (10,))

    def loss():
        h = net["node"](x)
        score = F.leaky_relu(net["edge"](torch.cat([h[source], h[target]], 1)), 0.2).squeeze(1)
        most = score.new_full((10,), -1e9).scatter_reduce(0, target, score, "amax")
        weight = (score - most[target]).exp()
        weight = weight / weight.new_zeros(10).index_add(0, target, weight)[target].clamp_min(1e-9)
        gathered = h.new_zeros(10, 8).index_add(0, target, weight[:, None] * h[source])
        return F.cross_entropy(net["out"](F.elu(gathered)), y)

    return net, loss


@case
def lovasz_hinge():
    net, x, y = nn.Conv2d(2, 1, 3, padding=1), randn(2, 2, 6, 6), torch.randint(2, (72,)).double()

    def loss():
        errors, order = (1 - net(x).flatten() * (2 * y - 1)).sort(descending=True)
        truth = y[order]
        inside = truth.sum() - truth.cumsum(0)
        jaccard = 1 - inside / (truth.sum() + (1 - truth).cumsum(0))
        return (F.relu(errors).square() * torch.diff(jaccard, prepend=jaccard[:1] * 0)).sum()

    return net, loss


@case
def hardest_pixels():
    net, x, y = nn.Conv2d(2, 3, 3, padding=1), randn(2, 2, 6, 6), torch.randint(3, (2, 6, 6))

    def loss():
        each = F.cross_entropy(net(x), y, reduction="none").flatten()
        return ((1 - (-each).exp()) ** 2 * each).topk(20).values.mean()

    return net, loss


@case
def soft_time_warping():
    net, a, b = nn.Linear(3, 3), randn(5, 3), randn(6, 3)

    def loss():
        cost, table = torch.cdist(net(a), b).square(), {}
        for i in range(5):
            for j in range(6):
                before = [table[k] for k in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if k in table]
                soft = -torch.logsumexp(-torch.stack(before), 0) if before else 0.0
                table[i, j] = cost[i, j] + soft
        return table[4, 5]

    return net, loss


@case
def optimal_transport():
    net, a, b = nn.Linear(3, 3), randn(5, 3), randn(5, 3)

    def loss():
        cost = torch.cdist(net(a), b)
        kernel, u = (-cost).exp(), torch.ones(5).double()
        for _ in range(10):
            v = 1 / (kernel.T @ u)
            u = 1 / (kernel @ v)
        return (u[:, None] * kernel * v * cost).sum()

    return net, loss


@case
def differential_equation():
    """A residual with second derivatives by the input."""
    net, points = mlp(nn.Tanh, 2, 16, 1), torch.rand(10, 2).double()

    def loss():
        q = points.clone().requires_grad_()
        u = net(q)
        (du,) = torch.autograd.grad(u.sum(), q, create_graph=True)
        (ddu,) = torch.autograd.grad(du[:, 1].sum(), q, create_graph=True)
        return (du[:, 0] + u.squeeze(1) * du[:, 1] - 0.01 * ddu[:, 1]).square().mean()

    return net, loss


@case
def penalized_jacobian():
    net, x = mlp(nn.Softplus, 4, 16, 3), randn(5, 4)
    return net, lambda: torch.vmap(torch.func.jacrev(net))(x).square().mean() + net(x).exp().mean()


@case
def ensemble_by_vmap():
    base = mlp(nn.ReLU, 6, 8, 1)
    stacked, _ = torch.func.stack_module_state([mlp(nn.ReLU, 6, 8, 1) for _ in range(3)])
    net = nn.ParameterDict({name.replace(".", "_"): p.detach() for name, p in stacked.items()})
    x = randn(4, 6)

    def loss():
        params = {name.replace("_", "."): p for name, p in net.items()}
        return torch.vmap(lambda p: functional(base, p, x))(params).square().mean()

    return net, loss


@case
def equilibrium():
    net, x = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]), randn(4, 6)
    nn.init.uniform_(net[0].weight, -0.1, 0.1)

    def loss():
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(30):
                z = torch.tanh(net[0](z) + net[1](x))
        return torch.tanh(net[0](z) + net[1](x)).square().mean()

    return net, loss


@case
def spectra_of_features():
    net, x = nn.Linear(6, 6), randn(8, 6)

    def loss():
        out = net(x)
        values = torch.linalg.svdvals(out).sum() + torch.linalg.matrix_norm(out, "nuc")
        return values + torch.linalg.eigvalsh(out.T @ out).log1p().sum()

    return net, loss


@case
def set_prediction():
    """The matching is scipy's, of the network's own output."""
    net, x, truth = nn.Linear(6, 4), randn(4, 6), randn(4, 4)

    def loss():
        out = net(x)
        i, j = linear_sum_assignment(torch.cdist(out, truth, 1).detach().cpu().numpy())
        return F.smooth_l1_loss(out[i], truth[j]) + (out[i] - truth[j]).abs().pow(1.5).mean()

    return net, loss


@case
def weights_by_numpy():
    net, x = nn.Linear(6, 3), randn(4, 6)

    def loss():
        out = net(x)
        weight = torch.from_numpy(out.detach().cpu().numpy().copy()).to(out).softmax(0)
        return (out * weight).square().mean()

    return net, loss


@case
def targets_by_numpy():
    net, x = nn.Linear(6, 3), randn(4, 6)

    def loss():
        with torch.no_grad():
            target = torch.from_numpy(net(x).numpy() ** 2)
        return (net(x) - target).square().mean()

    return net, loss


@case
def balanced_gradients():
    net, x = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)]), randn(4, 6)

    def loss():
        h = net[0](x).tanh()
        one, two = net[1](h).square().mean(), (net[2](h) - 1).square().mean()
        norms = [torch.autograd.grad(t, net[0].weight, retain_graph=True)[0].norm()
                 for t in (one, two)]  # fmt: skip
        return one + (norms[0] / norms[1]).detach() * two

    return net, loss


@case
def sharpness_aware():
    net, x = mlp(nn.Tanh, 6, 8, 3), randn(4, 6)

    def loss():
        params = dict(net.named_parameters())
        grads = torch.autograd.grad(net(x).square().mean(), list(params.values()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        moved = {k: p + 0.05 * g / norm for (k, p), g in zip(params.items(), grads, strict=True)}
        return functional(net, moved, x).square().mean()

    return net, loss


@case
def random_field():
    net, x, y = nn.Linear(4, 3), randn(6, 4), torch.randint(3, (6,))
    net.register_parameter("moves", nn.Parameter(torch.randn(3, 3)))

    def loss():
        scores = net(x)
        total = scores[0]
        for row in scores[1:]:
            total = torch.logsumexp(total[:, None] + net.moves, 0) + row
        path = scores[range(6), y].sum() + net.moves[y[:-1], y[1:]].sum()
        return torch.logsumexp(total, 0) - path

    return net, loss


@case
def state_space():
    net = nn.ModuleDict({"read": nn.Linear(4, 6), "step": nn.Linear(4, 4)})
    net.register_parameter("decay", nn.Parameter(torch.randn(4, 3)))
    x = randn(3, 7, 4)

    def loss():
        state, out = x.new_zeros(3, 4, 3), []
        for row in x.unbind(1):
            write, read = net["read"](row).chunk(2, 1)
            step = F.softplus(net["step"](row))
            kept = (-step[..., None] * net.decay.exp()).exp() * state
            state = kept + step[..., None] * write[:, None] * row[..., None]
            out.append((state * read[:, None]).sum(-1))
        return (torch.stack(out, 1) * F.silu(x)).square().mean()

    return net, loss


@case
def chosen_elements():
    net, x = nn.Linear(6, 3), randn(8, 6)

    def loss():
        out = net(x)
        rows, columns = (out > 0.2).nonzero().unbind(1)
        counts = torch.bincount(out.argmax(1), minlength=3) + 1
        weight = 1 / counts.double()
        positive = out[out > 0].square().sum() / max(1, int((out > 0).sum()))
        return positive + out[rows, columns].exp().mean() + F.cross_entropy(
            out, torch.arange(8) % 3, weight=weight
        )  # fmt: skip

    return net, loss


@case
def random_depth():
    """Its noise is Python's, numpy's and torch's."""
    net, x = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)]), randn(4, 6)

    def loss():
        out = x
        for layer in net:
            if random.random() < 0.7 and np.random.rand() < 0.9:
                keep = torch.bernoulli(torch.full((4, 1), 0.8)).double() / 0.8
                out = out + F.silu(layer(out)) * keep
        return out.square().mean()

    return net, loss


@case
def until_it_is_large():
    net, x = nn.Linear(6, 6), randn(4, 6)

    def loss():
        out, steps = x, 0
        while out.norm() < 50 and steps < 10:
            out, steps = out + net(out).tanh(), steps + 1
        return out.square().mean() / steps

    return net, loss


@case
def contrastive_with_scale():
    net, (x, y) = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)]), randn(2, 8, 6)
    net.register_parameter("scale", nn.Parameter(torch.tensor(2.6)))

    def loss():
        one, two = (F.normalize(f(t)) for f, t in zip(net, (x, y), strict=True))
        logits = net.scale.exp().clamp(max=100) * one @ two.T
        pairs = torch.arange(8)
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2

    return net, loss


if torch.__version__ < torch.torch_version.TorchVersion("2.15"):
    # There cdist has no second derivative to compare with.
    for name in ("gaussian_process", "soft_time_warping", "optimal_transport"):
        del CASES[name]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
@pytest.mark.parametrize("name", CASES)
def test_both_ways_agree(name):
    torch.manual_seed(0)
    random.seed(0), np.random.seed(0)
    net, loss = CASES[name]()
    params = list(net.double().parameters())

    def closure():
        net.zero_grad()
        value = loss()
        value.backward(create_graph=True)
        return value

    error = compare_products(closure, params, Probes(params, seed=0, step=0))
    assert error.largest < 1e-4 and all(flat < 1e-4 for flat in error.flat.values())
