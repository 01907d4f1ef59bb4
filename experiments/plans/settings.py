"""The settings of a command line: `key=value` words, the same for every kind of plan."""

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from experiments.config.sections import NotNegative, refuse
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError

QUOTED = re.compile(r"""(['"])(.*)\1""")  # as in YAML, a text
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Choice:
    """What the settings of a command line say, whatever file they are for.

    Attributes:
        optimizers, seeds, dataset: None where nothing is said.
        overrides: values by their `key.path`.
    """

    optimizers: list[str] | None = None
    seeds: list[int] | None = None
    dataset: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files and the settings among a command line's words.

    A word with `=` in it is a setting, unless there is a file of that name.
    """
    files, settings = [], []
    for word in words:
        (settings if "=" in word and not os.path.exists(word) else files).append(word)
    return files, settings


def parse_choice(settings: Iterable[str]) -> Choice:
    """The settings of a command line, sorted by what they are.

    Raises:
        UserError: one is malformed, or undoes another.
    """
    texts: dict[str, str] = {}
    others = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        whole_section = key == "dataset" and value.lstrip().startswith("{")
        if key not in ("optimizer", "seed", "dataset") or whole_section:
            others.append(setting)
        elif text := QUOTED.sub(r"\2", value.strip()).strip():
            texts[key] = text
        else:
            raise UserError(f"'{setting}' has no value: write {key}=VALUE")
    names = texts.get("optimizer")
    seeds = texts.get("seed")
    overrides = parse_overrides(others)
    for other, key in itertools.combinations(overrides, 2):
        if _covers(key, other):
            raise UserError(f"{key}= would undo {other}= before it: leave one out")
    return Choice(
        [name.strip() for name in names.split(",")] if names else None,
        parse_seeds(seeds) if seeds else None,
        texts.get("dataset"),
        overrides,
    )


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """`key.path=value`, the value in YAML, as values by their `key.path`.

    Raises:
        UserError: one is nothing of the kind.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"'{setting}' is no setting: write key.path=value")
        found[key] = read_yaml(text)  # of a key that is given twice, the last value
    return found


def overlap(first: str, second: str) -> bool:
    """Whether two key paths set a value in common: one is within the other.

    `optimizer.lr` is that of each optimizer, `optimizers.NAME.lr`.
    """
    pairs = zip(_parts(first), _parts(second), strict=False)
    return all(a == b or "*" in (a, b) for a, b in pairs)


def _covers(whole: str, key: str) -> bool:
    """Whether a key path is within another one."""
    longer, shorter = _parts(key), _parts(whole)
    pairs = zip(longer, shorter, strict=False)
    return len(longer) >= len(shorter) and all(b in (a, "*") for a, b in pairs)


def _parts(key: str) -> list[str]:
    return re.sub(r"^optimizer[.]", "optimizers.*.", key).split(".")


def _check_seeds(value: Any) -> Any:
    """One number may be meant as a seed, or as how many there are."""
    if isinstance(value, int) and not isinstance(value, bool):
        refuse(f"write [{value}] for this one seed, or 1-{max(value, 2)} for several")
    return value


Seeds = Annotated[str | list[NotNegative], BeforeValidator(_check_seeds)]
"""The seeds in a file of a plan: as `parse_seeds` reads them, or a list."""


def all_seeds(seeds: str | list[int], path: Path) -> list[int]:
    """The seeds that a file says.

    Raises:
        UserError: naming the file; they are none.
    """
    if not isinstance(seeds, str):
        return seeds
    try:
        return parse_seeds(seeds)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_seeds(text: str) -> list[int]:
    """Seeds as people write them: `1-5`, `1,2,7`, `1-3,10`; each once.

    Raises:
        UserError: it is nothing of the kind.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not found:
            raise UserError(f"seed = '{text}': write whole numbers, 0 or more: 1-5 or 1,2,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"seed = '{text}': {last} is below {first}")
        if last - first >= MOST_SEEDS:
            raise UserError(f"seed = '{text}': {last - first + 1} seeds, at most {MOST_SEEDS}")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))
