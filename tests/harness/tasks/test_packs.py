"""Packs hold every sentence once, and cost what they may."""

import numpy
import pytest
import torch

from experiments.errors import UserError
from experiments.tasks.text.packs import Sentences, make_packs

LENGTHS = numpy.random.default_rng(0).integers(1, 40, (1000, 2))


def test_every_sentence_is_in_one_pack_and_no_pack_is_too_large():
    packs = make_packs(LENGTHS, 400)
    assert sorted(numpy.concatenate(packs).tolist()) == list(range(1000))
    for pack in packs:
        assert len(pack) * LENGTHS[pack].max() <= 400
    # All but the last of a run of equal lengths are multiples of eight, where that can be.
    assert all(len(pack) % 8 == 0 or len(pack) < 8 for pack in packs[:-1])


def test_a_pack_has_sentences_of_similar_length_and_packs_are_nearly_full():
    packs = make_packs(LENGTHS, 400)
    spread = [numpy.ptp(LENGTHS[pack, 0]) for pack in packs]
    assert numpy.median(spread) <= 3
    padded = sum(len(pack) * LENGTHS[pack].max() for pack in packs)
    assert padded > 0.6 * 400 * len(packs)


def test_packs_are_always_the_same_and_mixed_inside():
    one, other = make_packs(LENGTHS, 400), make_packs(LENGTHS.copy(), 400)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    many = make_packs(numpy.stack([numpy.arange(1, 65)] * 2, 1), 64 * 64)[0]
    halves = many[:32].mean(), many[32:].mean()
    assert abs(halves[0] - halves[1]) < 8  # of sorted ones: 32


def test_a_sentence_that_fits_no_pack_is_refused():
    with pytest.raises(UserError, match="dataset.max_tokens = 30: a sentence has 39 tokens"):
        make_packs(LENGTHS, 30)


def test_rows_are_the_sentences_with_what_is_around_them():
    lengths = numpy.array([2, 0, 3])
    flat = numpy.array([11, 12, 21, 22, 23], dtype=numpy.int32)
    sentences = Sentences(flat, lengths, torch.device("cpu"))
    rows = sentences.rows([2, 0, 1], pad=0, before=(2,), after=(3,))
    assert rows.tolist() == [[2, 21, 22, 23, 3], [2, 11, 12, 3, 0], [2, 3, 0, 0, 0]]
    assert sentences.rows([1], pad=0).shape == (1, 0)
    assert sentences.rows([1], pad=0, after=(3,)).tolist() == [[3]]
    assert rows.dtype == torch.int64
