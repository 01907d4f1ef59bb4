"""What every experiment's configuration holds, whatever its task.

A task adds its `dataset` and `model` sections, its metrics and further keys in a subclass of
`Config`; `experiments.tasks.registry` finds it by `task`. Nothing here imports torch, except
through the constructor that an optimizer names.
"""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from experiments.config.metrics import LOSS, Metric
from experiments.config.sections import Fraction, NotNegative, Positive, Section, refuse
from experiments.errors import nearest

FOLDER_NAME = re.compile(r"\w([\w .+=,@()%-]{0,98}[\w+=,@()%-])?")


def _check_folder_name(name: str) -> str:
    if not FOLDER_NAME.fullmatch(name):
        refuse(
            "names a folder: letters, digits and . _ + = , @ ( ) % - or blanks, at most 100 of "
            "them, the first a letter or digit and the last no dot or blank"
        )
    return name


FolderName = Annotated[str, AfterValidator(_check_folder_name)]


class DatasetSection(Section):
    """Base of a task's `dataset`."""

    name: FolderName
    """The data set; the first folder of a run's path."""


class ModelSection(Section):
    """Base of a task's `model`."""

    name: FolderName
    """The architecture."""

    @property
    def label(self) -> str:
        """Names architecture and size, as in `resnet20`; the second folder of a run's path."""
        return self.name


class Plateau(Section):
    """A metric that has stopped improving: `torch.optim.lr_scheduler.ReduceLROnPlateau`."""

    metric: str
    """`train/loss`, or `<split>/<metric>` of a split that is evaluated."""
    patience: NotNegative
    """Epochs without an improvement that are tolerated."""
    threshold: Annotated[float, Field(ge=0, lt=1)]
    """An improvement by less, relative to the best value, is none."""


