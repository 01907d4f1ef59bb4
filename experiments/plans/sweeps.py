"""Sweeps: many runs of one experiment, described in a file below `configs/sweeps/`.

    config: ../digits/resnet20.yaml    # relative to the sweep's file
    seeds: 1-3                         # or a list; every combination is run with each
    set: {epochs: 30}                  # the same in all runs
    grid: {optimizer: [sgd, adahessian], optimizer.lr: [0.05, 0.15]}  # every combination
    zip: {batch_size: [64, 128], optimizer.weight_decay: [1e-4, 5e-4]}  # first with first, ...
    list: [{model.depth: 8}, {model.depth: 14, epochs: 60}]             # one after the other
    search: {trials: 8, space: {optimizer.lr: {log_uniform: [0.01, 1]}}}  # points of a space

Keys are those of the command line: `optimizer`, and any `key.path` of the configuration;
`optimizer.KEY` means that key of whichever optimizer the run has. `grid`, `zip`, `list` and
`search` (`experiments.plans.search`) multiply. `expand` says which runs there are; the state of
each, `experiments.runs.states` tells.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from experiments.config.sections import Section, validate
from experiments.errors import UserError, nearest
from experiments.plans.brackets import Bracket, halved
from experiments.plans.load import find_file, load_one, read_document, resolve
from experiments.plans.planned_run import PlannedRun, each_once
from experiments.plans.search import Search
from experiments.plans.settings import Choice, Seeds, all_seeds, overlap

FOLDER = Path(__file__).parents[2] / "configs" / "sweeps"


class Sweep(Section):
    """What a sweep's file holds."""

    config: str
    seeds: Seeds = [1]
    set: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    zip: dict[str, list[Any]] = {}
    list: Sequence[dict[str, Any]] = []
    search: Search | None = None

    @model_validator(mode="after")
    def _check(self) -> "Sweep":
        if len({len(values) for values in self.zip.values()}) > 1:
            lengths = ", ".join(f"{key} {len(values)}" for key, values in self.zip.items())
            raise ValueError(f"zip pairs lists of one length, not {lengths}")
        for key, values in {**self.grid, **self.zip}.items():
            if not values:
                raise ValueError(f"{key}: the list is empty")
        of_list = list(dict.fromkeys(key for entry in self.list for key in entry))
        once = [*self.grid, *self.zip, *(self.search.space if self.search else ())]
        pairs = [*itertools.combinations(once, 2), *itertools.product(once, of_list)]
        for first, second in pairs:
            if overlap(first, second):
                raise ValueError(f"{first} and {second} vary the same value")
        for settings in [self.set, *self.combinations()]:
            if "seed" in settings:
                raise ValueError("seed belongs to `seeds`, at the top of the file")
        if self.seeds == []:
            raise ValueError("seeds: the list is empty, so there would be no run; leave it out")
        return self

    def combinations(self) -> "list[dict[str, Any]]":
        """What varies, one entry per configuration."""
        grid = [dict(zip(self.grid, values, strict=True))
                for values in itertools.product(*self.grid.values())]  # fmt: skip
        paired = [dict(zip(self.zip, values, strict=True))
                  for values in zip(*self.zip.values(), strict=True)] or [{}]  # fmt: skip
        points = self.search.points() if self.search else [{}]
        return [
            {**a, **b, **c, **d}
            for a in grid for b in paired for c in self.list or [{}] for d in points
        ]  # fmt: skip


def find(name: str) -> Path:
    """The file of a sweep by its path, or by its name below `configs/sweeps/`.

    Raises:
        UserError: there is no such file, or it is no sweep.
    """
    path = find_file(name, FOLDER, "sweep")
    document = read_document(path)
    if not isinstance(document, dict) or "config" not in document:
        raise UserError(f"{path} is no sweep: it has no `config`")
    return path


def read(path: str | Path) -> Sweep:
    """The content of a sweep's file.

    Raises:
        UserError: naming the file and the key that is wrong.
    """
    return validate(Sweep, read_document(path, "sweep file"), Path(path))


