"""Steps of an optimizer on a loss of its parameters, and what must be as before."""

import copy
import io

import torch
from support.device import on_gpu


def leaves(params):
    return [p.detach().clone().requires_grad_() for p in params]


def take_step(optimizer, params, loss_function):
    def closure():
        optimizer.zero_grad()
        loss = loss_function(*params)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return optimizer.step(closure)


def snapshot(optimizer, params):
    return copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))


def assert_unchanged(optimizer, params, before):
    state, values = before
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    for key, expected in state["state"].items():
        for name, value in expected.items():
            assert torch.equal(optimizer.state_dict()["state"][key][name], value)
    assert len(optimizer.state_dict()["state"]) == len(state["state"])
    for p, value in zip(params, values, strict=True):
        assert torch.equal(p, value)


def save_and_load(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def hear(optimizer):
    """On a GPU the host hears of what was left out when it has arrived; a saving looks for it."""
    if on_gpu():
        torch.cuda.synchronize()
    optimizer.state_dict()
