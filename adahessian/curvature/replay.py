"""What an evaluation finds and leaves: buffers and random states."""

import torch
from torch import Tensor, nn


def _noted_buffers(module: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    return [(name, b, b.clone()) for name, b in module._buffers.items() if b is not None]


@torch.no_grad()
def _restore(buffers, random_states) -> None:
    for module, name, buffer, value in buffers:
        module._buffers[name] = buffer.copy_(value)
    for device, state in random_states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


def _random_states(devices) -> dict[torch.device, Tensor]:
    states = {torch.device("cpu"): torch.get_rng_state()}
    return states | {d: torch.get_device_module(d).get_rng_state(d) for d in devices}
