"""BLEU as sacreBLEU computes it, from sums: they add up over batches and processes."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

ORDERS = range(4)
LENGTHS = ("bleu_output_words", "bleu_reference_words")


class Bleu:
    """Counts what a BLEU is made of, and computes it from the counts.

    Args:
        tokenize, lowercase: as sacreBLEU takes them.
    """

    def __init__(self, tokenize: str, lowercase: bool) -> None:
        self.name = f"{tokenize}-{'lower' if lowercase else 'mixed'}"
        self._options = {"tokenize": tokenize, "lowercase": lowercase, "force": True}

    @cached_property
    def _metric(self) -> Any:
        from sacrebleu.metrics import BLEU

        return BLEU(**self._options)

    def counts(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Matching and all n-grams of each order, and the words of either side."""
        score = self._metric.corpus_score(list(outputs), [list(references)])
        found = {f"bleu_matches_{n + 1}": float(score.counts[n]) for n in ORDERS}
        found |= {f"bleu_ngrams_{n + 1}": float(score.totals[n]) for n in ORDERS}
        return found | dict(zip(LENGTHS, (float(score.sys_len), float(score.ref_len)), strict=True))

    def score(self, counts: Mapping[str, float]) -> float:
        """BLEU, from 0 to 100, of sums of `counts`."""
        return self._metric.compute_bleu(
            [round(counts[f"bleu_matches_{n + 1}"]) for n in ORDERS],
            [round(counts[f"bleu_ngrams_{n + 1}"]) for n in ORDERS],
            *(round(counts[name]) for name in LENGTHS),
            smooth_method=self._metric.smooth_method,
        ).score

    @property
    def signature(self) -> str:
        """What sacreBLEU asks one to print beside a BLEU."""
        self.counts(["a"], ["a"])  # the number of references is part of it
        return str(self._metric.get_signature())


def has_counts(totals: Mapping[str, float]) -> bool:
    """Whether sums hold those of a BLEU."""
    return LENGTHS[0] in totals
