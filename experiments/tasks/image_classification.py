"""Image classification: data sets small enough to live in memory, whole, on the training device.

Images are one uint8 tensor. Cropping, flipping and scaling happen for a whole batch at once
there, with a single gather, instead of image by image in worker processes.
"""

import gzip
import hashlib
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import distributed
from experiments.config import Config, UserError
from experiments.models.convnet import ConvNet
from experiments.models.resnet_cifar import ResNetCifar
from experiments.network import can_connect, first_hop

STALL_SECONDS = 30
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MODELS = {"resnet": ResNetCifar, "convnet": ConvNet}
NO_DOWNLOAD_NEEDED = "`make quickstart` needs no download"


@dataclass(frozen=True)
class Images:
    """A labelled set.

    Attributes:
        pixels: `(n, channels, height, width)`, uint8, from 0 to `white`.
        labels: `(n,)`, int64.
        white: the largest value a pixel can have.
    """

    pixels: Tensor
    labels: Tensor
    white: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> "Images":
        return Images(self.pixels[indices], self.labels[indices], self.white)

    def to(self, device: torch.device) -> "Images":
        return Images(self.pixels.to(device), self.labels.to(device), self.white)


@dataclass(frozen=True)
class Batch:
    """Normalized images `(n, channels, height, width)` and labels `(n,)`."""

    inputs: Tensor
    labels: Tensor


class ImageClassification:
    """The task behind `task: image_classification`; see `experiments.tasks.Task`.

    Args:
        config: a resolved configuration.
        device: where data and model live.
        data_root: where data sets are looked for and downloaded to.

    Raises:
        UserError: the data set is neither on disk nor to be had, or the configuration does not
            fit it.
    """

    metrics: Mapping[str, str] = {"loss": "min", "accuracy": "max"}
    headline = "accuracy"
    evaluation_batch_size = 500

    def __init__(self, config: Config, device: torch.device, data_root: Path) -> None:
        self.config, self.device, self.dtype = config, device, getattr(torch, config.dtype)
        train, test = LOADERS[config.dataset.name](data_root)
        self.num_classes = int(train.labels.max()) + 1
        self.in_channels = train.pixels.shape[1]
        splits = {"test": test}
        if size := config.dataset.validation_size:
            if size >= len(train):
                raise UserError(
                    f"dataset.validation_size = {size}: must be below {len(train)}, "
                    "the number of training images"
                )
            rest, held_out = split_by_class(train.labels, size, seed=1)
            splits = {"val": train[held_out], "test": test}
            train = train[rest]
        for name in ("mean", "std"):
            if len(values := getattr(config.dataset, name)) != self.in_channels:
                raise UserError(
                    f"dataset.{name} = {values}: needs {self.in_channels} values, one per channel"
                )
        self.train = train.to(device)
        self.splits = {name: images.to(device) for name, images in splits.items()}
        self.evaluation_splits = tuple(splits)
        self.steps_per_epoch = -(-len(train) // config.batch_size)
        smallest = len(train) - (self.steps_per_epoch - 1) * config.batch_size
        if smallest < distributed.world_size():
            raise UserError(
                f"batch_size = {config.batch_size}: the last batch of an epoch has {smallest} "
                f"images, too few for {distributed.world_size()} processes"
            )
        mean, std = (
            torch.tensor(values, device=device, dtype=self.dtype).view(1, -1, 1, 1)
            for values in (config.dataset.mean, config.dataset.std)
        )
        self.scale, self.shift = 1 / (train.white * std), mean / std

    def build_model(self) -> nn.Module:
        constructor = MODELS[self.config.model.name]
        model = constructor(self.config.model.depth, self.num_classes, self.in_channels)
        return model.to(self.device, self.dtype)

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Shuffled, augmented batches of an epoch from `first_step` on.

        The order and every image's crop and flip depend on (seed, epoch, position) alone. Of
        several processes each gets its share of every batch.
        """
        settings, size = self.config.dataset, self.config.batch_size
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
            chosen = distributed.share(order[start : start + size])
            draw = distributed.share(draws[start : start + size])
            pixels = crop_and_flip(self.train.pixels[chosen], draw, settings.crop_padding)
            yield Batch(self._normalize(pixels), self.train.labels[chosen])

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        images = self.splits[split]
        for pixels, labels in zip(
            images.pixels.split(self.evaluation_batch_size),
            images.labels.split(self.evaluation_batch_size),
            strict=True,
        ):
            yield Batch(self._normalize(pixels), labels)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(batch.inputs)
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        weight = torch.tensor(len(batch.labels))
        return F.cross_entropy(logits, batch.labels), {"weight": weight, "correct": correct}

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        return {
            "loss": totals["loss"] / totals["weight"],
            "accuracy": totals["correct"] / totals["weight"],
        }

    def _normalize(self, pixels: Tensor) -> Tensor:
        """(pixels / white - mean) / std, in place: a fresh tensor per operation costs more."""
        return pixels.to(self.dtype).mul_(self.scale).sub_(self.shift)


# ------------------------------------------------------------------------------- augmentation


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator of its own for each use: nothing drawn before, or elsewhere, can shift it."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def draw_crops_and_flips(
    count: int, padding: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """For each image, where its window begins in the padded image and whether it is mirrored.

    Returns:
        `(count, 3)`, int64: row and column in [0, 2 padding], flip in {0, 1}.
    """
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2 if flip else 1, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1)


def crop_and_flip(pixels: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad images with zeros, cut a window of the old size out of each, mirror where asked.

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


def split_by_class(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out `size` examples, the same number of every class (give or take one), at random.

    Returns:
        Indices, ascending, of the examples that remain and of those held out.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(labels)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        rank[members] = torch.arange(len(members))
    # All the first ones of their class, then all the second ones, ...
    order = torch.argsort(rank * (labels.max() + 1) + labels)
    return order[size:].sort().values, order[:size].sort().values


# ------------------------------------------------------------------------------------ reading


def digits(root: Path) -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits, 8x8, values 0 to 16; part of its wheel.

    The library has no split of its own: 50 of each class, always the same, are the test set.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images).to(torch.uint8).unsqueeze(1)
    images = Images(pixels, torch.from_numpy(data.target).long(), white=16)
    train, test = split_by_class(images.labels, 500, seed=0)
    return images[train], images[test]


def cifar10(root: Path) -> tuple[Images, Images]:
    """CIFAR-10 as torchvision stores it; downloaded where it is missing."""
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, root)


def cifar100(root: Path) -> tuple[Images, Images]:
    """CIFAR-100 as torchvision stores it; downloaded where it is missing."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, root)


def _cifar(dataset: type, root: Path) -> tuple[Images, Images]:
    files = [name for name, _ in dataset.train_list + dataset.test_list]
    files.append(dataset.meta["filename"])
    folder = root / dataset.base_folder
    missing = [name for name in files if not (folder / name).is_file()]
    with _downloading(dataset.url, folder, missing) if missing else _reading(folder):
        parts = [
            dataset(root, train=train, download=bool(missing)) for train in (True, False)
        ]  # checks the MD5 sum of every file
    train, test = (
        Images(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)
        )
        for part in parts
    )
    return train, test


