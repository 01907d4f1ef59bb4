"""What the training loop asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.config.experiment import Config
from experiments.config.metrics import Metric
from experiments.errors import UserError
from experiments.runtime import distributed

Batch = Any


class Task(ABC):
    """Data, model and measures of one kind of problem: all that the training loop knows of it.

    What a batch is, only the task knows. Its metrics, and which splits are evaluated, are in its
    subclass of `Config`. Two rules hold for every subclass:

    - The order of the examples and whatever is random in them depend on (seed, epoch, position)
      alone (`experiments.tasks.randomness`), so that a resumed run sees the same batches.
    - Of several processes each gets its shard of a training batch (`distributed.shard`), and other
      batches of an evaluated split than the others (`distributed.rank_batches`).

    Args:
        config: the resolved configuration.
        device: where data and model live.
        data_root: where data sets are looked for and downloaded to.

    Attributes:
        dtype: of weights and real-valued inputs.
        steps_per_epoch: optimizer steps in one pass over the training set; the subclass sets it
            (`count_steps`).

    Raises:
        UserError: the data cannot be had, or the configuration does not fit it.
    """

    steps_per_epoch: int
    unit: ClassVar[str] = "examples"
    """What `weight` counts, in the plural."""
    final_metrics: ClassVar[tuple[str, ...]] = ()
    """Of `metrics`, those that cost too much to be measured after every epoch."""

    def __init__(self, config: Config, device: torch.device, data_root: Path) -> None:
        self.config, self.device, self.dtype = config, device, getattr(torch, config.dtype)
        if config.micro_batches > 1 and type(self).micro_batches is Task.micro_batches:
            raise UserError(
                f"micro_batches = {config.micro_batches}: {config.task} cannot split a batch, set 1"
            )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What `summarize` returns for an evaluated split."""
        return self.config.metrics

    @property
    def headline(self) -> Metric:
        """The metric that reports show and that names the best epoch."""
        return self.config.headline

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The splits evaluated after each epoch."""
        return self.config.evaluation_splits

    # ------------------------------------------------------------------- what a subclass defines

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialized model on the task's device; draws from torch's generator."""

    @abstractmethod
    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on, whatever was drawn before."""

    @abstractmethod
    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """This rank's batches of a split, in a fixed order."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, with its graph, and sums over the batch.

        The sums hold `weight`, how much the batch weighs in a mean over several (images,
        tokens), and whatever `summarize` needs of a training batch. Called again with the same
        batch and weights it must compute the same again.
        """

    # -------------------------------------------------------------------- what it may redefine

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse what would fail only when the run begins; it needs no data.

        Raises:
            UserError: naming the key.
        """
        return None

    @classmethod
    def describe_data(cls, config: Config, data_root: Path) -> dict[str, Any] | None:
        """What the data are: classes, counts, and a hash under `digest`.

        It is part of a run's identity: a run that was begun or finished on other data is refused.
        It must not depend on where the data lie, and be cheap. None: the task does not tell, or
        the data are not there.
        """
        return None

    def check_other(self, config: Config, data_root: Path, known: Any) -> None:
        """Refuse to measure a run's model on these data, where they are not the run's.

        Args:
            config: of the run; that of this task may name another place.
            data_root: where the data of the run are, if they are anywhere.
            known: what `describe_data` said of them; None where nobody knows.

        Raises:
            UserError: the model cannot be measured on them.
        """
        return None

    def micro_batches(self, batch: Batch) -> Sequence[tuple[Batch, float]]:
        """The parts of a batch that are in memory one at a time: `config.micro_batches` of them.

        Each comes with its share of the batch's weight; the shares add up to one.
        """
        return [(batch, 1.0)]

    def part(self, batch: Batch, start: float, stop: float) -> Batch | None:
        """A batch from fraction `start` to fraction `stop`; None where no example is between them.

        For optimizers that take the curvature from a part of the batch.
        """
        raise UserError(
            f"curvature_fraction: {self.config.task} cannot take a part of a batch, set 1.0"
        )

    def loss_alone(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss with its graph, and the weight of the batch.

        What `loss` computes, without what is only measured: a comparison or an argmax of it looks
        like a kink of the loss.
        """
        loss, sums = self.loss(model, batch)
        return loss, torch.as_tensor(sums["weight"])

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over a batch of an evaluated split: those of `loss`, and `loss` times `weight`.

        A task that measures more than its loss tells (a translation, say) redefines this.
        """
        loss, sums = self.loss(model, batch)
        return {**sums, "loss": loss * sums["weight"]}

    def final_is_due(self, epoch: int) -> bool:
        """Whether `final_metrics` are measured after so many epochs: after the last one."""
        return epoch == self.config.epochs

    def measure_final(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over a batch of an evaluated split from which `final_metrics` follow."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """What a session's entry in `meta.json` is to hold of how the task measures."""
        return {}

    def samples(self, model: nn.Module) -> list[dict[str, str]]:
        """What a finished run's model makes of some examples, for reports: texts by heading.

        Called once, by one process, with the weights that were evaluated, in evaluation mode.
        """
        return []

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Metrics by name, from sums over batches.

        Args:
            totals: sums of `evaluate` over a split, from which every metric must follow, those of
                `final_metrics` where sums of `measure_final` are there; or, over a training epoch,
                of `loss` and of `loss` times `weight`: then at least the loss.
        """
        return {"loss": totals["loss"] / totals["weight"]}

    # ------------------------------------------------------------------------ what it can use

    def count_steps(self, examples: int, unit: str) -> int:
        """Optimizer steps in one pass over the training set, the last batch being smaller.

        Args:
            examples: in the training set.
            unit: what they are, in the plural, for the message.

        Raises:
            UserError: there are fewer than a batch, or the last one is too small to be shared.
        """
        size, parts = self.config.batch_size, self.config.micro_batches
        ranks = distributed.world_size()
        if size > examples:
            raise UserError(f"batch_size = {size}: the training set has {examples} {unit}")
        steps = -(-examples // size)
        smallest = examples - (steps - 1) * size
        if smallest < ranks * parts:
            in_parts = f" in {parts} parts" if parts > 1 else ""
            raise UserError(
                f"batch_size = {size}: the last batch of an epoch has {smallest} {unit}, too few "
                f"for {ranks} processes{in_parts}"
            )
        return steps

    def place(self, model: nn.Module) -> nn.Module:
        """A model on the task's device, in its type and memory format."""
        model = model.to(self.device, self.dtype)
        return model.to(memory_format=torch.channels_last) if self.config.channels_last else model

    def autocast(self) -> AbstractContextManager:
        """In which the network computes: `config.autocast`, or as it is."""
        if self.config.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.autocast))
