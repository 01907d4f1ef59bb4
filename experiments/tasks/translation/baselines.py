"""What BLEU has without learning: a number below these means nothing learned.

- `copy`: the source itself.
- `nearest`: the translation of the training sentence that is most similar to the source.
- `word by word`: each word replaced by the one that goes with it in the training set (the largest
  Dice coefficient of the pairs in which they are), in the source's order.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from experiments.tasks.text.pipeline import similarities
from experiments.tasks.text.prepared import Prepared
from experiments.tasks.translation.bleu import Bleu

LARGEST = 500_000  # pairs of a training set; beyond it they are not computed


def baselines(corpus: Prepared, bleu: Bleu, split: str = "test") -> dict[str, float]:
    """BLEU of each baseline on a split, computed once and kept beside the corpus.

    Empty for a training set of more than `LARGEST` pairs.
    """
    if corpus.meta["examples"]["train"] > LARGEST:
        return {}
    return corpus.remember(f"baselines-{split}-{bleu.name}", lambda: _compute(corpus, bleu, split))


def _compute(corpus: Prepared, bleu: Bleu, split: str) -> dict[str, float]:
    source, target = (
        {part: [corpus.plain(line) for line in corpus.texts(part, language)]
         for part in ("train", split)}
        for language in corpus.meta["languages"]
    )  # fmt: skip
    outputs = {
        "copy": source[split],
        "nearest": nearest(source["train"], target["train"], source[split]),
        "word by word": word_by_word(source["train"], target["train"], source[split]),
    }
    return {
        name: round(bleu.score(bleu.counts(lines, target[split])), 2)
        for name, lines in outputs.items()
    }


def nearest(sources: Sequence[str], targets: Sequence[str], lines: Sequence[str]) -> list[str]:
    """For each line the target of the most similar source; the first of equals."""
    chosen: list[int] = []
    for _, block in similarities(lines, sources):
        chosen += block.argmax(1).tolist()
    return [targets[place] for place in chosen]


def word_by_word(sources: Sequence[str], targets: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Each word of the lines replaced; one that no source has stays."""
    alone: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for source, target in zip(sources, targets, strict=True):
        pair = set(source.split()), set(target.split())
        for counts, words in zip(alone, pair, strict=True):
            counts.update(words)
        for word in pair[0]:
            together[word].update(pair[1])
    wanted = {word for line in lines for word in line.split()}
    table = {
        word: max(
            sorted(together[word]),
            key=lambda other, word=word: (
                2 * together[word][other] / (alone[0][word] + alone[1][other])
            ),
        )
        for word in sorted(wanted & together.keys())
    }
    return [" ".join(table.get(word, word) for word in line.split()) for line in lines]
