"""The curvature at given weights; measuring it changes neither the model nor torch's generators.

Two keys of the configuration ask for it at the end of epochs:

- `curvature_error_every_epochs`: `hessian/relative_error_median`, `hessian/relative_error_largest`
  and `hessian/mean_ratio` of the optimizer's finite difference against double backward.
- `spectrum_every_epochs`: `hessian/top_eigenvalue`, `hessian/top_eigenvalue_2`, ...,
  `hessian/trace` with `hessian/trace_standard_error`, `hessian/smallest_node` of the density, and
  `time/spectrum_seconds`. All of it is in `spectra/epoch-<epoch>.npz` (see `Spectrum.save`); that
  of the initialization, epoch 0, is there only.

The statistics of an optimizer's own products are in `experiments.training.monitor`.
"""

import json
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adahessian import spectrum
from experiments.config.experiment import Config, SpectrumSettings
from experiments.errors import UserError
from experiments.runs import checkpoint
from experiments.runs.storage import replacing, writing
from experiments.runtime import distributed
from experiments.tasks.task import Task
from experiments.training.evaluation import unchanged

Progress = Callable[[int, int], None]


def curvature_error(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor], epoch: int
) -> dict[str, float]:
    """The error of the optimizer's finite difference on the closure's batch, as a row has it.

    The optimizer compares curvature (`optimizers.Capabilities`). What cannot be compared, as a
    loss without a second derivative, is skipped with a warning: it must not end a training.
    """
    try:
        error = optimizer.curvature_error(closure)
    except RuntimeError as error:
        warnings.warn(f"no curvature error after epoch {epoch}: {error}", stacklevel=2)
        return {}
    return {
        "hessian/relative_error_median": error.median,
        "hessian/relative_error_largest": error.largest,
        "hessian/mean_ratio": error.mean_ratio,
    }


# ---------------------------------------------------------------------------------- the spectrum


@dataclass
class Spectrum:
    """The Hessian's spectrum, in units of the loss per squared unit of the parameters."""

    top: spectrum.Eigenpairs
    trace: spectrum.Estimate
    quadrature: spectrum.Quadrature
    grid: Tensor
    density: Tensor
    num_params: int
    num_examples: int
    unit: str
    epoch: int
    settings: SpectrumSettings
    seconds: float

    def save(self, path: Path) -> None:
        """Write everything except the time into an npz file, by rename.

        `eigenvalues` with `residuals` and `converged`, `trace` and `trace_standard_error`, the
        density as `grid` and `density`, the quadrature's `nodes` and `weights` (one row per
        repeat), `epoch`, how many `images` (`tokens`, `examples`), and `settings` (JSON).

        Raises:
            StorageError: it cannot be written.
        """
        import numpy

        arrays = {
            "eigenvalues": self.top.eigenvalues,
            "residuals": self.top.residuals,
            "converged": self.top.converged,
            "trace": torch.tensor(self.trace.value, dtype=torch.float64),
            "trace_standard_error": torch.tensor(self.trace.standard_error, dtype=torch.float64),
            "grid": self.grid,
            "density": self.density,
            "nodes": self.quadrature.nodes,
            "weights": self.quadrature.weights,
            "epoch": torch.tensor(self.epoch),
            self.unit: torch.tensor(self.num_examples),
        }
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            numpy.savez(
                file,
                settings=json.dumps(self.settings.model_dump()),
                **{name: value.numpy() for name, value in arrays.items()},
            )

    def row(self) -> dict[str, float]:
        """Its entries in a row of the metrics."""
        values = {
            "hessian/top_eigenvalue" + (f"_{rank}" if rank > 1 else ""): float(value)
            for rank, value in enumerate(self.top.eigenvalues, 1)
        }
        return {
            **values,
            "hessian/trace": self.trace.value,
            "hessian/trace_standard_error": self.trace.standard_error,
            "hessian/smallest_node": float(self.quadrature.nodes.min()),
            "time/spectrum_seconds": self.seconds,
        }


