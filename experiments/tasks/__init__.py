"""What the training loop asks of a task. Each module here is one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Any


class Task(Protocol):
    """Data, model and measure of one kind of problem.

    The training loop knows nothing else about it: what a batch is, only the task knows.

    Attributes:
        metrics: each metric that `summarize` returns, with its direction, `"min"` or `"max"`.
        headline: the metric that reports show and that names the best epoch.
        evaluation_splits: splits evaluated after each epoch: `("test",)` or `("val", "test")`.
        steps_per_epoch: optimizer steps in one pass over the training set.
    """

    metrics: Mapping[str, str]
    headline: str
    evaluation_splits: tuple[str, ...]
    steps_per_epoch: int

    def build_model(self) -> nn.Module:
        """A freshly initialized model on the task's device; draws from torch's generator."""

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on, whatever was drawn before."""

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """The batches of a split, in a fixed order; of several processes each gets other ones."""

    def micro_batches(self, batch: Batch) -> Sequence[tuple[Batch, float]]:
        """The parts of a batch that are to be in memory one at a time, often one: the batch itself.

        Each with its share of the batch's weight; the shares add up to one.
        """

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, with its graph, and sums over the batch.

        The sums hold `weight`, how much the batch weighs in a mean over several (images,
        tokens), and whatever `summarize` needs. Calling it again with the same batch must
        compute the same again.
        """

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Metrics from sums over batches: those of `loss` and `loss` itself times `weight`."""