class Schedule(Section):
    """The learning rate: multiplied by `factor` at each of the `drops`, or at each plateau."""

    drops: list[Fraction]
    """Where in the training, as fractions of `epochs`."""
    factor: Annotated[float, Field(gt=0, le=1)]
    """The learning rate is multiplied by it."""
    stepped_at_epoch_start: bool
    """Whether each drop acts one epoch early, as in the released code.

    That code steps its scheduler before it trains an epoch: of its milestones 80 and 120, the first
    acts after 79 epochs and the second after 119.
    """
    plateau: Plateau | None = None
    """In place of `drops`: wait for a metric to stop improving."""

    @model_validator(mode="after")
    def _check_plateau(self) -> "Schedule":
        if self.plateau and (self.drops or self.stepped_at_epoch_start or self.factor == 1):
            refuse("a plateau needs drops [], stepped_at_epoch_start false and a factor below 1")
        return self

    def relative_rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate at a step, divided by the optimizer's `lr`; without the plateau.

        A pure function: a schedule has no state to save or lose. Any other shape of the learning
        rate (warm-up, cosine) is a section with this method.

        Args:
            step: optimizer steps before this one, from the start of the training.
            steps_per_epoch: in one pass over the training set.
            epochs: of the whole training.
        """
        early = 1 if self.stepped_at_epoch_start else 0
        # The first epoch always has the full rate, however short the training.
        starts = [max(1, round(drop * epochs) - early) for drop in self.drops]
        return self.factor ** sum(step // steps_per_epoch >= start for start in starts)


class Optimizer(Section):
    """One optimizer: `constructor(params, lr=, weight_decay=, **every other key)`."""

    model_config = ConfigDict(extra="allow")

    constructor: str
    """Dotted path of a `torch.optim.Optimizer`, such as `torch.optim.SGD`."""
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """The initial learning rate."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """The constructor's argument, see also the next key."""
    weight_decay_divided_by_lr: bool
    """Whether `weight_decay` is divided by `lr` first.

    The released code does so for optimizers with decoupled weight decay: one number then shrinks
    the weights equally under every optimizer.
    """
    after_epochs: dict[NotNegative, dict[str, Any]] = {}
    """Options that change: `{5: {update_interval: 4}}` sets it to 4 after 5 epochs."""
    schedule: Schedule | None = None
    """The schedule of this optimizer, in place of the experiment's."""

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if self.weight_decay_divided_by_lr and self.lr == 0:
            refuse("weight_decay_divided_by_lr needs lr > 0")
        known = set(inspect.signature(self.load_constructor()).parameters) - {"self", "params"}
        for key in self.model_extra or {}:
            if key not in known:
                choices = sorted(known | set(Optimizer.model_fields))
                refuse(f"unknown key '{key}', no argument of {self.constructor}; "
                       + nearest(key, choices))  # fmt: skip
        for values in self.after_epochs.values():
            if "lr" in values:
                refuse("after_epochs: lr belongs to the schedule, it cannot be set here")
        return self

    def load_constructor(self) -> type:
        """Import the class that `constructor` names."""
        module, _, name = self.constructor.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, ValueError, AttributeError) as error:
            refuse(f"constructor '{self.constructor}' cannot be imported: {error}")
        if not isinstance(found, type):
            refuse(f"constructor '{self.constructor}' is no class")
        return found

    def changed_options(self, epoch: int) -> dict[str, Any]:
        """The options that `after_epochs` has changed once so many epochs are done."""
        changed: dict[str, Any] = {}
        for start in sorted(self.after_epochs):
            if epoch >= start:
                changed.update(self.after_epochs[start])
        return {key: _tuples(value) for key, value in changed.items()}

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments except the parameters."""
        decay = (
            self.weight_decay / self.lr if self.weight_decay_divided_by_lr else self.weight_decay
        )
        extra = {key: _tuples(value) for key, value in (self.model_extra or {}).items()}
        return {"lr": self.lr, "weight_decay": decay, **extra}


class SpectrumSettings(Section):
    """How the Hessian's spectrum is computed, in a training and by `experiments.spectrum`."""

    batches: Positive = 8
    """Batches of the first training epoch, of the run's batch size."""
    mode: Literal["train", "eval"] = "train"
    """`train`: batch statistics and dropout; `eval`: running statistics and no dropout."""
    curvature: Literal["double_backward", "finite_difference"] = "double_backward"
    """How H·z is computed."""
    k: Positive = 5
    """Number of largest eigenvalues."""
    trace_matvecs: Annotated[int, Field(ge=4)] = 45
    """Matrix-vector products for the trace."""
    num_lanczos_steps: Positive = 60
    """Matrix-vector products for the density, in each repeat."""
    num_repeats: Positive = 1
    """Lanczos runs for the density, each from another random vector."""
    max_matvecs: Positive = 300
    """Most matrix-vector products for the eigenvalues, which may converge slowly."""
    keep_batches: NotNegative = 1
    """Batches whose graphs stay in memory between products."""
    on_host: bool = False
    """Whether Lanczos vectors are kept in the host's memory."""
    seed: NotNegative = 0
    """Seed of the random vectors and of dropout."""


