"""Perplexities without a network: what counting the tokens of the training set gives.

Interpolated Kneser-Ney (Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling", 1999), of one, two and three tokens, with one discount per order. Every token of the
text but its first is predicted, as by a network, from up to two tokens before it; a network's
sequences know nothing of what stands before them.
"""

import math

import numpy

from experiments.tasks.text.prepared import Prepared

NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}
LARGEST = 5_000_000  # tokens of a training set; beyond it they are not computed


def baselines(
    corpus: Prepared, train: numpy.ndarray, text: numpy.ndarray, split: str = "test"
) -> dict[str, float]:
    """Perplexity of each baseline on a split, computed once and kept beside the corpus.

    Empty for a training set of more than `LARGEST` tokens.

    Args:
        train, text: the tokens of the training set and of the split.
    """
    if len(train) > LARGEST:
        return {}

    def compute() -> dict[str, float]:
        means = KneserNey(train, corpus.vocabulary.size).mean_surprise(text)
        return {name: round(math.exp(means[order]), 2) for order, name in NAMES.items()}

    return corpus.remember(f"baselines-{split}", compute)


class KneserNey:
    """Interpolated Kneser-Ney models of one to three tokens.

    The highest order counts n-grams; a lower one counts how many different tokens stand before
    its n-grams. Each takes a discount D = n1 / (n1 + 2 n2) from every count, where n1 and n2
    are how many counts are 1 and 2, and gives that mass to the next lower order; the lowest one
    to all tokens alike.

    Args:
        train: tokens, `(length,)`.
        size: of the vocabulary.
    """

    def __init__(self, train: numpy.ndarray, size: int) -> None:
        self.size = size
        self._counts = {
            order: numpy.unique(_grams(train, order, size), return_counts=True) for order in NAMES
        }

    def mean_surprise(self, text: numpy.ndarray) -> dict[int, float]:
        """For each order the mean negative log-probability of the tokens but the first."""
        text = text.astype(numpy.int64)
        return {order: float(-numpy.log(self.probabilities(text, order)).mean()) for order in NAMES}

    def probabilities(self, text: numpy.ndarray, order: int) -> numpy.ndarray:
        """Of each token but the first, given up to `order - 1` before it; `(length - 1,)`."""
        found = numpy.full(len(text) - 1, 1 / self.size)
        for lower in range(1, order + 1):
            grams, counts = self._grams_of(lower, highest=lower == order)
            first = max(lower - 1, 1)  # a text's second token has one before it
            asked = _grams(text[first - lower + 1 :], lower, self.size)
            where = slice(first - 1, None)
            found[where] = self._interpolated(grams, counts, asked, found[where])
        return found

    def _interpolated(
        self,
        grams: numpy.ndarray,
        counts: numpy.ndarray,
        asked: numpy.ndarray,
        lower: numpy.ndarray,
    ) -> numpy.ndarray:
        """The probabilities of n-grams' last tokens, from those of the next lower order."""
        if not len(grams):  # a training set of fewer tokens
            return lower
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once else 0.0
        histories, starts = numpy.unique(grams // self.size, return_index=True)
        totals = numpy.add.reduceat(counts, starts)
        followers = numpy.diff([*starts, len(grams)])
        place, known = _find(histories, asked // self.size)
        own, seen = _find(grams, asked)
        count = numpy.where(seen, counts[own], 0)
        kept = numpy.maximum(count - discount, 0) / totals[place]
        given = discount * followers[place] / totals[place]
        return numpy.where(known, kept + given * lower, lower)

    def _grams_of(self, order: int, highest: bool) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The n-grams, ascending, and what is counted of each."""
        if highest:
            return self._counts[order]
        longer, _ = self._counts[order + 1]
        return numpy.unique(longer % self.size**order, return_counts=True)


def _grams(tokens: numpy.ndarray, order: int, size: int) -> numpy.ndarray:
    """Each run of `order` tokens as a number, the first token the most significant."""
    tokens = tokens.astype(numpy.int64)
    count = max(len(tokens) - order + 1, 0)
    found = numpy.zeros(count, numpy.int64)
    for place in range(order):
        found = found * size + tokens[place : count + place]
    return found


def _find(sorted_: numpy.ndarray, asked: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Where each number is, and whether it is there."""
    place = numpy.searchsorted(sorted_, asked).clip(max=len(sorted_) - 1)
    return place, sorted_[place] == asked
