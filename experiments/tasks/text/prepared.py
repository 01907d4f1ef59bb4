"""Prepared corpora: clean, split, in numbers, and kept beside the data.

A corpus is prepared once for each recipe and version of its source, into a folder of its own below
`DATA_ROOT/<corpus>/`, which appears complete or not at all: several processes may prepare it at the
same time, and one that is killed leaves nothing that anybody reads. The folder holds

- `<split>.<language>`: the texts, a line each;
- `tokens.npz`: the same as numbers;
- the vocabulary;
- `meta.json`: source and versions, licence, counts, what was dropped and why, and the sha256 of the
  texts.
"""

import hashlib
import importlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy

from experiments.errors import UserError, nearest
from experiments.runtime.progress import say
from experiments.tasks.text import pipeline
from experiments.tasks.text.pipeline import SPLITS, Example
from experiments.tasks.text.sources import paper
from experiments.tasks.text.sources.own import OwnCorpus
from experiments.tasks.text.sources.source import Raw
from experiments.tasks.text.vocabulary import (
    Pieces,
    Vocabulary,
    Words,
    count_words,
    join_pieces,
    read_vocabulary,
    train_pieces,
    vocabulary_file,
)
from experiments.tasks.text.whole_folder import whole_folder

PIPELINE = 2  # changes with the steps of the pipeline, so that nobody reads what older ones left
_HERE = "experiments.tasks.text.sources"
SOURCES = {
    "cldr": f"{_HERE}.cldr",
    "catalogues": f"{_HERE}.catalogues",
    "debian": f"{_HERE}.debian",
    "kjv": f"{_HERE}.kjv",
    "austen": f"{_HERE}.austen",
}


@dataclass(frozen=True)
class Recipe:
    """What is prepared, and how.

    Attributes:
        corpus: a name in `SOURCES`, or a corpus of the paper.
        languages: of the texts of an example, the source's first; a single one for a corpus of
            one language.
        kind: of the vocabulary, which all languages share; "words" also takes texts that are
            split into pieces already.
        size: of the vocabulary; None: all words.
        own: the folder of a corpus that is the user's own.
    """

    corpus: str
    languages: tuple[str, ...]
    kind: Literal["pieces", "words"]
    size: int | None
    own: str = ""

    @property
    def source(self) -> Any:
        """Where its texts come from: a module, or an object with the same functions.

        Raises:
            UserError: there is no such corpus.
        """
        if self.own:
            return OwnCorpus(self.corpus, self.own, self.languages)
        if self.corpus in paper.CORPORA:
            return paper.source(self.corpus)
        if self.corpus not in SOURCES:
            known = [*SOURCES, *paper.CORPORA]
            raise UserError(f"no corpus '{self.corpus}'; {nearest(self.corpus, known)}")
        return importlib.import_module(SOURCES[self.corpus])

    def folder(self, root: Path) -> Path:
        """Where it lies, prepared from what is there now.

        Raises:
            UserError: the source is not there.
        """
        made_from = {
            "pipeline": PIPELINE,
            # A folder of one's own may move: the versions tell its files from others.
            "recipe": {key: value for key, value in asdict(self).items() if key != "own"},
            "versions": self.source.versions(root),
            "sentencepiece": version("sentencepiece") if self.kind == "pieces" else None,
        }
        text = json.dumps(made_from, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return root / self.corpus / f"prepared-{digest[:12]}"


class Prepared:
    """A prepared corpus.

    Args:
        folder: in which it lies.

    Attributes:
        meta: the content of its `meta.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _reading(path := folder / "meta.json"):
            self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._size, self._counts = self.meta["vocabulary"]["size"], self.meta["examples"]
            self.sha256: str = self.meta["sha256"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        with _reading(self.folder):
            found = read_vocabulary(self.folder)
            _expect("pieces or words", found.size, self._size)
        return found

    def vocabulary_digest(self) -> str:
        """Equal where the same tokens mean the same."""
        with _reading(self.folder):
            return hashlib.sha256(vocabulary_file(self.folder).read_bytes()).hexdigest()

    def texts(self, split: str, language: str) -> list[str]:
        """The lines of a split."""
        with _reading(path := self.folder / f"{split}.{language}"):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            _expect("lines", len(lines), self._counts[split])
        return lines

    def plain(self, text: str) -> str:
        """A line of `texts` as people write it: words that are split into pieces are joined."""
        return text if isinstance(self.vocabulary, Pieces) else join_pieces(text)

    def as_its_own(self, texts: Iterable[str]) -> list[str]:
        """Texts from elsewhere, written as those of the corpus are.

        Blanks around and between words are one. Where the corpus is normalized, to judge by its
        validation set, they are, too: no text of another form was trained on.
        """
        known = self.texts("val", self.meta["languages"][0])
        is_normalized = all(line == pipeline.normalize(line) for line in known)
        return [pipeline.normalize(t) if is_normalized else " ".join(t.split()) for t in texts]

    def remember(self, name: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `compute` returns, computed once where it can be kept beside the texts."""
        path = self.folder / f"{name}.json"
        with suppress(OSError, ValueError):  # it is not there, or damaged
            if isinstance(known := json.loads(path.read_text(encoding="utf-8")), dict):
                return known
        found = compute()
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        with suppress(OSError):  # somebody else's folder: computed again next time
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, path)
        return found

    def tokens(self, split: str, language: str) -> tuple[numpy.ndarray, numpy.ndarray]:
        """All numbers of a split one after the other, int32, and how many each line has, int64."""
        path = self.folder / "tokens.npz"
        with _reading(path), numpy.load(path) as arrays:
            flat, lengths = arrays[f"{split}.{language}"], arrays[f"{split}.{language}.lengths"]
            _expect("lines", len(lengths), self._counts[split])
        return flat, lengths


