"""Image classification: batches of normalized images, cross-entropy, accuracy.

The images come from `in_memory` where the whole set fits on the device, else from `folder`.
"""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config import constructors
from experiments.config.constructors import CHANNELS, CLASSES, call, load, names
from experiments.errors import UserError
from experiments.models.convnet import ConvNet
from experiments.models.resnet_cifar import ResNetCifar
from experiments.models.resnet_imagenet import resnet_imagenet
from experiments.runtime import distributed
from experiments.tasks.image_classification import constructed, datasets, listing
from experiments.tasks.image_classification.augmentation import draw_mix
from experiments.tasks.image_classification.config import (
    ConstructedModel,
    ImageClassificationConfig,
)
from experiments.tasks.image_classification.in_memory import ImagesInMemory
from experiments.tasks.task import Task

MODELS = {"resnet": ResNetCifar, "convnet": ConvNet, "imagenet-resnet": resnet_imagenet}


class Data(Protocol):
    """Where images come from.

    Batches are pixels `(n, channels, height, width)`, uint8, from 0 to `white`, and labels `(n,)`,
    int64, on the training device.

    Where images are mixed, those of a training batch are followed by their partners.

    Attributes:
        num_classes: labels are below it.
        in_channels: 3 for colour, 1 for grey images.
        white: the largest value a pixel can have.
        train_size: images in an epoch.
        splits: those that are evaluated, by name.
    """

    num_classes: int
    in_channels: int
    white: int
    train_size: int
    splits: Mapping[str, object]

    def measure(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel of the training images, in [0, 1]."""

    def training_batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches of an epoch from `first_step` on.

        The order and every image's augmentation depend on (seed, epoch, position) alone. Each rank
        gets its shard (`distributed.shard`) of every batch.
        """

    def evaluation_batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's batches of a split, in a fixed order (`distributed.rank_batches`)."""


@dataclass(frozen=True)
class Batch:
    """This rank's shard of a batch.

    Attributes:
        inputs: normalized images `(n, channels, height, width)`.
        labels: `(n,)`.
        whole: images in the whole batch, of all ranks.
        partners: labels `(n,)` of the images that were mixed in; None where none were.
        share: of `labels` beside `partners`.
    """

    inputs: Tensor
    labels: Tensor
    whole: int
    partners: Tensor | None = None
    share: float = 1.0

    def rows(self, rows: slice, whole: int) -> "Batch":
        """Some of its images, as a batch of which there are `whole`."""
        partners = None if self.partners is None else self.partners[rows]
        return Batch(self.inputs[rows], self.labels[rows], whole, partners, self.share)


class ImageClassification(Task):
    """The task behind `task: image_classification`; see `experiments.tasks.task.Task`."""

    unit = "images"
    config: ImageClassificationConfig

    def __init__(
        self, config: ImageClassificationConfig, device: torch.device, data_root: Path
    ) -> None:
        super().__init__(config, device, data_root)
        self.data: Data = _open(config, device, data_root)
        if config.dataset.channels and self.data.in_channels != 1:
            raise UserError(
                f"dataset.channels = {config.dataset.channels}: images of {self.data.in_channels} "
                "channels are not grey, set 0"
            )
        self.in_channels = config.dataset.channels or self.data.in_channels
        self.steps_per_epoch = self.count_steps(self.data.train_size, "images")
        mean, std = (
            torch.tensor(values, device=device, dtype=self.dtype).view(1, -1, 1, 1)
            for values in self._moments()
        )
        self.scale, self.shift = 1 / (self.data.white * std), mean / std
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format

    def _moments(self) -> list[list[float]]:
        """Mean and standard deviation per channel, as configured or else measured."""
        given = (self.config.dataset.mean, self.config.dataset.std)
        measured = (None, None) if all(given) else self.data.measure()
        found = []
        for name, value, other in zip(("mean", "std"), given, measured, strict=True):
            values = value if value is not None else other
            if len(values) != self.data.in_channels:
                raise UserError(
                    f"dataset.{name} = {values}: needs {self.data.in_channels} values, "
                    "one per channel"
                )
            found.append(values)
        if min(found[1]) == 0:
            raise UserError("dataset.std: a channel is the same in all training images; give it")
        return found

    @classmethod
    def describe_data(
        cls, config: ImageClassificationConfig, data_root: Path
    ) -> dict[str, Any] | None:
        settings, root = config.dataset, Path(data_root)
        if settings.in_folder:
            return listing.describe(settings.folder(root))
        if settings.source:
            return constructed.describe(settings, root)
        return datasets.describe(settings.name, root)

    @classmethod
    def check(cls, config: ImageClassificationConfig) -> None:
        if config.dataset.source:
            constructed.check(config.dataset)
        spec = config.model
        if isinstance(spec, ConstructedModel):
            own = constructors.own_name(spec.constructor, spec.name, "model")
            offered = (CLASSES, CHANNELS, *own)
            constructors.check(spec.constructor, spec.arguments, "model", offered)

    def build_model(self) -> nn.Module:
        spec, classes = self.config.model, self.data.num_classes
        if isinstance(spec, ConstructedModel):
            model = self._construct(spec)
        else:
            try:
                model = MODELS[spec.name](spec.depth, classes, self.in_channels)
            except ValueError as error:
                raise UserError(f"model {spec.label}: {error}") from None
        model = self.place(model)
        self._check_smallest(model)
        return model

    def _check_smallest(self, model: nn.Module) -> None:
        """Refuse a network that cannot be trained on one image, where a batch leaves it no more.

        Behind a layer that has shrunk an image to a point, batch normalization has one value then.
        It sees the images of all processes.
        """
        size, parts = self.config.batch_size, self.config.micro_batches
        last = self.data.train_size - (self.steps_per_epoch - 1) * size
        if last // parts > 1:
            return
        image = next(iter(self.training_batches(0, 0))).rows(slice(1), 1)
        try:
            with unchanged(model):
                self._outputs(model.train(), image)
        except ValueError as error:
            raise UserError(
                f"batch_size = {size}: the last batch of an epoch, of {last} images in {parts} "
                f"parts, leaves model {self.config.model.label} a single one, on which it cannot "
                f"be trained: {error}"
            ) from error

    def _construct(self, spec: ConstructedModel) -> nn.Module:
        offered: dict[tuple[str, ...], Any] = {CLASSES: self.data.num_classes}
        offered |= constructors.own_name(spec.constructor, spec.name, "model")
        known, _ = names(load(spec.constructor, "model.constructor"))
        if self.in_channels != 3 or set(known) & set(CHANNELS):
            offered[("in_chans", *CHANNELS)] = self.in_channels  # timm's name where any will do
        model = call(spec.constructor, spec.arguments, "model", offered)
        if not isinstance(model, nn.Module):
            raise UserError(f"model.constructor '{spec.constructor}' returned no torch.nn.Module")
        model = model.to(self.device, self.dtype).eval()
        self._check_logits(model)  # a lazy module has its sizes from this batch
        return model.train()

    def _check_logits(self, model: nn.Module) -> None:
        """Refuse a network whose logits are of another shape, or that cannot take the images."""
        first = next(iter(self.training_batches(0, 0)))
        batch = first.rows(slice(2), 2)
        try:
            logits = self._outputs(model, batch)
            self._check_shape(logits, batch)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            shape = tuple(batch.inputs.shape)
            said = " ".join(str(error).split())
            raise UserError(
                f"model {self.config.model.label} cannot take images of shape {shape}: {said}"
            ) from error
        if bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all()):
            warnings.warn(
                f"model {self.config.model.label} returns probabilities, it seems (they add up to "
                "1), and the loss takes logits: leave the softmax out",
                stacklevel=2,
            )
        # Some return more in training (auxiliary heads). What two images alone cannot do there,
        # such as a batch normalization of parts of the batch, the first step has to show.
        with unchanged(model), suppress(RuntimeError, ValueError, AssertionError, TypeError):
            self._check_shape(self._outputs(model.train(), batch), batch, " in training")

    @torch.no_grad()
    def _outputs(self, model: nn.Module, batch: Batch) -> Any:
        with self.autocast():
            return model(batch.inputs)

    def _check_shape(self, logits: Any, batch: Batch, mode: str = "") -> None:
        expected = (len(batch.labels), self.data.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model {self.config.model.label} returns {found}{mode} for {expected[0]} images "
                f"of {expected[1]} classes, not logits of shape {expected}"
            )

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        size, step, settings = self.config.batch_size, first_step, self.config.augmentation
        for pixels, labels in self.data.training_batches(epoch, first_step):
            whole = min(size, self.data.train_size - step * size)
            batch = Batch(self._normalize(pixels), labels, whole)
            yield self._mixed(batch, epoch, step) if settings.mixes else batch
            step += 1

    def _mixed(self, both: Batch, epoch: int, step: int) -> Batch:
        """The first half of a batch, mixed with the second: its partners."""
        images, partners = both.inputs.chunk(2)
        labels, others = both.labels.chunk(2)
        seed, size = self.config.seed, (images.shape[2], images.shape[3])
        mix = draw_mix(self.config.augmentation, seed, epoch, step, size)
        return Batch(mix(images, partners), labels, both.whole, others, mix.share)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        for pixels, labels in self.data.evaluation_batches(split):
            yield Batch(self._normalize(pixels), labels, len(labels))

    def micro_batches(self, batch: Batch) -> list[tuple[Batch, float]]:
        parts = self.config.micro_batches
        if parts == 1:
            return [(batch, 1.0)]
        wholes = torch.arange(batch.whole).tensor_split(parts)
        found, start = [], 0
        for whole in wholes:
            stop = start + len(distributed.shard(whole))
            part = batch.rows(slice(start, stop), len(whole))
            found.append((part, (stop - start) / len(batch.labels)))
            start = stop
        return found

    def part(self, batch: Batch, start: float, stop: float) -> Batch | None:
        size = len(batch.labels)
        first, last = round(start * size), round(stop * size)
        return batch.rows(slice(first, last), last - first) if last > first else None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self._logits(model, batch)
        best = logits.detach().argmax(1)
        correct = (best == batch.labels).sum()
        if batch.partners is not None:
            correct = batch.share * correct + (1 - batch.share) * (best == batch.partners).sum()
        weight = torch.tensor(len(batch.labels))
        return self._cross_entropy(logits, batch), {"weight": weight, "correct": correct}

    def loss_alone(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = self._cross_entropy(self._logits(model, batch), batch)
        return loss, torch.tensor(len(batch.labels))

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = self._logits(model, batch)
        weight = torch.tensor(len(batch.labels))
        loss = F.cross_entropy(logits, batch.labels) * weight
        return {"weight": weight, "correct": (logits.argmax(1) == batch.labels).sum(), "loss": loss}

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean over the batch, with the training's label smoothing."""
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        if batch.partners is None:
            return loss
        other = F.cross_entropy(logits, batch.partners, label_smoothing=smoothing)
        return batch.share * loss + (1 - batch.share) * other

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.autocast():
            logits = model(batch.inputs)
        return logits.float() if self.config.autocast else logits

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        return {
            **super().summarize(totals),
            "accuracy": totals["correct"] / totals["weight"],
        }

    def _normalize(self, pixels: Tensor) -> Tensor:
        """(pixels / white - mean) / std, in place: a fresh tensor per operation costs more."""
        images = pixels.to(self.dtype, memory_format=self.layout).mul_(self.scale).sub_(self.shift)
        if self.in_channels == images.shape[1]:
            return images
        return images.expand(-1, self.in_channels, -1, -1).contiguous(memory_format=self.layout)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore a model's buffers, and the states of all generators, after a look at the model."""
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    own, numpys = random.getstate(), numpy.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(own)
        numpy.random.set_state(numpys)
        with torch.no_grad():
            for there, name, buffer, before in buffers:
                there[name] = buffer.copy_(before)


def _open(config: ImageClassificationConfig, device: torch.device, data_root: Path) -> Data:
    if config.dataset.in_folder:
        from experiments.tasks.image_classification.folder import ImagesInFolder

        return ImagesInFolder(config, device, data_root)
    return ImagesInMemory(config, device, data_root)
