"""Losses in which something that was computed from the parameters is a constant for autograd."""

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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


def an_adversarys_input(net):
    """What a backward pass has brought to an input moves it (virtual adversarial training)."""
    noise = NEXT.clone().requires_grad_()
    net(STATES + noise).sin().mean().backward(inputs=[noise])
    assert noise.grad is not None
    noise = noise.grad / noise.grad.norm(dim=1, keepdim=True)
    return net(STATES + noise).exp().mean()


# A leaf whose gradient may be asked for, and whose values are the parameters' all the same.


def a_parameter_made_in_the_closure(net):
    with torch.no_grad():
        scale = nn.Parameter(net(STATES).exp())
    return (scale * net(STATES)).square().mean()


def a_layer_that_copies(net):
    copy = nn.Linear(6, 16).double()
    with torch.no_grad():
        copy.weight.copy_(net[0].weight * 2)
    copy.bias.data = net[0].bias.data.clone()
    return (copy(STATES) * net[0](STATES).square()).mean()


def a_buffer_set_to_values_of_the_graph(net):
    """As a codebook that k-means begins: the buffer itself has no graph."""
    codes = torch.zeros(32, 4).double()
    codes.data.copy_(net(STATES).exp())
    nearest = codes[torch.cdist(net(STATES).detach(), codes).argmin(1)]
    return (net(STATES) - nearest).square().mean() * net(STATES).square().mean()


def a_layer_of_another_precision(net):
    copy = nn.Linear(6, 16)
    copy.load_state_dict({name: p * 2 for name, p in net[0].named_parameters()})
    return (copy.double()(STATES) * net[0](STATES).square()).mean()


def trained_within(net):
    """A copy takes some steps of its own, whose backward passes are not the closure's."""
    copy = nn.Parameter(net[0].weight.detach().clone())
    optimizer = torch.optim.SGD([copy], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (STATES @ copy.T).tanh().square().mean().backward()
        optimizer.step()
    return (STATES @ net[0].weight.T - STATES @ copy.T).pow(4).mean() + net(STATES).exp().mean()


def used_by_its_transpose(net):
    copy = nn.Parameter(net[0].weight.data.clone())
    return (STATES @ net[0].weight.T - STATES @ copy.T / 2).pow(4).mean() + net(STATES).exp().mean()


# Within torch.func's transforms a tensor does not say whether it requires a gradient.


def detached_in_vmap(net):
    return torch.vmap(lambda x: (net(x) * net(x).exp().detach()).square().mean())(STATES).mean()


def targets_in_vmap(net):
    def one(x):
        with torch.no_grad():
            target = net(x).exp()
        return (net(x) - target).square().mean()

    return torch.vmap(one, chunk_size=5)(STATES).mean()


def written_unseen_in_vmap(net):
    def one(x):
        y = net(x) * 1
        with torch.no_grad():
            y.mul_(2)
        return y.pow(3).mean()

    return torch.vmap(one)(STATES).mean()


def dropped_in_vmap(net):
    def one(x):
        return (F.dropout(net(x), 0.3) * net(x).exp().detach()).square().mean()

    return torch.vmap(one, randomness="different")(STATES).mean()


def a_nested_vmap(net):
    def scaled(x, factor):
        return (net(x) * factor).tanh().sum() * net(x).sum().exp().detach()

    inner = torch.vmap(scaled, (None, 0))
    return torch.vmap(inner, (0, None))(STATES, NEXT[0]).mean()


def a_weighted_residual(net):
    """Of a differential equation: derivatives by the input, weighted by the solution."""

    def solution(x):
        return net(x).square().sum()

    def residual(x):
        return torch.func.grad(solution)(x).square().sum() * solution(x).detach()

    return torch.vmap(residual)(STATES).mean()


def a_directional_derivative(net):
    def f(x):
        return net(x) * net(x).detach()

    return torch.func.jvp(f, (STATES,), (NEXT,))[1].square().mean()


def a_constant_that_leaves_vmap(net):
    scales = torch.vmap(lambda x: net(x).exp().detach())(STATES)
    return (scales * net(STATES).square()).mean()


def a_kink_in_vmap(net):
    """One that no gate reaches."""
    return torch.vmap(lambda x: ((net(x) % 1) ** 3 * net(x).exp().detach()).mean())(STATES).mean()


def running_statistics(net):
    """A normalization's, written in training and read in evaluation, of two micro-batches."""
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    losses = [F.batch_norm(net(x), mean, var, training=True).exp() for x in (STATES, NEXT)]
    return torch.cat([*losses, F.batch_norm(net(NEXT), mean, var).exp()]).mean()


def running_statistics_of_instances(net):
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    y = net(STATES).T.unsqueeze(0)
    first = torch.instance_norm(y, None, None, mean, var, True, 0.5, 1e-5, False)
    return (first.exp() * F.instance_norm(y, mean, var, use_input_stats=False)).mean()


def frozen_for_a_while(net):
    """A critic, for the sake of an actor."""
    net[2].requires_grad_(False)
    net[0].bias.requires_grad = False
    first = net(STATES).exp().mean()
    net.requires_grad_(True)
    return first + (net(NEXT).square() * net[0].bias[:4]).mean()


# Sparse tensors have no memory of their own.


def a_sparse_constant(net):
    with torch.no_grad():
        scale = net[0].weight.exp().to_sparse()
    return (torch.sparse.mm(scale, STATES.T) * net[0](STATES).T.square()).mean()


def a_sparse_matrix_written_unseen(net):
    weight = (net[0].weight * 1).to_sparse()
    with torch.no_grad():
        weight.mul_(2)
        weight._values().sin_()
    return torch.sparse.mm(weight, STATES.T).pow(3).mean()


LOSSES = [
    an_expanded_leaf, without_inference_mode,
    solved_without_a_graph, a_leaf_by_its_attribute, an_adversarys_input,
    *WRITTEN_UNSEEN,
    q_learning, divided_by_item, divided_by_float, divided_by_data, policy_gradient,
    weighted_by_gradient, weighted_by_norms, written_in_place, concatenated, steered,
    a_parameter_made_in_the_closure, a_layer_that_copies, a_layer_of_another_precision,
    a_buffer_set_to_values_of_the_graph, trained_within, used_by_its_transpose,
    detached_in_vmap, targets_in_vmap, written_unseen_in_vmap, dropped_in_vmap,
    a_nested_vmap, a_weighted_residual, a_directional_derivative, a_constant_that_leaves_vmap,
    a_kink_in_vmap, running_statistics, running_statistics_of_instances,
    frozen_for_a_while,
    a_sparse_constant, a_sparse_matrix_written_unseen,
]  # fmt: skip
