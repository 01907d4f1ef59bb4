"""The paper's transformers: an encoder-decoder for translation, a causal decoder for text.

The attention is written out, so that it can be differentiated twice on every device; a kernel of
torch's computes it by option. Initialization and order of operations are those of fairseq 0.8's
`transformer_iwslt_de_en_v2`, the model of the released code: weights of linear layers uniform
(Xavier), those of queries, keys and values smaller by 1/sqrt(2), biases zero, embeddings normal
with a standard deviation of width^-1/2, multiplied by width^1/2 when they are read.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": F.relu, "gelu": partial(F.gelu, approximate="tanh")}


@dataclass(frozen=True)
class Size:
    """What all layers of a transformer share.

    Attributes:
        width: of the embeddings and between the layers.
        ffn: hidden units of the feed-forward layers.
        heads: of each attention.
        dropout: of embeddings and of what a layer adds.
        attention_dropout, activation_dropout: of attention weights, and behind the activation.
        pre_norm: whether a layer normalizes its input (and the stack its output) or its output.
        fused_attention: whether torch's kernels compute it; some have no second derivative.
        activation: of the hidden units, `relu` or `gelu` (GPT-2's, by the hyperbolic tangent).
    """

    width: int
    ffn: int
    heads: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pre_norm: bool = True
    fused_attention: bool = False
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width}: must be a multiple of twice the heads, "
                             f"{2 * self.heads}")  # fmt: skip


@dataclass
class Memory:
    """What a layer remembers of the positions before, in a decoding step by step.

    Attributes:
        own: keys and values `(batch, heads, length, width / heads)` of its own attention.
        other: those of the encoder's output.
    """

    own: tuple[Tensor, Tensor] | None = None
    other: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for name in ("own", "other"):
            if (pair := getattr(self, name)) is not None:
                setattr(self, name, (pair[0][rows], pair[1][rows]))


@dataclass
class State:
    """A decoder in the middle of its outputs.

    Attributes:
        layers: one memory each.
        length: positions done.
        hidden_keys: `(batch, 1, 1, source length)`, True where a source has ended; None without
            sources.
    """

    layers: list[Memory]
    length: int = 0
    hidden_keys: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for layer in self.layers:
            layer.select(rows)
        if self.hidden_keys is not None:
            self.hidden_keys = self.hidden_keys[rows]


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer as fairseq initializes it."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Scaled dot-product attention of several heads."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        small = 1 / math.sqrt(2)
        self.query, self.key, self.value = (linear(size.width, size.width, small) for _ in range(3))
        self.out = linear(size.width, size.width)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of inputs `(batch, length, width)`: `(batch, heads, length, width / heads)` each."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
        """Attend from `x`, `(batch, length, width)`.

        Args:
            x: asks.
            keys, values: see `keys_and_values`.
            hidden: True where a key must not be seen; broadcasts to
                `(batch, heads, length, keys)`.
        """
        queries, size = self._heads(self.query(x)), self.size
        dropout = size.attention_dropout if self.training else 0.0
        if size.fused_attention:
            seen = None if hidden is None else ~hidden
            mixed = F.scaled_dot_product_attention(queries, keys, values, seen, dropout)
        else:
            scores = (queries / math.sqrt(keys.shape[-1])) @ keys.transpose(-2, -1)
            if hidden is not None:
                scores = scores.masked_fill(hidden, -torch.inf)
            weights = F.dropout(scores.softmax(-1), dropout, dropout > 0)
            mixed = weights @ values
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.size.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention, attention to the encoder's output if it has one, and a feed-forward network.

    Args:
        size: shared by all layers.
        attends_to_source: whether it has the second part.
    """

    def __init__(self, size: Size, attends_to_source: bool = False) -> None:
        super().__init__()
        self.size = size
        self.attention, self.attention_norm = Attention(size), nn.LayerNorm(size.width)
        if attends_to_source:
            self.source, self.source_norm = Attention(size), nn.LayerNorm(size.width)
        self.widen, self.narrow = linear(size.width, size.ffn), linear(size.ffn, size.width)
        self.ffn_norm = nn.LayerNorm(size.width)

    def forward(
        self,
        x: Tensor,
        hidden: Tensor | None = None,
        encoded: Tensor | None = None,
        source_hidden: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """The layer's output, of the shape of `x`: `(batch, length, width)`.

        Args:
            x: inputs.
            hidden: which of them must not be seen, see `Attention.forward`.
            encoded: the encoder's output, `(batch, source length, width)`.
            source_hidden: which positions of that must not be seen.
            memory: of the positions before `x`, to which those of `x` are added.
        """
        size = self.size
        memory = memory or Memory()
        asked = self.attention_norm(x) if size.pre_norm else x
        keys, values = self.attention.keys_and_values(asked)
        if memory.own is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(memory.own, (keys, values),
                                                               strict=True))  # fmt: skip
        memory.own = keys, values
        x = self._add(x, self.attention(asked, keys, values, hidden), self.attention_norm)
        if encoded is not None:
            asked = self.source_norm(x) if size.pre_norm else x
            if memory.other is None:
                memory.other = self.source.keys_and_values(encoded)
            attended = self.source(asked, *memory.other, source_hidden)
            x = self._add(x, attended, self.source_norm)
        inner = ACTIVATIONS[size.activation](self.widen(self.ffn_norm(x) if size.pre_norm else x))
        inner = F.dropout(inner, size.activation_dropout, self.training)
        return self._add(x, self.narrow(inner), self.ffn_norm)

    def _add(self, x: Tensor, update: Tensor, norm: nn.LayerNorm) -> Tensor:
        x = x + F.dropout(update, self.size.dropout, self.training)
        return x if self.size.pre_norm else norm(x)


class Embedding(nn.Module):
    """Tokens `(batch, length)` to vectors `(batch, length, width)`, positions as sinusoids."""

    def __init__(self, vocabulary: int, size: Size, pad: int) -> None:
        super().__init__()
        self.size = size
        # No padding_idx: where there is padding, attention is masked and the loss counts nothing.
        self.tokens = nn.Embedding(vocabulary, size.width)
        nn.init.normal_(self.tokens.weight, std=size.width**-0.5)
        with torch.no_grad():
            self.tokens.weight[pad] = 0

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """`start`: the position of the first token."""
        x = self.tokens(tokens) * math.sqrt(self.size.width)
        return F.dropout(x + sinusoids(start, x), self.size.dropout, self.training)


def sinusoids(start: int, like: Tensor) -> Tensor:
    """Positions from `start` on, `(length, width)`: sines of all frequencies, then cosines.

    The frequencies fall from 1 to 1/10,000 in equal ratios.
    """
    length, width = like.shape[-2:]
    steps = torch.arange(width // 2, device=like.device, dtype=torch.float64)
    frequencies = torch.exp(steps * (-math.log(10_000) / max(width // 2 - 1, 1)))
    places = torch.arange(start, start + length, device=like.device, dtype=torch.float64)
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)


def causal(length: int, device: torch.device) -> Tensor:
    """`(length, length)`, True where a position would see a later one."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


class EncoderDecoder(nn.Module):
    """A transformer that translates; one table of embeddings for both sides and for the output.

    Args:
        vocabulary: number of tokens, of both languages together.
        size: of all layers.
        encoder_layers, decoder_layers: how many.
        pad: the token behind the end of a shorter text.
    """

    def __init__(
        self, vocabulary: int, size: Size, encoder_layers: int, decoder_layers: int, pad: int = 0
    ) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = Embedding(vocabulary, size, pad)
        self.encoder = nn.ModuleList(Layer(size) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(Layer(size, True) for _ in range(decoder_layers))
        self.encoder_norm, self.decoder_norm = (
            nn.LayerNorm(size.width) if size.pre_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits `(batch, target length, vocabulary)` for the token after each of `target`.

        Args:
            source, target: tokens `(batch, length)`, padded at their ends; `target` begins with
                the token from which a translation starts.
        """
        encoded, source_hidden = self.encode(source)
        x = self.embedding(target)
        hidden = causal(target.shape[1], target.device)
        for layer in self.decoder:
            x = layer(x, hidden, encoded, source_hidden)
        return self._logits(x)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output `(batch, length, width)`, and which of it must not be seen."""
        hidden = (source == self.pad)[:, None, None, :]
        x = self.embedding(source)
        for layer in self.encoder:
            x = layer(x, hidden)
        return self.encoder_norm(x), hidden

    def start(self, source: Tensor) -> State:
        """The decoder before its first token, for `step`."""
        encoded, hidden = self.encode(source)
        layers: Any = self.decoder
        memories = [Memory(other=layer.source.keys_and_values(encoded)) for layer in layers]
        return State(memories, 0, hidden)

    def step(self, tokens: Tensor, state: State) -> Tensor:
        """Logits `(batch, vocabulary)` for the token after `tokens`, `(batch,)`."""
        x = self.embedding(tokens[:, None], state.length)
        state.length += 1
        for layer, memory in zip(self.decoder, state.layers, strict=True):
            x = layer(x, None, x, state.hidden_keys, memory)  # the memory has what is encoded
        return self._logits(x)[:, 0]

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(x), self.embedding.tokens.weight)


class LanguageModel(nn.Module):
    """A causal decoder: every token is predicted from those before it alone.

    Args:
        vocabulary: number of tokens.
        size: of all layers.
        layers: how many.
        cutoffs: of an adaptive softmax, by the tokens' numbers, which must be sorted by frequency;
            none: the embeddings are the output's weights.
    """

    def __init__(
        self, vocabulary: int, size: Size, layers: int, cutoffs: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, size, pad=0)
        self.layers = nn.ModuleList(Layer(size) for _ in range(layers))
        self.norm = nn.LayerNorm(size.width) if size.pre_norm else nn.Identity()
        self.adaptive = (
            nn.AdaptiveLogSoftmaxWithLoss(size.width, vocabulary, list(cutoffs))
            if cutoffs
            else None
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """What the output is computed from, `(batch, length, width)`.

        Args:
            tokens: `(batch, length)`.
        """
        x, hidden = self.embedding(tokens), causal(tokens.shape[1], tokens.device)
        for layer in self.layers:
            x = layer(x, hidden)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """`(batch, length, vocabulary)`; log-probabilities of an adaptive softmax."""
        if self.adaptive is None:
            return F.linear(x, self.embedding.tokens.weight)
        return self.adaptive.log_prob(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def log_likelihood(self, x: Tensor, targets: Tensor) -> Tensor:
        """The logarithm of the targets' probabilities, of the shape of `targets`."""
        if self.adaptive is None:
            return -F.cross_entropy(
                self.logits(x).flatten(0, -2), targets.flatten(), reduction="none"
            ).view_as(targets)
        return self.adaptive(x.flatten(0, 1), targets.flatten()).output.view_as(targets)