def prepare(recipe: Recipe, root: Path, sha256: str | None = None) -> Prepared:
    """The corpus of a recipe, prepared where it has not been.

    Args:
        recipe: what, and how.
        root: where data sets are.
        sha256: how that of its texts has to begin; None: any will do.

    Raises:
        UserError: the source is not there, is damaged, or holds other texts than `sha256` says; or
            the folder cannot be written.
    """
    folder = recipe.folder(root)
    if not folder.is_dir():
        say(f"preparing the corpus {recipe.corpus} in {folder}")
        with whole_folder(folder) as partial:
            _write(recipe, recipe.source.read(root, recipe.languages), partial)
    prepared = Prepared(folder)
    found = prepared.sha256
    if sha256 is not None and not found.startswith(sha256):
        versions = ", ".join(f"{name} {v}" for name, v in prepared.meta["versions"].items())
        raise UserError(
            f"dataset.sha256 = {sha256}: the corpus {recipe.corpus} that is made here ({versions}) "
            f"has {found[:16]}; install the versions of constraints.txt, or set "
            f"dataset.sha256={found[:16]} for new runs on this one"
        )
    return prepared


def find(recipe: Recipe, root: Path) -> Prepared | None:
    """The corpus of a recipe, prepared where it has not been; None where that cannot be done.

    Without preparing it nobody knows whether files that have changed hold other texts.
    """
    try:
        return prepare(recipe, root)
    except (UserError, ModuleNotFoundError):
        return None


# -------------------------------------------------------------------------------------- preparing


def _write(recipe: Recipe, raw: Raw, folder: Path) -> None:
    dropped: Counter[str] = Counter()
    splits = _splits(raw, dropped)
    for name in SPLITS:
        if not splits[name] or name == "train" and not any(map(any, splits[name])):
            left_out = ", ".join(f"{count} {why}" for why, count in dropped.items())
            raise UserError(
                f"the corpus {recipe.corpus} has no {name} set: nothing was left of it"
                f"{left_out and f' ({left_out})'}"
            )
    digest = hashlib.sha256()
    for name in SPLITS:
        for place, language in enumerate(recipe.languages):
            text = "".join(f"{example[place]}\n" for example in splits[name]).encode()
            (folder / f"{name}.{language}").write_bytes(text)
            digest.update(text)
    vocabulary = _make_vocabulary(recipe, splits["train"], folder)
    counts = _write_tokens(recipe, splits, vocabulary, folder)
    meta = {
        "corpus": recipe.corpus,
        "languages": recipe.languages,
        "licence": raw.licence,
        "versions": raw.versions,
        "sha256": digest.hexdigest(),
        "examples": {name: len(splits[name]) for name in SPLITS},
        "tokens": counts,
        "dropped": dict(sorted(dropped.items())),
        "vocabulary": {"kind": recipe.kind, "size": vocabulary.size},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _splits(raw: Raw, dropped: Counter[str]) -> Mapping[str, list[Example]]:
    splits, rules = raw.splits, raw.rules
    if not splits:
        splits = pipeline.split(pipeline.clean(raw.examples, rules, dropped), rules.held_out)
    if rules.near_duplicates is not None:
        held_out = [*splits["val"], *splits["test"]]
        kept = pipeline.drop_near_duplicates(splits["train"], held_out, rules.near_duplicates)
        dropped["near duplicates"] = len(splits["train"]) - len(kept)
        splits = {**splits, "train": kept}
    return splits


def _make_vocabulary(recipe: Recipe, training: list[Example], folder: Path) -> Vocabulary:
    lines = (text for example in training for text in example)
    if recipe.kind == "pieces":
        assert recipe.size is not None
        (folder / Pieces.FILE).write_bytes(train_pieces(lines, recipe.size))
    else:
        words = "".join(f"{word}\n" for word in count_words(lines, recipe.size))
        (folder / Words.FILE).write_text(words, encoding="utf-8")
    return read_vocabulary(folder)


def _write_tokens(
    recipe: Recipe, splits: Mapping[str, list[Example]], vocabulary: Vocabulary, folder: Path
) -> dict[str, dict[str, int]]:
    """Write the numbers; returns how many there are, by split and language."""
    arrays: dict[str, Any] = {}
    counts: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        for place, language in enumerate(recipe.languages):
            lines = vocabulary.encode([example[place] for example in splits[name]])
            lengths = numpy.array([len(line) for line in lines], dtype=numpy.int64)
            flat = numpy.fromiter((n for line in lines for n in line), numpy.int32, lengths.sum())
            arrays[f"{name}.{language}"] = flat
            arrays[f"{name}.{language}.lengths"] = lengths
            counts.setdefault(name, {})[language] = len(flat)
    numpy.savez(folder / "tokens.npz", **arrays)
    return counts


def _expect(what: str, found: int, known: int) -> None:
    if found != known:
        raise ValueError(f"it has {found} {what} and had {known}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Inside, a part of a prepared corpus is read.

    Raises:
        UserError: whatever is raised inside: each format has errors of its own for a damaged file.
    """
    try:
        yield
    except Exception as error:
        folder = path if path.is_dir() else path.parent
        said = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read: {said}; remove {folder}, it is prepared anew"
        ) from None
