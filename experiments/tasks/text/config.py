"""What the configurations of the tasks on text share."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from experiments.config.experiment import Config, DatasetSection, FolderName, ModelSection
from experiments.config.metrics import Metric
from experiments.config.sections import NotNegative, Positive, refuse
from experiments.errors import nearest

PERPLEXITY = Metric("perplexity", "min", digits=2, log=True)

Share = Annotated[float, Field(ge=0, lt=1)]


class TextDataset(DatasetSection):
    """Base of the `dataset` of a task on text."""

    known: ClassVar[tuple[str, ...]] = ()
    """The corpora that the task has by name."""
    split_already: ClassVar[tuple[str, ...]] = ()
    """Those of them whose words or pieces are their vocabulary."""

    name: FolderName
    """The corpus; the first folder of a run's path. Any other name where `root` is."""
    root: str = ""
    """A folder of your own texts, below DATA_ROOT or absolute: see docs/own-data.md."""

    vocabulary: Positive | None
    """Pieces of words (sentencepiece, BPE); null: what stands between blanks, all of it."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None
    """How the hash of the texts has to begin; null: any texts will do."""
    steps_per_epoch: NotNegative
    """Steps from one evaluation to the next, across the ends of passes; 0: a pass."""
    tokens_per_epoch: NotNegative
    """The same, in tokens of the training set; 0: not so."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.root and self.name in self.known:
            refuse(f"{self.name} has a place of its own: root is for texts under another name")
        if not self.root and self.name not in self.known:
            refuse(f"no corpus is called '{self.name}', and root, a folder of your own, is not "
                   f"set; {nearest(self.name, self.known)}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _check_vocabulary(self) -> Self:
        if self.name in self.split_already and self.vocabulary is not None:
            refuse(f"vocabulary {self.vocabulary}: {self.name} is split into words or pieces "
                   "already, set null")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _check_epoch(self) -> Self:
        if self.steps_per_epoch and self.tokens_per_epoch:
            refuse("steps_per_epoch and tokens_per_epoch: set one of them to 0")
        return self


class TransformerSection(ModelSection):
    """Base of the `model` of a task on text."""

    width: Positive
    """Of the embeddings and between the layers."""
    ffn: Positive
    """Hidden units of the feed-forward layers."""
    heads: Positive
    """Of each attention."""
    dropout: Share
    """Of embeddings and of what a layer adds."""
    attention_dropout: Share
    """Of the attention's weights."""
    activation_dropout: Share
    """Behind the activation of the feed-forward layers."""
    pre_norm: bool
    """Whether layers normalize their inputs, and the stack its output; else each its output."""
    fused_attention: bool
    """Whether torch's kernels compute attention; some have no second derivative."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the feed-forward layers; `gelu` is smooth, and GPT-2's."""

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.width % (2 * self.heads):
            refuse(f"width {self.width}: must be a multiple of twice the heads, {2 * self.heads}")
        return self


class TextConfig(Config):
    """An experiment on text; an epoch is what lies between two evaluations."""

    dataset: TextDataset
    """Which texts."""
    model: TransformerSection
    """Which network."""
    label_smoothing: Share
    """Share of the target that all tokens have in common."""

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        return ("val", "test")
