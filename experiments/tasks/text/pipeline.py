"""From raw texts to a clean, split corpus; the same steps for every source.

An example is a tuple of texts: a sentence and its translation, or one line of a document. The steps
are `clean` (normalize, filter, drop what is there twice), `split`, and `drop_near_duplicates`. None
draws random numbers: which split an example is in is a function of its first text alone, so that it
never changes sides when a package changes.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

Example = tuple[str, ...]
SPLITS = ("train", "val", "test")
BLOCK = 512  # rows of a similarity matrix in memory at a time

_PLACEHOLDER = re.compile(r"%[\w(#.+-]|\{[^}]*\}|<[^>]*>|&\w+;|\$\w|https?://|\\[nt]|__\w+")
# Behind three letters: abbreviations (z. B., e.g.) are shorter.
_END_OF_SENTENCE = re.compile(r"(?<=\w{3}[.!?])\s+(?=[A-ZÄÖÜ„“\"(])")
_VARIATIONS = {chr(code) for code in range(0xFE00, 0xFE10)}  # how a sign is drawn
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])


@dataclass(frozen=True)
class Rules:
    """Which examples of a source are kept.

    Attributes:
        max_words: of the longest text of an example.
        max_ratio: of the words of the texts of an example, three more being always allowed.
        min_letters: share of letters among what is no blank.
        placeholders: whether texts with parts for a computer (`%s`, `{name}`, `<b>`) are kept.
        held_out: share of the examples in the validation set, and again in the test set.
        near_duplicates: smallest similarity (Jaccard, of sets of character trigrams) to a held-out
            text at which an example leaves the training set; None: all stay.
    """

    max_words: int = 60
    max_ratio: float = 1.5
    min_letters: float = 0.7
    placeholders: bool = False
    held_out: float = 0.05
    near_duplicates: float | None = 0.5


def normalize(text: str) -> str:
    """Unicode's composed form (NFC), single blanks, nothing invisible."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_INVISIBLE).split())


def sentences(example: Example) -> list[Example]:
    """An example's paragraphs, or their sentences, wherever all its texts have equally many."""
    found = []
    for paragraphs in _aligned(example, lambda text: re.split(r"\n\s*\n", text.strip())):
        found += _aligned(tuple(map(normalize, paragraphs)), _END_OF_SENTENCE.split)
    return found


def _aligned(example: Example, cut: Callable[[str], list[str]]) -> list[Example]:
    parts = [cut(text) for text in example]
    return list(zip(*parts, strict=True)) if len({len(part) for part in parts}) == 1 else [example]


def key(text: str) -> str:
    """What two texts have in common that count as the same: letters and digits, in lower case.

    Marks that stay apart from their letters, as most vowels of Indian languages and of Thai, count.
    """
    return "".join(char for char in normalize(text).casefold() if _counts(char))


def _counts(char: str) -> bool:
    is_mark = unicodedata.category(char) in ("Mn", "Mc") and char not in _VARIATIONS
    return char.isalnum() or is_mark


def clean(
    raw: Iterable[Example], rules: Rules, dropped: Counter[str] | None = None
) -> list[Example]:
    """The examples that `rules` keeps, normalized, in their order.

    An example goes if any of its texts was there before, on the same side.

    Args:
        raw: the examples.
        rules: of their source.
        dropped: counts what goes, by reason.
    """
    dropped = Counter() if dropped is None else dropped
    seen: list[set[str]] = []
    kept = []
    for texts in raw:
        example = tuple(normalize(text) for text in texts)
        reason = _refusal(example, rules)
        if not reason:
            keys = [key(text) for text in example]
            seen = seen or [set() for _ in example]
            if any(one in known for one, known in zip(keys, seen, strict=True)):
                reason = "duplicates"
            else:
                for one, known in zip(keys, seen, strict=True):
                    known.add(one)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(example)
    return kept


def _refusal(example: Example, rules: Rules) -> str:
    """Why an example is not kept; empty where it is."""
    counts = [len(text.split()) for text in example]
    letters = min(_share_of_letters(text) for text in example)
    if not min(counts) or not all(map(key, example)):
        reason = "empty"
    elif not rules.placeholders and any(map(_PLACEHOLDER.search, example)):
        reason = "placeholders"
    elif len(example) > 1 and len({key(text) for text in example}) == 1:
        reason = "identical sides"
    elif max(counts) > rules.max_words:
        reason = "too long"
    elif max(counts) > rules.max_ratio * min(counts) + 3:
        reason = "unequal lengths"
    elif letters < rules.min_letters:
        reason = "few letters"
    else:
        reason = ""
    return reason


def _share_of_letters(text: str) -> float:
    visible = [char for char in text if not char.isspace()]
    return sum(char.isalpha() for char in visible) / max(len(visible), 1)


# -------------------------------------------------------------------------------------- splitting


def side(text: str, held_out: float) -> str:
    """The split of an example whose first text this is: `train`, `val` or `test`."""
    digest = hashlib.sha256(key(text).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < held_out:
        return "val"
    return "test" if place < 2 * held_out else "train"


def split(examples: Iterable[Example], held_out: float) -> dict[str, list[Example]]:
    """The examples by split, each in their order; see `side`."""
    found: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        found[side(example[0], held_out)].append(example)
    return found


def drop_near_duplicates(
    training: Sequence[Example], held_out: Sequence[Example], threshold: float
) -> list[Example]:
    """The training examples of which no text is similar to a held-out text of the same side.

    Args:
        training, held_out: examples.
        threshold: the smallest similarity (`Rules.near_duplicates`) that counts.
    """
    near = numpy.zeros(len(training), dtype=bool)
    for texts, others in zip(zip(*training, strict=True), zip(*held_out, strict=True), strict=True):
        for start, similarity in similarities(texts, others):
            near[start : start + len(similarity)] |= (similarity >= threshold).any(1)
    return [example for example, drop in zip(training, near, strict=True) if not drop]


def similarities(texts: Sequence[str], others: Sequence[str]):
    """Blocks of the similarities of `texts` (rows) to `others` (columns), with their first row.

    The similarity is that of Jaccard: of the trigrams of characters that either text has, the share
    that both have; 0 where neither has one.
    """
    from scipy import sparse

    numbers: dict[str, int] = {}

    def matrix(lines: Sequence[str]) -> Any:
        indices, ends = [], [0]
        for line in lines:
            indices += sorted(numbers.setdefault(gram, len(numbers)) for gram in _trigrams(line))
            ends.append(len(indices))
        values = numpy.ones(len(indices), dtype=numpy.float32)
        return sparse.csr_array((values, indices, ends), shape=(len(lines), max(len(numbers), 1)))

    theirs = matrix(others)
    ours = matrix(texts)
    # `texts` may have brought trigrams that `others` have not: none in common.
    theirs.resize((theirs.shape[0], ours.shape[1]))
    transposed = theirs.T.tocsr()
    sizes = numpy.asarray(theirs.sum(1)).ravel()
    for start in range(0, len(texts), BLOCK):
        rows = ours[start : start + BLOCK]
        common = (rows @ transposed).toarray()
        either = numpy.asarray(rows.sum(1)).reshape(-1, 1) + sizes - common
        yield start, common / numpy.maximum(either, 1)


def _trigrams(text: str) -> set[str]:
    line = f" {normalize(text).casefold()} "
    return {line[start : start + 3] for start in range(len(line) - 2)}
