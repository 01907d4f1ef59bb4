"""Debian's packages as files: downloaded by apt-get and unpacked by dpkg, without root."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.tasks.text.whole_folder import whole_folder

VERSIONS = "versions.txt"


def fetch(corpus: str, folder: Path, packages: Sequence[str]) -> str:
    """Unpack packages below `folder/<package>/`, all or none; returns what there is.

    Args:
        corpus: their purpose, for the message of an error.
        folder: where they are to be; nothing is done where it is.
        packages: their names; the machine's package lists say which versions.

    Raises:
        UserError: the machine has no apt-get or no lists, a package cannot be had, or the folder
            cannot be written.
    """
    if not folder.is_dir():
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise UserError(
                    f"{corpus}: {program} is not on this machine, and these are packages of "
                    "Debian; the corpora cldr, catalogues and kjv need none"
                )
        with whole_folder(folder) as partial:
            _unpack(corpus, partial, packages)
    return f"{', '.join(f'{name} {n}' for name, n in versions(folder).items())} in {folder}"


def versions(folder: Path) -> dict[str, str]:
    """The versions of the packages that `fetch` has unpacked, by their names."""
    lines = (folder / VERSIONS).read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _unpack(corpus: str, partial: Path, packages: Sequence[str]) -> None:
    _run(corpus, ["apt-get", "download", *packages], partial)
    found = {}
    for name in packages:
        (archive,) = partial.glob(f"{name}_*.deb")
        fields = ["dpkg-deb", "--show", "--showformat=${Version}", archive.name]
        found[name] = _run(corpus, fields, partial).strip()
        _run(corpus, ["dpkg-deb", "--extract", archive.name, name], partial)
        archive.unlink()
    text = "".join(f"{name} {number}\n" for name, number in found.items())
    (partial / VERSIONS).write_text(text, encoding="utf-8")


def _run(corpus: str, command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode == 0:
        return done.stdout
    errors = [line for line in done.stderr.splitlines() if re.match(r"E: |dpkg", line)]
    reason = (errors or done.stderr.splitlines() or ["?"])[0]
    advice = "; `apt-get update` (as root) fetches the package lists" if "E: " in reason else ""
    raise UserError(f"{corpus}: {' '.join(command[:2])} failed: {reason}{advice}")
