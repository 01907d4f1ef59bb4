"""The paper's corpora from the archives in which they are published, as fairseq prepares them.

The steps are those of fairseq's `prepare-iwslt14.sh` and `prepare-wmt14en2de.sh`: Moses's tokens,
its filter of lengths, and joint byte pairs of subword-nmt. Differences: the tokens are those of
sacremoses, a port of Moses's scripts; of WMT14 the validation set is newstest2013 and there are
37,000 merges, as in the paper (there every 100th pair, and 40,000).
"""

import importlib
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runtime.progress import say
from experiments.tasks.text.sources.paper import CORPORA
from experiments.tasks.text.sources.raw_archives import RawArchives
from experiments.tasks.text.whole_folder import whole_folder

LANGUAGES = ("de", "en")
Pair = tuple[str, ...]
Splits = dict[str, list[Pair]]


def prepare_paper(name: str, archives: Sequence[Path], root: Path) -> str:
    """Write the files of a corpus below `root`, all or none; returns what there is.

    Args:
        name: of the corpus, in `CORPORA`.
        archives: in which it is published, or folders with what is in them.
        root: where data sets are.

    Raises:
        UserError: an archive is damaged or lacks a file, a package is missing, or the folder is
            there or cannot be written.
    """
    folder = root / CORPORA[name].folder
    if folder.exists():
        raise UserError(f"{name}: {folder} is there already; remove it to prepare it anew")
    if missing := [str(path) for path in archives if not path.exists()]:
        raise UserError(f"{name}: no file {', '.join(missing)}")
    with whole_folder(folder) as partial:
        counts = _WRITERS[name](RawArchives(archives, name), partial)
    return f"{counts} in {folder}"


# ----------------------------------------------------------------------------------- translation


def _iwslt14(raw: RawArchives, folder: Path) -> str:
    clean = _tokenizers(name="iwslt14")
    sides = []
    for language in LANGUAGES:
        lines = raw.lines(f"train.tags.de-en.{language}")
        tagged = re.compile("<(url|talkid|keywords)>")
        kept = (re.sub("</?(title|description)>", "", x) for x in lines if not tagged.search(x))
        sides.append([clean[language](line) for line in kept])
    pairs = lowered(filtered(_paired(sides, "train.tags.de-en"), 1, 175))
    parts = ["TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"]
    test = [
        pair for part in parts
        for pair in _paired([
            [clean[language](line) for line in segments(
                raw.lines(f"IWSLT14.{part}.de-en.{language}.xml"))]
            for language in LANGUAGES
        ], part)
    ]  # fmt: skip
    splits = {
        "train": [pair for number, pair in enumerate(pairs, 1) if number % 23],
        "valid": [pair for number, pair in enumerate(pairs, 1) if number % 23 == 0],
        "test": lowered(test),
    }
    return _write(byte_pairs(splits, 10_000), folder)


def _wmt14(raw: RawArchives, folder: Path) -> str:
    clean = _tokenizers(name="wmt14", aggressive=True)
    plain = _tokenizers(name="wmt14", aggressive=True, normalized=False)
    train: list[Pair] = []
    for part in ("europarl-v7", "commoncrawl", "news-commentary-v9"):
        say(f"wmt14: the tokens of {part}")
        sides = [map(clean[language], raw.lines(f"{part}.de-en.{language}"))
                 for language in LANGUAGES]  # fmt: skip
        train += _paired([list(side) for side in sides], part)
    held_out = {}
    for split, names in (
        ("valid", ("newstest2013.de", "newstest2013.en")),
        ("test", ("newstest2014-deen-ref.de.sgm", "newstest2014-deen-src.en.sgm")),
    ):
        sides = []
        for language, name in zip(LANGUAGES, names, strict=True):
            lines = raw.lines(name)
            lines = segments(lines) if name.endswith(".sgm") else lines
            sides.append([plain[language](line) for line in lines])
        held_out[split] = _paired(sides, split)
    splits = byte_pairs({"train": train, **held_out}, 37_000)
    splits["train"] = filtered(splits["train"], 1, 250)
    return _write(splits, folder)


