"""The configuration of translation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from experiments.config.metrics import LOSS, Metric
from experiments.config.sections import NotNegative, Positive, Section, refuse
from experiments.tasks.text.config import PERPLEXITY, TextConfig, TextDataset, TransformerSection

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})?$")]
BLEU = Metric("bleu", "max", unit="BLEU", digits=2)


class Dataset(TextDataset):
    """Which sentences, in which direction."""

    known = ("cldr", "catalogues", "debian", "iwslt14", "wmt14")
    split_already = ("iwslt14", "wmt14")

    source: Language
    """The language from which is translated: `de` or `en`, any in a corpus of your own."""
    target: Language
    """The language into which is translated."""
    max_tokens: Positive
    """Of a pack: its sentences times its longest one, source or target."""

    @model_validator(mode="after")
    def _check_languages(self) -> Self:
        if self.source == self.target:
            refuse(f"source and target are both '{self.source}'")
        if self.root:
            return self
        for language in {self.source, self.target} - {"de", "en"}:
            refuse(f"language '{language}': {self.name} has de and en")
        if self.name not in self.split_already and self.vocabulary is None:
            refuse(f"vocabulary null: {self.name} is plain text, set a number of pieces")
        return self


class Model(TransformerSection):
    """Which network."""

    name: Literal["transformer"]
    """The architecture: encoder and decoder, one table of embeddings."""
    encoder_layers: Positive
    """Layers of the encoder."""
    decoder_layers: Positive
    """Layers of the decoder."""

    @property
    def label(self) -> str:
        return f"{self.name}{self.width}-{self.encoder_layers}+{self.decoder_layers}"


class Decoding(Section):
    """How translations are made and compared."""

    beam: Annotated[int, Field(ge=1, le=1000)]
    """Partial translations that are kept; 1: greedy."""
    length_penalty: Annotated[float, Field(ge=0, le=10)]
    """A translation's log-probability is divided by its length to this power."""
    max_length: Annotated[int, Field(ge=1, le=10_000)]
    """Most tokens of a translation."""
    every_epochs: NotNegative
    """Epochs between measurements of BLEU; 0: at the end alone. It is always measured there."""
    tokenize: Literal["13a", "none", "intl", "zh", "char"]
    """sacreBLEU's tokenization.

    `none` is for texts that are split into words already, `zh` for Chinese, and `char` for other
    languages that have no blanks between words.
    """
    lowercase: bool
    """Whether BLEU ignores case."""


class TranslationConfig(TextConfig):
    """An experiment on translation."""

    metrics = (LOSS, PERPLEXITY, BLEU)
    headline = BLEU

    task: Literal["translation"]
    """Cross-entropy of the next token of a translation."""
    dataset: Dataset
    """Which sentences, in which direction."""
    model: Model
    """Which network."""
    batch_size: Positive
    """Packs per step, over all processes; see `dataset.max_tokens`."""
    decoding: Decoding
    """How translations are made and compared."""

    @model_validator(mode="after")
    def _check_packs(self) -> Self:
        if self.micro_batches > self.batch_size:
            refuse(f"micro_batches {self.micro_batches}: a step has {self.batch_size} packs")
        schedules = [self.schedule, *(one.schedule for one in self.optimizers.values())]
        for schedule in schedules:
            awaited = schedule.waits_for if schedule else None
            if awaited and awaited.metric.endswith("/bleu"):
                refuse(f"schedule.plateau.metric '{awaited.metric}' is not measured after "
                       "every epoch: take val/loss")  # fmt: skip
        return self
