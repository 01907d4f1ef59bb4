"""Benchmarks of optimizers: equal tuning, time to a target; a file below `configs/benchmarks/`.

    config: ../digits/resnet20.yaml      # the workload: data, model, epochs; relative to the file
    set: {epochs: 20}                    # the same in all runs
    target: {metric: test/METRIC, value: 0.9}   # as recorded, fixed before anything is run
    trials: 5                            # points of its space that each row may try in a study
    studies: 3                           # repetitions with other points and another seed
    halving: {first: 2, factor: 3}       # optional: hopeless trials stop early, see `Halving`
    rows:
      sgd:
        constructor: torch.optim.SGD     # as in a configuration, all keys
        momentum: 0.9
        weight_decay_divided_by_lr: false
        search:                          # as in a sweep's `search.space`
          lr: {log_uniform: [0.01, 1]}
          weight_decay: {choices: [0, 5e-4]}

A trial is a run like any other. Study s draws its own points (`seed + s - 1`) and trains with the
seed s: everything of a row, tuning included, is repeated. `experiments.results.benchmarks` has the
scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from experiments.config.experiment import Config
from experiments.config.sections import (
    FiniteFloat,
    NotNegative,
    Positive,
    Section,
    refuse,
    validate,
)
from experiments.errors import UserError, nearest
from experiments.plans.brackets import Bracket, halved
from experiments.plans.load import find_file, load, read_document, resolve
from experiments.plans.planned_run import PlannedRun
from experiments.plans.search import Dimension, Halving, Search, Trials
from experiments.plans.settings import Choice

FOLDER = Path(__file__).parents[2] / "configs" / "benchmarks"


class Target(Section):
    """What is to be reached."""

    metric: Annotated[str, Field(pattern=r"^(train|val|test)/\w+$")]
    """Its key in `metrics.jsonl`, such as `val/loss`."""
    value: FiniteFloat
    """As it is recorded: 90 % is 0.9."""


class Row(Section):
    """An optimizer, as in a configuration, and what is tuned of it."""

    model_config = ConfigDict(extra="allow")

    constructor: str
    search: dict[str, Dimension] = {}
    """Arguments that are searched; none: the row is not tuned, and a study of it is one trial."""
    gradients_per_step: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Evaluations of the gradient in a mean step; null: counted where we know how, else 1."""

    @model_validator(mode="after")
    def _check(self) -> "Row":
        for key in self.search:
            if key in self.fixed:
                refuse(f"{key} is fixed and searched: write one of them")
        return self

    @property
    def fixed(self) -> dict[str, Any]:
        """The optimizer's section without what is searched."""
        return {"constructor": self.constructor, **(self.model_extra or {})}


class Benchmark(Section):
    """What a benchmark's file holds."""

    config: str
    target: Target
    trials: Trials
    studies: Positive
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    set: dict[str, Any] = {}
    method: Literal["sobol", "random"] = "sobol"
    seed: NotNegative = 0
    halving: Halving | None = None

    @model_validator(mode="after")
    def _check(self) -> "Benchmark":
        for key in self.set:
            if key == "seed" or key.split(".")[0] in ("optimizer", "optimizers"):
                refuse(f"set: {key} belongs to the rows" if key != "seed"
                       else "set: seed counts the studies")  # fmt: skip
        return self


@dataclass(frozen=True)
class Trial:
    """One training of a row.

    Attributes:
        row: its name.
        study: from 1.
        number: of the point in its study, from 1.
        point: what was drawn.
        run: that trains it.
    """

    row: str
    study: int
    number: int
    point: dict[str, Any]
    run: PlannedRun


def find(name: str) -> Path:
    """The file of a benchmark by its path, or by its name below `configs/benchmarks/`.

    Raises:
        UserError: there is no such file, or it is no benchmark.
    """
    path = find_file(name, FOLDER, "benchmark")
    read(path)
    return path


def read(path: str | Path) -> Benchmark:
    """The content of a benchmark's file.

    Raises:
        UserError: naming the file and the key that is wrong.
    """
    return validate(Benchmark, read_document(path, "benchmark"), Path(path))


def trials(benchmark: Benchmark, path: Path, choice: Choice | None = None) -> list[Trial]:
    """All trainings of a benchmark that stands in a file, or those that a command line chooses.

    Row by row, study by study. `optimizer=` chooses rows and `seed=` studies; settings would
    change what is measured.

    Raises:
        UserError: naming the file and the row that is wrong, or a setting that does not fit.
    """
    choice = choice or Choice()
    for key in choice.overrides:
        raise UserError(f"{key} cannot be set for {path}: a benchmark is fixed by its file")
    for name in choice.optimizers or ():
        if name not in benchmark.rows:
            raise UserError(f"{path} has no row '{name}'; {nearest(name, benchmark.rows)}")
    found = []
    for name in choice.optimizers or benchmark.rows:
        row = benchmark.rows[name]
        for study in range(1, benchmark.studies + 1):
            if choice.seeds and study not in choice.seeds:
                continue
            for number, point in enumerate(_points(benchmark, row, study), 1):
                settings = {"optimizers": {name: {**row.fixed, **point}}, **benchmark.set}
                try:
                    config = resolve(load(path.parent / benchmark.config, settings), name, study)
                except UserError as error:
                    raise UserError(f"{path}, rows.{name} at {point}: {error}") from None
                _check_target(benchmark.target.metric, config, path)
                known = {"optimizer": name, **point, "seed": study}
                found.append(Trial(name, study, number, point, PlannedRun(config, known, path)))
    return found


def _check_target(metric: str, config: Config, path: Path) -> None:
    splits = ("train", *config.evaluation_splits)
    split, _, name = metric.partition("/")
    names = [one.name for one in config.metrics]
    for given, known in ((split, splits), (name, names)):
        if given not in known:
            measured = f"{config.task} measures {', '.join(known)} here"
            raise UserError(f"{path}: target.metric = {metric}: {measured}")


def brackets(benchmark: Benchmark, path: Path, choice: Choice | None = None) -> list[Bracket]:
    """The same trainings by what compares them: the trials of a row in a study."""
    found = trials(benchmark, path, choice)
    if benchmark.halving is None:
        return [Bracket([[trial.run] for trial in found])]
    studies: dict[tuple[str, int], list[list[PlannedRun]]] = {}
    for trial in found:
        studies.setdefault((trial.row, trial.study), []).append([trial.run])
    return [
        halved(runs, benchmark.halving, f"{path}, rows.{row}", benchmark.target.metric)
        for (row, _), runs in studies.items()
    ]


def _points(benchmark: Benchmark, row: Row, study: int) -> Sequence[dict[str, Any]]:
    if not row.search:
        return [{}]
    seed = benchmark.seed + study - 1
    given = {"trials": benchmark.trials, "space": row.search}
    return Search(**given, method=benchmark.method, seed=seed).points()
