"""Packs: sentences of similar length that fill a number of tokens, and the tensors made of them."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from experiments.errors import UserError

MULTIPLE = 8  # sentences in a pack, where there is a choice: what matrix products are fastest with


def make_packs(lengths: numpy.ndarray, max_tokens: int) -> list[numpy.ndarray]:
    """Sort sentences by length and cut them into packs, always the same.

    A pack costs its number of sentences times its longest sentence. Inside it the order is mixed,
    so that a part of a pack is a fair sample of it.

    Args:
        lengths: `(sentences, sides)`, in tokens; sorted by the first side, then the next.
        max_tokens: what a pack may cost.

    Returns:
        The sentences of each pack, int64.

    Raises:
        UserError: a sentence alone is longer.
    """
    longest = lengths.max(1)
    if longest.max(initial=0) > max_tokens:
        raise UserError(f"dataset.max_tokens = {max_tokens}: a sentence has {longest.max()} tokens")
    order = numpy.lexsort(lengths.T[::-1])
    packs, pack, width = [], [], 0
    for sentence in order.tolist():
        size = int(longest[sentence])
        if max(width, size) * (len(pack) + 1) > max_tokens:
            full = max(len(pack) // MULTIPLE * MULTIPLE, len(pack) % MULTIPLE)
            packs.append(pack[:full])
            pack = pack[full:]
            width = int(longest[pack].max(initial=0))
        pack.append(sentence)
        width = max(width, size)
    if pack:
        packs.append(pack)
    return [_mix(numpy.array(pack)) for pack in packs]


def _mix(sentences: numpy.ndarray) -> numpy.ndarray:
    """A fixed order that has nothing to do with lengths or places (Fibonacci hashing)."""
    scattered = sentences.astype(numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    return sentences[scattered.argsort(kind="stable")]


class Sentences:
    """Sentences of one language as numbers.

    Args:
        flat: the tokens of all sentences, one after the other.
        lengths: of each sentence.
        device: where the tensors are to be.
    """

    def __init__(self, flat: numpy.ndarray, lengths: numpy.ndarray, device: torch.device) -> None:
        self._flat = torch.from_numpy(flat).to(device)
        self.lengths = lengths
        self._starts = numpy.concatenate([[0], lengths.cumsum()[:-1]])

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, chosen: Sequence[int] | numpy.ndarray, pad: int, before=(), after=()) -> Tensor:
        """Chosen sentences, `(sentences, length)`, int64, padded at the end.

        Args:
            chosen: their numbers.
            pad: the token behind the shorter ones.
            before, after: tokens in front of and behind each sentence.
        """
        chosen = numpy.asarray(chosen)
        lengths, width = self.lengths[chosen], int(self.lengths[chosen].max(initial=0))
        device = self._flat.device
        places = torch.arange(width)
        inside = (places < torch.from_numpy(lengths)[:, None]).to(device, non_blocking=True)
        where = torch.from_numpy(self._starts[chosen])[:, None] + places
        where = where.to(device, non_blocking=True)
        where = where.clamp_(max=max(len(self._flat) - 1, 0))
        tokens = self._flat[where].long() if width else where
        rows = torch.full((len(chosen), len(before) + width + len(after)), pad, device=device)
        rows[:, len(before) : len(before) + width] = tokens.masked_fill(~inside, pad)
        for place, token in enumerate(before):
            rows[:, place] = token
        ends = torch.from_numpy(lengths).to(device, non_blocking=True)[:, None] + len(before)
        for place, token in enumerate(after):
            rows.scatter_(1, ends + place, token)
        return rows
