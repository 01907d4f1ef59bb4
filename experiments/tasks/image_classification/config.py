"""The configuration of image classification."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from experiments.config.experiment import (
    Config,
    ConstructedSection,
    DatasetSection,
    FolderName,
    ModelSection,
)
from experiments.config.metrics import ACCURACY, LOSS
from experiments.config.sections import FiniteFloat, NotNegative, Positive, Section, refuse
from experiments.errors import nearest
from experiments.runtime.paths import expanded

Probability = Annotated[float, Field(ge=0, le=1)]
SMALLEST_ALPHA = 0.01  # below it torch's draws in float32 are others: 1/2 instead of 0 or 1


def _check_alpha(alpha: float) -> float:
    if 0 < alpha < SMALLEST_ALPHA:
        refuse(f"cannot be drawn from: 0, or {SMALLEST_ALPHA} and more")
    return alpha


Alpha = Annotated[FiniteFloat, Field(ge=0), AfterValidator(_check_alpha)]

# Data sets by name: those with code of their own, and torchvision's that fit into memory.
OWN = ("digits", "cifar10", "cifar100", "fashion-mnist", "imagenet")
TORCHVISION = {
    name.lower(): f"torchvision.datasets.{name}"
    for name in ("MNIST", "KMNIST", "QMNIST", "EMNIST", "USPS", "SVHN", "STL10")
}


class Dataset(DatasetSection):
    """Which images, how they are split, augmented and scaled.

    With a `constructor`, or a name that torchvision has, every other key is its argument.
    """

    model_config = ConfigDict(extra="allow")

    name: FolderName
    """The data set; the first folder of a run's path. Any name where `root` or `constructor` is."""
    constructor: str = ""
    """Dotted path of a `Dataset` of (image, label), such as `mylab.data.Spots`.

    It is called twice, with `train=True` and `False`, or `split="train"` and `"test"`, and with
    `root` where it asks for that. All images are of one size, uint8 or from 0 to 1.
    """
    root: str = ""
    """A folder of `train/<class>/` and `val/<class>/` (or `test/`), below DATA_ROOT or absolute."""
    validation_size: NotNegative
    """Images taken from the training set, equally many per class; 0: no split `val`."""
    train_size: NotNegative = 0
    """Images to train on, equally many per class and always the same, of those left; 0: all."""
    crop_padding: NotNegative
    """Zeros around an image before a random crop of its size; 0: no crop."""
    flip: bool
    """Whether images are mirrored with probability 1/2."""
    mean: list[FiniteFloat] | None = None
    """Mean per channel of pixels in [0, 1], which is subtracted; null: of the training images."""
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """Standard deviation per channel of pixels in [0, 1], by which they are divided; as `mean`."""
    image_size: NotNegative = 0
    """In memory: images are resized to squares of this size; 0: as they are.

    In folders: size to which random crops of any size and shape are resized.
    """
    resize_size: NotNegative = 0
    """In folders: size of the shorter side before the centre is cut out for evaluation."""
    channels: Literal[0, 3] = 0
    """3: a grey image is shown to the network as one of three equal colours; 0: as it is."""

    @property
    def source(self) -> str:
        """The constructor; empty where the data set has code of its own, or is a folder."""
        own = self.name in OWN or self.root
        return self.constructor or ("" if own else TORCHVISION.get(self.name, ""))

    @property
    def in_folder(self) -> bool:
        """Whether images are read from a folder for each batch."""
        return not self.source and (self.name == "imagenet" or bool(self.root))

    def folder(self, data_root: Path) -> Path:
        """Where a folder of images lies."""
        return data_root / expanded(self.root or self.name, "dataset.root")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor is given."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _check_name(self) -> "Dataset":
        if not self.source and not self.root and self.name not in OWN:
            known = [*OWN, *TORCHVISION]
            refuse(
                f"no data set is called '{self.name}'; {nearest(self.name, known)} One of your "
                "own needs root, a folder, or constructor"
            )
        if not self.source and self.root and self.name in OWN and self.name != "imagenet":
            refuse(f"{self.name} lies in DATA_ROOT: root is for folders under another name")
        for key in self.arguments if not self.source else ():
            refuse(f"unknown key '{key}'; {nearest(key, type(self).model_fields)}")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> "Dataset":
        what = self.name if self.name == "imagenet" else "a folder"
        if not self.in_folder:
            if self.resize_size:
                refuse(f"resize_size is for folders: {self.name} has images of one size")
        elif not 0 < self.image_size <= self.resize_size:
            refuse(
                f"image_size {self.image_size}, resize_size {self.resize_size}: {what} needs "
                "both, the first above 0 and no larger than the second (224 and 256)"
            )
        elif self.crop_padding:
            refuse(f"crop_padding is for images in memory: set 0 for {what}")
        return self


class Augmentation(Section):
    """What happens to training images beside crops and flips."""

    policy: Literal["randaugment", "trivialaugment"] | None = None
    """Random changes of colour and shape by torchvision's RandAugment or TrivialAugmentWide."""
    num_ops: Positive = 2
    """Changes of an image by RandAugment."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment."""
    erasing: Probability = 0.0
    """Probability that a rectangle of an image is erased, by torchvision's RandomErasing."""
    mixup: Alpha = 0.0
    """Images are blended with another of the batch, shares from Beta(mixup, mixup); 0: not."""
    cutmix: Alpha = 0.0
    """As `mixup`, by a rectangle of the other image; with both, one of the two at each step."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return bool(self.mixup or self.cutmix)


class Model(ModelSection):
    """Which network."""

    name: Literal["resnet", "convnet", "imagenet-resnet"]
    """The architecture; `resnet` is the small one for CIFAR."""
    depth: Positive
    """Number of weighted layers."""

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


class ConstructedModel(ConstructedSection):
    """Any network: `constructor(**every other key)`, a class or a function that returns a module.

    It takes images `(n, channels, height, width)` and returns logits `(n, classes)`. The numbers of
    both are passed under the name by which the constructor asks for them (`num_classes`,
    `in_channels`, `in_chans`, ...), unless they are given.
    """

    constructor: str
    """Dotted path, such as `torchvision.models.resnet18` or `timm.create_model`."""
    name: Literal[""] | FolderName = ""
    """Second folder of a run's path; empty: `model_name`, or else the path's last part.

    It is also the constructor's argument `name` where that needs one (torchvision's `get_model`).
    """

    @property
    def label(self) -> str:
        last = self.constructor.rpartition(".")[2]
        return self.name or str(self.arguments.get("model_name", last))


def _tag(value: Any) -> str:
    named = value if isinstance(value, dict) else vars(value) if hasattr(value, "name") else {}
    return "[constructor]" if "constructor" in named else "[name]"


AnyModel = Annotated[
    Annotated[Model, Tag("[name]")] | Annotated[ConstructedModel, Tag("[constructor]")],
    Discriminator(_tag),
]


class ImageClassificationConfig(Config):
    """An experiment on labelled images."""

    metrics = (LOSS, ACCURACY)
    headline = ACCURACY
    split_needs = {"val": "dataset.validation_size > 0"}

    task: Literal["image_classification"]
    """Cross-entropy on labelled images."""
    dataset: Dataset
    """Which images, how they are split, augmented and scaled."""
    model: AnyModel
    """Which network: one of ours by `name`, or any by its `constructor`."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In the training's loss, as torch's `cross_entropy` has it; evaluations are without."""
    augmentation: Augmentation = Augmentation()
    """What happens to training images beside crops and flips."""

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        return ("val", "test") if self.dataset.validation_size else ("test",)
