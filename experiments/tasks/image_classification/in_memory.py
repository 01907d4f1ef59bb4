"""Images in memory: one uint8 tensor on the training device.

A whole batch is cropped and flipped at once there, with a single gather, instead of image by image
in worker processes.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.runtime import distributed
from experiments.tasks.image_classification import constructed
from experiments.tasks.image_classification.augmentation import Transform, with_partners
from experiments.tasks.image_classification.config import ImageClassificationConfig
from experiments.tasks.image_classification.datasets import divide, load
from experiments.tasks.randomness import generator

EVALUATION_BATCH_SIZE = 500


class ImagesInMemory:
    """The data path of the small sets; see `experiments.tasks.image_classification.task.Data`.

    Args:
        config: a resolved configuration.
        device: where the images live.
        data_root: where data sets are looked for and downloaded to.

    Raises:
        UserError: the data set is neither on disk nor to be had, or the validation set too large.
    """

    def __init__(
        self, config: ImageClassificationConfig, device: torch.device, data_root: Path
    ) -> None:
        self.config, self.device = config, device
        root = Path(data_root or "")
        if config.dataset.source:
            train, test = constructed.load(config.dataset, root)
        else:
            train, test = load(config.dataset.name, root)
        if size := config.dataset.image_size:
            train, test = train.resized(size), test.resized(size)
        self.num_classes = int(train.labels.max()) + 1
        self.in_channels, self.white = train.pixels.shape[1], train.white
        rest, held_out = divide(train.labels, config.dataset)
        splits = {"val": train[held_out]} if len(held_out) else {}
        splits["test"] = test
        train = train[rest]
        self.train_size = len(train)
        self.train = train.to(device)
        self.splits = {name: images.to(device) for name, images in splits.items()}
        self.transform = Transform(
            config.augmentation, config.seed, self.white, config.dataset.mean
        )

    def training_batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        settings, size = self.config.dataset, self.config.batch_size
        parts = self.config.micro_batches
        order = torch.randperm(
            len(self.train), generator=generator(self.config.seed, epoch, "order")
        )
        draws = draw_crops_and_flips(
            len(self.train),
            settings.crop_padding,
            settings.flip,
            generator(self.config.seed, epoch, "augmentation"),
        )
        order, draws = order.to(self.device), draws.to(self.device)
        for start in range(first_step * size, len(self.train), size):
            stop = min(start + size, len(self.train))
            at = distributed.shard(torch.arange(start, stop), parts)
            at = with_partners(at, start, stop) if self.config.augmentation.mixes else at
            places = at.to(self.device, non_blocking=True)  # else each step waits for the device
            chosen, draw = order[places], draws[places]
            pixels = crop_and_flip(self.train.pixels[chosen], draw, settings.crop_padding)
            yield self.transform(pixels, epoch, at), self.train.labels[chosen]

    def measure(self) -> tuple[list[float], list[float]]:
        total, squares, count = 0.0, 0.0, 0
        for pixels in self.train.pixels.split(4096):
            scaled = pixels.double() / self.white
            total, squares = total + scaled.sum((0, 2, 3)), squares + scaled.square().sum((0, 2, 3))
            count += pixels[:, 0].numel()
        mean = torch.as_tensor(total) / count
        return mean.tolist(), (torch.as_tensor(squares) / count - mean**2).sqrt().tolist()

    def evaluation_batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.splits[split]
        return distributed.rank_batches(
            zip(
                images.pixels.split(EVALUATION_BATCH_SIZE),
                images.labels.split(EVALUATION_BATCH_SIZE),
                strict=True,
            )
        )


# ------------------------------------------------------------------------------- augmentation


def draw_crops_and_flips(
    count: int, padding: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """Draw for each image where its window begins in the padded image and whether it is mirrored.

    Returns:
        `(count, 3)`, int64: row and column in [0, 2 padding], flip in {0, 1}.
    """
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2 if flip else 1, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1)


def crop_and_flip(pixels: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad images with zeros, cut a window of the old size out of each, mirror where drawn.

    With the draws of `draw_crops_and_flips` this is RandomCrop(size, padding) followed by
    RandomHorizontalFlip, for a whole batch in one gather.

    Args:
        pixels: `(batch, channels, height, width)`.
        draws: `(batch, 3)`, see `draw_crops_and_flips`.
        padding: as for the draws.

    Returns:
        Images in the shape and type of `pixels`.
    """
    batch, channels, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    top, left, flip = (draw[:, None] for draw in draws.unbind(1))
    rows = torch.arange(height, device=pixels.device) + top
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(flip == 1, columns.flip(0), columns) + left
    source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    source = source.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, source).view_as(pixels)
