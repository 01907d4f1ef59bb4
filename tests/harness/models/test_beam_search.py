"""Beam search against the enumeration of all outputs."""

from itertools import product

import pytest
import torch
from support.text import tiny_translator

from experiments.models.beam_search import beam_search

PAD, UNKNOWN, BEGIN, END = range(4)
SOURCES = torch.tensor([[4, 5, 4, END], [5, END, PAD, PAD], [4, 4, END, PAD]])


@pytest.fixture
def model():
    return tiny_translator(vocabulary=6, scale=3.0).eval()


def every_output(model, source, max_length, penalty):
    """All outputs of one source with what they are worth, each computed on its own."""
    worth = {}
    for length in range(1, max_length + 1):
        for body in product([UNKNOWN, 4, 5], repeat=length - 1):
            target = torch.tensor([[BEGIN, *body]])
            with torch.no_grad():
                log_probs = model(source[source != PAD][None], target)[0].log_softmax(-1)
            tokens = [*body, END]
            total = sum(log_probs[i, token].item() for i, token in enumerate(tokens))
            worth[body] = total / length**penalty
    return worth


def search(model, sources, **options):
    options = {"beam": 4, "max_length": 4, "length_penalty": 1.0, **options}
    return beam_search(model, sources, begin=BEGIN, end=END, never=(PAD,), **options)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_as_wide_as_all_outputs_finds_the_best_one(model, penalty):
    outputs, worth = search(model, SOURCES, beam=200, length_penalty=penalty)
    for source, output, value in zip(SOURCES, outputs, worth, strict=True):
        known = every_output(model, source, 4, penalty)
        assert tuple(output) == max(known, key=known.get)
        assert value.item() == pytest.approx(max(known.values()), abs=1e-9)


def test_what_a_narrow_beam_says_an_output_is_worth_is_true(model):
    for beam in (1, 2, 3):
        outputs, worth = search(model, SOURCES, beam=beam, length_penalty=0.6)
        for source, output, value in zip(SOURCES, outputs, worth, strict=True):
            known = every_output(model, source, 4, 0.6)
            assert value.item() == pytest.approx(known[tuple(output)], abs=1e-9)


def test_a_beam_of_one_is_greedy(model):
    outputs, _ = search(model, SOURCES, beam=1, max_length=6)
    for source, output in zip(SOURCES, outputs, strict=True):
        tokens = [BEGIN]
        while len(tokens) < 6:
            with torch.no_grad():
                logits = model(source[source != PAD][None], torch.tensor([tokens]))[0, -1]
            logits[[PAD, BEGIN]] = -torch.inf
            if (token := logits.argmax().item()) == END:
                break
            tokens.append(token)
        assert output == tokens[1:]


def test_a_source_is_translated_alike_alone_and_in_a_batch(model):
    together, _ = search(model, SOURCES)
    alone = [search(model, source[source != PAD][None])[0][0] for source in SOURCES]
    assert together == alone


def test_a_wide_beam_differs_from_a_greedy_one():
    """Else the tests above would show little."""
    different = 0
    for seed in range(5):
        model = tiny_translator(vocabulary=6, scale=3.0, seed=seed).eval()
        different += search(model, SOURCES, beam=1)[0] != search(model, SOURCES, beam=4)[0]
    assert different
