"""Build the documentation's site: `python -m tools.site [--assemble]` (`make docs`).

The pages are README, CHANGELOG, CONTRIBUTING and `docs/*.md` as they stand, and a reference made
from the code: `tools.reference`. They are put together in `build/docs`, with the links between them
rewritten; zensical builds `build/site` from there by `mkdocs.yml`. A broken link, a page that the
navigation lacks, or a public name without a docstring is an error.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import reference

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "docs"

# Pages that people look for at the top of the repository.
OF_THE_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?P<path>[^)#\s]+)")


def assemble(folder: Path = FOLDER) -> None:
    """Write all pages to `folder`, which is emptied before.

    Raises:
        reference.Undocumented: a public name has no docstring.
        ValueError: a page is in no section of `mkdocs.yml`'s navigation.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    for page in folder.glob("*.md"):
        page.write_text(_relink(page.read_text("utf-8"), ROOT / "docs"), "utf-8")
    for name, target in OF_THE_ROOT.items():
        (folder / target).write_text(_relink((ROOT / name).read_text("utf-8"), ROOT), "utf-8")
    (folder / "reference").mkdir()
    for name, text in reference.pages().items():
        (folder / "reference" / name).write_text(text, "utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {page.relative_to(folder).as_posix() for page in folder.rglob("*.md")}
    if lost := {page for page in pages if not re.search(rf"\b{page}$", navigation, re.MULTILINE)}:
        raise ValueError(f"mkdocs.yml: the navigation lacks {', '.join(sorted(lost))}")


def _relink(text: str, folder: Path) -> str:
    """A page's text whose links lead where the pages are in the site; `folder` holds the page."""

    def moved(match: re.Match) -> str:
        target = (folder / match["path"]).resolve()
        if target.parent == ROOT and target.name in OF_THE_ROOT:
            return OF_THE_ROOT[target.name]
        if target.is_relative_to(ROOT / "docs"):
            return target.relative_to(ROOT / "docs").as_posix()
        return match["path"]

    return _LINK.sub(moved, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.add_argument("--assemble", action="store_true", help="only write build/docs")
    parsed = parser.parse_args(arguments)
    try:
        assemble()
    except (reference.Undocumented, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if parsed.assemble:
        return 0
    zensical = Path(sys.executable).with_name("zensical")
    return subprocess.run([zensical, "build", "--strict", "--clean"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
