"""Augmentation beyond crops and flips: policies, erasing, and mixing two images.

All of it is drawn from (seed, epoch, position), so that neither an interruption nor the number of
processes changes anything. Policies and erasing are torchvision's, image by image, because they
draw anew for each; two images are mixed for a whole batch at once, as by torchvision's MixUp and
CutMix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.tasks.image_classification.config import Augmentation
from experiments.tasks.randomness import draw_seed, seeded


class Transform:
    """What happens to each image: a policy, then erasing.

    Args:
        settings: which.
        seed: of the run.
        white: the largest value of a pixel.
        mean: per channel of pixels in [0, 1]; what is erased becomes it.
    """

    def __init__(
        self, settings: Augmentation, seed: int, white: int, mean: list[float] | None
    ) -> None:
        self.seed, self.white, self.apply = seed, white, None
        if not settings.policy and not settings.erasing:
            return
        from torchvision.transforms import v2

        steps: list[Any] = []
        if settings.policy == "randaugment":
            steps.append(v2.RandAugment(settings.num_ops, settings.magnitude))
        elif settings.policy == "trivialaugment":
            steps.append(v2.TrivialAugmentWide())
        if settings.erasing:
            value: Any = [255 * channel for channel in mean] if mean else 127
            steps.append(v2.RandomErasing(settings.erasing, value=value))
        self.apply = v2.Compose(steps)

    def __call__(self, pixels: Tensor, epoch: int, positions: Tensor) -> Tensor:
        """Change images `(n, channels, height, width)`, uint8, at these positions of the epoch."""
        if self.apply is None:
            return pixels
        # Policies expect values up to 255.
        scaled = pixels if self.white == 255 else _rescaled(pixels, self.white, 255)
        changed = torch.empty_like(pixels)
        for place, position in enumerate(positions.tolist()):
            with seeded(draw_seed(self.seed, epoch, f"policy {position}")):
                changed[place] = self.apply(scaled[place])
        return changed if self.white == 255 else _rescaled(changed, 255, self.white)


def _rescaled(pixels: Tensor, white: int, to: int) -> Tensor:
    """Pixels from 0 to `white` as such from 0 to `to`, rounded."""
    return ((pixels.int() * to + white // 2) // white).to(torch.uint8)


# -------------------------------------------------------------------------------------- mixing


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed with their partners.

    Attributes:
        share: of the first image and its label.
        box: top, left, bottom and right of what is cut out of the partner; None: both are blended.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def __call__(self, images: Tensor, partners: Tensor) -> Tensor:
        """The mixed images; both are `(n, channels, height, width)`."""
        if self.box is None:
            return images.lerp(partners, 1 - self.share)
        top, left, bottom, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed


def draw_mix(
    settings: Augmentation, seed: int, epoch: int, step: int, size: tuple[int, int]
) -> Mix:
    """The mix of a step: MixUp (Zhang et al., 2018) or CutMix (Yun et al., 2019), or by turns.

    Args:
        settings: with `mixup` or `cutmix` above 0.
        seed, epoch, step: what it is drawn from; steps count within the epoch.
        size: height and width of the images.
    """
    alphas = {"mixup": settings.mixup, "cutmix": settings.cutmix}
    with seeded(draw_seed(seed, epoch, f"mix {step}")):
        kinds = [kind for kind, alpha in alphas.items() if alpha]
        kind = kinds[int(torch.randint(len(kinds), ()))]
        share = float(torch.distributions.Beta(alphas[kind], alphas[kind]).sample())
        if kind == "mixup":
            return Mix(share)
        height, width = size
        row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    half = 0.5 * (1 - share) ** 0.5
    top, bottom = max(0, int(row - half * height)), min(height, int(row + half * height))
    left, right = max(0, int(column - half * width)), min(width, int(column + half * width))
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def with_partners(positions: Tensor, start: int, stop: int) -> Tensor:
    """Positions in the batch from `start` to `stop`, and after them those of their partners.

    An image's partner is the one before it in the whole batch, whichever process has that.
    """
    return torch.cat([positions, start + (positions - start - 1) % (stop - start)])
