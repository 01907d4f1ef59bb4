"""Networks of every kind that the optimizer has to get right, on data at hand: for benchmarks.

Real images where the numbers depend on them; random ones where only the operations matter.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.errors import UserError
from experiments.models.resnet_cifar import ResNetCifar
from experiments.models.transformer import Transformer
from experiments.runtime.paths import data_root
from experiments.tasks.image_classification.datasets import LOADERS, Images


def load_images(name: str, size: int) -> tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A data set of grey images as squares of `size` pixels; the digits where it cannot be had.

    Returns:
        The name of the data set that it is; inputs `(n, 1, size, size)` of mean 0 and variance 1
        and labels `(n,)` of the training images; the same of the test images.
    """
    root = data_root()
    try:
        train, test = LOADERS[name](root)
    except UserError as error:
        print(f"{error} Using the digits instead.", file=sys.stderr)
        name = "digits"
        train, test = LOADERS[name](root)
    pixels = train.pixels.float() / train.white
    mean, std = float(pixels.mean()), float(pixels.std())

    def prepare(images: Images) -> tuple[Tensor, Tensor]:
        resized = resize(images.pixels.float() / images.white, size)
        return (resized - mean) / std, images.labels

    return name, prepare(train), prepare(test)


def resize(pixels: Tensor, size: int) -> Tensor:
    """Average pixels to make images smaller; repeat them, then pad with zeros, to make them larger.

    So 28 pixels become 32 by padding and 14 by averaging, as is usual for MNIST's kind.
    """
    factor = size // pixels.shape[-1]
    if factor == 0:
        return F.adaptive_avg_pool2d(pixels, size)
    pixels = pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    missing = size - pixels.shape[-1]
    before, after = missing // 2, missing - missing // 2
    return F.pad(pixels, (before, after, before, after))


IMAGES = ("fashion-mnist", "digits")


@dataclass
class Problem:
    """A network with data.

    Attributes:
        model: in training mode.
        batches: what `loss` is asked about, in turn.
        loss: of the model on one batch.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a model that predicts a class for each input, or at each position."""
    inputs, labels = batch
    logits = model(inputs).flatten(0, -2)
    # At least float32, also under autocast.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels.flatten())


def image_problem(
    model: nn.Module, images: str, batch_size: int, size: int, count: int = 1
) -> Problem:
    """`count` batches of real training images (fewer where there are not as many)."""
    _, (inputs, labels), _ = load_images(images, size)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = order.split(batch_size)[:count]
    return Problem(model.train(), [(inputs[part], labels[part]) for part in parts], classify)


def random_problem(model: nn.Module, shape: tuple[int, ...], num_classes: int = 10) -> Problem:
    """One batch of noise with noisy labels that can be learned."""
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=g)
    labels = torch.randint(0, num_classes, shape[:1], generator=g)
    inputs = inputs + labels.view(-1, *[1] * (len(shape) - 1)) / num_classes
    return Problem(model.train(), [(inputs, labels)], classify)


def token_problem(model: "Transformer", batch_size: int, length: int, count: int = 1) -> Problem:
    """Predict the next token of random walks over the vocabulary."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        steps = torch.randint(0, 4, (batch_size, length + 1), generator=g)
        tokens = steps.cumsum(1) % model.vocabulary
        batches.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
    return Problem(model.train(), batches, classify)


# ----------------------------------------------------------------------------------- networks


def resnet20() -> nn.Module:
    return ResNetCifar(20, num_classes=10, in_channels=1)


def vgg(size: int = 32) -> nn.Module:
    """Max pooling, biased convolutions before batch normalization, in-place ReLUs, dropout."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    features = channels * (size // 8) ** 2
    head = [nn.Dropout(0.5), nn.Linear(features, 128), nn.ReLU(inplace=True), nn.Linear(128, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def conv1d() -> nn.Module:
    """For inputs `(batch, 2, length)`."""
    return nn.Sequential(
        nn.Conv1d(2, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2), nn.LeakyReLU(), nn.AdaptiveMaxPool1d(4),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def conv3d() -> nn.Module:
    """For inputs `(batch, 1, depth, height, width)`."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.Hardswish(), nn.AdaptiveAvgPool3d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class LSTM(nn.Module):
    """Two layers over sequences `(batch, length, 8)`, a class from the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, num_layers=2, batch_first=True)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x)[0][:, -1])


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """For inputs `(batch, 20)`."""
    return nn.Sequential(
        nn.Linear(20, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10)
    )
