"""Rademacher probes: random vectors of ±1 that are a pure function of where they are used.

A probe is a hash of (seed, step, sample, tensor index, element index). So there is no generator to
save for a resume, every replica of a model draws the same probe, two tensors of one shape draw
different ones (an equal probe adds their cross derivatives to both diagonals), and JAX draws the
same numbers (:mod:`adahessian.hashing`).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from adahessian import _torch
from adahessian.hashing import random_words, stream_keys
from adahessian.replicas import is_sharded

_BITS = 32  # elements that share one random word: element e takes bit e % 32 of word e // 32


def rademacher_like(
    tensors: Sequence[Tensor],
    *,
    seed: int,
    step: int,
    sample: int = 0,
    tensor_indices: Sequence[int] | None = None,
) -> list[Tensor]:
    """Return one tensor of independent ±1 for each of ``tensors``.

    Args:
        tensors: tensors whose shapes, dtypes and devices the probes take. Elements are counted in
            logical (row-major) order, so the memory format changes nothing. Of a DTensor's probe
            the part that this process holds is made: the parts of one tensor fit together.
        seed: up to 63 bits.
        step: which optimizer step the probe belongs to.
        sample: which of several probes of the same step.
        tensor_indices: the number of each tensor in its optimizer (default: its place in
            ``tensors``). A tensor keeps its probe when others are left out.

    Returns:
        Contiguous tensors: E[z] = 0 and E[z zᵀ] = I over the seeds, for all tensors together.
    """
    if tensor_indices is None:
        tensor_indices = range(len(tensors))
    parts = [_Part.of(t) for t in tensors]
    probes: dict[int, Tensor] = {}
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(place)
    for (device, dtype), members in places.items():
        words = tuple(parts[i].words for i in members)
        word_index, owner = _layout(words, device)
        index_of_owner = _constant(tuple(tensor_indices[i] for i in members), device)
        keys = stream_keys(seed, step, sample, index_of_owner)
        bits = random_words(word_index, tuple(key.index_select(0, owner) for key in keys))
        # One pass for all tensors of a kind: on an accelerator the launches would cost more than
        # the arithmetic. Each tensor owns whole words, so its signs are a contiguous run.
        octets = (bits.unsqueeze(1) >> _constant((0, 8, 16, 24), device)) & 255
        signs = _signs(octets.view(-1), dtype)
        runs = signs.split([_BITS * (last - first) for first, last in words])
        for place, run in zip(members, runs, strict=True):
            probes[place] = parts[place].cut(run)
    return [probes[place] for place in range(len(tensors))]


class _Part(NamedTuple):
    """The elements of a tensor that this process holds: all, or a box of a DTensor.

    They are cut out of the run of elements from ``start`` to ``stop``, in the order of the whole
    tensor: an element has the same sign in whichever part it lies.
    """

    start: int
    stop: int
    run_shape: tuple[int, ...]  # of the run, once its incomplete words are cut off
    box: tuple[tuple[int, int], ...]  # (first, length) in each dim of run_shape

    @classmethod
    def of(cls, tensor: Tensor) -> "_Part":
        shape = tuple(tensor.shape)
        if not is_sharded(tensor) or not shape:
            return cls(0, tensor.numel(), shape, ())
        part, offset = _torch.local_shape_and_offset(tensor)
        if 0 in part:
            return cls(0, 0, tuple(part), ())
        # The run spans the part's first to last row along the first dim.
        row = math.prod(shape[1:])
        run_shape = (part[0], *shape[1:])
        box = ((0, part[0]), *zip(offset[1:], part[1:], strict=True))
        return cls(offset[0] * row, (offset[0] + part[0]) * row, run_shape, box)

    @property
    def words(self) -> tuple[int, int]:
        """The first random word of the run, and the one after the last."""
        return self.start // _BITS, -(-self.stop // _BITS)

    def cut(self, signs: Tensor) -> Tensor:
        first = self.start - self.words[0] * _BITS
        part = signs[first : first + self.stop - self.start].view(self.run_shape)
        for dim, (start, length) in enumerate(self.box):
            part = part.narrow(dim, start, length)
        return part.contiguous()


# Constants of a model: the same for every step of a training run, hence the (small) caches.
@lru_cache(maxsize=16)
def _constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _signs(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the 8 signs of each octet `(n,)`, its lowest bit first: `(8 n,)`.

    A processor looks them up in less than half the time of making them one by one. A GPU takes
    12 ms to look up the signs of a GPT-2 small, and makes them in a fraction of that.
    """
    if octets.device.type == "cpu":
        return _signs_of_octets(dtype).index_select(0, octets).view(-1)
    return _sign_of_each_bit(octets, dtype).view(-1)


@lru_cache(maxsize=16)
def _signs_of_octets(dtype: torch.dtype) -> Tensor:
    return _sign_of_each_bit(torch.arange(256, device="cpu"), dtype)


def _sign_of_each_bit(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the signs of octets `(n,)`: `(n, 8)`. They are bytes as long as they can be."""
    places = torch.arange(8, dtype=torch.uint8, device=octets.device)
    return (octets.to(torch.uint8).unsqueeze(1) >> places & 1).to(dtype).mul_(2).sub_(1)


@lru_cache(maxsize=16)
def _layout(words: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for each random word, its index within its tensor and the place of that tensor."""
    cpu = torch.device("cpu")  # whatever the default device is
    empty = torch.empty(0, dtype=torch.int64, device=cpu)
    parts = [torch.arange(first, last, device=cpu) for first, last in words]
    counts = torch.tensor([last - first for first, last in words], dtype=torch.int64, device=cpu)
    return torch.cat([*parts, empty]).to(device), torch.repeat_interleave(counts).to(device)