def compute_spectrum(
    task: Task,
    model: nn.Module,
    epoch: int,
    settings: SpectrumSettings,
    progress: Callable[[str], Progress] = lambda part: lambda done, total: None,
) -> Spectrum:
    """The spectrum of the mean loss over the first batches of a run's first epoch.

    They are shuffled and augmented as in training, so they are the same for every call. The model,
    its mode and torch's generators are left as they were.

    Args:
        task: gives batches and loss.
        model: as it is after `epoch` epochs.
        epoch: recorded with the result.
        settings: what to compute, and how.
        progress: makes the callbacks for `"trace"`, `"density"` and `"eigenvalues"`.

    Raises:
        UserError: more eigenvalues are asked for than the model has parameters.
        RuntimeError: a product is not finite.
    """
    batches = first_batches(task, model, 0, settings.batches)
    sample = [part for batch in batches for part, _ in task.micro_batches(batch)]
    weights: dict[int, float] = {}

    def loss(batch: Any) -> Tensor:
        value, sums = task.loss(model, batch)
        weights[id(batch)] = float(sums["weight"])
        return value

    hessian = spectrum.Hessian(
        loss,
        model,
        sample,
        curvature=settings.curvature,
        weight=lambda batch: weights[id(batch)],
        keep_batches=settings.keep_batches,
        process_group=distributed.world_group(),  # each has a shard of every batch
    )
    if settings.k > hessian.size:
        raise UserError(
            f"k = {settings.k} for the spectrum: the model has {hessian.size} parameters"
        )
    shared = {"seed": settings.seed, "on_host": settings.on_host}
    start = time.perf_counter()
    with _in_mode(model, settings.mode), _seeded(settings.seed):
        trace = spectrum.trace(
            hessian, settings.trace_matvecs, progress=progress("trace"), **shared
        )
        quadrature = spectrum.lanczos_quadrature(
            hessian,
            settings.num_lanczos_steps,
            settings.num_repeats,
            progress=progress("density"),
            **shared,
        )
        with warnings.catch_warnings():  # `converged` says which did not
            warnings.filterwarnings("ignore", "after .* products", RuntimeWarning)
            top = spectrum.top_eigenvalues(
                hessian,
                settings.k,
                max_matvecs=max(settings.max_matvecs, settings.k),
                progress=progress("eigenvalues"),
                **shared,
            )
    seconds = time.perf_counter() - start
    count = round(distributed.sum_over_ranks({"weight": sum(weights.values())})["weight"])
    grid, density = spectrum.smooth(quadrature)
    return Spectrum(
        top,
        trace,
        quadrature,
        grid,
        density,
        hessian.size,
        count,
        task.unit,
        epoch,
        settings,
        seconds,
    )


def first_batches(task: Task, model: nn.Module, epoch: int, number: int) -> list[Any]:
    """The first batches of an epoch, to be measured.

    Making them may change the model (a replay buffer, a slow copy of a network) and draw from
    torch's generators; it is all put back.
    """
    with unchanged(model), _seeded(0):
        return list(islice(task.training_batches(epoch, 0), number))


def record_spectrum(
    config: Config, directory: Path, task: Task, model: nn.Module, epoch: int
) -> dict[str, float]:
    """Compute the spectrum if it is due after `epoch` epochs, and write it into `spectra/`.

    A spectrum that cannot be computed is skipped with a warning: it must not end a training.

    Returns:
        Its entries in the epoch's row.
    """
    every = config.spectrum_every_epochs
    if not every or epoch % every:
        return {}
    try:
        found = compute_spectrum(task, model, epoch, config.spectrum)
    except RuntimeError as error:  # not finite, or out of memory
        warnings.warn(f"no spectrum after epoch {epoch}: {error}", stacklevel=2)
        return {}
    if distributed.is_main():
        found.save(directory / "spectra" / f"epoch-{epoch:04d}.npz")
    return found.row()


@contextmanager
def _in_mode(model: nn.Module, mode: str):
    before = {module: module.training for module in model.modules()}
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _seeded(seed: int):
    """Draw dropout's masks, where there are any, from `seed`."""
    before = checkpoint.random_state()
    checkpoint.seed_generators(seed)
    try:
        yield
    finally:
        checkpoint.restore_random_state(before)
