"""The Hessian's spectrum of a run: `python -m experiments.spectrum [RUN_DIR] [key=value ...]`.

Without RUN_DIR it takes the newest finished run below `RUNS_ROOT`. It loads the run's checkpoint
and looks at the loss over the first batches of its first epoch, shuffled and augmented as in
training, so that the same examples are seen whenever it is asked. It prints the top eigenvalues
and the trace with their errors, and writes into the run's directory:

- `spectrum.npz`: the numbers, see `experiments.training.curvature.Spectrum.save`.
- `spectrum.png`: the density, and how many eigenvalues are how large.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from experiments import cli
from experiments.config.experiment import SpectrumSettings
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError
from experiments.plots.spectrum import SpectrumPlot, draw
from experiments.reports.render import terminal
from experiments.reports.sections import Grid, Section, Text
from experiments.runtime.progress import Progress
from experiments.training.curvature import Spectrum, compute_spectrum
from experiments.training.restore import find_run, name_of, restore


class Settings(SpectrumSettings):
    """What can be set on the command line."""

    device: Literal["auto", "cpu", "cuda"] = "auto"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    defaults = ", ".join(f"{key}={value}" for key, value in Settings().model_dump().items())
    parser = argparse.ArgumentParser(
        prog="python -m experiments.spectrum",
        description="Top eigenvalues, trace and density of the Hessian at a run's checkpoint.",
        epilog=f"settings and their defaults: {defaults}",
    )
    parser.add_argument("words", nargs="*", metavar="RUN_DIR | key=value")
    said = "interrupted; nothing was written"
    return cli.execute(parser, lambda parsed: _spectrum(parsed.words), arguments, said)


def _spectrum(words: Sequence[str]) -> None:
    settings = read_settings([word for word in words if "=" in word])
    directory = find_run([word for word in words if "=" not in word])
    result = compute(directory, settings)
    write(directory, result)


def read_settings(words: Sequence[str]) -> Settings:
    """Settings from `key=value`, the value in YAML.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    values = dict(word.split("=", 1) for word in words)
    try:
        return Settings.model_validate({key: read_yaml(text) for key, text in values.items()})
    except ValidationError as error:
        found = [
            f"{'.'.join(map(str, item['loc']))} = {item['input']!r}: {item['msg']}"
            if item["loc"]
            else item["msg"]
            for item in error.errors()
        ]
        raise UserError("\n  ".join(found)) from None


# ---------------------------------------------------------------------------------- computation


def compute(directory: Path, settings: Settings) -> Spectrum:
    """Compute the spectrum at a run's checkpoint, showing progress.

    Raises:
        UserError: a checkpoint that is missing or damaged, or settings that do not fit the run.
    """
    task, model, epoch = restore(directory, settings.device)
    with Meter(name_of(directory), settings) as meter:
        return compute_spectrum(task, model, epoch, settings, meter.part)


class Meter:
    """Shows the progress over all products, and the time that is left.

    How many products the eigenvalues take is not known beforehand: it is guessed.
    """

    def __init__(self, label: str, settings: Settings) -> None:
        guess = min(settings.max_matvecs, 15 + 5 * settings.k)
        density = settings.num_lanczos_steps * settings.num_repeats
        self.total = settings.trace_matvecs + density + guess
        self.progress = Progress(label, self.total)
        self.done, self.start = 0, time.perf_counter()

    def __enter__(self) -> "Meter":
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

    def part(self, name: str) -> Callable[[int, int], None]:
        """A callback for one of the computations."""

        def product_done(done: int, total: int) -> None:
            self.done += 1
            left = max(self.total - self.done, 1)
            seconds = left * (time.perf_counter() - self.start) / self.done
            self.progress.step(min(self.done, self.total))
            self.progress.note(f"{name}: product {done}, about {seconds:.0f} s left in all")

        return product_done


# --------------------------------------------------------------------------------------- output


def write(directory: Path, result: Spectrum) -> None:
    """Print the figures; write them and the picture into the run's directory."""
    numbers, picture = directory / "spectrum.npz", directory / "spectrum.png"
    result.save(numbers)
    draw(plot(name_of(directory), result), picture)
    console = terminal.make_console()
    terminal.show(section(result), console)
    console.print(f"numbers: {numbers}\npicture: {picture}", soft_wrap=True)


def plot(name: str, result: Spectrum) -> SpectrumPlot:
    """What is drawn of a spectrum."""
    return SpectrumPlot(
        f"{name}\nafter epoch {result.epoch}, {_describe(result)}",
        result.grid.numpy(),
        result.density.numpy(),
        result.top.eigenvalues.numpy(),
        result.quadrature.nodes.numpy(),
        result.quadrature.weights.numpy(),
        result.num_params,
    )


def section(result: Spectrum) -> Section:
    """What is printed of a spectrum."""
    top = result.top
    rows = [
        [f"{value:.6g}", f"{residual:.1g}{'' if converged else ' (not converged)'}"]
        for value, residual, converged in zip(
            top.eigenvalues, top.residuals, top.converged, strict=True
        )
    ]
    lines = []
    if not top.converged.all():
        lines.append(f"after {result.settings.max_matvecs} products; max_matvecs=N allows more")
    lines.append(f"trace {result.trace.value:.6g} ± {result.trace.standard_error:.2g}")
    smallest = float(result.quadrature.nodes.min())
    lines.append(f"smallest node of the density {smallest:.4g}")
    title = f"Hessian of the training loss after epoch {result.epoch}"
    grid = Grid("", ("largest eigenvalues", "residual"), rows)
    return Section(title, [Text(_describe(result)), grid, Text("\n".join(lines), "lines")])


def _describe(result: Spectrum) -> str:
    return (
        f"{result.num_params} parameters, {result.num_examples} {result.unit}, "
        f"{result.settings.mode} mode, {result.seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
