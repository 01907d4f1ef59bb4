"""The image data sets that fit in memory, and how they are read."""

import gzip
import hashlib
import importlib.util
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.errors import UserError
from experiments.runtime.network import can_connect, first_hop
from experiments.tasks.image_classification.config import Dataset

STALL_SECONDS = 30
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# How many images, and their first labels.
FASHION_MNIST = {
    "train": (60_000, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
    "t10k": (10_000, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
}
FASHION_MNIST_FILES = [
    f"{part}-{kind}-ubyte" for part in FASHION_MNIST for kind in ("images-idx3", "labels-idx1")
]
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

    def resized(self, size: int) -> "Images":
        """The same images as squares: interpolated, and averaged where they get smaller."""
        small = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
        pixels = [small(part.float()).round().byte() for part in self.pixels.split(1024)]
        return Images(torch.cat(pixels), self.labels, self.white)


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


def hold_out(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split the validation set, always the same one, from the training set: `split_by_class`.

    Raises:
        UserError: no training image would be left, or none of a class: the same number is held out
            of every class, however rare it is.
    """
    if size >= len(labels):
        raise UserError(
            f"dataset.validation_size = {size}: must be below {len(labels)}, "
            "the number of training images"
        )
    rest, held_out = split_by_class(labels, size, seed=1)
    there = labels.bincount()
    gone = (there > 0) & (labels[rest].bincount(minlength=len(there)) == 0)
    if gone.any():
        rare = min(gone.nonzero().flatten().tolist(), key=lambda label: int(there[label]))
        raise UserError(
            f"dataset.validation_size = {size}: takes all {int(there[rare])} training images of "
            f"class {rare}, as it takes the same number of each of {int((there > 0).sum())} "
            f"classes. At most {_most_held_out(there)} leaves some of each"
        )
    return rest, held_out


def divide(labels: Tensor, settings: Dataset) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on and of the validation set.

    Raises:
        UserError: there are not so many, or a class would have none.
    """
    rest, held_out = torch.arange(len(labels)), torch.arange(0)
    if settings.validation_size:
        rest, held_out = hold_out(labels, settings.validation_size)
    if size := settings.train_size:
        classes = len(labels.unique())
        if not classes <= size <= len(rest):
            raise UserError(
                f"dataset.train_size = {size}: must be from {classes}, an image of each class, to "
                f"{len(rest)}, the images that are left to train on; 0 takes all"
            )
        _, chosen = split_by_class(labels[rest], size, seed=2)
        rest = rest[chosen]
    return rest, held_out


def _most_held_out(counts: Tensor) -> int:
    """How large a validation set may be that leaves an image of each class, of so many images."""
    counts = counts[counts > 0]
    fewest = int(counts.min())
    # Of each class as many as the rarest has, but one; then the classes before it have one more.
    return (fewest - 1) * len(counts) + int((counts == fewest).nonzero()[0])


def digits(root: Path) -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits, 8x8, values 0 to 16; part of its wheel.

    The library has no split of its own: 50 of each class, always the same, are the test set. Its
    file is read directly, because importing `load_digits` takes seconds in every process.
    """
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
    table = numpy.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",")
    pixels = torch.from_numpy(table[:, :-1]).to(torch.uint8).view(-1, 1, 8, 8)
    images = Images(pixels, torch.from_numpy(table[:, -1]).long(), white=16)
    train, test = split_by_class(images.labels, 500, seed=0)
    return images[train], images[test]


def cifar10(root: Path) -> tuple[Images, Images]:
    """CIFAR-10 as torchvision stores it; downloaded where it is missing."""
    return _cifar(datasets().CIFAR10, root)


def cifar100(root: Path) -> tuple[Images, Images]:
    """CIFAR-100 as torchvision stores it; downloaded where it is missing."""
    return _cifar(datasets().CIFAR100, root)


def _cifar(dataset: type, root: Path) -> tuple[Images, Images]:
    folder, missing = root / dataset.base_folder, _missing_cifar(dataset, root)
    if not missing:
        _check_md5(dataset, folder)
    with downloading(dataset.url, folder, missing) if missing else _reading(folder):
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


def _check_md5(dataset: Any, folder: Path) -> None:
    """Refuse files other than those that torchvision knows: it says that they are not there."""
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    for name, expected in [*dataset.train_list, *dataset.test_list, meta]:
        with _reading(folder):
            found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        if expected not in (None, found):  # None: a class of its own knows no sums
            raise UserError(
                f"{folder / name} is not the file that torchvision knows: its MD5 sum is {found}, "
                f"not {expected}. Put that one there, or set DATA_ROOT to another folder"
            )


def fashion_mnist(root: Path) -> tuple[Images, Images]:
    """Fashion-MNIST from torchvision's folder, from Debian's, or else downloaded."""
    if not (found := _find_fashion_mnist(root)):
        FashionMNIST = datasets().FashionMNIST
        folder = root / "FashionMNIST" / "raw"
        with downloading(FashionMNIST.mirrors[0], folder, FASHION_MNIST_FILES):
            FashionMNIST(root, download=True)
        found = _find_fashion_mnist(root)
    with _reading(found[0].parent):
        train_pixels, train_labels, test_pixels, test_labels = map(_read_idx, found)
        _check_fashion_mnist("train", train_pixels, train_labels)
        _check_fashion_mnist("t10k", test_pixels, test_labels)
    return (
        Images(train_pixels.unsqueeze(1), train_labels.long()),
        Images(test_pixels.unsqueeze(1), test_labels.long()),
    )


def _check_fashion_mnist(part: str, pixels: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless these are the set's: MNIST and others give their files its names."""
    count, first = FASHION_MNIST[part]
    if tuple(pixels.shape) != (count, 28, 28) or tuple(labels.shape) != (count,):
        shape = " x ".join(map(str, pixels.shape))
        raise ValueError(
            f"{part} has {shape} pixels and {len(labels)} labels, not {count} x 28 x 28 and {count}"
        )
    if labels[: len(first)].tolist() != first:
        raise ValueError(
            f"{part} is another set than Fashion-MNIST: its labels begin with "
            f"{labels[: len(first)].tolist()}, not {first}"
        )


def load(name: str, root: Path) -> tuple[Images, Images]:
    """Training and test set by name, read once for all runs of a process.

    Raises:
        UserError: the data is neither on disk nor to be had, or it is damaged.
    """
    return _load(name, root.absolute(), LOADERS[name])


@lru_cache(maxsize=1)
def _load(name: str, root: Path, loader: Any) -> tuple[Images, Images]:
    return loader(root)


def describe(name: str, root: Path) -> dict[str, Any] | None:
    """What a set holds, as part of a run's identity; None where it would have to be downloaded.

    Raises:
        UserError: it is damaged.
    """
    if name in ON_DISK and not ON_DISK[name](root):
        return None
    return describe_images(load(name, root))


def describe_images(parts: tuple[Images, Images]) -> dict[str, Any]:
    """What training and test set hold."""
    digest = hashlib.sha256()
    for images in parts:
        for tensor in (images.pixels, images.labels):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
    train, test = parts
    return {"classes": int(train.labels.max()) + 1, "train": len(train), "test": len(test),
            "digest": digest.hexdigest()[:16]}  # fmt: skip


LOADERS = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion-mnist": fashion_mnist,
}

# Of what a loader would download, whether it need not.
ON_DISK: dict[str, Callable[[Path], bool]] = {
    "cifar10": lambda root: not _missing_cifar(datasets().CIFAR10, root),
    "cifar100": lambda root: not _missing_cifar(datasets().CIFAR100, root),
    "fashion-mnist": lambda root: bool(_find_fashion_mnist(root)),
}


def datasets() -> Any:
    """torchvision's, which take a while to import."""
    from torchvision import datasets

    return datasets


def _missing_cifar(dataset: Any, root: Path) -> list[str]:
    files = [name for name, _ in dataset.train_list + dataset.test_list]
    files.append(dataset.meta["filename"])
    return [name for name in files if not (root / dataset.base_folder / name).is_file()]


def _find_fashion_mnist(root: Path) -> list[Path]:
    places = root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST
    return next(filter(None, (_find_idx(place, FASHION_MNIST_FILES) for place in places)), [])


def _find_idx(folder: Path, names: list[str]) -> list[Path]:
    """The files of these names in `folder`, gzipped or not; empty unless all are there."""
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
    """A file that cannot be read, or has the wrong content, is the user's to replace."""
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the data in {folder} is damaged: {error}; put sound files there, or set DATA_ROOT"
        ) from error


@contextmanager
def downloading(url: str, folder: Path, files: list[str]) -> Iterator[None]:
    """Download inside the block if the server can be reached, else say what is missing."""
    missing = f"{folder / files[0]} is not there"
    hop = first_hop(url)
    if not can_connect(hop):
        raise UserError(
            f"{missing}, and {urlsplit(hop).hostname} cannot be reached to download it. "
            f"Put the data into {folder}, or set DATA_ROOT. {NO_DOWNLOAD_NEEDED}."
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torchvision sets none and would wait for ever
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{missing}, and its download failed: {error}. {NO_DOWNLOAD_NEEDED}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
