"""What BLEU has without learning."""

import random
from collections import Counter

import numpy
import pytest
from support.text import prepare_small

from experiments.tasks.language_modeling.baselines import KneserNey
from experiments.tasks.text.prepared import Recipe, prepare
from experiments.tasks.translation import baselines as module
from experiments.tasks.translation.baselines import baselines, nearest, word_by_word
from experiments.tasks.translation.bleu import Bleu

SOURCES = ["das rote Haus", "das grüne Haus", "ein roter Hund", "das Auto ist rot"]
TARGETS = ["the red house", "the green house", "a red dog", "the car is red"]


def test_the_most_similar_source_gives_its_target():
    assert nearest(SOURCES, TARGETS, ["das rote Haus!", "ein Hund"]) == [TARGETS[0], TARGETS[2]]


def test_words_go_with_those_that_they_are_met_with():
    # "das" is in three pairs, and "the" in the same three; "Haus" and "house" in the same two.
    assert word_by_word(SOURCES, TARGETS, ["das Haus ist unbekannt"]) == ["the house car unbekannt"]


def test_they_are_computed_once_and_are_bleus(tmp_path, monkeypatch):
    root, bleu = prepare_small(tmp_path, monkeypatch), Bleu("13a", False)
    corpus = prepare(Recipe("cldr", ("de", "en"), "pieces", 400), root)
    found = baselines(corpus, bleu)
    copied = bleu.counts(corpus.texts("test", "de"), corpus.texts("test", "en"))
    assert found["copy"] == pytest.approx(bleu.score(copied), abs=0.01)
    assert found.keys() == {"copy", "nearest", "word by word"}
    monkeypatch.setattr(module, "nearest", None)  # calling it would fail
    assert baselines(corpus, bleu) == found
    assert not list(corpus.folder.glob("*.part"))


def kneser_ney(train, size, token, history):
    """The probability of a token behind a history, by the definition, one n-gram at a time."""

    def probability(token, history, highest):
        n = len(history) + 1
        grams = Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1))
        if not highest:
            longer = {tuple(train[i : i + n + 1]) for i in range(len(train) - n)}
            grams = Counter(gram[1:] for gram in longer)
        once, twice = (sum(count == c for count in grams.values()) for c in (1, 2))
        discount = once / (once + 2 * twice) if once else 0
        behind = {gram: count for gram, count in grams.items() if gram[:-1] == history}
        lower = probability(token, history[1:], False) if history else 1 / size
        if not behind:
            return lower
        total = sum(behind.values())
        kept = max(behind.get((*history, token), 0) - discount, 0) / total
        return kept + discount * len(behind) / total * lower

    return probability(token, history, True)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_counted_tokens_have_the_probabilities_of_kneser_ney(order):
    draw = random.Random(0)
    train = numpy.array([int(6 * draw.random() ** 2) for _ in range(60)])
    text = numpy.array([0, 3, 6, 1, 1, 0, 2, 5, 5, 0])  # 6 is in no training text
    found = KneserNey(train, 7).probabilities(text, order)
    for place in range(order - 1 or 1, len(text)):
        history = tuple(text[place - order + 1 : place])
        assert found[place - 1] == pytest.approx(kneser_ney(train, 7, text[place], history))
        others = [numpy.array([*history, token]) for token in range(7)]
        if history:
            total = sum(KneserNey(train, 7).probabilities(other, order)[-1] for other in others)
            assert total == pytest.approx(1)


def test_a_text_without_any_pattern_has_a_perplexity_of_its_tokens():
    draw = numpy.random.default_rng(0)
    train, text = draw.integers(0, 20, 60_000), draw.integers(0, 20, 2_000)
    for surprise in KneserNey(train, 20).mean_surprise(text).values():
        assert numpy.exp(surprise) == pytest.approx(20, rel=0.1)


def test_a_training_set_of_two_tokens_has_few_patterns():
    for surprise in KneserNey(numpy.array([3, 2]), 4).mean_surprise(numpy.array([3, 2])).values():
        assert numpy.isfinite(surprise)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    root = prepare_small(tmp_path, monkeypatch)
    corpus = prepare(Recipe("cldr", ("de", "en"), "pieces", 400), root)
    (corpus.folder / "x.json").mkdir()  # as good as read-only, for root as well
    assert corpus.remember("x", lambda: {"a": 1.5}) == {"a": 1.5}


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_what_is_damaged_is_computed_again(content, tmp_path, monkeypatch):
    root = prepare_small(tmp_path, monkeypatch)
    corpus = prepare(Recipe("cldr", ("de", "en"), "pieces", 400), root)
    (corpus.folder / "x.json").write_text(content)
    assert corpus.remember("x", lambda: {"a": 1.5}) == {"a": 1.5}
    assert corpus.remember("x", dict) == {"a": 1.5}


def test_a_large_corpus_has_none(tmp_path, monkeypatch):
    root = prepare_small(tmp_path, monkeypatch)
    corpus = prepare(Recipe("cldr", ("de", "en"), "pieces", 400), root)
    monkeypatch.setattr(module, "LARGEST", 100)
    assert baselines(corpus, Bleu("13a", False)) == {}