def segments(lines: Sequence[str]) -> list[str]:
    """The texts of the segments in a file of the evaluation's format, apostrophes straight."""
    found = []
    for line in lines:
        if match := re.search(r"<seg id[^>]*>\s*(.*?)\s*</seg>", line):
            found.append(match[1].replace("’", "'"))
    return found


def filtered(pairs: Sequence[Pair], shortest: int, longest: int, ratio: float = 1.5) -> list[Pair]:
    """The pairs whose tokens' counts are between these, and in at most this ratio."""
    found = []
    for pair in pairs:
        low, high = sorted(len(text.split()) for text in pair)
        if shortest <= low and high <= longest and high <= ratio * low:
            found.append(pair)
    return found


def lowered(pairs: Sequence[Pair]) -> list[Pair]:
    return [tuple(text.lower() for text in pair) for pair in pairs]


def byte_pairs(splits: Splits, merges: int) -> Splits:
    """The splits in pieces of words, learned from both sides of the training set."""
    learn, apply = _library("subword_nmt.learn_bpe"), _library("subword_nmt.apply_bpe")
    say(f"learning {merges:,} merges")
    text = "".join(f"{pair[side]}\n" for side in (0, 1) for pair in splits["train"])
    codes = io.StringIO()
    learn.learn_bpe(io.StringIO(text), codes, merges)
    codes.seek(0)
    cut: Callable[[str], str] = apply.BPE(codes).process_line
    return {name: [tuple(map(cut, pair)) for pair in pairs] for name, pairs in splits.items()}


def _tokenizers(
    name: str, aggressive: bool = False, normalized: bool | None = None
) -> dict[str, Callable[[str], str]]:
    """By language: Moses's tokens of a line, its punctuation and characters normalized or not."""
    moses = _library("sacremoses", name)
    normalized = aggressive if normalized is None else normalized

    def tokenizer(language: str) -> Callable[[str], str]:
        split = moses.MosesTokenizer(language).tokenize
        normalize = moses.MosesPunctNormalizer(language, perl_parity=True).normalize

        def clean(line: str) -> str:
            if normalized:
                line = "".join(" " if unicodedata.category(char)[0] == "C" else char
                               for char in normalize(line))  # fmt: skip
            return split(line, aggressive_dash_splits=aggressive, return_str=True)

        return clean

    return {language: tokenizer(language) for language in LANGUAGES}


def _library(module: str, corpus: str = "translation") -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{corpus}: its preparation needs {error.name}; `pip install -c constraints.txt -e "
            "'.[paper-corpora]'`"
        ) from None


def _paired(sides: Sequence[list[str]], part: str) -> list[Pair]:
    if len(sides[0]) != len(sides[1]):
        raise UserError(f"{part}: {len(sides[0])} German lines and {len(sides[1])} English ones")
    return list(zip(*sides, strict=True))


def _write(splits: Splits, folder: Path) -> str:
    for name, pairs in splits.items():
        for side, language in enumerate(LANGUAGES):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return ", ".join(f"{name} {len(pairs):,} pairs" for name, pairs in splits.items())


# ---------------------------------------------------------------------------- language modelling


def _as_they_are(ending: str, name: str) -> Callable[[RawArchives, Path], str]:
    """Files whose words are counted and cut already, under the names that are read here."""

    def write(raw: RawArchives, folder: Path) -> str:
        counts = []
        for split in ("train", "valid", "test"):
            lines = raw.lines(name.format(split))
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{split}.{ending}").write_text(text, encoding="utf-8")
            counts.append(f"{split} {len(lines):,} lines")
        return ", ".join(counts)

    return write


_WRITERS: dict[str, Callable[[RawArchives, Path], str]] = {
    "iwslt14": _iwslt14,
    "wmt14": _wmt14,
    "ptb": _as_they_are("txt", "ptb.{}.txt"),
    "wikitext103": _as_they_are("tokens", "wiki.{}.tokens"),
}
