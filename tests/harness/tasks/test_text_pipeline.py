"""What is kept of raw texts, and in which split it is."""

import random
from collections import Counter

import pytest

from experiments.tasks.text.pipeline import (
    Rules,
    clean,
    drop_near_duplicates,
    key,
    normalize,
    sentences,
    side,
    similarities,
    split,
)


def test_normalized_texts_look_alike():
    assert normalize("  Cafe\u0301 \n\u00a0au\u00adlait ") == "Café aulait"
    assert key("Ein Café-Besuch, 3 €") == key("ein cafébesuch 3") == "eincafébesuch3"
    assert key("❤\ufe0f!") == ""  # the sign for "in colour" is a mark, too


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (("Datei öffnen", "Open the file"), ""),
        (("", "nothing"), "empty"),
        (("...", "dots"), "empty"),
        (("%d Dateien gelöscht", "%d files deleted"), "placeholders"),
        (("Hallo {name} und alle", "Hello {name} and all"), "placeholders"),
        (("Zum <b>Anfang</b> gehen", "Go to the <b>start</b>"), "placeholders"),
        (("Das Sind Wir", "das sind wir!"), "identical sides"),
        (("ein " * 61, "one " * 60), "too long"),
        (("sechs sechs sechs sechs sechs sechs", "one two"), ""),
        (("sieben sie ben ist zu viel hier", "one two"), "unequal lengths"),
        (("12 + 34 = 46", "12 plus 34"), "few letters"),
    ],
)
def test_each_rule_refuses_what_it_is_for(pair, reason):
    dropped = Counter()
    kept = clean([pair], Rules(), dropped)
    assert (len(kept), dict(dropped)) == ((1, {}) if not reason else (0, {reason: 1}))


def test_what_either_side_has_had_goes():
    pairs = [("Guten Tag", "Good day"), ("guten Tag!", "Hello there"), ("Hallo", "good day."),
             ("Guten Abend", "Good evening")]  # fmt: skip
    dropped = Counter()
    assert clean(pairs, Rules(), dropped) == [pairs[0], pairs[3]]
    assert dropped == {"duplicates": 2}


def test_a_pair_never_changes_sides():
    """Not by what else is there, its order, its translation or its spelling."""
    words = ["Haus", "Baum", "Katze", "See", "Berg", "Wolke", "Brot", "Tür", "Weg", "Nacht"]
    pairs = [(f"{a} und {b}", f"{b} and {a}") for a in words for b in words]
    whole = split(pairs, 0.2)
    assert min(map(len, whole.values())) > 5  # about 60, 20 and 20
    shuffled = pairs[::2]
    random.Random(0).shuffle(shuffled)
    part = split(shuffled, 0.2)
    for name in whole:
        assert set(part[name]) == set(whole[name]) & set(shuffled)
        assert all(side(f" {source.upper()}! ", 0.2) == name for source, _ in whole[name])


def test_sentences_are_split_where_both_sides_have_as_many():
    both = ("Das ist gut. Jetzt weiter?\n\nAm z. B. 5. Mai.", "This is good.  Now go\non?\n \nIt.")
    assert sentences(both) == [("Das ist gut.", "This is good."), ("Jetzt weiter?", "Now go on?"),
                               ("Am z. B. 5. Mai.", "It.")]  # fmt: skip
    unequal = ("Erstens. Zweitens. Drittens.\n\nSchluss", "First. Second and third.\n\nThe end")
    assert sentences(unequal) == [("Erstens. Zweitens. Drittens.", "First. Second and third."),
                                  ("Schluss", "The end")]  # fmt: skip
    assert sentences(("Eins.\n\nZwei.", "One, two.")) == [("Eins. Zwei.", "One, two.")]
    assert sentences(("Eine Zeile.",)) == [("Eine Zeile.",)]


def jaccard(one, other):
    sets = [{t[i : i + 3] for i in range(len(t) - 2)} for t in (f" {one} ", f" {other} ")]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_similarities_are_those_of_the_definition():
    texts = ["der hund bellt", "die katze schläft", "a", "der hund bellte laut"]
    others = ["der hund bellt", "zz top", "die katze schlief"]
    found = [row for _, block in similarities(texts, others) for row in block]
    for text, row in zip(texts, found, strict=True):
        assert row.tolist() == pytest.approx([jaccard(text, other) for other in others])
    assert found[0][0] == 1 and found[2].max() == 0


def test_near_duplicates_of_either_side_leave_the_training_set():
    held_out = [("Die Datei wurde gespeichert.", "The file has been saved.")]
    stays = ("Es regnet heute nicht.", "There is no rain today.")
    training = [
        ("Die Datei wurde gespeichert", "Something else entirely, yes"),
        stays,
        ("Etwas völlig anderes hier", "The file has been saved"),
    ]
    assert drop_near_duplicates(training, held_out, 0.5) == [stays]
    assert drop_near_duplicates(training, held_out, 1.1) == training
