"""Small packages with catalogues, as files that pip can download."""

import hashlib
import io
import zipfile

from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import write_po

from experiments.tasks.text.sources import catalogues

TAG = "py3-none-any"


def catalogue(messages, suffix=".mo"):
    """The content of a file with messages (English, plurals as pairs) and their translations."""
    found = Catalog(locale="de", charset="utf-8")
    for english, german in messages.items():
        found.add(english, german)
    file = io.BytesIO()
    write_mo(file, found) if suffix == ".mo" else write_po(file, found)
    return file.getvalue()


def wheel(folder, name, contents, number="1.0"):
    """Write a package of files `{name: bytes}`; returns the sha256 of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{number}-{TAG}.whl"
    information = f"{name}-{number}.dist-info"
    files = {
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n",
        f"{information}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {TAG}\n",
        f"{information}/RECORD": "",
        **contents,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for place, content in files.items():
            archive.writestr(place, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def offer(monkeypatch, folder, packages):
    """Let pip find these packages alone, `{name: files}`, and pin them."""
    digests = {name: wheel(folder, name, files) for name, files in packages.items()}
    pinned = {name: ("1.0", "MIT", digest) for name, digest in digests.items()}
    monkeypatch.setattr(catalogues, "PACKAGES", pinned)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return pinned
