"""Debian's packages as files: downloaded by apt-get and unpacked by dpkg, without root."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError
from experiments.tasks.text.whole_folder import whole_folder

VERSIONS = "versions.txt"


@dataclass(frozen=True)
class DebianPackages:
    """The packages of a corpus.

    Attributes:
        corpus: that is made of them.
        names: theirs; the machine's package lists say which versions.
        megabytes: that are downloaded, about.
    """

    corpus: str
    names: tuple[str, ...]
    megabytes: int

    def folder(self, root: Path) -> Path:
        """Where they are unpacked, each below `<package>/`."""
        return root / self.corpus / "packages"

    @property
    def how(self) -> str:
        """What one does to have them."""
        return (f"`make corpora ARGS={self.corpus}` downloads it ({self.megabytes} MB) where there "
                "is apt-get")  # fmt: skip

    def fetch(self, root: Path) -> str:
        """Download and unpack them, all or none, where they are not; returns what there is.

        Raises:
            UserError: the machine has no apt-get or no lists, a package cannot be had, or the
                folder cannot be written.
        """
        folder = self.folder(root)
        if not folder.is_dir():
            for program in ("apt-get", "dpkg-deb"):
                if shutil.which(program) is None:
                    raise UserError(
                        f"{self.corpus}: {program} is not on this machine, and these are packages "
                        "of Debian; the corpora cldr, catalogues and kjv need none"
                    )
            with whole_folder(folder) as partial:
                self._unpack(partial)
        return f"{', '.join(f'{name} {n}' for name, n in self.versions(root).items())} in {folder}"

    def versions(self, root: Path) -> dict[str, str]:
        """The versions of the packages, by their names.

        Raises:
            UserError: they are not there.
        """
        folder = self.folder(root)
        if not folder.is_dir():
            raise UserError(f"the corpus {self.corpus} is not in {folder}: {self.how}")
        lines = (folder / VERSIONS).read_text(encoding="utf-8").splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def _unpack(self, partial: Path) -> None:
        _run(self.corpus, ["apt-get", "download", *self.names], partial)
        found = {}
        for name in self.names:
            (archive,) = partial.glob(f"{name}_*.deb")
            fields = ["dpkg-deb", "--show", "--showformat=${Version}", archive.name]
            found[name] = _run(self.corpus, fields, partial).strip()
            _run(self.corpus, ["dpkg-deb", "--extract", archive.name, name], partial)
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
