"""A small convolutional network without batch normalization."""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """3x3 convolutions of equal width, the mean over positions, and a linear layer.

    No layer mixes images, so several processes compute exactly what one does. Takes images
    `(batch, in_channels, height, width)` and returns logits `(batch, num_classes)`.

    Args:
        depth: weighted layers, 2 or more, the last one linear.
        num_classes: length of the output.
        in_channels: 3 for colour, 1 for grey images.
        width: channels of every layer between.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        channels = [in_channels] + [width] * (depth - 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(channels, channels[1:], strict=False)
        )
        self.linear = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.linear(x.mean((2, 3)))