class Config(Section):
    """An experiment; with a single optimizer, a run.

    A task's subclass narrows `task`, `dataset` and `model`, and declares:

    Attributes:
        metrics: what is measured on every evaluated split, `loss` among it.
        headline: the metric that reports show and that names the best epoch.
        split_needs: by split, the setting without which the split does not exist.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (LOSS,)
    headline: ClassVar[Metric] = LOSS
    split_needs: ClassVar[Mapping[str, str]] = {}

    task: str
    """The kind of problem, a name in `experiments.tasks.registry`."""
    dataset: DatasetSection
    """The data; the task defines the keys."""
    model: ModelSection
    """The network; the task defines the keys."""
    epochs: Positive
    """Passes over the training set."""
    batch_size: Positive
    """Examples per step, over all processes."""
    schedule: Schedule
    """The learning rate of every optimizer without a schedule of its own."""
    best_epoch_split: Literal["test", "val"]
    """The split whose headline metric names the best epoch."""
    optimizers: Annotated[dict[FolderName, Optimizer], Field(min_length=1)]
    """Optimizers by name; the third folder of a run's path."""
    seed: NotNegative = 1
    """Seed of initialization, data order, augmentation, dropout and the optimizer's probes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the run is trained; `auto`: on the GPU where there is one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of weights and real-valued inputs."""
    autocast: Literal["bfloat16"] | None = None
    """Type in which the network computes, by torch.autocast; weights keep `dtype`."""
    channels_last: bool = False
    """Whether tensors of four dimensions are `torch.channels_last` in memory."""
    micro_batches: Positive = 1
    """Number of parts of a batch, one in memory at a time; batch norm sees one part."""
    workers: NotNegative | None = None
    """Number of processes that read examples, where the task uses any; null: by the cores."""
    checkpoint_every_epochs: Positive = 1
    """Epochs from one checkpoint to the next."""
    checkpoint_every_steps: NotNegative = 0
    """Steps from one checkpoint to the next inside an epoch; 0: none inside."""
    curvature_error_every_epochs: NotNegative = 0
    """Epochs between comparisons of the finite difference with double backward; 0: never."""
    curvature_statistics: bool = False
    """Whether rows hold statistics of the optimizer's own H·z."""
    spectrum_every_epochs: NotNegative = 0
    """Epochs between spectra of the Hessian, the first at initialization; 0: never."""
    spectrum: SpectrumSettings = SpectrumSettings()
    """How the spectrum is computed."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        assert LOSS in cls.metrics and cls.headline in cls.metrics, cls.metrics

    @model_validator(mode="after")
    def _check_splits_and_metrics(self) -> "Config":  # by this name a subclass would replace it
        split = self.best_epoch_split
        if split not in self.evaluation_splits:
            refuse(f"best_epoch_split '{split}' {self._why_not(split)}")
        owners = {f"optimizers.{name}.": spec for name, spec in self.optimizers.items()}
        for path, owner in {"": self, **owners}.items():
            if owner.schedule and owner.schedule.plateau:
                self._check_metric(f"{path}schedule.plateau.metric", owner.schedule.plateau.metric)
        if self.autocast and self.dtype != "float32":
            refuse(f"autocast '{self.autocast}' needs dtype float32")
        return self

    def _check_metric(self, path: str, key: str) -> None:
        names, splits = [metric.name for metric in self.metrics], self.evaluation_splits
        known = ["train/loss", *(f"{split}/{name}" for split in splits for name in names)]
        split, _, name = key.partition("/")
        if key not in known and split in self.split_needs and name in names:
            refuse(f"{path} '{key}' {self._why_not(split)}")
        if key not in known:
            refuse(f"{path} '{key}': no such metric; {nearest(key, known)}")

    def _why_not(self, split: str) -> str:
        if split in self.split_needs:
            return f"needs {self.split_needs[split]}"
        return f"is not evaluated: known splits are {', '.join(self.evaluation_splits)}"

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The splits evaluated after each epoch, such as `("val", "test")`."""
        return ("test",)

    @property
    def result_split(self) -> str:
        """The split whose headline metric is the run's result: `test` where there is one."""
        splits = self.evaluation_splits
        return "test" if "test" in splits else splits[-1]

    @property
    def optimizer_name(self) -> str:
        (name,) = self.optimizers
        return name

    @property
    def optimizer(self) -> Optimizer:
        return self.optimizers[self.optimizer_name]

    @property
    def learning_rate_schedule(self) -> Schedule:
        """The run's: its optimizer's, or else the experiment's."""
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
    """Lists as tuples: YAML has lists only, and optimizers expect `betas` as a tuple."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def write_yaml(config: Config) -> str:
    """The configuration as YAML text, complete, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
