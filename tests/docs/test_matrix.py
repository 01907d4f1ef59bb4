"""The test matrix of `.ci/`: its file can be read, its parts exist, nightly says what it found."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def matrix(monkeypatch):
    spec = importlib.util.spec_from_file_location("matrix", ROOT / ".ci" / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "matrix", module)
    spec.loader.exec_module(module)
    return module


def command(matrix, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["matrix.py", *arguments])
    return matrix.main()


def test_entries_name_tests_and_extras_that_exist(matrix):
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for entry in matrix.read().values():
        assert set(entry.extras) <= set(extras["optional-dependencies"])
        paths = [word.split("::") for word in entry.tests if word.startswith("tests")]
        assert paths and all((ROOT / path).exists() for path, *_ in paths)
        for path, *names in paths:
            assert all(f"def {name}(" in (ROOT / path).read_text() for name in names)
        assert entry.when in ("run", "nightly")
        assert entry.python or not entry.torch, "another torch needs an environment of its own"


def test_python_and_torch_are_tested_at_both_ends(matrix):
    both = {(entry.python, entry.torch) for entry in matrix.read().values() if entry.python}
    oldest, newest = "3.11", max((p for p, _ in both), key=lambda v: int(v.split(".")[1]))
    assert {(oldest, "2.11"), (newest, "2.11"), (newest, "")} <= both


def test_other_torch_is_not_pinned(matrix):
    names = ("torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit", "setuptools")
    assert all(matrix.OF_TORCH.match(f"{name}==1") for name in names)
    assert not matrix.OF_TORCH.match("torch-optimizer==0.3.0")


def test_nightly_writes_what_it_found(matrix, tmp_path, monkeypatch, capsys):
    results = {"jax": (False, "1 failed, 2 passed"), "avx2": (True, "9 passed")}
    monkeypatch.setattr(matrix, "run", lambda entry: results.get(entry.name, (True, "not run")))
    monkeypatch.setattr(matrix, "NIGHTLY", tmp_path / "nightly.md")
    monkeypatch.setattr(matrix, "LOGS", tmp_path)
    (tmp_path / "jax.log").write_text("what failed")
    assert command(matrix, monkeypatch, "--in", "nightly") == 1
    text = (tmp_path / "nightly.md").read_text()
    assert "| jax | FAILED | 1 failed, 2 passed | 20" in text and "commit" in text
    assert "| avx2 | passed | 9 passed | 20" in text
    assert "what failed" in capsys.readouterr().out


def test_entries_that_are_run_alone_leave_the_others_rows(matrix, tmp_path, monkeypatch):
    results = {"jax": (True, "3 passed")}
    monkeypatch.setattr(matrix, "run", lambda entry: results.get(entry.name, (True, "9 passed")))
    monkeypatch.setattr(matrix, "NIGHTLY", tmp_path / "nightly.md")
    assert command(matrix, monkeypatch, "jax") == 0
    text = (tmp_path / "nightly.md").read_text()
    assert "| jax | passed | 3 passed | 20" in text and "| keras | never run | | |" in text
    assert "avx2 |" not in text.replace("everything-avx2", "")  # .ci/run's own
    assert command(matrix, monkeypatch, "keras", "avx2") == 0
    text = (tmp_path / "nightly.md").read_text()
    assert "| jax | passed | 3 passed |" in text and "| keras | passed | 9 passed |" in text
    assert text.count("| jax |") == text.count("| keras |") == 1
    before = text
    assert command(matrix, monkeypatch, "--in", "run") == 0
    assert (tmp_path / "nightly.md").read_text() == before


def test_unknown_entry_is_refused(matrix, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(matrix, monkeypatch, "jaxx")
    assert "no such entry: jaxx" in capsys.readouterr().err


def test_install_alone_tests_nothing(matrix, monkeypatch):
    installed = []
    monkeypatch.setattr(matrix, "install", lambda entry, log: installed.append(entry.name))
    monkeypatch.setattr(matrix, "run", None)
    assert command(matrix, monkeypatch, "keras", "--install") == 0
    assert installed == ["keras"]


def test_python_that_is_not_here_is_said(matrix):
    passed, line = matrix.run(matrix.Entry("x", ["tests"], "run", python="3.99"))
    assert passed and line == "not run: no Python 3.99 here"


def test_what_make_test_runs_in_is_not_installed_anew(matrix, tmp_path, monkeypatch):
    """It would be taken from under the tests that run in it at the time."""
    calls = []

    def record(command, **_):
        calls.append([str(word) for word in command])
        return matrix.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(matrix, "LOGS", tmp_path)
    monkeypatch.setattr(matrix.subprocess, "run", record)
    for entry in matrix.read().values():
        if not entry.python:
            matrix.run(entry)
    assert calls and all(call[1:3] == ["-m", "pytest"] for call in calls)


def test_what_is_pinned_installs_on_the_oldest_python():
    """On its first release, which Debian's is near; the environment's own may be a later one."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    checked = 0
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        try:
            found = distribution(name.strip())
        except (PackageNotFoundError, ValueError):  # an entry of the matrix has less
            continue
        if found.version == version.split(";")[0].strip():
            asked = found.metadata["Requires-Python"]
            assert not asked or SpecifierSet(asked).contains(oldest), f"{line} needs {asked}"
            checked += 1
    assert checked > 20