def expand(path: str | Path) -> list[PlannedRun]:
    """All runs of a sweep's file, in its order, seeds innermost; the same run never twice.

    Raises:
        UserError: naming the file and the key, or the combination, that is wrong.
    """
    return runs_of(read(path), Path(path))


def runs_of(sweep: Sweep, path: Path, choice: Choice | None = None) -> list[PlannedRun]:
    """All runs of a sweep that stands in a file, or those that a command line chooses.

    Raises:
        UserError: naming the file and the combination that is wrong.
    """
    choice = choice or Choice()
    seeds = all_seeds(sweep.seeds, path)
    runs = []
    for settings in _chosen(sweep, choice.optimizers):
        try:
            changes = {**sweep.set, **settings, **choice.overrides}
            config = load_one(path.parent / sweep.config, changes.pop("optimizer", None), changes)
        except UserError as error:
            raise UserError(f"{path}, at {settings}: {error}") from None
        for seed in choice.seeds or seeds:
            one = resolve(config, config.optimizer_name, seed)
            runs.append(PlannedRun(one, {**settings, "seed": seed}, path))
    return each_once(runs)


def brackets(sweep: Sweep, path: Path, choice: Choice | None = None) -> list[Bracket]:
    """The same runs by what compares them: the points of the search, everything else equal.

    A point counts by its mean over the seeds, of the headline metric on the split that names the
    best epoch.

    Raises:
        UserError: as `runs_of`, or a part of what is compared is chosen.
    """
    runs = runs_of(sweep, path, choice)
    if sweep.search is None or sweep.search.halving is None:
        return [Bracket([runs])]
    space = sweep.search.space
    if choice and choice.seeds:
        raise UserError(f"seed cannot be set for {path}: halving compares means over its seeds")
    if choice and choice.optimizers and "optimizer" in space:
        raise UserError(f"optimizer cannot be set for {path}: halving compares its optimizers")
    found: dict[str, dict[str, list[PlannedRun]]] = {}
    for run in runs:
        point = {key: value for key, value in run.settings.items() if key in space}
        rest = {k: v for k, v in run.settings.items() if k not in (*space, "seed")}
        found.setdefault(str(rest), {}).setdefault(str(point), []).append(run)
    return [
        halved(list(trials.values()), sweep.search.halving, f"{path}, search at {rest}")
        for rest, trials in found.items()
    ]


def select_from(sweeps: Sequence[Sweep], path: Path, choice: Choice) -> list[Bracket]:
    """The runs of the sweeps of one file that a command line chooses, by what compares them.

    Raises:
        UserError: it sets what the file varies, or wants an optimizer that no run has.
    """
    varied = {key for sweep in sweeps for settings in sweep.combinations() for key in settings}
    for key in choice.overrides:
        if any(overlap(key, other) for other in varied):
            raise UserError(f"{key} cannot be set for {path}, which varies it: edit the file")
    if choice.optimizers:
        named = {s["optimizer"] for sweep in sweeps for s in _settings(sweep) if "optimizer" in s}
        for name in choice.optimizers:
            if named and name not in named:
                raise UserError(f"{path} has no run of '{name}'; {nearest(name, sorted(named))}")
    return [one for sweep in sweeps for one in brackets(sweep, path, choice)]


def _settings(sweep: Sweep) -> list[dict[str, Any]]:
    return [{**sweep.set, **settings} for settings in sweep.combinations()]


def _chosen(sweep: Sweep, optimizers: Sequence[str] | None) -> Iterable[dict[str, Any]]:
    """The combinations with these optimizers: chosen among, where the sweep names its own."""
    for settings in sweep.combinations():
        name = settings.get("optimizer", sweep.set.get("optimizer"))
        if not optimizers or name in optimizers:
            yield settings
        elif name is None:
            yield from ({"optimizer": one, **settings} for one in optimizers)
