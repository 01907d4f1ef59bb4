"""A folder of a user's own, with the files that docs/adding.md and the pages it names print."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy
import yaml
from docs.pages import ROOT, Block, blocks
from PIL import Image

PAGES = ("adding", "own-optimizer", "own-data", "own-task")


def printed(language: str) -> Iterator[tuple[str, Block]]:
    """The blocks of those pages in one language, each with its page."""
    for page in PAGES:
        for block in blocks((ROOT / "docs" / f"{page}.md").read_text("utf-8")):
            if block.language == language:
                yield page, block


def write_lab(folder: Path) -> dict[str, Path]:
    """Write the package `mylab` and the experiments; returns these by name.

    A block is a file where its first line is a comment with a path; a section of YAML on
    adding.md and own-data.md belongs into vit.yaml.
    """
    for language in ("python", "yaml"):
        for _, block in printed(language):
            first = block.text.split("\n", 1)[0]
            if first.startswith("# ") and first.endswith((".py", ".yaml")):
                path = folder / first[2:]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
    base = yaml.safe_load((folder / "vit.yaml").read_text(encoding="utf-8"))
    for _, block in printed("yaml"):
        more = yaml.safe_load(block.text)
        if "task" not in more and "dataset" in more:
            path = folder / f"{more['dataset']['name']}.yaml"
            path.write_text(yaml.safe_dump(base | more), encoding="utf-8")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def write_pets(data_root: Path, per_class: int = 32) -> None:
    """Images in class folders, below `pets`: bright ones and dark ones."""
    random = numpy.random.default_rng(0)
    for split, count in (("train", per_class), ("val", per_class // 2)):
        for name, low in (("cats", 0), ("dogs", 128)):
            place = data_root / "pets" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(low, low + 128, (36, 30, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(place / f"{name} {number}.png")


def names(experiment: Mapping) -> list[str]:
    """The optimizers of an experiment."""
    return list(experiment["optimizers"])
