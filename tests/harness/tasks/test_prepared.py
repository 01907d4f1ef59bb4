"""Corpora are prepared once, completely or not at all, the same everywhere."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

import numpy
import pytest
from support.harness import REPOSITORY
from support.text import prepare_small

from experiments.errors import UserError
from experiments.tasks.text import prepared
from experiments.tasks.text.prepared import Recipe, find, prepare
from experiments.tasks.text.sources import cldr
from experiments.tasks.text.vocabulary import (
    BEGIN,
    END,
    PAD,
    UNKNOWN,
    Pieces,
    Words,
    count_words,
    train_pieces,
)

CLDR = Recipe("cldr", ("de", "en"), "pieces", 400)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cldr, "DRAWS", 700)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}


def test_a_corpus_is_prepared_once(small, tmp_path, monkeypatch):
    first = prepare(CLDR, tmp_path)
    monkeypatch.setattr(cldr, "read", None)  # calling it would fail
    again = prepare(CLDR, tmp_path)
    assert again.folder == first.folder == find(CLDR, tmp_path).folder
    assert [path.name for path in (tmp_path / "cldr").iterdir()] == [first.folder.name]


def test_its_files_say_what_is_in_it(small, tmp_path):
    corpus = prepare(CLDR, tmp_path)
    meta, texts = corpus.meta, b""
    for split in ("train", "val", "test"):
        for language in ("de", "en"):
            lines = corpus.texts(split, language)
            flat, lengths = corpus.tokens(split, language)
            texts += "".join(f"{line}\n" for line in lines).encode()
            assert len(lines) == len(lengths) == meta["examples"][split]
            assert len(flat) == lengths.sum() == meta["tokens"][split][language]
            rows = numpy.split(flat, lengths.cumsum()[:-1])
            if split == "train":  # the others may have letters that are unknown
                assert [corpus.vocabulary.decode(row) for row in rows] == lines
    assert meta["sha256"] == hashlib.sha256(texts).hexdigest()
    assert sum(meta["examples"].values()) + sum(meta["dropped"].values()) == 700
    assert meta["versions"].keys() == {"babel"} and "CLDR" in meta["licence"]
    assert meta["vocabulary"] == {"kind": "pieces", "size": 400}


def test_two_preparations_are_the_same(small, tmp_path):
    one, other = (prepare(CLDR, tmp_path / name) for name in ("one", "other"))
    assert content(one.folder) == content(other.folder)
    assert one.folder.name == other.folder.name


def test_the_direction_swaps_the_sides(small, tmp_path):
    there = prepare(CLDR, tmp_path)
    back = prepare(Recipe("cldr", ("en", "de"), "pieces", 400), tmp_path)
    assert there.folder != back.folder and there.meta["sha256"] != back.meta["sha256"]


def test_other_texts_than_the_configuration_says_are_refused(small, tmp_path):
    sha256 = prepare(CLDR, tmp_path).meta["sha256"]
    assert prepare(CLDR, tmp_path, sha256[:12])
    with pytest.raises(UserError) as caught:
        prepare(CLDR, tmp_path, "0" * 16)
    assert f"dataset.sha256={sha256[:16]}" in str(caught.value) and "babel" in str(caught.value)


def test_more_pieces_than_the_text_has_are_refused(small, tmp_path):
    with pytest.raises(UserError, match="dataset.vocabulary = 50000: .*too high"):
        prepare(Recipe("cldr", ("de", "en"), "pieces", 50_000), tmp_path)
    assert not list((tmp_path / "cldr").iterdir())  # nothing is left behind


def test_a_folder_that_cannot_be_written_is_named(small, tmp_path):
    (tmp_path / "cldr").write_text("a file")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/cldr/prepared-.*DATA_ROOT"):
        prepare(CLDR, tmp_path)


def _prepare(root):
    cldr.DRAWS = 700
    return prepare(CLDR, root).meta["sha256"]


def test_several_processes_prepare_it_at_the_same_time(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        hashes = pool.map(_prepare, [tmp_path] * 3)
    assert len(set(hashes)) == 1
    (folder,) = (tmp_path / "cldr").iterdir()
    assert folder.name.startswith("prepared-")


def test_a_preparation_that_is_killed_leaves_nothing_that_is_read(small, tmp_path):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from experiments.tasks.text import prepared\n"
        "from experiments.tasks.text.sources import cldr\n"
        "cldr.DRAWS = 700\n"
        "prepared._write_tokens = lambda *_: os._exit(9)\n"
        "prepared.prepare(prepared.Recipe('cldr', ('de', 'en'), 'pieces', 400), Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY)
    assert done.returncode == 9 and len(list((tmp_path / "cldr").iterdir())) == 1
    assert not CLDR.folder(tmp_path).exists()
    assert prepare(CLDR, tmp_path)


def test_what_is_damaged_is_named(small, tmp_path):
    folder = prepare(CLDR, tmp_path).folder
    (folder / "meta.json").unlink()
    with pytest.raises(UserError, match=f"meta.json cannot be read.*remove {folder}"):
        prepare(CLDR, tmp_path)


def read_all(folder):
    corpus = prepared.Prepared(folder)
    for language in CLDR.languages:
        assert corpus.texts("test", language) and corpus.tokens("test", language)
    return corpus.vocabulary


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, b"") for name in ("meta.json", "tokens.npz", "pieces.model", "test.de")),
        ("meta.json", b"{}"),
        ("tokens.npz", b"PK"),
        ("pieces.model", b"none"),
        ("pieces.model", None),
        ("test.de", b"another line\n"),
    ],
)
def test_whatever_is_damaged_is_one_line(name, content, small, tmp_path):
    folder = prepare(CLDR, tmp_path).folder
    assert read_all(folder)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"cannot be read: .*; remove {folder}, it is") as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


def test_pieces_have_the_special_ones_first_and_give_back_every_text():
    lines = ["Die Katze schläft im Haus.", "Der Hund schläft nicht.", "Im Haus ist es warm."] * 9
    model = train_pieces(lines, 60)
    assert model == train_pieces(lines, 60)
    pieces = Pieces(model)
    assert pieces.size == 60
    (numbers,) = pieces.encode(lines[:1])
    assert min(numbers) > max(PAD, UNKNOWN, BEGIN, END)
    assert pieces.decode([BEGIN, *numbers, END, PAD]) == lines[0]
    assert UNKNOWN in pieces.encode(["日"])[0]


def test_words_are_sorted_by_frequency_and_the_others_are_unknown():
    words = count_words(["b a b", "c b <unk> a"], None)
    assert words == ["b", "a", "c"] and count_words(["b a b c"], 6) == ["b", "a"]
    vocabulary = Words(words)
    assert vocabulary.size == 7
    assert vocabulary.encode(["c <unk> x a"]) == [[6, UNKNOWN, UNKNOWN, 5]]
    assert vocabulary.decode([BEGIN, 6, UNKNOWN, 5, END]) == "c <unk> a"
    assert Words(["Hall@@", "o", "da"]).decode([4, 5, 6]) == "Hallo da"


def test_names_of_special_tokens_are_words_where_a_text_has_them():
    """As `<pad>` one would be left out of the loss, and counted all the same."""
    line = "<s> a <pad> </s> <unk>"
    vocabulary = Words(count_words([line], None))
    (numbers,) = vocabulary.encode([line])
    assert sorted(numbers) == [UNKNOWN, 4, 5, 6, 7]
    assert vocabulary.decode(numbers) == line


def test_a_preparation_of_another_version_is_another_one(small, tmp_path, monkeypatch):
    before = prepare(CLDR, tmp_path).folder
    monkeypatch.setattr(cldr, "versions", lambda root: {"babel": "0.1"})
    assert CLDR.folder(tmp_path) != before
    monkeypatch.undo()
    monkeypatch.setattr(prepared, "PIPELINE", 0)
    assert CLDR.folder(tmp_path) != before


def test_both_small_corpora_of_the_tests_are_there(tmp_path, monkeypatch):
    root = prepare_small(tmp_path, monkeypatch)
    assert sorted(os.listdir(root)) == ["cldr", "kjv"]
    (folder,) = (root / "kjv").iterdir()
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    assert min(meta["examples"].values()) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "examples"),
    [
        (Recipe("cldr", ("de", "en"), "pieces", 2000), {"train": 16333, "val": 722, "test": 692}),
        (Recipe("kjv", ("en",), "pieces", 2000), {"train": 25608, "val": 2616, "test": 2050}),
    ],
)
def test_the_embedded_corpora_are_the_same_everywhere(recipe, examples, tmp_path):
    corpus = prepare(recipe, tmp_path)
    assert corpus.meta["examples"] == examples
