"""The configuration of image classification."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from experiments.config.experiment import Config, DatasetSection, ModelSection
from experiments.config.metrics import ACCURACY, LOSS
from experiments.config.sections import FiniteFloat, NotNegative, Positive, refuse


class Dataset(DatasetSection):
    """Which images, how they are split, augmented and scaled."""

    name: Literal["digits", "cifar10", "cifar100", "fashion-mnist", "imagenet"]
    """Of the data set; the first folder of a run's path."""
    validation_size: NotNegative
    """Images taken from the training set, the same number per class; 0: no split `val`."""
    crop_padding: NotNegative
    """Random crops of the image padded by so many zeros; 0: no crop."""
    flip: bool
    """Whether half of the images, at random, are mirrored."""
    mean: list[FiniteFloat]
    """Per channel, of pixels scaled to [0, 1]; subtracted."""
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    """Per channel, of pixels scaled to [0, 1]; divided by."""
    image_size: NotNegative = 0
    """ImageNet's: random crops of any size and shape are resized to it."""
    resize_size: NotNegative = 0
    """ImageNet's: for evaluation the shorter side is resized to it before the centre is cut out."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "Dataset":
        if self.name != "imagenet":
            if self.image_size or self.resize_size:
                refuse(f"image_size and resize_size are imagenet's: {self.name} keeps its size")
        elif not 0 < self.image_size <= self.resize_size:
            refuse(
                f"image_size {self.image_size}, resize_size {self.resize_size}: imagenet needs "
                "both, the first above 0 and no larger than the second (224 and 256)"
            )
        elif self.crop_padding:
            refuse("crop_padding is for images in memory: set 0 for imagenet")
        return self


class Model(ModelSection):
    """Which network."""

    name: Literal["resnet", "convnet", "imagenet-resnet"]
    """`resnet` is CIFAR's."""
    depth: Positive
    """Weighted layers."""

    @model_validator(mode="after")
    def _check_depth(self) -> "Model":
        if self.name == "convnet" and self.depth < 2:
            refuse(f"depth {self.depth}: a convnet has 2 layers or more")
        if self.name == "resnet" and (self.depth < 8 or self.depth % 6 != 2):
            refuse(f"depth {self.depth}: a CIFAR ResNet has 6n+2 layers (8, 14, 20, 26, 32, ...)")
        if self.name == "imagenet-resnet" and self.depth not in (18, 34, 50):
            refuse(f"depth {self.depth}: an ImageNet ResNet has 18, 34 or 50 layers")
        return self

    @property
    def label(self) -> str:
        return f"{self.name.removeprefix('imagenet-')}{self.depth}"


class ImageClassificationConfig(Config):
    """An experiment on labelled images."""

    metrics = (LOSS, ACCURACY)
    headline = ACCURACY
    split_needs = {"val": "dataset.validation_size > 0"}

    task: Literal["image_classification"]
    """Cross-entropy on labelled images."""
    dataset: Dataset
    """Which images, how they are split, augmented and scaled."""
    model: Model
    """Which network."""

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        return ("val", "test") if self.dataset.validation_size else ("test",)
