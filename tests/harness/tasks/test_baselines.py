"""What BLEU has without learning."""

import pytest
from support.text import prepare_small

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


def test_a_large_corpus_has_none(tmp_path, monkeypatch):
    root = prepare_small(tmp_path, monkeypatch)
    corpus = prepare(Recipe("cldr", ("de", "en"), "pieces", 400), root)
    monkeypatch.setattr(module, "LARGEST", 100)
    assert baselines(corpus, Bleu("13a", False)) == {}
