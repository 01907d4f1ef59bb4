"""Language modelling: sequences of a long text, each predicted from its own beginning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from experiments.errors import UserError
from experiments.models.text_transformer import LanguageModel
from experiments.runtime import distributed
from experiments.tasks.language_modeling.baselines import baselines
from experiments.tasks.language_modeling.config import LanguageModelingConfig
from experiments.tasks.text.task import TextTask
from experiments.tasks.text.vocabulary import END, Vocabulary

LANGUAGE = "en"
EVALUATED_TOKENS = 8192  # of a batch of an evaluated split, about


@dataclass(frozen=True)
class Batch:
    """Sequences of this rank.

    Attributes:
        tokens: `(sequences, length + 1)`, int64: each token but the first is predicted from those
            before it.
        whole: sequences of all ranks.
    """

    tokens: Tensor
    whole: int


class LanguageModeling(TextTask):
    """The task behind `task: language_modeling`; see `experiments.tasks.task.Task`.

    The lines of a split, each ended by `END`, are one text, cut into sequences of
    `dataset.length` predicted tokens; a sequence knows nothing of what came before it. Every token
    of an evaluated split but its first is predicted once.
    """

    config: LanguageModelingConfig

    def __init__(
        self, config: LanguageModelingConfig, device: torch.device, data_root: Path
    ) -> None:
        super().__init__(config, device, data_root)
        self.streams = {
            split: torch.from_numpy(stream(*self.corpus.tokens(split, LANGUAGE))).to(device)
            for split in ("train", *self.evaluation_splits)
        }
        for split in self.evaluation_splits:
            if len(self.streams[split]) < 2:
                raise UserError(f"the {split} set of {config.dataset.name} is a single blank line: "
                                "there is nothing to predict")  # fmt: skip
        text = self.streams["train"]
        self.sequences = (len(text) - 1) // config.dataset.length
        if not self.sequences:
            raise UserError(
                f"dataset.length = {config.dataset.length}: the training set has {len(text)} tokens"
            )
        self.set_steps(
            self.count_steps(self.sequences, "sequences"), self.sequences * config.dataset.length
        )

    @classmethod
    def languages(cls, config: Any) -> tuple[str, ...]:
        return (LANGUAGE,)

    def build_model(self) -> nn.Module:
        settings = self.config.model
        cutoffs = tuple(settings.adaptive_cutoffs)
        try:
            model = LanguageModel(self.vocabulary.size, self.size, settings.layers, cutoffs)
        except ValueError as error:
            raise UserError(
                f"model.adaptive_cutoffs = {list(cutoffs)} for {self.vocabulary.size} tokens: "
                f"{error}"
            ) from None
        return self.place(model)

    # ------------------------------------------------------------------------------------ batches

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        parts = self.config.micro_batches
        for chosen in self.chosen(epoch, first_step, self.sequences):
            mine = distributed.shard(chosen, parts)
            yield Batch(self._sequences(self.streams["train"], mine), len(chosen))

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        return distributed.rank_batches(self.batches_of(self.streams[split]))

    def batches_of(self, text: Tensor) -> Iterator[Batch]:
        """A text in batches, all of it: the last sequence may be shorter."""
        length = self.config.dataset.length
        count = (len(text) - 1) // length
        whole = torch.arange(count).split(max(EVALUATED_TOKENS // length, 1)) if count else ()
        for numbers in whole:
            yield Batch(self._sequences(text, numbers), len(numbers))
        if len(rest := text[count * length :]) > 1:
            yield Batch(rest[None].long(), 1)

    def _sequences(self, text: Tensor, numbers: Tensor) -> Tensor:
        length = self.config.dataset.length
        places = numbers[:, None] * length + torch.arange(length + 1)
        return text[places.to(text.device)].long()

    def micro_batches(self, batch: Batch) -> Sequence[tuple[Batch, float]]:
        parts = self.config.micro_batches
        if parts == 1:
            return [(batch, 1.0)]
        wholes = torch.arange(batch.whole).tensor_split(parts)
        pieces = batch.tokens.split([len(distributed.shard(whole)) for whole in wholes])
        return [
            (Batch(tokens, len(whole)), len(tokens) / len(batch.tokens))
            for tokens, whole in zip(pieces, wholes, strict=True)
        ]

    def part(self, batch: Batch, start: float, stop: float) -> Batch | None:
        size = len(batch.tokens)
        tokens = batch.tokens[round(start * size) : round(stop * size)]
        return Batch(tokens, len(tokens)) if len(tokens) else None

    # --------------------------------------------------------------------------------------- loss

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, surprise = self._losses(model, batch, measured=True)
        weight = batch.tokens[:, 1:].numel()
        return loss / weight, {"weight": torch.tensor(weight), "surprise": surprise}

    def loss_alone(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, _ = self._losses(model, batch, measured=False)
        weight = batch.tokens[:, 1:].numel()
        return loss / weight, torch.tensor(weight)

    def _losses(self, model: Any, batch: Batch, measured: bool) -> tuple[Tensor, Tensor]:
        """Sums over the tokens: of the loss, and (if `measured`) of it without label smoothing."""
        targets = batch.tokens[:, 1:]
        adaptive = bool(self.config.model.adaptive_cutoffs)
        with self.autocast():
            hidden = model(batch.tokens[:, :-1])
            output = hidden if adaptive else model.logits(hidden)
        output = output.float() if self.config.autocast else output
        if adaptive:  # beyond autocast: torch's adaptive softmax mixes the types there, and raises
            loss = -model.log_likelihood(output, targets).sum()
            return loss, loss.detach()
        loss = self.token_losses(output, targets)
        return loss, self.surprise(output, targets, loss) if measured else loss.detach()

    # --------------------------------------------------------------------------------- measurement

    def provenance(self) -> dict[str, Any]:
        """The test perplexity of what counts tokens and learns nothing, which is also said."""
        train, test = (self.streams[split].cpu().numpy() for split in ("train", "test"))
        return {"baselines": self.say_baselines(baselines(self.corpus, train, test))}

    @torch.no_grad()
    def measure_text(self, model: nn.Module, lines: Sequence[str]) -> tuple[dict[str, float], int]:
        """Loss and perplexity of a text, and how many tokens of it are predicted.

        Raises:
            UserError: it has fewer than two tokens.
        """
        text = torch.from_numpy(encode(self.vocabulary, lines)).to(self.device)
        if len(text) < 2:
            raise UserError("the text is empty: there is nothing to predict")
        totals: dict[str, float] = {}
        for batch in self.batches_of(text):
            for name, value in self.evaluate(model, batch).items():
                totals[name] = totals.get(name, 0) + value.item()
        return self.summarize(totals), round(totals["weight"])


def stream(flat: numpy.ndarray, lengths: numpy.ndarray) -> numpy.ndarray:
    """Lines as one text: each followed by `END`."""
    return numpy.insert(flat, lengths.cumsum(), END)


def encode(vocabulary: Vocabulary, lines: Sequence[str]) -> numpy.ndarray:
    """The text that lines make."""
    numbers = vocabulary.encode(lines)
    lengths = numpy.array([len(line) for line in numbers], dtype=numpy.int64)
    return stream(numpy.array([n for line in numbers for n in line], numpy.int32), lengths)
