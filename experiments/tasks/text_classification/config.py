"""The configuration of classification of texts."""

from typing import Annotated, Literal

from pydantic import Field

from experiments.config.experiment import (
    Config,
    ConstructedSection,
    DatasetSection,
    FolderName,
)
from experiments.config.metrics import ACCURACY, LOSS
from experiments.config.sections import Positive


class Dataset(DatasetSection):
    """Which texts: `train.tsv` and `dev.tsv`, tab-separated under a line of names, as in GLUE."""

    folder: str
    """The folder of the files, below `DATA_ROOT`."""
    texts: Annotated[list[str], Field(min_length=1, max_length=2)]
    """The column of the sentence, or the two of a pair."""
    label: str
    """The column of the class."""
    max_length: Positive
    """The most tokens of an example; longer ones are cut."""


class Model(ConstructedSection):
    """Which network: `constructor(**every other key)`.

    It is given the folder as `pretrained_model_name_or_path` and the number of classes as
    `num_labels`, takes what the folder's tokenizer makes of texts, and returns logits
    `(examples, classes)`, or an object that has them as `logits`.
    """

    constructor: str
    """A dotted path, as `transformers.AutoModelForSequenceClassification.from_pretrained`."""
    folder: str
    """The folder of the pretrained network and its tokenizer, below `DATA_ROOT`."""
    name: Literal[""] | FolderName = ""
    """Second folder of a run's path; empty: the last part of `folder`."""

    @property
    def label(self) -> str:
        return self.name or self.folder.rstrip("/").rpartition("/")[2]


class TextClassificationConfig(Config):
    """An experiment on labelled texts; `dev.tsv` is the split `val`."""

    metrics = (LOSS, ACCURACY)
    headline = ACCURACY

    task: Literal["text_classification"]
    """Cross-entropy of the class of a text."""
    dataset: Dataset
    """Which texts."""
    model: Model
    """Which network."""

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        return ("val",)
