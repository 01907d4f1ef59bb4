"""Whole networks, evaluated plainly, recorded and replayed: run as a process of its own.

For the kernels of a processor are chosen when torch is loaded, by environment variables. Prints the
networks in which the gradients, or their strides, are not the same bits.
"""

import contextlib
import sys

import torch
from support.harness import small_config
from support.transformer import Transformer
from torch import nn
from torch.nn import functional as F

from adahessian.curvature.gates import Gates
from experiments.tasks.registry import build_task


def resnet():
    task = build_task(small_config(), torch.device("cpu"), None)
    batch = next(task.training_batches(0, 0))
    return task.build_model(), batch.inputs, batch.labels


def images():
    return torch.randn(32, 3, 16, 16), torch.randint(10, (32,))


def vgg():
    """Rectified in place, behind a bias and in front of overlapping windows."""
    layers, width = [], 3
    for out in (16, 24, 24):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(out, out, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        width = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10)), *images()


class Squeezed(nn.Module):
    """Channels weighed by what is in them, as in MobileNetV3."""

    def __init__(self, width):
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x):
        weights = self.expand(F.leaky_relu(self.squeeze(x.mean((2, 3), keepdim=True)), 0.1))
        return x * F.hardsigmoid(weights)


def mobile():
    """Every activation that rounds on its own, each in front of a batch normalization."""
    activations = [
        nn.Hardswish(),
        nn.ReLU6(),
        nn.ELU(),
        nn.PReLU(16),
        nn.CELU(0.5),
        nn.Softshrink(),
    ]
    layers = [nn.Conv2d(3, 16, 3, 2, padding=1)]
    for activation in activations:
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), activation]
    layers += [Squeezed(16), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(144, 10)]
    return nn.Sequential(*layers), *images()


def transformer():
    tokens = torch.randint(10, (16, 13))
    return Transformer(dropout=0.1), tokens[:, :-1], tokens[:, 1:]


def evaluate(model, x, y, autocast, gates):
    model.zero_grad()
    torch.manual_seed(2)
    torch.clear_autocast_cache()
    with gates:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(x)
        loss = F.cross_entropy(out.float().flatten(0, -2), y.flatten())
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def differing(a, b):
    pairs = zip(a, b, strict=True)
    return sum(not torch.equal(s, t) or s.stride() != t.stride() for s, t in pairs)


def main():
    torch.set_num_threads(1)
    for build_model in (resnet, vgg, mobile, transformer):
        for autocast in (True, False):
            for memory_format in (torch.channels_last, torch.contiguous_format):
                torch.manual_seed(1)
                model, x, y = build_model()
                if x.ndim == 4:
                    model, x = (t.to(memory_format=memory_format) for t in (model, x))
                gates = Gates()
                plain = evaluate(model, x, y, autocast, contextlib.nullcontext())
                recorded = evaluate(model, x, y, autocast, gates)
                gates.rewind()
                replayed = evaluate(model, x, y, autocast, gates)
                gates.check_complete()
                counts = differing(recorded, plain), differing(replayed, recorded)
                if any(counts):
                    what = build_model.__name__, f"autocast={autocast}", memory_format
                    print(*what, "recorded, replayed differ:", *counts, "of", len(plain))
    print(torch.backends.cpu.get_cpu_capability())


if __name__ == "__main__":
    sys.exit(main())
