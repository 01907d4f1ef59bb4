"""What a configuration file holds: an experiment, its optimizers side by side."""

import importlib
import inspect
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, model_validator

from experiments.config.sections import (
    FiniteFloat,
    Fraction,
    NotNegative,
    Positive,
    Section,
    _refuse,
)
from experiments.errors import nearest


class Dataset(Section):
    """Which images, how they are split, augmented and scaled."""

    name: Literal["digits", "cifar10", "cifar100", "fashion-mnist", "imagenet"]
    validation_size: NotNegative  # images taken from the training set, the same number per class
    crop_padding: NotNegative  # random crop of the image padded by so many zeros; 0: no crop
    flip: bool  # random horizontal flip
    mean: list[FiniteFloat]  # per channel, of pixels scaled to [0, 1]
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    # ImageNet only: random crops of every size and shape are resized to image_size; evaluated is
    # the centre after the shorter side was resized to resize_size.
    image_size: NotNegative = 0
    resize_size: NotNegative = 0

    @model_validator(mode="after")
    def _check_sizes(self) -> "Dataset":
        if self.name != "imagenet":
            if self.image_size or self.resize_size:
                _refuse(f"image_size and resize_size are imagenet's: {self.name} keeps its size")
        elif not 0 < self.image_size <= self.resize_size:
            _refuse(
                f"image_size {self.image_size}, resize_size {self.resize_size}: imagenet needs "
                "both, the first above 0 and no larger than the second (224 and 256)"
            )
        elif self.crop_padding:
            _refuse("crop_padding is for images in memory: set 0 for imagenet")
        return self


class Model(Section):
    """Which network."""

    name: Literal["resnet", "convnet", "imagenet-resnet"]  # resnet: CIFAR's
    depth: Positive

    @model_validator(mode="after")
    def _check_depth(self) -> "Model":
        if self.name == "convnet" and self.depth < 2:
            _refuse(f"depth {self.depth}: a convnet has 2 layers or more")
        if self.name == "resnet" and (self.depth < 8 or self.depth % 6 != 2):
            _refuse(f"depth {self.depth}: a CIFAR ResNet has 6n+2 layers (8, 14, 20, 26, 32, ...)")
        if self.name == "imagenet-resnet" and self.depth not in (18, 34, 50):
            _refuse(f"depth {self.depth}: an ImageNet ResNet has 18, 34 or 50 layers")
        return self

    @property
    def label(self) -> str:
        return f"{self.name.removeprefix('imagenet-')}{self.depth}"


class Plateau(Section):
    """A metric that has stopped improving: `torch.optim.lr_scheduler.ReduceLROnPlateau`."""

    metric: Literal["train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy"]
    patience: NotNegative  # epochs without an improvement that are let pass
    threshold: Annotated[float, Field(ge=0, lt=1)]  # relative to the best: less is none


class Schedule(Section):
    """The learning rate: multiplied by `factor` at each of the `drops`, or at each plateau."""

    drops: list[Fraction]  # where in the training, as fractions of `epochs`
    factor: Annotated[float, Field(gt=0, le=1)]
    # The released code steps its scheduler before it trains an epoch, so each drop acts one
    # epoch early: milestones 80 and 120 begin after 79 and 119 epochs.
    stepped_at_epoch_start: bool
    plateau: Plateau | None = None

    @model_validator(mode="after")
    def _check_plateau(self) -> "Schedule":
        if self.plateau and (self.drops or self.stepped_at_epoch_start or self.factor == 1):
            _refuse("a plateau needs drops [], stepped_at_epoch_start false and a factor below 1")
        return self


