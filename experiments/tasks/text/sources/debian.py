"""German and English from Debian's packages: LibreOffice, the dictionary Ding, and GNOME's manual.

- LibreOffice's help, aligned by the identifiers of its paragraphs, and its menus and dialogues.
- Ding: the sentences and phrases among its entries.
- GNOME's manual, page by page where both sides have the same elements.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Example, Rules, sentences
from experiments.tasks.text.sources.debian_packages import DebianPackages
from experiments.tasks.text.sources.gettext_catalogues import read_catalogue
from experiments.tasks.text.sources.source import Raw

PACKAGES = DebianPackages(
    "debian",
    ("libreoffice-help-de", "libreoffice-help-en-us", "libreoffice-l10n-de", "trans-de-en",
     "gnome-user-docs"),
    megabytes=21,
)  # fmt: skip
fetch, versions = PACKAGES.fetch, PACKAGES.versions
RULES = Rules(held_out=0.025)
LICENCE = "MPL-2.0 (LibreOffice), GPL-2.0-or-later (Ding), CC-BY-SA-3.0 (GNOME)"
PHRASE = 3  # words that an entry of the dictionary has at least


def read(root: Path, languages: tuple[str, ...]) -> Raw:
    """The sentences, those that people speak first."""
    place = PACKAGES.folder(root)
    readers = (_dictionary, _help, _manual, _menus)
    examples = (
        tuple(pair[side] for side in map(("de", "en").index, languages))
        for reader in readers
        for example in reader(place)
        for pair in sentences(example)
    )
    return Raw(LICENCE, examples, rules=RULES, versions=versions(root))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; remove {path.parents[-2]}") from None


# -------------------------------------------------------------------------------------------- Ding

_REMARK = re.compile(r"\{[^}]*\}|\[[^\]]*\]|<[^>]*>|\([^)]*\)|/[^/ ]*/")


def _dictionary(place: Path) -> Iterator[Example]:
    """The entries of several words, without grammar and remarks; the first of synonyms."""
    for line in _text(place / "trans-de-en/usr/share/trans/de-en").splitlines():
        if line.startswith("#") or line.count(" :: ") != 1:
            continue
        sides = [side.split("|") for side in line.split(" :: ")]
        if len(sides[0]) != len(sides[1]):
            continue
        for pair in zip(*sides, strict=True):
            example = tuple(_REMARK.sub(" ", entry).split(";")[0].strip() for entry in pair)
            if min(len(entry.split()) for entry in example) >= PHRASE:
                yield example


# ------------------------------------------------------------------------------------- LibreOffice


class _Paragraphs(HTMLParser):
    """Texts of a page's elements that have an identifier, by that."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open = self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("id") or ""
        if re.match(r"(par|hd)_id", name) and name not in self.found:
            self._open, self._tag, self.found[name] = name, tag, ""

    def handle_endtag(self, tag: str) -> None:
        if tag == self._tag:
            self._open = self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.found[self._open] += data


def _help(place: Path) -> Iterator[Example]:
    german, english = (
        place / f"libreoffice-help-{package}/usr/share/libreoffice/help/{name}/text"
        for package, name in (("de", "de"), ("en-us", "en-US"))
    )
    for path in sorted(german.rglob("*.html")):
        other = english / path.relative_to(german)
        if other.is_file():
            texts = []
            for one in (path, other):
                parser = _Paragraphs()
                parser.feed(_text(one))
                texts.append(parser.found)
            for name, text in texts[0].items():
                if name in texts[1]:
                    yield text, texts[1][name]


def _menus(place: Path) -> Iterator[Example]:
    base = place / "libreoffice-l10n-de/usr/lib/libreoffice/program/resource/de/LC_MESSAGES"
    for path in sorted(base.glob("*.mo")):
        with path.open("rb") as file:
            yield from read_catalogue(file, str(path))


# ------------------------------------------------------------------------------------------- GNOME

_BLOCKS = {"title", "desc", "p", "cmd", "td"}


def _manual(place: Path) -> Iterator[Example]:
    german, english = (place / f"gnome-user-docs/usr/share/help/{name}" for name in ("de", "C"))
    for path in sorted(german.rglob("*.page")):
        other = english / path.relative_to(german)
        if other.is_file():
            elements = [_blocks(one) for one in (path, other)]
            if [tag for tag, _ in elements[0]] == [tag for tag, _ in elements[1]]:
                for (_, text), (_, translation) in zip(*elements, strict=True):
                    yield text, translation


def _blocks(path: Path) -> list[tuple[str, str]]:
    """Names and texts of a page's innermost blocks, in their order."""
    try:
        page = ElementTree.fromstring(_text(path))
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    found = []
    for element in page.iter():
        tag = str(element.tag).rpartition("}")[2]
        inner = {str(child.tag).rpartition("}")[2] for child in element.iter()} - {tag}
        if tag in _BLOCKS and not inner & _BLOCKS:
            found.append((tag, "".join(element.itertext())))
    return found
