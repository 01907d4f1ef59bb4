"""From a configuration file and overrides to the configuration of one run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config
from experiments.config.sections import validate
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError, nearest
from experiments.tasks import registry


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration file, apply overrides, validate.

    Args:
        path: the YAML file.
        overrides: `key.path=value`, the value in YAML: `epochs=30`, `optimizers.sgd.lr=0.05`.

    Raises:
        UserError: naming each offending key path, its value and what is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file {path}")
    document = read_yaml(path.read_text())
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no mapping of keys")
    for override in overrides:
        _override(document, override)
    return parse(document, path)


def parse(document: dict[str, Any], path: Path) -> Config:
    """The configuration in a document, by the schema of its task.

    Args:
        document: keys and values, as in a configuration file.
        path: where it is from, for messages.

    Raises:
        UserError: as `load`.
    """
    if "task" not in document:
        raise UserError(f"{path}: task is missing; known: {', '.join(registry.TASKS)}")
    try:
        schema = registry.config_class(document["task"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return validate(schema, document, path)


def _override(document: dict, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"'{override}' is no override: write key.path=value")
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    section = document
    for part in parents:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise UserError(f"override '{override}': '{part}' has no keys inside")
    section[last] = read_yaml(text)


def resolve(config: Config, optimizer: str, seed: int) -> Config:
    """The configuration of one run: one optimizer, one seed.

    Raises:
        UserError: the experiment has no such optimizer, or the seed is no natural number.
    """
    if optimizer not in config.optimizers:
        raise UserError(f"unknown optimizer '{optimizer}'; {nearest(optimizer, config.optimizers)}")
    one = {"optimizers": {optimizer: config.optimizers[optimizer]}, "seed": seed}
    return config.model_copy(update=one)
