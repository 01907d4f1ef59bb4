"""The small ResNets of He et al. (2016, section 4.2), in the form of AdaHessian's released code."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Where the shape changes the shortcut is a 1x1 convolution with batch normalization, as in the
    released code; He et al. subsample and pad with zeros instead, which has no parameters.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """Three stages of `width`, 2 `width` and 4 `width` channels, each of `(depth - 2) / 6` blocks.

    Takes images `(batch, in_channels, height, width)` of any size, because the last feature maps
    are averaged, and returns logits `(batch, num_classes)`.

    Args:
        depth: weighted layers, 6n+2.
        num_classes: length of the output.
        in_channels: 3 for colour, 1 for grey images.
        width: channels of the first stage.

    Raises:
        ValueError: `depth` is not 6n+2.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, ...), got {depth}")
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for stage, wide in enumerate((width, 2 * width, 4 * width)):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, wide, stride))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(x.mean((2, 3)))
