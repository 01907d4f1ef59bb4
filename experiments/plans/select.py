"""Which runs a command line asks for: `FILE... [key=value ...]`, one grammar for all commands.

A file is an experiment (`configs/digits/resnet20.yaml`), a sweep (`configs/sweeps/`), a benchmark
(`configs/benchmarks/`), or a table of the paper (`configs/tables/`). The settings hold for every
file; a benchmark takes only `optimizer` (its rows) and `seed` (its studies):

- `optimizer=sgd,adam`: these optimizers of an experiment; of a sweep or table that names its
  optimizers, only the runs of these.
- `seed=1-5`, `seed=1,2,7`: in place of the file's seeds.
- `dataset=digits`: where a table is to be made; default: the paper's data set.
- `key.path=value`: for all runs, the value in YAML: `epochs=30`, `optimizers.sgd.lr=0.05`, or
  `optimizer.lr=0.05` for whichever optimizer a run has.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.plans import benchmarks, paper_tables, sweeps
from experiments.plans.brackets import Bracket
from experiments.plans.load import load_one, read_document, resolve
from experiments.plans.planned_run import PlannedRun, each_once
from experiments.plans.settings import Choice, parse_choice


def select(files: Sequence[str | Path], settings: Sequence[str] = ()) -> list[PlannedRun]:
    """All runs that files and settings ask for, each once; no run's files are looked at.

    Raises:
        UserError: a file or a setting is wrong, or they do not fit each other.
    """
    return runs_of(select_brackets(files, settings))


def select_brackets(files: Sequence[str | Path], settings: Sequence[str] = ()) -> list[Bracket]:
    """The same runs by what compares them; one that several files ask for is in several brackets.

    Raises:
        UserError: as `select`.
    """
    if not files:
        raise UserError("which runs? name a file: an experiment, a sweep, a benchmark or a table")
    choice = parse_choice(settings)
    return [one for path in files for one in _brackets_of(Path(path), choice)]


def runs_of(brackets: Sequence[Bracket]) -> list[PlannedRun]:
    """The runs of some brackets, each once."""
    return each_once(run for one in brackets for run in one.runs)


def is_table(path: str | Path) -> bool:
    """Whether a YAML file is a table of the paper."""
    return _has(path, "datasets")


def is_benchmark(path: str | Path) -> bool:
    """Whether a YAML file is a benchmark."""
    return _has(path, "config") and _has(path, "rows")


def is_sweep(path: str | Path) -> bool:
    """Whether a YAML file is a sweep."""
    return _has(path, "config") and not _has(path, "rows")


def _has(path: str | Path, key: str) -> bool:
    document = read_document(path)
    return isinstance(document, dict) and key in document


def _brackets_of(path: Path, choice: Choice) -> list[Bracket]:
    if is_table(path):
        request = paper_tables.find(str(path), choice.dataset)
        for block, config in request.absent.items():
            warnings.warn(f"{block} of {path} is left out: no file {config}", stacklevel=3)
        found = sweeps.select_from([sweep for _, _, sweep in request.plans()], path, choice)
    elif choice.dataset:
        raise UserError(f"dataset={choice.dataset} chooses where a table is made; {path} is none")
    elif is_benchmark(path):
        found = benchmarks.brackets(benchmarks.read(path), path, choice)
    elif is_sweep(path):
        found = sweeps.select_from([sweeps.read(path)], path, choice)
    else:
        found = [Bracket([_runs_of_experiment(path, choice)])]
    return found


def _runs_of_experiment(path: Path, choice: Choice) -> list[PlannedRun]:
    runs = []
    for name in choice.optimizers or [None]:
        config = load_one(path, name, choice.overrides)
        for seed in choice.seeds or [config.seed]:
            one = resolve(config, config.optimizer_name, seed)
            settings = {"optimizer": config.optimizer_name, "seed": seed}
            runs.append(PlannedRun(one, settings, path))
    return runs
