"""Corpora from Debian's packages, and what they are made of."""

import shutil
import struct
import zlib

import pytest
from support import debian_archive

from experiments import corpora
from experiments.errors import UserError
from experiments.tasks.text.pipeline import Rules
from experiments.tasks.text.prepared import Recipe, find, prepare
from experiments.tasks.text.sources import austen, debian, debian_packages

needs_apt = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="no Debian"
)
PAIRS = [
    ("das große Haus", "the big house"),
    ("Wir gehen heute nach Hause.", "We are going home today."),
    ("Öffnet alle Dateien und so.", "Opens all files und so."),
    ("Farben wählen", "Choose colors"),
    ("Klicken Sie auf Farben.", "Click on Colors."),
    ("Alles drucken", "Print all"),
]


def place(module, root):
    folder = debian_archive.unpacked(module.PACKAGES.folder(root))
    (folder / debian_packages.VERSIONS).write_text("one 1.0\n", encoding="utf-8")
    return folder


def test_every_format_is_read(tmp_path):
    place(debian, tmp_path)
    assert list(debian.read(tmp_path, ("de", "en")).examples) == PAIRS
    assert list(debian.read(tmp_path, ("en", "de")).examples) == [pair[::-1] for pair in PAIRS]


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("trans-de-en/usr/share/trans/de-en", b"T\xfcr und so :: door", "de-en cannot be read"),
        ("gnome-user-docs/usr/share/help/C/gnome-help/a.page", b"<page>", "a.page is damaged"),
        ("trans-de-en/usr/share/trans/de-en", None, "de-en cannot be read: .*No such file"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named(path, content, message, tmp_path):
    file = place(debian, tmp_path) / path
    file.write_bytes(content) if content else file.unlink()
    with pytest.raises(UserError, match=message):
        list(debian.read(tmp_path, ("de", "en")).examples)


def test_novels_are_read_by_chapters(tmp_path, monkeypatch):
    (first, _) = austen.read_novels(debian_archive.database([debian_archive.novel(1), ["ä", ""]]))
    assert first == debian_archive.novel(1)
    found = list(austen.chapters(first))
    assert len(found) == 10
    assert found[2] == ["It was chapter 3, as the reader of novel 1 knows.", "“Indeed,” she said."]
    place(austen, tmp_path)
    monkeypatch.setattr(austen, "RULES", Rules(held_out=0.2, near_duplicates=None))
    corpus = prepare(Recipe("austen", ("en",), "words", None), tmp_path)
    sizes = corpus.meta["examples"]
    assert sum(sizes.values()) == 40 and all(size % 2 == 0 for size in sizes.values())


def spoiled():
    whole = debian_archive.database([["one", "two"]])
    block = zlib.decompress(whole[4:])
    yield whole[:-3]
    yield whole[4:]
    yield b"\0\0"
    for changed in (block[:-2], block.replace(b"\0\x10", b"\0\x11", 1), b"A" + block[1:]):
        yield struct.pack(">I", len(changed)) + zlib.compress(changed)
    (latin,) = [block.replace(b"one", b"\xe4ne")]
    yield struct.pack(">I", len(latin)) + zlib.compress(latin)


@pytest.mark.parametrize("content", list(spoiled()))
def test_a_damaged_database_is_named(content, tmp_path):
    (place(austen, tmp_path) / austen.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"Rdata.rdb cannot be read: .*make corpora ARGS=austen"):
        austen.read(tmp_path, ("en",))


@pytest.mark.parametrize("module", [debian, austen])
def test_what_was_not_downloaded_is_refused(module, tmp_path):
    name = module.__name__.rpartition(".")[2]
    recipe = Recipe(name, ("de", "en") if name == "debian" else ("en",), "pieces", 100)
    with pytest.raises(UserError, match=f"{name} is not in .*make corpora ARGS={name}"):
        prepare(recipe, tmp_path)
    assert find(recipe, tmp_path) is None


@needs_apt
def test_packages_are_downloaded_and_unpacked_once(tmp_path, monkeypatch, capsys):
    archive = debian_archive.archive(tmp_path, monkeypatch)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    assert corpora.main(["debian", "austen"]) == 0
    assert "trans-de-en 2:1.0-1" in capsys.readouterr().out
    root = tmp_path / "data"
    assert debian.versions(root).keys() == set(debian.PACKAGES.names)
    assert list(debian.read(root, ("de", "en")).examples) == PAIRS
    assert len(austen.read(root, ("en",)).splits["train"]) > 10
    shutil.rmtree(archive)
    assert corpora.main(["debian"]) == 0  # not asked for again


@needs_apt
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch):
    archive = debian_archive.archive(tmp_path, monkeypatch)
    path = archive / "trans-de-en_1.0-1_all.deb"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="debian: apt-get download failed: E: .*trans-de-en"):
        debian.fetch(tmp_path / "data")
    assert not list((tmp_path / "data" / "debian").iterdir())


@needs_apt
def test_without_package_lists_it_says_what_to_do(tmp_path, monkeypatch):
    debian_archive.configure(tmp_path, "", monkeypatch)
    with pytest.raises(
        UserError, match="E: .*apt-get update.* fetches the package lists"
    ) as caught:
        austen.fetch(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_without_apt_get_it_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="debian: apt-get is not on this machine") as caught:
        debian.fetch(tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()