class Optimizer(Section):
    """One optimizer: `constructor(params, lr=, weight_decay=, **every other key)`."""

    model_config = ConfigDict(extra="allow")

    constructor: str  # dotted path of a torch.optim.Optimizer, such as torch.optim.SGD
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    # The released code divides the weight decay of decoupled optimizers by the initial learning
    # rate, so that one number shrinks the weights equally under every optimizer.
    weight_decay_divided_by_lr: bool
    # {5: {update_interval: 4}}: after 5 epochs, that entry of every parameter group becomes 4.
    after_epochs: dict[NotNegative, dict[str, Any]] = {}
    schedule: Schedule | None = None  # in place of the experiment's

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if self.weight_decay_divided_by_lr and self.lr == 0:
            _refuse("weight_decay_divided_by_lr needs lr > 0")
        known = set(inspect.signature(self.load_constructor()).parameters) - {"self", "params"}
        for key in self.model_extra or {}:
            if key not in known:
                choices = sorted(known | set(Optimizer.model_fields))
                _refuse(f"unknown key '{key}', no argument of {self.constructor}; "
                        + nearest(key, choices))  # fmt: skip
        for values in self.after_epochs.values():
            if "lr" in values:
                _refuse("after_epochs: lr belongs to the schedule, it cannot be set here")
        return self

    def load_constructor(self) -> type:
        """Import the class that `constructor` names."""
        module, _, name = self.constructor.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, ValueError, AttributeError) as error:
            _refuse(f"constructor '{self.constructor}' cannot be imported: {error}")

    def arguments(self) -> dict[str, Any]:
        """What the constructor is called with beside the parameters."""
        decay = (
            self.weight_decay / self.lr if self.weight_decay_divided_by_lr else self.weight_decay
        )
        extra = {key: _tuples(value) for key, value in (self.model_extra or {}).items()}
        return {"lr": self.lr, "weight_decay": decay, **extra}


class SpectrumSettings(Section):
    """How the Hessian's spectrum is computed, in a training and by `experiments.spectrum`."""

    batches: Positive = 8  # of the first training epoch, of the run's own batch size
    mode: Literal["train", "eval"] = "train"  # batch or running statistics, dropout on or off
    curvature: Literal["double_backward", "finite_difference"] = "double_backward"
    k: Positive = 5  # eigenvalues from the top
    trace_matvecs: Annotated[int, Field(ge=4)] = 45
    num_lanczos_steps: Positive = 60
    num_repeats: Positive = 1
    max_matvecs: Positive = 300  # for the eigenvalues, should they be slow to converge
    keep_batches: NotNegative = 1  # whose graphs stay in memory between products
    on_host: bool = False  # whether Lanczos vectors are kept in the host's memory
    seed: NotNegative = 0


class Config(Section):
    """An experiment; with a single optimizer, a run."""

    task: Literal["image_classification"]
    dataset: Dataset
    model: Model
    epochs: Positive
    batch_size: Positive  # images per step over all processes
    schedule: Schedule
    best_epoch_split: Literal["test", "val"]  # which accuracy names the best epoch
    optimizers: Annotated[dict[str, Optimizer], Field(min_length=1)]
    seed: NotNegative = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"  # of weights and images
    autocast: Literal["bfloat16"] | None = None  # in which the network computes, weights apart
    channels_last: bool = False  # the order of weights and images in memory
    micro_batches: Positive = 1  # parts of a batch, one in memory at a time, each normalized alone
    workers: NotNegative | None = None  # processes that decode images; null: by the cores
    checkpoint_every_epochs: Positive = 1
    checkpoint_every_steps: NotNegative = 0  # also inside an epoch; 0: at the end of epochs only
    curvature_error_every_epochs: NotNegative = 0  # compare the finite difference; 0: never
    curvature_statistics: bool = False  # from the optimizer's own H·z, each epoch
    spectrum_every_epochs: NotNegative = 0  # and at initialization; 0: never
    spectrum: SpectrumSettings = SpectrumSettings()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.best_epoch_split == "val" and self.dataset.validation_size == 0:
            _refuse("best_epoch_split 'val' needs dataset.validation_size > 0")
        for spec in (self, *self.optimizers.values()):
            plateau = spec.schedule and spec.schedule.plateau
            if plateau and plateau.metric.startswith("val/") and not self.dataset.validation_size:
                _refuse(f"plateau.metric '{plateau.metric}' needs dataset.validation_size > 0")
        if self.autocast and self.dtype != "float32":
            _refuse(f"autocast '{self.autocast}' needs dtype float32")
        return self

    @property
    def optimizer_name(self) -> str:
        (name,) = self.optimizers
        return name

    @property
    def optimizer(self) -> Optimizer:
        return self.optimizers[self.optimizer_name]

    @property
    def learning_rate_schedule(self) -> Schedule:
        """The one of the run: its optimizer's, or else the experiment's."""
        return self.optimizer.schedule or self.schedule


# The seed is in the directory's name; the others cannot change a result.
WITHOUT_EFFECT = {
    "seed",
    "device",
    "workers",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "curvature_error_every_epochs",
    "curvature_statistics",
    "spectrum_every_epochs",
    "spectrum",
}


def _tuples(value: Any) -> Any:
    """YAML has lists only; optimizers expect `betas` as a tuple."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def write_yaml(config: Config) -> str:
    """The configuration as YAML text, complete, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
