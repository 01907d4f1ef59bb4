"""What translation and language modelling share: epochs of any length, and the loss of tokens."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.errors import UserError
from experiments.models.text_transformer import Size
from experiments.runtime import distributed
from experiments.runtime.progress import say
from experiments.tasks.randomness import generator
from experiments.tasks.task import Task
from experiments.tasks.text.config import TextConfig
from experiments.tasks.text.prepared import Prepared, Recipe, find, prepare
from experiments.tasks.text.vocabulary import PAD

DIGITS = 16  # of the texts' hash, in what a run says of its data
LARGEST_EXPONENT = 700  # exp of more is no float


class TextTask(Task):
    """A task whose examples are sequences of tokens.

    An epoch of the configuration is what lies between two evaluations: a pass over the training
    set, or any number of steps, which may end in the middle of a pass. Each pass has its own order.
    """

    unit = "tokens"
    config: Any  # a subclass of TextConfig, which each task names

    def __init__(self, config: TextConfig, device: torch.device, data_root: Path) -> None:
        super().__init__(config, device, data_root)
        self.corpus: Prepared = prepare(
            self.recipe(config), Path(data_root or ""), config.dataset.sha256
        )
        self.vocabulary = self.corpus.vocabulary

    @classmethod
    def recipe(cls, config: Any) -> Recipe:
        """The corpus that a configuration needs."""
        settings = config.dataset
        kind = "pieces" if settings.vocabulary else "words"
        return Recipe(
            settings.name, cls.languages(config), kind, settings.vocabulary, settings.root
        )

    @classmethod
    def languages(cls, config: Any) -> tuple[str, ...]:
        """Of the corpus: one, or source and target."""
        raise NotImplementedError

    @property
    def size(self) -> Size:
        """Of the network, as the configuration's section `model` has it."""
        return Size(
            **{field.name: getattr(self.config.model, field.name) for field in fields(Size)}
        )

    @classmethod
    def describe_data(cls, config: Any, data_root: Path) -> dict[str, Any] | None:
        found = find(cls.recipe(config), Path(data_root or ""))
        if found is None:
            return None
        counts = {f"{name} examples": count for name, count in found.meta["examples"].items()}
        return {**counts, "tokens": found.meta["vocabulary"]["size"],
                "digest": found.sha256[:DIGITS]}  # fmt: skip

    def check_other(self, config: Any, data_root: Path, known: Any) -> None:
        """A model knows its own vocabulary alone, which its training set has made."""
        own = prepare(self.recipe(config), data_root)
        if isinstance(known, Mapping) and known.get("digest") != own.sha256[:DIGITS]:
            raise UserError(
                f"the texts of the run are not in {data_root}, and tell its vocabulary: set "
                f"DATA_ROOT to them (digest {known.get('digest')})"
            )
        if own.vocabulary_digest() != self.corpus.vocabulary_digest():
            raise UserError(
                f"the training set of {self.corpus.folder.parent} makes another vocabulary than "
                "that of the run, whose model does not know it: take the run's training set, and "
                "other texts to validate and to test"
            )

    def set_steps(self, steps_per_pass: int, tokens: int) -> None:
        """Count the steps of a pass and of an epoch.

        Args:
            steps_per_pass: in a pass over the training set.
            tokens: in the training set, those that are predicted.
        """
        settings = self.config.dataset
        self.steps_per_pass = steps_per_pass
        self.steps_per_epoch = settings.steps_per_epoch or steps_per_pass
        if settings.tokens_per_epoch:
            share = settings.tokens_per_epoch / tokens
            self.steps_per_epoch = max(1, round(share * steps_per_pass))

    def chosen(self, epoch: int, first_step: int, items: int) -> Iterator[Tensor]:
        """For each step of an epoch, the training items (packs, sequences) that it takes.

        `config.batch_size` of them, fewer at the end of a pass.
        """
        size, order, order_of = self.config.batch_size, torch.empty(0), -1
        for step in range(first_step, self.steps_per_epoch):
            number, place = divmod(epoch * self.steps_per_epoch + step, self.steps_per_pass)
            if number != order_of:
                draw = generator(self.config.seed, number, "order")
                order, order_of = torch.randperm(items, generator=draw), number
            yield order[place * size : (place + 1) * size]

    def say_baselines(self, found: Mapping[str, float]) -> dict[str, float]:
        """Say what the test set's result is without learning, and return it."""
        if distributed.is_main():
            words = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            name = self.headline.unit or self.headline.name
            say(f"test {name} without learning: {words or 'not computed'}")
        return dict(found)

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over all tokens of the loss with label smoothing; `PAD` counts nothing."""
        return F.cross_entropy(
            logits.flatten(0, -2),
            targets.flatten(),
            ignore_index=PAD,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )

    def surprise(self, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """The same without label smoothing and without a graph: what a perplexity is made of."""
        if not self.config.label_smoothing:
            return loss.detach()
        with torch.no_grad():
            flat = logits.detach().flatten(0, -2)
            return F.cross_entropy(flat, targets.flatten(), ignore_index=PAD, reduction="sum")

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        mean = totals["surprise"] / totals["weight"]
        perplexity = math.exp(min(mean, LARGEST_EXPONENT)) if not math.isnan(mean) else math.nan
        return {**super().summarize(totals), "perplexity": perplexity}
