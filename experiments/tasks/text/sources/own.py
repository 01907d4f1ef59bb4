"""A folder of the user's own texts.

Either `train`, `val` and `test`, taken as they are; or `all`, which is split here. Each has an
ending: the language of a translation's side, `txt` for a text in one language.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError
from experiments.runtime.paths import expanded
from experiments.tasks.text.pipeline import SPLITS, Example, Rules
from experiments.tasks.text.sources.files import read_parallel, stamp
from experiments.tasks.text.sources.source import Raw

HELD_OUT = 0.05  # in the validation set, and again in the test set
# Nothing is known of the languages: only what is empty or there twice goes.
RULES = Rules(
    max_words=10**9, max_ratio=math.inf, min_letters=0.0, placeholders=True, held_out=HELD_OUT,
    near_duplicates=None,
)  # fmt: skip
LICENCE = "unknown: the user's own"


class OwnCorpus:
    """A source, as the modules beside this one are.

    Args:
        name: what messages call it.
        folder: in which the files are; a relative one is below `DATA_ROOT`.
        languages: of the texts; a single one for a text that is to be modelled.
    """

    def __init__(self, name: str, folder: str, languages: tuple[str, ...]) -> None:
        self.name, self.folder = name, folder
        self.endings = languages if len(languages) > 1 else ("txt",)

    def versions(self, root: Path) -> dict[str, str]:
        """A hash of the names, sizes and times of the files.

        Raises:
            UserError: one of them is missing.
        """
        return stamp(path for paths in self._files(root).values() for path in paths)

    def read(self, root: Path, languages: tuple[str, ...]) -> Raw:
        """The lines, as they are or split.

        Raises:
            UserError: one cannot be read, or the lines of two languages do not match.
        """
        texts = {name: read_parallel(paths) for name, paths in self._files(root).items()}
        if "all" not in texts:
            return Raw(LICENCE, splits=texts, rules=RULES, versions=self.versions(root))
        if len(self.endings) > 1:
            return Raw(LICENCE, texts["all"], rules=RULES, versions=self.versions(root))
        splits = dict(_in_a_row(texts["all"]))
        if not all(splits.values()):
            raise UserError(
                f"{self._files(root)['all'][0]} has {len(texts['all'])} lines, too few to be "
                "split: write train.txt, val.txt and test.txt beside it"
            )
        return Raw(LICENCE, splits=splits, rules=RULES, versions=self.versions(root))

    def _files(self, root: Path) -> dict[str, list[Path]]:
        """The files by split, or by `all`, in the order of the languages."""
        folder = root / expanded(self.folder, "dataset.root")
        files = {
            name: [folder / f"{name}.{ending}" for ending in self.endings]
            for name in (*SPLITS, "all")
        }
        whole = files.pop("all")
        there = [path for paths in files.values() for path in paths if path.is_file()]
        if not there and all(path.is_file() for path in whole):
            return {"all": whole}
        missing = [path.name for paths in files.values() for path in paths if path not in there]
        if missing:
            raise UserError(
                f"dataset.root: {self.name} is not in {folder} ({', '.join(missing)} missing); put "
                f"the texts there, a sentence or paragraph a line in UTF-8, as {_names(files)}, or "
                f"unsplit as {_names({'all': whole})}"
            )
        return files


def _names(files: dict[str, list[Path]]) -> str:
    return ", ".join(path.name for paths in files.values() for path in paths)


def _in_a_row(lines: list[Example]) -> Iterator[tuple[str, list[Example]]]:
    """A text's end for the validation set and the test set: it is one piece, as it is read."""
    size = round(HELD_OUT * len(lines))
    start = len(lines) - 2 * size
    yield "train", lines[:start]
    yield "val", lines[start : start + size]
    yield "test", lines[start + size :]
