"""Muon and AdamW as one optimizer: torch's own two, each on its parameters, to the bit."""

import copy

import pytest
import torch
from support.harness import DIGITS
from torch import nn

from experiments.errors import UserError
from experiments.optimizers import MuonAdamW
from experiments.plans.load import load, resolve
from experiments.training.optimizers import build_optimizer

OPTIONS = dict(lr=0.01, weight_decay=0.05)
MUON = dict(momentum=0.95, nesterov=True, ns_steps=5, adjust_lr_fn="match_rms_adamw")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.scale * self.head(self.hidden(x).relu())


def network():
    torch.manual_seed(0)
    return Net(), torch.randn(8, 2, 5, 5)


def gradients(net, x, step):
    net.zero_grad()
    net(x + step).square().sum().backward()


def groups(net):
    head = [net.head.weight]
    rest = [p for p in net.parameters() if p is not net.head.weight]
    return [{"params": rest}, {"params": head, "use_muon": False}]


def oracle(net, x, steps):
    """torch's own: Muon on copies of the matrices, which are written back; AdamW on the others."""
    weights = [net.conv.weight, net.hidden.weight]
    matrices = [nn.Parameter(p.detach().clone().reshape(p.shape[0], -1)) for p in weights]
    others = [p for p in net.parameters() if not any(p is w for w in weights)]
    muon = torch.optim.Muon(matrices, **OPTIONS, **MUON)
    adamw = torch.optim.AdamW(others, **OPTIONS, betas=(0.9, 0.95))
    for step in range(steps):
        gradients(net, x, step)
        for matrix, p in zip(matrices, weights, strict=True):
            matrix.grad = p.grad.reshape(p.shape[0], -1).clone()
        muon.step()
        adamw.step()
        for matrix, p in zip(matrices, weights, strict=True):
            p.data.copy_(matrix.detach().reshape(p.shape))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_torchs_two_optimizers(layout):
    net, x = network()
    net.to(memory_format=layout)
    expected = copy.deepcopy(net)
    optimizer = MuonAdamW(groups(net), **OPTIONS)
    for step in range(4):
        optimizer.step(lambda step=step: gradients(net, x, step))
    oracle(expected, x, 4)
    for (name, p), q in zip(net.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=name)
        assert p.is_contiguous(memory_format=layout) or p.ndim != 4


def test_a_state_dict_goes_on_to_the_bit():
    net, x = network()
    optimizer = MuonAdamW(groups(net), **OPTIONS)
    for step in range(2):
        gradients(net, x, step)
        optimizer.step()
    other = copy.deepcopy(net)
    resumed = MuonAdamW(groups(other), lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((net, optimizer), (other, resumed)):
        for step in range(2, 4):
            gradients(one, x, step)
            its.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_parameter_without_gradient_stays_and_the_loss_is_returned():
    net, x = network()
    net.hidden.weight.requires_grad_(False)
    before = net.hidden.weight.clone()
    optimizer = MuonAdamW(net.parameters(), **OPTIONS)

    def closure():
        gradients(net, x, 0)
        return 7

    assert optimizer.step(closure) == 7
    assert torch.equal(net.hidden.weight, before)


def test_what_torch_refuses_is_refused_when_it_is_made():
    for wrong in ({"adjust_lr_fn": "spectre"}, {"betas": (2.0, 0.9)}, {"lr": -1.0}):
        with pytest.raises(ValueError):
            MuonAdamW(Net().parameters(), **wrong)


def test_a_row_says_which_weights_are_no_matrices_of_muon():
    row = {
        "constructor": "experiments.optimizers.MuonAdamW",
        "lr": 0.01,
        "weight_decay": 0.0,
        "weight_decay_divided_by_lr": False,
        "groups": [{"match": "head.weight", "use_muon": False}],
    }
    net, _ = network()
    config = resolve(load(DIGITS, {"optimizers": {"muon": row}}), "muon", 1)
    found = build_optimizer(config, net)
    assert [group["use_muon"] for group in found.param_groups] == [True, False]
    row["groups"][0]["use_muons"] = row["groups"][0].pop("use_muon")
    with pytest.raises(UserError, match="did you mean 'use_muon'"):
        load(DIGITS, {"optimizers": {"muon": row}})
