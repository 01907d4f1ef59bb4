"""The paper's corpora, as texts that were prepared elsewhere: a sentence a line, words and pieces
between blanks. Nothing is filtered or split here.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Rules
from experiments.tasks.text.sources.files import read_parallel, stamp
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
        return stamp(files.values())

    def read(self, root: Path, languages: tuple[str, ...]) -> Raw:
        """The lines, as they are."""
        files = self._files(root)
        splits = {
            split: read_parallel([files[split, language] for language in languages])
            for split in SPLITS
        }
        rules = Rules(near_duplicates=None)
        return Raw(self.corpus.licence, splits=splits, rules=rules, versions=self.versions(root))

    def _files(self, root: Path) -> dict[tuple[str, str], Path]:
        folder = root / self.corpus.folder
        return {
            (split, language): folder / f"{stem}.{ending}"
            for split, stem in SPLITS.items()
            for language, ending in self.corpus.endings.items()
        }
