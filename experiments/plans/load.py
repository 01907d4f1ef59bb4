"""From a configuration file and overrides to the configuration of one run."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config
from experiments.config.optimizers import Optimizer
from experiments.config.sections import validate
from experiments.config.yaml_reader import read_yaml_file
from experiments.errors import UserError, nearest
from experiments.plans.settings import parse_overrides
from experiments.tasks import registry


def read_document(path: str | Path, kind: str = "configuration file") -> Any:
    """The content of a YAML file.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {kind} {path}")
    try:
        version = path.stat()
        return _read_once(path, version.st_mtime_ns, version.st_size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def find_file(name: str, folder: Path, kind: str) -> Path:
    """A plan's file by its path, or by its name in the folder of its kind.

    Args:
        kind: what it is called in messages.

    Raises:
        UserError: there is no such file.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    path = files.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"no {kind} '{name}', neither a file nor below configs/{folder.name}/; "
                        + nearest(name, files))  # fmt: skip
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@lru_cache(maxsize=16)
def _read_once(path: Path, *version: int) -> Any:
    """The runs of a sweep share their experiment's document; whoever changes it, changes a copy."""
    return read_yaml_file(path)


def load(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a configuration file, apply overrides, validate.

    Args:
        path: the YAML file.
        overrides: `key.path=value`, the value in YAML: `epochs=30`, `optimizers.sgd.lr=0.05`; or
            values by their `key.path`.

    Raises:
        UserError: naming each offending key path, its value and what is allowed.
    """
    document = read_document(path)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no mapping of keys")
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    for key, value in overrides.items():
        _check_place(document, key, value)
        document = _overridden(document, key, value)
    return parse(document, Path(path))


def _check_place(document: Mapping[str, Any], path: str, value: Any) -> None:
    """Refuse an optimizer's key that is set as the experiment's: everybody's first try."""
    optimizers = document.get("optimizers")
    rows = optimizers.values() if isinstance(optimizers, dict) else ()
    own = set(Optimizer.model_fields).union(*(row for row in rows if isinstance(row, dict)))
    if path in own - set(Config.model_fields):
        names = ", ".join(map(str, optimizers)) if isinstance(optimizers, dict) else ""
        raise UserError(
            f"'{path}={value}' is of an optimizer: write optimizer.{path}={value} for whichever a "
            f"run has, or optimizers.NAME.{path}={value} with one of {names}"
        )


def parse(document: dict[str, Any], path: Path) -> Config:
    """The configuration in a document, by the schema of its task.

    Args:
        document: keys and values, as in a configuration file.
        path: where it is from, for messages.

    Raises:
        UserError: as `load`.
    """
    if "config" in document or "datasets" in document:
        kind = "a sweep" if "config" in document else "a table"
        raise UserError(f"{path} is {kind}, and an experiment is wanted: a file with a task")
    if "task" not in document:
        raise UserError(f"{path}: task is missing; known: {', '.join(registry.TASKS)}")
    try:
        schema = registry.config_class(document["task"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return validate(schema, document, path)


def load_one(path: str | Path, optimizer: str | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a file with one optimizer, whose keys are also `optimizer.KEY`.

    Args:
        path: the YAML file.
        optimizer: its name; may be left out where the file has a single one.
        overrides: values by their `key.path`.

    Raises:
        UserError: as `load` and `resolve`, or the optimizer has to be named.
    """
    document = read_document(path)
    there = document.get("optimizers") if isinstance(document, dict) else None
    names = [str(name) for name in there] if isinstance(there, dict) else []
    added = (key.split(".") for key, value in overrides.items() if isinstance(value, dict))
    names += [parts[1] for parts in added if len(parts) == 2 and parts[0] == "optimizers"]
    names = list(dict.fromkeys(names))
    for key in overrides:
        first, _, rest = key.partition(".")
        row, _ = _first(rest, names)
        new = row not in names and f"optimizers.{row}.constructor" not in overrides
        if names and first == "optimizers" and "." in rest and new:
            raise UserError(f"'{key}': no optimizer '{row}'; {nearest(row, names)}")
    if optimizer is None and len(names) > 1:
        raise UserError(
            f"which optimizer? add optimizer=NAME[,NAME] with {', '.join(names)}; "
            f"all: optimizer={','.join(names)}"
        )
    if optimizer is not None and names and optimizer not in names:
        raise UserError(f"unknown optimizer '{optimizer}'; {nearest(optimizer, names)}")
    name = optimizer or next(iter(names), "")
    own = {re.sub(r"^optimizer[.]", f"optimizers.{name}.", k): v for k, v in overrides.items()}
    experiment = load(path, own)
    return resolve(experiment, name, experiment.seed)


def _overridden(document: dict, path: str, value: Any) -> dict:
    """A document with one value changed. What it is made of may be shared, and stays as it is:

    by an anchor of YAML the same section can stand at several places.
    """
    changed = section = dict(document)
    part, rest = _first(path, section)
    while rest:
        inner = section.get(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"override '{path}={value}': '{part}' has no keys inside")
        section[part] = dict(inner)
        section = section[part]
        part, rest = _first(rest, section)
    section[part] = value
    return changed


def _first(path: str, keys: Iterable[Any]) -> tuple[Any, str]:
    """The first part of a key path, and the rest: of known keys, which may hold dots, the longest.

    An optimizer's name is such a key (`adam.v2`).
    """
    known = [str(key) for key in keys if f"{path}.".startswith(f"{key}.")]
    part = max([*known, path.partition(".")[0]], key=len)
    return int(part) if part.isdigit() else part, path[len(part) + 1 :]


def resolve(config: Config, optimizer: str, seed: int) -> Config:
    """The configuration of one run: one optimizer, one seed.

    Raises:
        UserError: the experiment has no such optimizer, or the seed is no natural number.
    """
    if optimizer not in config.optimizers:
        raise UserError(f"unknown optimizer '{optimizer}'; {nearest(optimizer, config.optimizers)}")
    one = {"optimizers": {optimizer: config.optimizers[optimizer]}, "seed": seed}
    return config.model_copy(update=one)
