"""The device that a configuration names."""

import torch

from experiments.config.experiment import Config
from experiments.errors import UserError


def build_device(config: Config) -> torch.device:
    """The configured device; `auto` is the GPU where there is one."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("device = 'cuda': no GPU is available here")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")
