"""Data sets by constructor: torchvision's, and anybody's own `Dataset`, read into memory."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.config import constructors
from experiments.errors import UserError
from experiments.runtime.paths import expanded
from experiments.tasks.image_classification import datasets
from experiments.tasks.image_classification.config import Dataset
from experiments.tasks.image_classification.datasets import Images

# What is given besides, where it is asked for.
OFFERED = (("root",), ("train",), ("split",), ("download",))
LOOKS = 16  # images that are read twice
OF_ITEMS = (
    "read again: leave random transforms to crop_padding, flip and augmentation, which draw anew "
    "in each epoch"
)
OF_SETS = (
    "constructed again: draw it from a seed of its own, or no run could be resumed or compared"
)


def check(settings: Dataset) -> None:
    """Refuse arguments that the constructor does not take, see `constructors.check`."""
    constructors.check(settings.source, settings.arguments, "dataset", OFFERED)


def load(settings: Dataset, data_root: Path, download: bool = True) -> tuple[Images, Images]:
    """Training and test set, read once for all runs of a process.

    Raises:
        UserError: they are neither on disk nor to be had, or are no images of one size.
    """
    root = data_root.absolute() / expanded(settings.root or "", "dataset.root")
    return _load(settings.source, json.dumps(settings.arguments), root, download)


def describe(settings: Dataset, data_root: Path) -> dict[str, Any] | None:
    """As `datasets.describe`: None where the data would have to be downloaded."""
    try:
        return datasets.describe_images(load(settings, data_root, download=False))
    except Missing:
        return None


class Missing(UserError):
    """Data that are not on disk."""


@lru_cache(maxsize=1)
def _load(source: str, arguments: str, root: Path, download: bool) -> tuple[Images, Images]:
    given = json.loads(arguments)
    sets = [_build(source, given, root, train, download) for train in (True, False)]
    train, test = (_collect(dataset, source) for dataset in sets)
    if _in_one_piece(sets[0]) is None:  # items of anybody's, not torchvision's arrays
        _refuse_random(sets[0], train, source, OF_ITEMS)
        anew = _build(source, given, root, train=False, download=False)
        _refuse_random(anew, test, source, OF_SETS)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        first, second = (tuple(part.pixels.shape[1:]) for part in (train, test))
        raise UserError(f"dataset: {source} has images of {first} to train, of {second} to test")
    if train.pixels.shape == test.pixels.shape and train.pixels.equal(test.pixels):
        raise UserError(
            f"dataset: {source} tests the {len(test)} images that it trains: does it heed "
            "train= or split=?"
        )
    if len(train.labels.unique()) < 2:
        raise UserError(f"dataset: {source}: all training images are of class {train.labels[0]}")
    if (largest := int(test.labels.max())) > int(train.labels.max()):
        raise UserError(f"dataset: {source} tests a class {largest} that it does not train")
    return train, test


def _refuse_random(dataset: Any, images: Images, source: str, when: str) -> None:
    """Refuse a set that is not, at some places, what was read of it.

    Images are read once for all epochs, and their hash is part of a run's identity.
    """
    for index in sorted({len(images) * place // LOOKS for place in range(LOOKS)}):
        pixels, label = _item(dataset, index, f"dataset: {source}[{index}]")
        if label != int(images.labels[index]) or not pixels.equal(images.pixels[index]):
            raise UserError(f"dataset: {source}[{index}] is another one when it is {when}")


def _build(source: str, given: Mapping[str, Any], root: Path, train: bool, download: bool) -> Any:
    """One part of a set, downloaded where it is missing and that is wanted."""
    constructor = constructors.load(source, "dataset.constructor")
    known, open_ended = constructors.names(constructor)
    arguments = ({"root": str(root)} if "root" in known else {}) | dict(given)
    if "train" in known or open_ended and ("split" in given or "split" not in known):
        arguments["train"] = train
    elif "split" in known and "split" not in given:
        arguments["split"] = "train" if train else "test"
    else:
        raise UserError(
            f"dataset.constructor '{source}' takes neither train= nor split=: "
            "nothing tells its training from its test images"
        )
    can_download = "download" in known or (open_ended and source.startswith("torchvision."))
    try:
        return constructor(**arguments)
    except (RuntimeError, FileNotFoundError) as error:
        if not can_download:
            raise UserError(f"dataset: {source}: {error}") from error
        if not download:
            raise Missing(str(error)) from error
    except constructors.REFUSALS as error:
        raise UserError(f"dataset: {source}: {error}") from error
    with datasets.downloading(_url(constructor), root, [constructor.__name__]):
        return constructor(**arguments, download=True)


def _url(dataset: Any) -> str:
    """Where torchvision downloads a set from."""
    for name in ("mirrors", "url", "split_list"):
        if found := getattr(dataset, name, None):
            while not isinstance(found, str):
                found = next(iter(found.values() if isinstance(found, dict) else found))
            return found
    return "https://download.pytorch.org"


def _collect(dataset: Any, source: str) -> Images:
    """All images of a set as one tensor."""
    if (images := _in_one_piece(dataset)) is not None:
        return images
    try:
        count = len(dataset)
    except Exception as error:  # whatever the class of somebody raises
        raise UserError(f"dataset: {source} has no length: {_said(error)}") from error
    if not count:
        raise UserError(f"dataset: {source} is empty")
    found = [_item(dataset, index, f"dataset: {source}[{index}]") for index in range(count)]
    pixels = [image for image, _ in found]
    for index, one in enumerate(pixels):
        if one.shape != pixels[0].shape:
            raise UserError(
                f"dataset: {source}[{index}] is {tuple(one.shape)} and the first image "
                f"{tuple(pixels[0].shape)}: images in memory are of one size, resize them"
            )
    labels = torch.tensor([label for _, label in found])
    if int(labels.min()) < 0:
        raise UserError(f"dataset: {source} has a label {int(labels.min())}; they begin with 0")
    return Images(torch.stack(pixels), labels)


def _in_one_piece(dataset: Any) -> Images | None:
    """The images that torchvision's own sets hold as an array; None where a set is others'."""
    if not type(dataset).__module__.startswith("torchvision.datasets"):
        return None
    pixels = torch.as_tensor(getattr(dataset, "data", ()))
    labels = getattr(dataset, "targets", getattr(dataset, "labels", ()))
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or len(pixels) != len(labels):
        return None
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
    pixels = pixels if pixels.shape[1] in (1, 3) else pixels.permute(0, 3, 1, 2)
    return Images(pixels.contiguous(), torch.as_tensor(labels).long())


def _item(dataset: Any, index: int, where: str) -> tuple[Tensor, int]:
    """Image and label of one item, whatever is wrong with it in one line."""
    try:
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            many = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise UserError(f"{where} is a {type(item).__name__}{many}, not an image and its label")
        image, label = item
        return _pixels(image, where), _label(label, where)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever the class of somebody raises
        raise UserError(f"{where}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _label(label: Any, where: str) -> int:
    """A label as the number of its class: int() would cut 2.9, and read a text."""
    number = label.item() if isinstance(label, Tensor | np.ndarray) and _one(label) else label
    number = number.item() if isinstance(number, np.generic) else number
    if not isinstance(number, int | float) or number != number // 1:
        shown = " ".join(str(label).split())
        raise UserError(
            f"{where} has the label {shown[:60]} ({type(label).__name__}): a label is the number "
            "of its class, 0 or more"
        )
    return int(number)


def _one(label: Tensor | np.ndarray) -> bool:
    return math.prod(label.shape) == 1


def _pixels(image: Any, where: str) -> Tensor:
    """An image as `(channels, height, width)`, uint8."""
    if getattr(image, "mode", None) == "P":  # numbers of colours that the picture defines itself
        image = image.convert("RGB")
    if not isinstance(image, Tensor):  # of Pillow or numpy, with the channels last
        image = torch.from_numpy(np.array(image))
        if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] > 4:
            raise UserError(
                f"{where} is an array of shape {tuple(image.shape)}, whose channels seem to come "
                "first: arrays have them last, tensors first (torch.from_numpy)"
            )
        image = image.permute(2, 0, 1) if image.ndim == 3 else image
    image = image.unsqueeze(0) if image.ndim == 2 else image
    if image.is_floating_point():
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise UserError(
                f"{where} has values from {image.min():g} to {image.max():g}: return uint8, or "
                "numbers from 0 to 1; mean and std are the harness's"
            )
        image = (255 * image).round().to(torch.uint8)
    if image.dtype != torch.uint8 or image.ndim != 3:
        shape = tuple(image.shape)
        raise UserError(f"{where} is no image: {image.dtype} of shape {shape}, not uint8 or float")
    return image
