"""The test matrix: `.venv/bin/python .ci/matrix.py [NAME ... | --in run | --in nightly]`.

Without arguments it lists the entries of `.ci/matrix.yaml`. Each named one is installed into its
environment, where that is not what it should be, and tested; what they print goes to
`build/ci/NAME.log`. `--in nightly` runs all of them. Of what `.ci/run` leaves out `.ci/nightly.md`
says when it last ran, where, and what it found. `--install` makes the environments and tests
nothing.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "ci"
NIGHTLY = ROOT / ".ci" / "nightly.md"
# What comes with a torch release: not to be pinned where another one is installed.
OF_TORCH = re.compile(r"(torch|torchvision|triton|setuptools|nvidia-.*|cuda-.*)==")


@dataclass(frozen=True)
class Entry:
    """One line of the matrix; `.ci/matrix.yaml` says what the keys mean."""

    name: str
    tests: list[str]
    when: str
    python: str = ""
    torch: str = ""
    extras: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return ROOT / (f".venv-{self.name}" if self.python else ".venv")


def read() -> dict[str, Entry]:
    """The entries by name."""
    document = yaml.safe_load((ROOT / ".ci" / "matrix.yaml").read_text("utf-8"))
    return {name: Entry(name, when=keys.pop("in"), **keys) for name, keys in document.items()}


def interpreter(version: str) -> str | None:
    """An executable of this Python version, if there is one here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        *sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True),
        shutil.which(f"python{version}"),
    ]
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return str(path)
    return None


def install(entry: Entry, log) -> None:
    """Make the entry's environment; free where it is there already, or is `make test`'s own."""
    if not entry.python:
        return
    constraints = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if entry.torch:
        constraints = [line for line in constraints if not OF_TORCH.match(line)]
    asked = "\n".join([repr(entry), (ROOT / "pyproject.toml").read_text("utf-8"), *constraints])
    stamp = entry.folder / "installed.sha256"
    wanted = hashlib.sha256(asked.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    pins = entry.folder / "constraints.txt"
    uv = shutil.which("uv") or ROOT / ".venv" / "bin" / "uv"
    python = interpreter(entry.python)
    call = {"check": True, "stdout": log, "stderr": log, "cwd": ROOT}
    subprocess.run([uv, "venv", "-q", "--clear", "-p", python, entry.folder], **call)
    pins.write_text("\n".join(constraints))
    what = [
        "-e",
        f".[{','.join(entry.extras)}]",
        *([f"torch=={entry.torch}.*"] * bool(entry.torch)),
    ]
    subprocess.run(
        [uv, "pip", "install", "-q", "-p", entry.folder / "bin/python", "-c", pins, *what], **call
    )
    stamp.write_text(wanted)


def run(entry: Entry) -> tuple[bool, str]:
    """Install and test; returns whether it passed, and a line about it."""
    if entry.python and not interpreter(entry.python):
        return True, f"not run: no Python {entry.python} here"
    LOGS.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (LOGS / f"{entry.name}.log").open("w+") as log:
        try:
            install(entry, log)
            installed = time.monotonic() - start
            code = subprocess.run(
                [entry.folder / "bin/python", "-m", "pytest", "--reruns", "2", *entry.tests],
                cwd=ROOT, env={**os.environ, **entry.env}, stdout=log, stderr=log,
            ).returncode  # fmt: skip
        except subprocess.CalledProcessError as error:
            code, installed = error.returncode, time.monotonic() - start
        log.seek(0)
        last = (log.read().strip().splitlines() or ["nothing"])[-1].strip("= ")
    return code == 0, f"{last} (environment: {installed:.0f} s)"


def machine() -> str:
    """What the results are of."""
    cpu = Path("/proc/cpuinfo")
    names = (
        re.findall(r"model name\s*: (.*)", cpu.read_text(encoding="utf-8")) if cpu.exists() else []
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, commit {commit}"


def note(name: str, row: str, entries: dict[str, Entry]) -> None:
    """Write the row of an entry into the page of what takes hours, and keep the others' rows."""
    text = NIGHTLY.read_text("utf-8") if NIGHTLY.exists() else ""
    rows = {found.split("|")[1].strip(): found for found in text.splitlines() if "|" in found}
    rows[name] = row
    lines = [
        rows.get(entry.name, f"| {entry.name} | never run | | |")
        for entry in entries.values()
        if entry.when == "nightly" or entry.name in rows
    ]
    head = ["# Nightly", "", "When each entry of `matrix.yaml` last ran outside of `.ci/run`.", ""]
    table = ["| entry | | what it found | when and where |", "|---|---|---|---|"]
    NIGHTLY.write_text("\n".join([*head, *table, *lines, ""]), "utf-8")


def main() -> int:
    """Run the command line; returns the exit code."""
    entries = read()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(entries))
    parser.add_argument(
        "--in", dest="when", choices=("run", "nightly"), help="all entries of these"
    )
    parser.add_argument("--install", action="store_true", help="only make the environments")
    parsed = parser.parse_args()
    if unknown := set(parsed.names) - set(entries):
        parser.error(f"no such entry: {', '.join(unknown)}; known: {', '.join(entries)}")
    chosen = [
        entry
        for entry in entries.values()
        if entry.name in parsed.names or parsed.when in ("nightly", entry.when)
    ]
    if not chosen:
        for entry in entries.values():
            what = f"Python {entry.python}, torch {entry.torch or 'pinned'}" if entry.python else ""
            settings = " ".join([*(f"{k}={v}" for k, v in entry.env.items()), *entry.tests])
            print(f"{entry.name:28} {entry.when:8} {what}  {settings}")
        return 0
    if parsed.install:
        for entry in chosen:
            install(entry, sys.stderr)
        return 0
    failed = []
    for entry in chosen:
        begun = time.strftime("%Y-%m-%d %H:%M %Z")
        passed, line = run(entry)
        failed += [] if passed else [entry.name]
        print(f"{entry.name}: {'passed' if passed else 'FAILED'}: {line}", flush=True)
        if "nightly" in (entry.when, parsed.when):
            verdict = "passed" if passed else "FAILED"
            note(
                entry.name, f"| {entry.name} | {verdict} | {line} | {begun}, {machine()} |", entries
            )
    for name in failed:
        print(f"\n{name}:\n{(LOGS / f'{name}.log').read_text()[-6000:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
