"""The packages of others that a run's configuration names: the user's own code.

A package counts when a configuration names something in it (`constructor: mylab.vit.ViT`, or a
task), or when another one of them imports it; and only where it is not installed. Jobs get a copy
of it (`slurm.snapshot`), and a run's sessions hold a hash of its modules. It is no part of the
signature, as it may change with no effect on the result: what differs is said, and not refused.
"""

import ast
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.config.experiment import Config
from experiments.errors import UserError
from experiments.runs.storage import reading
from experiments.runtime.paths import data_root, runs_root

KEY = "own_code"
PACKAGES = ("adahessian", "experiments", "slurm")
INSTALLED = {"site-packages", "dist-packages"}
LARGEST = 50 * 10**6  # bytes of one package, all files together
MOST_FILES = 5000

Files = dict[Path, Path]  # where a file is in a copy of the code, and where it is now


def own_files(configs: Iterable[Config]) -> Files:
    """The files of the packages, by where they are in a copy of the code.

    Raises:
        UserError: a package is too large to be copied.
    """
    importlib.invalidate_caches()
    found: Files = {}
    asked = dict(name for config in configs for name in _named(config.model_dump()))
    seen: set[str] = set()
    while asked:
        name, by = asked.popitem()
        seen.add(name)
        package: Files = {}
        for place in reversed(_places(name)):  # of a namespace package's, the first one counts
            package |= _files_of(name, place, by)
        for path in package.values():
            asked |= {other: path for other in _imports(path) if other not in seen}
        found |= package
    return found


def marks(config: Config) -> str:
    """The user's own packages of a run, each with a hash of its modules: `mylab 01234567`.

    Empty where there are none, or they cannot be read. What is no module (notes, results beside
    the code) is not looked at.
    """
    digests: dict[str, Any] = {}
    try:
        for name, path in sorted(own_files([config]).items()):
            if path.suffix == ".py":
                digest = digests.setdefault(Path(name.parts[0]).stem, hashlib.sha256())
                with reading(path):
                    content = path.read_bytes()
                digest.update(f"{name.as_posix()} {len(content)} ".encode() + content)
    except (UserError, OSError):  # a training needs no hash
        return ""
    return ", ".join(f"{name} {digest.hexdigest()[:8]}" for name, digest in digests.items())


def recorded(sessions: Iterable[Mapping[str, Any]]) -> list[str]:
    """What `marks` said in a run's sessions, package by package: `mylab 01234567`."""
    found = [one for session in sessions for one in str(session.get(KEY) or "").split(", ")]
    return [one for one in found if len(one.split()) == 2]


def differs(sessions: Any, config: Config) -> str:
    """That a run was made with other code of the user's own than there is now; else empty.

    Args:
        sessions: of its `meta.json`; earlier versions recorded nothing.
        config: of the run.
    """
    last = sessions[-1] if isinstance(sessions, list) and sessions else None
    then = last.get(KEY) if isinstance(last, Mapping) else None
    if not isinstance(then, str) or not then or then == (now := marks(config)):
        return ""
    return f"made with other code of your own: {then}; here is {now or 'none that can be read'}"


def _named(section: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The first names of the dotted paths in a configuration, each with its key."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            place = f"{where}.{key}".lstrip(".")
            named = key == "constructor" or place == "task"
            if named and isinstance(value, str) and "." in value:
                yield value.split(".")[0], place
            yield from _named(value, place)
    elif isinstance(section, list | tuple):
        for number, value in enumerate(section):
            yield from _named(value, f"{where}.{number}")


def _places(name: str) -> list[Path]:
    """The folders or the file of a package or module; none where it is installed or Python's."""
    if name in sys.stdlib_module_names or name in PACKAGES:
        return []
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    places = list(spec.submodule_search_locations or []) or [spec.origin]
    paths = [Path(place).absolute() for place in places if place]
    return [path for path in paths if path.exists() and not INSTALLED & set(path.parts)]


def _files_of(name: str, place: Path, by: str | Path) -> Files:
    """The files of a package, or of a module that is one; not what is hidden, cache or results.

    Raises:
        UserError: it cannot be read, or is too large to be copied.
    """
    if place.is_file():
        return {Path(place.name): place}
    found: Files = {}
    total, largest = 0, (0, place)
    for path in _walk(place):
        size = path.stat().st_size
        total, largest = total + size, max(largest, (size, path))
        found[Path(name) / path.relative_to(place)] = path
        if total > LARGEST or len(found) > MOST_FILES:
            many = f"more than {MOST_FILES} files"
            much = f"more than {LARGEST // 10**6} MB (such as {largest[1].relative_to(place)})"
            raise UserError(
                f"{place} has {many if len(found) > MOST_FILES else much}, and jobs get a copy of "
                f"it, which {_by(by)}: move out of it what is no code, or install the package"
            )
    return found


def _by(by: str | Path) -> str:
    return f"{by} imports" if isinstance(by, Path) else f"{by} names"


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, through links, but for one that leads to a folder it is in."""
    without = {runs_root().resolve(), data_root().resolve()}

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}, of which jobs get a copy: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(place).resolve()
        without_here = without | {here, *here.parents}
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and name != "__pycache__"
            and (Path(place) / name).resolve() not in without_here
        ]  # fmt: skip
        paths = (Path(place) / name for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _imports(path: Path) -> set[str]:
    """The first names of what a file of Python imports, wherever in it."""
    if path.suffix != ".py":
        return set()
    try:
        with reading(path):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # a template, say: whoever needs it will say
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
