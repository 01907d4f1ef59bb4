"""Classification of texts: files in GLUE's form, and a network of transformers."""

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.constructors import CLASSES, call
from experiments.errors import UserError, nearest
from experiments.runtime import distributed
from experiments.tasks.randomness import generator
from experiments.tasks.task import Task
from experiments.tasks.text_classification.config import Dataset, TextClassificationConfig

FILES = {"train": "train.tsv", "val": "dev.tsv"}
EVALUATED = 64  # examples of a batch of an evaluated split


@dataclass(frozen=True)
class Batch:
    """Examples of one rank.

    Attributes:
        inputs: of the network, by name, padded to the longest example.
        labels: `(examples,)`, int64.
    """

    inputs: dict[str, Tensor]
    labels: Tensor


class TextClassification(Task):
    """The task behind `task: text_classification`; see `experiments.tasks.task.Task`."""

    config: TextClassificationConfig

    def __init__(
        self, config: TextClassificationConfig, device: torch.device, data_root: Path
    ) -> None:
        super().__init__(config, device, data_root)
        self.folder = Path(data_root or "") / config.model.folder
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"model.folder = {config.model.folder}: {self.folder} has no config.json; put a "
                "pretrained network and its tokenizer there, as `save_pretrained` writes them"
            )
        self.tokenizer = _tokenizer(self.folder)
        rows = {split: read(config.dataset, Path(data_root or ""), split) for split in FILES}
        classes = sorted({label for _, label in rows["train"]})
        self.classes = {name: number for number, name in enumerate(classes)}
        for _, label in rows["val"]:
            if label not in self.classes:
                raise UserError(f"dev.tsv has the class {label!r}, which train.tsv lacks")
        self.splits = {split: self._encode(found) for split, found in rows.items()}
        self.steps_per_epoch = self.count_steps(len(rows["train"]), "examples")

    @classmethod
    def describe_data(
        cls, config: TextClassificationConfig, data_root: Path
    ) -> dict[str, Any] | None:
        digest, counts = hashlib.sha256(), {}
        for split, name in FILES.items():
            path = Path(data_root or "") / config.dataset.folder / name
            if not path.is_file():
                return None
            content = path.read_bytes()
            digest.update(content)
            counts[f"{split} lines"] = content.count(b"\n")
        return {**counts, "digest": digest.hexdigest()[:16]}

    def _encode(self, rows: list[tuple[list[str], str]]) -> tuple[list[dict], Tensor]:
        sides = [list(side) for side in zip(*(texts for texts, _ in rows), strict=True)]
        settings = {"truncation": True, "max_length": self.config.dataset.max_length}
        encoded = self.tokenizer(*sides, **settings)
        examples = [dict(zip(encoded, one, strict=True))
                    for one in zip(*encoded.values(), strict=True)]  # fmt: skip
        return examples, torch.tensor([self.classes[label] for _, label in rows])

    def build_model(self) -> nn.Module:
        spec = self.config.model
        offered: dict[tuple[str, ...], Any] = {
            ("pretrained_model_name_or_path",): str(self.folder),
            ("num_labels", *CLASSES): len(self.classes),
        }
        return self.place(call(spec.constructor, spec.arguments, "model", offered))

    # ------------------------------------------------------------------------------------ batches

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        count = len(self.splits["train"][1])
        order = torch.randperm(count, generator=generator(self.config.seed, epoch, "order"))
        for chosen in order.split(self.config.batch_size)[first_step:]:
            yield self._batch("train", distributed.shard(chosen))

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        numbers = torch.arange(len(self.splits[split][1])).split(EVALUATED)
        return (self._batch(split, chosen) for chosen in distributed.rank_batches(numbers))

    def _batch(self, split: str, chosen: Tensor) -> Batch:
        examples, labels = self.splits[split]
        padded = self.tokenizer.pad([examples[i] for i in chosen.tolist()], return_tensors="pt")
        inputs = {name: tensor.to(self.device) for name, tensor in padded.items()}
        return Batch(inputs, labels[chosen].to(self.device))

    def part(self, batch: Batch, start: float, stop: float) -> Batch | None:
        size = len(batch.labels)
        rows = slice(round(start * size), round(stop * size))
        inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
        return Batch(inputs, batch.labels[rows]) if len(batch.labels[rows]) else None

    # --------------------------------------------------------------------------------------- loss

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self._logits(model, batch)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        return loss, {"weight": torch.tensor(len(batch.labels)), "correct": correct}

    def loss_alone(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(self._logits(model, batch), batch.labels)
        return loss, torch.tensor(len(batch.labels))

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.autocast():
            output = model(**batch.inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        return logits.float() if self.config.autocast else logits

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        return {**super().summarize(totals), "accuracy": totals["correct"] / totals["weight"]}


def read(settings: Dataset, root: Path, split: str) -> list[tuple[list[str], str]]:
    """Texts and class of each line of a split's file.

    Raises:
        UserError: it is missing or no UTF-8, or lacks a column, a value, or any line.
    """
    path = root / settings.folder / FILES[split]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: GLUE's files train.tsv and dev.tsv go there") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not lines:
        raise UserError(f"{path} has no examples")
    columns = [*settings.texts, settings.label]
    for column in columns:
        if column not in lines[0]:
            known = [name for name in lines[0] if name]
            raise UserError(f"{path} has no column '{column}'; {nearest(column, known)}")
    for number, line in enumerate(lines, 2):
        if any(line[column] is None for column in columns):
            raise UserError(f"{path}, line {number}: columns are missing")
    return [([line[name] for name in settings.texts], line[settings.label]) for line in lines]


def _tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise UserError(
            f"text_classification needs {error.name}; `pip install -c constraints.txt -e "
            "'.[transformers]'`"
        ) from None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no tokenizer that can be read: {error}") from None
