"""Beam search: for each source the likeliest output that is found among few partial ones."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """What beam search asks of a model."""

    def start(self, source: Tensor) -> Any:
        """The state before the first token, with a method `select(rows)`."""
        ...

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Logits `(batch, vocabulary)` for the token after `tokens`, `(batch,)`."""
        ...


@torch.no_grad()
def beam_search(
    model: Decoder,
    source: Tensor,
    *,
    beam: int,
    max_length: int,
    length_penalty: float,
    begin: int,
    end: int,
    never: tuple[int, ...] = (),
) -> tuple[list[list[int]], Tensor]:
    """The best output of each source.

    An output of n tokens, `end` included, is worth its log-probability divided by
    n^length_penalty. A source is done once `beam` outputs have ended that were among the `beam`
    best continuations when they did, as in fairseq; at `max_length` all of them end.

    Args:
        model: computes the next token.
        source: `(batch, length)`, as the model takes it.
        beam: partial outputs that are kept; 1 is greedy search.
        max_length: most tokens of an output, `end` included.
        length_penalty: 0 prefers short outputs, 1 compares means over tokens.
        begin, end: the tokens from which an output starts and by which it ends.
        never: tokens that no output has.

    Returns:
        The outputs without `begin` and `end`, and what they are worth, `(batch,)`.
    """
    batch, device = len(source), source.device
    everything = torch.arange(batch, device=device)
    state = model.start(source)
    state.select(everything.repeat_interleave(beam))
    search = _Search(batch, beam, max_length, device)
    search.tokens[:, :, 0] = begin
    for length in range(1, max_length + 1):
        logits = model.step(search.tokens[:, :, length - 1].flatten(), state)
        log_probs = logits.double().log_softmax(-1).unflatten(0, (-1, beam))
        log_probs[..., [begin, *never]] = -torch.inf
        if length == max_length:
            at_end = log_probs[..., end].clone()
            log_probs.fill_(-torch.inf)
            log_probs[..., end] = at_end
        kept = search.advance(log_probs, length, length_penalty, end)
        if kept is None:
            break
        state.select(kept)
    outputs = [row[:size].tolist() for row, size in zip(search.best, search.sizes, strict=True)]
    return outputs, search.worth


class _Search:
    """Partial outputs of the sources that are not done, and the best output of every source."""

    def __init__(self, batch: int, beam: int, max_length: int, device: torch.device) -> None:
        self.beam = beam
        self.sources = torch.arange(batch, device=device)  # those that are not done
        self.tokens = torch.zeros(batch, beam, max_length + 1, dtype=torch.long, device=device)
        self.scores = torch.full((batch, beam), -torch.inf, dtype=torch.float64, device=device)
        self.scores[:, 0] = 0  # all partial outputs are the same one at first
        self.ended = torch.zeros(batch, dtype=torch.long, device=device)
        self.best = torch.zeros(batch, max_length, dtype=torch.long, device=device)
        self.sizes = torch.zeros(batch, dtype=torch.long, device=device)
        self.worth = torch.full((batch,), -torch.inf, dtype=torch.float64, device=device)

    def advance(
        self, log_probs: Tensor, length: int, length_penalty: float, end: int
    ) -> Tensor | None:
        """Add a token to each partial output.

        Returns:
            The rows of the model's state that go on; None where everything is done.
        """
        count, beam, vocabulary = log_probs.shape
        candidates = (self.scores[..., None] + log_probs).flatten(1)
        scores, places = candidates.topk(min(2 * beam, candidates.shape[1]))
        parents, tokens = places // vocabulary, places % vocabulary
        ends = tokens == end
        among_best = torch.arange(scores.shape[1], device=scores.device) < beam
        finished = ends & among_best & scores.isfinite()
        self._keep_best(scores, parents, finished, length, length_penalty)
        self.ended += finished.sum(1)

        self.scores, chosen = scores.masked_fill(ends, -torch.inf).topk(beam)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        rows = torch.arange(count, device=scores.device)
        self.tokens = self.tokens[rows[:, None], parents]
        if length < self.tokens.shape[2]:
            self.tokens[:, :, length] = tokens
        going = (self.ended < beam) & self.scores.isfinite().any(1)
        if not going.any():
            return None
        kept = (rows[:, None] * beam + parents)[going]
        self.sources, self.tokens = self.sources[going], self.tokens[going]
        self.scores, self.ended = self.scores[going], self.ended[going]
        return kept.flatten()

    def _keep_best(
        self, scores: Tensor, parents: Tensor, finished: Tensor, length: int, penalty: float
    ) -> None:
        worth = (scores / length**penalty).masked_fill(~finished, -torch.inf)
        value, place = worth.max(1)
        better = value > self.worth[self.sources]
        parent = parents.gather(1, place[:, None])[:, 0]
        rows = torch.arange(len(parent), device=parent.device)[better]
        sources = self.sources[better]
        self.worth[sources], self.sizes[sources] = value[better], length - 1
        self.best[sources, : length - 1] = self.tokens[rows, parent[better], 1:length]
