"""Translation: packs of sentence pairs, label smoothing, BLEU of beam search."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from experiments.errors import UserError
from experiments.models.beam_search import beam_search
from experiments.models.text_transformer import EncoderDecoder
from experiments.runtime import distributed
from experiments.tasks.text.packs import Sentences, make_packs
from experiments.tasks.text.task import TextTask
from experiments.tasks.text.vocabulary import BEGIN, END, PAD
from experiments.tasks.translation.baselines import baselines
from experiments.tasks.translation.bleu import Bleu, has_counts
from experiments.tasks.translation.config import TranslationConfig

SAMPLES = 8  # translations that a finished run keeps


@dataclass(frozen=True)
class Pack:
    """Pairs of one rank.

    Attributes:
        sentences: their numbers in the split.
        source: `(sentences, length)`, each with `END`, padded with `PAD`.
        target: the same, and each begins with `BEGIN`.
        tokens: that are predicted: those of the target and their `END`.
    """

    sentences: numpy.ndarray
    source: Tensor
    target: Tensor
    tokens: int


@dataclass(frozen=True)
class Batch:
    """The packs of a step, or one of an evaluated split."""

    split: str
    packs: tuple[Pack, ...]

    @property
    def tokens(self) -> int:
        return sum(pack.tokens for pack in self.packs)


class Translation(TextTask):
    """The task behind `task: translation`; see `experiments.tasks.task.Task`."""

    config: TranslationConfig
    final_metrics = ("bleu",)

    def __init__(self, config: TranslationConfig, device: torch.device, data_root: Path) -> None:
        super().__init__(config, device, data_root)
        self.bleu = Bleu(config.decoding.tokenize, config.decoding.lowercase)
        self.sides: dict[str, tuple[Sentences, Sentences]] = {}
        self.packs: dict[str, list[numpy.ndarray]] = {}
        self._references: dict[str, list[str]] = {}
        for split in ("train", *self.evaluation_splits):
            source, target = (
                Sentences(*self.corpus.tokens(split, language), device)
                for language in (config.dataset.source, config.dataset.target)
            )
            lengths = numpy.stack([source.lengths, target.lengths], 1) + 1  # END is one, too
            self.sides[split] = source, target
            self.packs[split] = make_packs(lengths, config.dataset.max_tokens)
        smallest = min(map(len, self.packs["train"]))
        if smallest < distributed.world_size():
            raise UserError(
                f"dataset.max_tokens = {config.dataset.max_tokens}: a pack has {smallest} "
                f"sentences, too few for {distributed.world_size()} processes"
            )
        target = self.sides["train"][1]
        if config.batch_size > len(self.packs["train"]):
            raise UserError(
                f"batch_size = {config.batch_size}: the training set has "
                f"{len(self.packs['train'])} packs of dataset.max_tokens = "
                f"{config.dataset.max_tokens}"
            )
        self.set_steps(
            -(-len(self.packs["train"]) // config.batch_size),
            int(target.lengths.sum()) + len(target),
        )

    @classmethod
    def languages(cls, config: Any) -> tuple[str, ...]:
        return config.dataset.source, config.dataset.target

    def build_model(self) -> nn.Module:
        settings = self.config.model
        layers = settings.encoder_layers, settings.decoder_layers
        return self.place(EncoderDecoder(self.vocabulary.size, self.size, *layers, pad=PAD))

    # ------------------------------------------------------------------------------------ batches

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        packs = self.packs["train"]
        for chosen in self.chosen(epoch, first_step, len(packs)):
            mine = [packs[number][_shard(len(packs[number]))] for number in chosen.tolist()]
            yield Batch("train", tuple(self._pack("train", sentences) for sentences in mine))

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        for sentences in distributed.rank_batches(self.packs[split]):
            yield Batch(split, (self._pack(split, sentences),))

    def _pack(self, split: str, sentences: numpy.ndarray) -> Pack:
        source, target = self.sides[split]
        return Pack(
            sentences,
            source.rows(sentences, PAD, after=(END,)),
            target.rows(sentences, PAD, before=(BEGIN,), after=(END,)),
            int(target.lengths[sentences].sum()) + len(sentences),
        )

    def micro_batches(self, batch: Batch) -> Sequence[tuple[Batch, float]]:
        parts = min(self.config.micro_batches, len(batch.packs))
        if parts == 1:
            return [(batch, 1.0)]
        groups = [
            Batch(batch.split, tuple(batch.packs[i] for i in numbers))
            for numbers in torch.arange(len(batch.packs)).tensor_split(parts)
        ]
        return [(group, group.tokens / batch.tokens) for group in groups]

    def part(self, batch: Batch, start: float, stop: float) -> Batch | None:
        packs = []
        for pack in batch.packs:
            size = len(pack.sentences)
            rows = slice(round(start * size), round(stop * size))
            if len(sentences := pack.sentences[rows]):
                packs.append(self._pack(batch.split, sentences))
        return Batch(batch.split, tuple(packs)) if packs else None

    # --------------------------------------------------------------------------------------- loss

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, surprise = None, None
        for pack in batch.packs:
            logits, targets = self._logits(model, pack)
            loss = self.token_losses(logits, targets)
            plain = self.surprise(logits, targets, loss)
            total = loss if total is None else total + loss
            surprise = plain if surprise is None else surprise + plain
        assert total is not None and surprise is not None
        return total / batch.tokens, {"weight": torch.tensor(batch.tokens), "surprise": surprise}

    def loss_alone(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = [self.token_losses(*self._logits(model, pack)) for pack in batch.packs]
        return torch.stack(losses).sum() / batch.tokens, torch.tensor(batch.tokens)

    def _logits(self, model: nn.Module, pack: Pack) -> tuple[Tensor, Tensor]:
        """Logits and what they are for."""
        with self.autocast():
            logits = model(pack.source, pack.target[:, :-1])
        return (logits.float() if self.config.autocast else logits), pack.target[:, 1:]

    # --------------------------------------------------------------------------------- measurement

    def final_is_due(self, epoch: int) -> bool:
        every = self.config.decoding.every_epochs
        return super().final_is_due(epoch) or bool(every) and epoch % every == 0

    def measure_final(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        (pack,) = batch.packs
        target = self.references(batch.split)
        outputs = self.translate_tokens(model, pack.source)
        counts = self.bleu.counts(outputs, [target[number] for number in pack.sentences])
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in counts.items()}

    def references(self, split: str) -> list[str]:
        """The translations that a split holds, as BLEU compares with them."""
        if split not in self._references:
            texts = self.corpus.texts(split, self.config.dataset.target)
            self._references[split] = [self.corpus.plain(text) for text in texts]
        return self._references[split]

    def translate_tokens(self, model: Any, source: Tensor) -> list[str]:
        """The translations of padded sources `(sentences, length)` by the configured search."""
        settings = self.config.decoding
        with self.autocast():
            outputs, _ = beam_search(
                model,
                source,
                beam=settings.beam,
                max_length=settings.max_length,
                length_penalty=settings.length_penalty,
                begin=BEGIN,
                end=END,
                never=(PAD,),
            )
        return [self.vocabulary.decode(output) for output in outputs]

    def translate(self, model: nn.Module, lines: Sequence[str]) -> list[str]:
        """The translations of texts, in their order; the model is in evaluation mode.

        That of a text without tokens is empty: a model would invent one.

        Raises:
            UserError: a text is longer than any that was trained on, and than memory may last.
        """
        numbers = self.vocabulary.encode(lines)
        lengths = numpy.array([len(line) for line in numbers], dtype=numpy.int64)
        flat = numpy.array([n for line in numbers for n in line], dtype=numpy.int32)
        sentences = Sentences(flat, lengths, self.device)
        budget = self.config.dataset.max_tokens
        if (longest := int(lengths.max(initial=0)) + 1) > budget:
            text = int(lengths.argmax())
            raise UserError(
                f"text {text + 1}, '{lines[text][:30]}...', has {longest} tokens, and no training "
                f"sentence had more than dataset.max_tokens = {budget}: split it into sentences"
            )
        found, told = [""] * len(lines), lengths.nonzero()[0]
        for pack in (told[pack] for pack in make_packs(lengths[told, None] + 1, budget)):
            source = sentences.rows(pack, PAD, after=(END,))
            for number, text in zip(pack, self.translate_tokens(model, source), strict=True):
                found[number] = text
        return found

    def provenance(self) -> dict[str, Any]:
        """sacreBLEU's signature, and the test BLEU of what learns nothing, which is also said."""
        found = self.say_baselines(baselines(self.corpus, self.bleu))
        return {"bleu_signature": self.bleu.signature, "baselines": found}

    def samples(self, model: nn.Module) -> list[dict[str, str]]:
        """Some sentences of the test set, from its beginning to its end, and their translations."""
        sources = self.corpus.texts("test", self.config.dataset.source)
        chosen = numpy.linspace(0, len(sources) - 1, min(SAMPLES, len(sources))).round().astype(int)
        outputs = self.translate(model, [sources[number] for number in chosen])
        return [
            {"source": self.corpus.plain(sources[number]), "translation": output,
             "reference": self.references("test")[number]}
            for number, output in zip(chosen, outputs, strict=True)
        ]  # fmt: skip

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        measured = super().summarize(totals)
        if has_counts(totals):
            measured["bleu"] = self.bleu.score(totals)
        return measured


def _shard(size: int) -> numpy.ndarray:
    """Which rows of a pack are this rank's."""
    return distributed.shard(torch.arange(size)).numpy()
