"""torchvision's ResNets for ImageNet (He et al., 2016): those of the official PyTorch example."""

from torch import nn


def resnet_imagenet(depth: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet-18, 34 or 50 with torchvision's initialization.

    Takes images `(batch, 3, height, width)` and returns logits `(batch, num_classes)`.

    Args:
        depth: 18, 34 or 50.
        num_classes: length of the output.
        in_channels: 3, torchvision's only choice.

    Raises:
        ValueError: another depth or number of channels.
    """
    from torchvision.models import resnet18, resnet34, resnet50

    constructors = {18: resnet18, 34: resnet34, 50: resnet50}
    if depth not in constructors:
        raise ValueError(f"depth must be 18, 34 or 50, got {depth}")
    if in_channels != 3:
        raise ValueError(f"an ImageNet ResNet takes images of 3 channels, got {in_channels}")
    return constructors[depth](num_classes=num_classes)
