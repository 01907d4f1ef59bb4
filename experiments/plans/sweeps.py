"""Sweeps: many runs of one experiment, described in a file below `configs/sweeps/`.

    config: ../digits/resnet20.yaml    # relative to the sweep's file
    seeds: 1-3                         # or a list; every combination is run with each
    set: {epochs: 30}                  # the same in all runs
    grid: {optimizer: [sgd, adahessian], optimizer.lr: [0.05, 0.15]}  # every combination
    zip: {batch_size: [64, 128], optimizer.weight_decay: [1e-4, 5e-4]}  # first with first, ...
    list: [{model.depth: 8}, {model.depth: 14, epochs: 60}]             # one after the other

Keys are those of the command line: `optimizer`, and any `key.path` of the configuration;
`optimizer.KEY` means that key of whichever optimizer the run has. `grid`, `zip` and `list`
multiply. `expand` says which runs there are; how each is, `experiments.runs.states` tells.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from experiments.config.experiment import Config
from experiments.config.sections import NotNegative, Section, validate
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError, nearest
from experiments.plans.load import load, resolve
from experiments.runs.directory import RunDirectory
from experiments.runs.states import State, read_state
from experiments.runtime.paths import runs_root

FOLDER = Path(__file__).parents[2] / "configs" / "sweeps"


class Sweep(Section):
    """What a sweep's file holds."""

    config: str
    seeds: str | list[NotNegative] = [1]
    set: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    zip: dict[str, list[Any]] = {}
    list: Sequence[dict[str, Any]] = []

    @model_validator(mode="after")
    def _check(self) -> "Sweep":
        if len({len(values) for values in self.zip.values()}) > 1:
            lengths = ", ".join(f"{key} {len(values)}" for key, values in self.zip.items())
            raise ValueError(f"zip pairs lists of one length, not {lengths}")
        for key, values in {**self.grid, **self.zip}.items():
            if not values:
                raise ValueError(f"{key}: the list is empty")
        return self


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        config: resolved, what it trains.
        settings: the swept keys with their values, as in the file, `seed` among them.
        overrides: what turns the sweep's configuration file into `config`, besides optimizer
            and seed.
        directory: where it is recorded, whether it was begun or not.
    """

    config: Config
    settings: dict[str, Any]
    overrides: tuple[str, ...]
    directory: RunDirectory

    @property
    def state(self) -> State:
        return read_state(self.directory.path)[0]


def is_sweep(path: str | Path) -> bool:
    """Whether a YAML file is a sweep rather than an experiment."""
    path = Path(path)
    document = read_yaml(path.read_text()) if path.is_file() else None
    return isinstance(document, dict) and "config" in document


def find(name: str) -> Path:
    """The file of a sweep by its path, or by its name below `configs/sweeps/`.

    Raises:
        UserError: there is no such file, or it is no sweep.
    """
    files = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = files.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"no sweep '{name}', neither a file nor below {FOLDER.name}/; "
                        + nearest(name, files))  # fmt: skip
    if not is_sweep(path):
        raise UserError(f"{path} is no sweep: it has no `config`")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def expand(path: str | Path, root: Path | None = None) -> list[Run]:
    """All runs of a sweep's file, in its order, seeds innermost; the same run never twice.

    Args:
        path: the sweep's file.
        root: where runs live; `RUNS_ROOT`, or else `runs`, by default.

    Raises:
        UserError: naming the file and the key, or the combination, that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no sweep file {path}")
    return runs_of(validate(Sweep, read_yaml(path.read_text()), path), path, root)


def runs_of(sweep: Sweep, path: Path, root: Path | None = None) -> list[Run]:
    """All runs of a sweep that stands in a file; see `expand`."""
    root = root or runs_root()
    seeds = parse_seeds(sweep.seeds) if isinstance(sweep.seeds, str) else sweep.seeds
    runs: dict[Path, Run] = {}
    for settings in combinations(sweep):
        try:
            config, overrides = _apply(path.parent / sweep.config, {**sweep.set, **settings})
            for seed in seeds:
                one = resolve(config, next(iter(config.optimizers)), seed)
                directory = RunDirectory(root, one)
                run = Run(one, {**settings, "seed": seed}, overrides, directory)
                runs.setdefault(directory.path, run)
        except UserError as error:
            raise UserError(f"{path}, at {settings}: {error}") from None
    return list(runs.values())


def combinations(sweep: Sweep) -> list[dict[str, Any]]:
    """The settings of a sweep, one per configuration."""
    grid = [dict(zip(sweep.grid, values, strict=True))
            for values in itertools.product(*sweep.grid.values())]  # fmt: skip
    paired = [dict(zip(sweep.zip, values, strict=True))
              for values in zip(*sweep.zip.values(), strict=True)] or [{}]  # fmt: skip
    return [{**a, **b, **c} for a in grid for b in paired for c in sweep.list or [{}]]


def _apply(path: Path, settings: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    settings = dict(settings)
    experiment = load(path)
    if "seed" in settings:
        raise UserError("seed belongs to `seeds`, at the top of the file")
    name = settings.pop("optimizer", None)
    if name is None:
        if len(experiment.optimizers) > 1:
            raise UserError(f"which optimizer? one of {', '.join(experiment.optimizers)}")
        name = next(iter(experiment.optimizers))
    overrides = tuple(
        f"{re.sub(r'^optimizer[.]', f'optimizers.{name}.', key)}={json.dumps(value)}"
        for key, value in settings.items()
    )
    return resolve(load(path, overrides), name, experiment.seed), overrides


def parse_seeds(text: str) -> list[int]:
    """Seeds as people write them: `1-5`, `1,2,7`, `1-3,10`.

    Raises:
        UserError: it is nothing of the kind.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not found:
            raise UserError(f"seeds = '{text}': write 1-5 or 1,2,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"seeds = '{text}': {last} is below {first}")
        seeds += range(first, last + 1)
    return seeds
