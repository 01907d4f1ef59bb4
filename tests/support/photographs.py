"""A small folder in ImageNet's layout: crops of photographs in scikit-image and scikit-learn."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from support.harness import REPOSITORY

from experiments.config.experiment import Config
from experiments.plans.load import load, resolve

IMAGENET = REPOSITORY / "configs" / "imagenet" / "resnet18.yaml"
CLASSES = ("astronaut", "chelsea", "china", "coffee")
TRAIN, VAL = 9, 4  # crops of each
# Images of 20 pixels, and a network without batch normalization: for speed, and for processes.
SMALL = (
    "dataset.image_size=20", "dataset.resize_size=24", "model.name=convnet", "model.depth=3",
    "epochs=3", "batch_size=8", "workers=0",
)  # fmt: skip


@cache
def photographs() -> dict[str, Image.Image]:
    """By class; those that the two packages ship."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    pixels = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee")}
    pixels["china"] = load_sample_image("china.jpg")
    return {name: Image.fromarray(pixels[name]) for name in CLASSES}


def write_imagenet(data_root: Path) -> Path:
    """Write `imagenet/{train,val}/<class>/*.JPEG` with crops of several sizes and shapes."""
    random = np.random.default_rng(0)
    for name, photograph in photographs().items():
        for part, count in (("train", TRAIN), ("val", VAL)):
            folder = data_root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = random.integers(30, 90, 2).tolist()
                left, top = (random.integers(0, size - 90) for size in photograph.size)
                crop = photograph.crop((left, top, left + width, top + height))
                crop.save(folder / f"{name}_{number}.JPEG", quality=90)
    return data_root


def small_config(*overrides: str, optimizer: str = "sgd") -> Config:
    """A run on `write_imagenet`'s folder that takes about a second."""
    return resolve(load(IMAGENET, [*SMALL, *overrides]), optimizer, 1)
