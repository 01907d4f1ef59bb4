"""The code that jobs run: a copy of ours, and of the packages of others that their files name.

Which these are, `experiments.runs.own_code` says. Jobs find what lies in `site-packages`
themselves; an editable install is a folder like any other.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from experiments.config.experiment import Config
from experiments.runs.own_code import PACKAGES, Files, own_files
from experiments.runs.provenance import git_state
from experiments.runs.storage import reading, writing

REPOSITORY = Path(__file__).parent.parent


def files(configs: Iterable[Config]) -> Files:
    """All that the jobs of some runs get a copy of.

    Raises:
        UserError: a package is too large to be copied.
    """
    ours = {
        path.relative_to(REPOSITORY): path
        for name in PACKAGES
        for path in (REPOSITORY / name).rglob("*.py")
    }
    return ours | own_files(configs)


def packages(files: Files) -> list[str]:
    """The names of those of the packages and modules that are not ours."""
    return sorted({name.parts[0] for name in files} - set(PACKAGES))


def write(files: Files, root: Path) -> Path:
    """The copy, below the runs' root, shared by all submissions of the same code; jobs run there.

    Raises:
        StorageError: a file cannot be read, or the copy not be written.
    """
    content = []
    for name, path in sorted(files.items()):
        with reading(path):
            content.append((name, path.read_bytes()))
    digest = hashlib.sha256()
    for name, text in content:
        digest.update(f"{name} {len(text)} ".encode() + text)
    commit = json.dumps(git_state())
    digest.update(commit.encode())
    folder = root / ".slurm" / f"code-{digest.hexdigest()[:12]}"
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
        with writing(temporary):
            for name, text in content:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(text)
            (temporary / "commit.json").write_text(commit + "\n", encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:  # somebody else was faster
            shutil.rmtree(temporary)
    return folder
