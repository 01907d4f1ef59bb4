"""From text to numbers and back: pieces of words (BPE), or what stands between blanks."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from experiments.errors import UserError

PAD, UNKNOWN, BEGIN, END = range(4)
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
JOINT = "@@ "  # ends a piece of a word in texts that are split already (subword-nmt)


class Vocabulary(Protocol):
    """Numbers for texts. `PAD`, `UNKNOWN`, `BEGIN` and `END` are the first ones."""

    size: int

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The numbers of each line, without `BEGIN` and `END`."""
        ...

    def decode(self, numbers: Sequence[int]) -> str:
        """The text; numbers of `SPECIAL` other than `UNKNOWN` are left out."""
        ...


class Pieces:
    """Pieces of words, from sentencepiece.

    Args:
        model: the bytes of its model, see `train_pieces`.
    """

    FILE = "pieces.model"

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model)
        self.size = self._processor.vocab_size()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(lines))

    def decode(self, numbers: Sequence[int]) -> str:
        return self._processor.decode(
            [int(n) for n in numbers if n == UNKNOWN or n >= len(SPECIAL)]
        )


def train_pieces(lines: Iterable[str], size: int) -> bytes:
    """The model of the most frequent pieces, by byte pair encoding; the same bytes each time.

    Args:
        lines: of the training set.
        size: of the vocabulary, special ones included.

    Raises:
        UserError: the text does not have so many pieces.
    """
    from sentencepiece import SentencePieceTrainer

    if size <= len(SPECIAL):
        raise UserError(f"dataset.vocabulary = {size}: {len(SPECIAL)} of them are special pieces")
    written = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",  # `pipeline.normalize` has done it
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            num_threads=1,  # the bytes depend on it
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip() or str(error)
        if needed := re.search(r"smaller than required_chars. \d+ vs (\d+)", reason):
            reason = f"at least {needed[1]}, the characters and special pieces of this text"
        raise UserError(f"dataset.vocabulary = {size}: {reason}") from None
    return written.getvalue()


class Words:
    """What stands between blanks; words that were not in the training set are `UNKNOWN`.

    So is what texts themselves have for a word that they leave out, `<unk>`. Other names of
    `SPECIAL` are words like any other where a text has them.

    Args:
        words: by number, from the one behind `SPECIAL` on.
    """

    FILE = "words.txt"

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [*SPECIAL, *words]
        behind = enumerate(words, len(SPECIAL))
        self._numbers = {SPECIAL[UNKNOWN]: UNKNOWN, **{word: number for number, word in behind}}
        self.size = len(self._words)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [[self._numbers.get(word, UNKNOWN) for word in line.split()] for line in lines]

    def decode(self, numbers: Sequence[int]) -> str:
        known = [self._words[n] for n in numbers if n == UNKNOWN or n >= len(SPECIAL)]
        return join_pieces(" ".join(known))


def join_pieces(line: str) -> str:
    """A text whose words are split (`Hall@@ o`) as it was before."""
    return f"{line} ".replace(JOINT, "").strip()


def count_words(lines: Iterable[str], size: int | None) -> list[str]:
    """The most frequent words, the most frequent first and equal ones by the alphabet.

    Args:
        lines: of the training set.
        size: of the vocabulary, `SPECIAL` included; None: all.
    """
    counts = Counter(word for line in lines for word in line.split())
    counts.pop(SPECIAL[UNKNOWN], None)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return words if size is None else words[: size - len(SPECIAL)]


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary that lies in a folder."""
    path = vocabulary_file(folder)
    if path.name == Pieces.FILE:
        return Pieces(path.read_bytes())
    return Words(path.read_text(encoding="utf-8").split("\n")[:-1])


def vocabulary_file(folder: Path) -> Path:
    """The file of the vocabulary that lies in a folder."""
    pieces = folder / Pieces.FILE
    return pieces if pieces.is_file() else folder / Words.FILE
