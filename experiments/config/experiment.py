"""What every experiment's configuration holds, whatever its task.

A task adds its `dataset` and `model` sections, its metrics and further keys in a subclass of
`Config`; `experiments.tasks.registry` finds it by `task`. Nothing here imports torch, except
through the constructor that an optimizer names.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from experiments.config import yaml_reader
from experiments.config.metrics import LOSS, Metric
from experiments.config.optimizers import Optimizer
from experiments.config.schedules import AnySchedule, Schedule
from experiments.config.sections import NotNegative, Positive, Section, refuse
from experiments.errors import nearest

FOLDER_NAME = re.compile(r"\w([\w .+=,@()%-]{0,98}[\w+=,@()%-])?")


def check_folder_name(name: str) -> str:
    """A name that can be a folder's, or a refusal."""
    if not FOLDER_NAME.fullmatch(name):
        refuse(
            "names a folder: letters, digits and . _ + = , @ ( ) % - or blanks, at most 100 of "
            "them, the first a letter or digit and the last no dot or blank"
        )
    return name


FolderName = Annotated[str, AfterValidator(check_folder_name)]


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


class ConstructedSection(ModelSection):
    """Base of a `model` of any kind: `constructor(**every other key)`."""

    model_config = ConfigDict(extra="allow")

    constructor: str
    """Dotted path of a class or a function that returns a module."""
    name: Literal[""] | FolderName = ""
    """Second folder of a run's path; empty: made of the other keys."""

    @model_validator(mode="after")
    def _check_label(self) -> "ConstructedSection":
        check_folder_name(self.label)
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor is given."""
        return dict(self.model_extra or {})


class Average(Section):
    """Averaged weights, which are evaluated in place of those trained: torch's AveragedModel."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Exponential: after each step the average moves to the weights by 1 - decay."""
    last_epochs: Positive | None = None
    """The mean over the ends of so many last epochs; before them nothing is averaged."""

    @model_validator(mode="after")
    def _check_kind(self) -> "Average":
        if (self.decay is None) == (self.last_epochs is None):
            refuse("write one of decay and last_epochs: {decay: 0.999} or {last_epochs: 5}")
        return self


class InitialWeights(Section):
    """Trained weights: every tensor of the model must be there, in its shape."""

    path: Annotated[str, Field(min_length=1)]
    """A run's directory, or a file of a state dict, as torch.save writes it."""
    skip: list[str] = []
    """Tensors that stay as they are initialized, by pattern of their names."""


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
    """The kind of problem, a name in `experiments.tasks.registry` or a package of your own."""
    dataset: DatasetSection
    """The data; the task defines the keys."""
    model: ModelSection
    """The network; the task defines the keys."""
    epochs: Positive
    """Passes over the training set."""
    batch_size: Positive
    """Examples per step, over all processes."""
    schedule: AnySchedule
    """The learning rate of every optimizer without a schedule of its own."""
    best_epoch_split: Literal["test", "val"]
    """The split whose headline metric names the best epoch."""
    optimizers: Annotated[dict[FolderName, Optimizer], Field(min_length=1)]
    """Optimizers by name; the third folder of a run's path."""
    freeze: list[str] = []
    """Parameters that are not trained, by pattern: of their names (`*` is anything), or `1-D`, ...

    The statistics of batch normalization follow the data all the same.
    """
    average: Average | None = None
    """Averaged weights, which are evaluated in place of those trained."""
    init_from: InitialWeights | None = None
    """Weights to begin with, in place of the initialization."""
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
    log_every_steps: NotNegative | None = 50
    """Steps from one row of `steps.jsonl` to the next; 0 or null: none, at no cost."""
    log_layers: bool = False
    """Whether these rows hold the norms of each layer, too."""
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
        for metric in (LOSS, cls.headline):
            if metric not in cls.metrics:
                raise ValueError(
                    f"{cls.__name__}.metrics lacks {getattr(metric, 'name', metric)!r}: LOSS and "
                    "the headline, both a Metric, must be among them"
                )

    @model_validator(mode="after")
    def _check_splits_and_metrics(self) -> "Config":  # by this name a subclass would replace it
        split = self.best_epoch_split
        if isinstance(self.evaluation_splits, str):
            refuse(f"evaluation_splits is the text '{self.evaluation_splits}': return a tuple")
        if split not in self.evaluation_splits:
            refuse(f"best_epoch_split '{split}' {self._why_not(split)}")
        owners = {f"optimizers.{name}.": spec for name, spec in self.optimizers.items()}
        for path, owner in {"": self, **owners}.items():
            if owner.schedule and (plateau := owner.schedule.waits_for):
                self._check_metric(f"{path}schedule.plateau.metric", plateau.metric)
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
    "log_every_steps",
    "log_layers",
    "curvature_error_every_epochs",
    "curvature_statistics",
    "spectrum_every_epochs",
    "spectrum",
}


def write_yaml(config: Config) -> str:
    """The configuration as YAML text, complete, in the order of the schema."""
    return yaml_reader.write_yaml(config.model_dump())
