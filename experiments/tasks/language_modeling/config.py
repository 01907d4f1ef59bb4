"""The configuration of language modelling."""

from typing import Literal, Self

from pydantic import model_validator

from experiments.config.metrics import LOSS
from experiments.config.sections import Positive, refuse
from experiments.tasks.text.config import PERPLEXITY, TextConfig, TextDataset, TransformerSection


class Dataset(TextDataset):
    """Which text."""

    known = ("kjv", "austen", "ptb", "wikitext103")
    split_already = ("ptb", "wikitext103")

    length: Positive
    """Tokens of a sequence: what the model sees at most of what came before."""


class Model(TransformerSection):
    """Which network."""

    name: Literal["causal-transformer"]
    """The architecture: a decoder that sees what came before."""
    layers: Positive
    """How many."""
    adaptive_cutoffs: list[Positive]
    """Of an adaptive softmax, by the tokens' ranks; []: the embeddings are the output's weights."""

    @model_validator(mode="after")
    def _check_cutoffs(self) -> Self:
        cutoffs = self.adaptive_cutoffs
        if cutoffs != sorted(set(cutoffs)):
            refuse(f"adaptive_cutoffs {cutoffs}: must rise")
        if self.width < 4 ** len(cutoffs):  # each part has a quarter of the width before it
            refuse(f"adaptive_cutoffs {cutoffs}: need a width of {4 ** len(cutoffs)} or more")
        return self

    @property
    def label(self) -> str:
        return f"{self.name}{self.width}-{self.layers}"


class LanguageModelingConfig(TextConfig):
    """An experiment on language modelling."""

    metrics = (LOSS, PERPLEXITY)
    headline = PERPLEXITY

    task: Literal["language_modeling"]
    """Cross-entropy of the next token of a text."""
    dataset: Dataset
    """Which text."""
    model: Model
    """Which network."""
    batch_size: Positive
    """Sequences per step, over all processes."""

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        if self.model.adaptive_cutoffs and self.label_smoothing:
            refuse(f"label_smoothing {self.label_smoothing}: needs the probabilities of all "
                   "tokens, which an adaptive softmax avoids; set 0")  # fmt: skip
        return self
