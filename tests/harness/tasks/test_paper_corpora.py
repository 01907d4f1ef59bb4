"""The paper's corpora, read from the files that others prepared."""

import os

import pytest

from experiments.errors import UserError
from experiments.tasks.text.prepared import Recipe, find, prepare
from experiments.tasks.text.sources.paper import CORPORA

RECIPES = {name: Recipe(name, tuple(corpus.endings), "words", None)
           for name, corpus in CORPORA.items()}  # fmt: skip


def write(root, name, lines=("a b@@ c", "d e")):
    corpus = CORPORA[name]
    (root / corpus.folder).mkdir()
    for stem in ("train", "valid", "test"):
        for language, ending in corpus.endings.items():
            text = "".join(f"{stem if stem != 'train' else ''} {language} {x}\n" for x in lines)
            (root / corpus.folder / f"{stem}.{ending}").write_text(text, encoding="utf-8")
    return root / corpus.folder


@pytest.mark.parametrize("name", CORPORA)
def test_it_is_read_as_it_is(name, tmp_path):
    write(tmp_path, name)
    corpus = prepare(RECIPES[name], tmp_path)
    language = next(iter(CORPORA[name].endings))
    assert corpus.texts("train", language) == [f"{language} a b@@ c", f"{language} d e"]
    assert corpus.texts("val", language)[1] == f"valid {language} d e"
    assert corpus.plain("a b@@ c") == "a bc"
    flat, lengths = corpus.tokens("train", language)
    assert lengths.tolist() == [4, 3] and flat.min() > 3
    assert (corpus.tokens("test", language)[0] == 1).sum() == 2  # "test" is unknown


@pytest.mark.parametrize("name", CORPORA)
def test_it_is_refused_where_it_is_missing(name, tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(RECIPES[name], tmp_path)
    message = str(caught.value)
    assert str(tmp_path / CORPORA[name].folder) in message and "need no download" in message
    assert f"`{CORPORA[name].command(name)}` prepares it" in message and "\n" not in message
    assert find(RECIPES[name], tmp_path) is None
    folder = write(tmp_path, name)
    (path,) = folder.glob(f"valid.{CORPORA[name].endings['en']}")
    path.unlink()
    with pytest.raises(UserError, match=rf"\({path.name} missing\)"):
        prepare(RECIPES[name], tmp_path)


def test_sides_of_unequal_length_and_other_encodings_are_refused(tmp_path):
    folder = write(tmp_path, "iwslt14")
    (folder / "valid.de").write_text("one\n", encoding="utf-8")
    with pytest.raises(UserError, match="valid.de 1 and valid.en 2"):
        prepare(RECIPES["iwslt14"], tmp_path)
    (folder / "valid.de").write_bytes(b"\xe4\n\xe4\n")
    with pytest.raises(UserError, match="valid.de is not UTF-8"):
        prepare(RECIPES["iwslt14"], tmp_path)


def test_files_that_were_changed_are_prepared_anew(tmp_path):
    folder = write(tmp_path, "ptb")
    before = prepare(RECIPES["ptb"], tmp_path)
    (folder / "train.txt").write_text("something else\n", encoding="utf-8")
    os.utime(folder / "train.txt", (1, 1))
    assert prepare(RECIPES["ptb"], tmp_path).meta["sha256"] != before.meta["sha256"]