def fashion_mnist(root: Path) -> tuple[Images, Images]:
    """Fashion-MNIST from torchvision's folder, from Debian's, or else downloaded."""
    folder = root / "FashionMNIST" / "raw"
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    if not (found := _find_idx(folder, names) or _find_idx(DEBIAN_FASHION_MNIST, names)):
        from torchvision.datasets import FashionMNIST

        with _downloading(FashionMNIST.mirrors[0], folder, names):
            FashionMNIST(root, download=True)
        found = _find_idx(folder, names)
    with _reading(found[0].parent):
        train_pixels, train_labels, test_pixels, test_labels = map(_read_idx, found)
    return (
        Images(train_pixels.unsqueeze(1), train_labels.long()),
        Images(test_pixels.unsqueeze(1), test_labels.long()),
    )


LOADERS = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion-mnist": fashion_mnist,
}


def _find_idx(folder: Path, names: list[str]) -> list[Path]:
    """The files of these names in `folder`, packed or not; empty unless all are there."""
    found = [
        path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()
    ]
    by_name = {path.name.removesuffix(".gz"): path for path in found}
    return [by_name[name] for name in names] if len(by_name) == len(names) else []


def _read_idx(path: Path) -> Tensor:
    """Read a file of unsigned bytes in LeCun's IDX format: magic 0, 0, 8, rank; sizes; data."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not in IDX format")
    start = 4 + 4 * content[3]
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(sizes)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Files that cannot be read or are not what they should be are for the user to replace."""
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"the data in {folder} is damaged, remove it: {error}") from error


@contextmanager
def _downloading(url: str, folder: Path, files: list[str]) -> Iterator[None]:
    """Download inside the block if the server can be reached, else say what is missing."""
    missing = f"{folder / files[0]} is not there"
    hop = first_hop(url)
    if not can_connect(hop):
        raise UserError(
            f"{missing}, and {urlsplit(hop).hostname} cannot be reached to download it. "
            f"Put the data into {folder}, or set DATA_ROOT. {NO_DOWNLOAD_NEEDED}."
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torchvision sets none: it would wait for ever
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{missing}, and its download failed: {error}. {NO_DOWNLOAD_NEEDED}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
