"""The paper's corpora, as texts that were prepared elsewhere: a sentence a line, words and pieces
between blanks. Nothing is filtered or split here.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Example, Rules
from experiments.tasks.text.sources.source import Raw

SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class Corpus:
    """Where the files of a corpus are.

    Attributes:
        folder: below `DATA_ROOT`, with the files `train`, `valid` and `test` and an ending.
        endings: of a file, by language.
        licence: of the texts.
        archives: in which it is published, from which `experiments.corpora` prepares it.
        extra: of pyproject.toml, which that takes.
    """

    folder: str
    endings: dict[str, str]
    licence: str
    archives: str
    extra: str = ""

    def command(self, name: str) -> str:
        """What prepares it, as one types it."""
        install = f"pip install -c constraints.txt -e '.[{self.extra}]' && " if self.extra else ""
        return f"{install}python -m experiments.corpora {name} --from {self.archives}"


_PAIRS = {"de": "de", "en": "en"}
CORPORA = {
    "iwslt14": Corpus(
        "iwslt14.tokenized.de-en",
        _PAIRS,
        "CC BY-NC-ND 4.0 (TED)",
        "de-en.tgz",
        "paper-corpora",
    ),
    "wmt14": Corpus(
        "wmt14_en_de",
        _PAIRS,
        "see the licences of WMT14's parts",
        "training-parallel-europarl-v7.tgz training-parallel-commoncrawl.tgz "
        "training-parallel-nc-v9.tgz dev.tgz test-full.tgz",
        "paper-corpora",
    ),
    "ptb": Corpus(
        "ptb",
        {"en": "txt"},
        "LDC user agreement",
        "simple-examples.tgz",
    ),
    "wikitext103": Corpus(
        "wikitext-103",
        {"en": "tokens"},
        "CC BY-SA 3.0",
        "wikitext-103-v1.zip",
    ),
}


def source(name: str) -> "PaperCorpus":
    """The source of one of `CORPORA`."""
    return PaperCorpus(name, CORPORA[name])


class PaperCorpus:
    """A source, as the modules beside this one are."""

    def __init__(self, name: str, corpus: Corpus) -> None:
        self.name, self.corpus = name, corpus

    def versions(self, root: Path) -> dict[str, str]:
        """A hash of the names, sizes and times of the files.

        Raises:
            UserError: one of them is missing.
        """
        folder = root / self.corpus.folder
        files = self._files(root)
        missing = [path.name for path in files.values() if not path.is_file()]
        if missing:
            raise UserError(
                f"{self.name} is not in {folder} ({', '.join(missing)} missing), and nothing here "
                f"can download it; `{self.corpus.command(self.name)}` prepares it from its "
                "archives. `make translation` and `make language-model` need no download"
            )
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
                 for path in files.values()]  # fmt: skip
        return {"files": hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}

    def read(self, root: Path, languages: tuple[str, ...]) -> Raw:
        """The lines, as they are."""
        files = self._files(root)
        splits: dict[str, list[Example]] = {}
        for split in SPLITS:
            sides = [_lines(files[split, language]) for language in languages]
            if len({len(side) for side in sides}) > 1:
                lengths = " and ".join(str(len(side)) for side in sides)
                raise UserError(f"{files[split, languages[0]].parent}: {split} has {lengths} lines")
            splits[split] = list(zip(*sides, strict=True))
        rules = Rules(near_duplicates=None)
        return Raw(self.corpus.licence, splits=splits, rules=rules, versions=self.versions(root))

    def _files(self, root: Path) -> dict[tuple[str, str], Path]:
        folder = root / self.corpus.folder
        return {
            (split, language): folder / f"{stem}.{ending}"
            for split, stem in SPLITS.items()
            for language, ending in self.corpus.endings.items()
        }


def _lines(path: Path) -> list[str]:
    """A file's lines; blanks around and between words are one, and empty lines stay."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    lines = text.split("\n")
    return [" ".join(line.split()) for line in (lines if lines[-1] else lines[:-1])]
