"""The tests of this folder, once for each backend of Keras, each in a process of its own.

`UPDATE_CONFORMANCE=1 python .ci/matrix.py keras` writes the column of docs/implementations.md.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import conformance_table
from support.patience import PATIENCE

from adahessian.conformance.check import Outcome

ROOT = Path(__file__).parents[3]
BACKENDS = ("tensorflow", "jax", "torch")


def run(backend, tmp_path, *arguments):
    """Run a module with this backend; returns the finished process."""
    for package in ("keras", backend):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: .ci/matrix.py keras makes an environment")
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=12 * PATIENCE,  # a folder of tests, each of them compiles
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend(backend, tmp_path):
    folder = str(Path(__file__).parent.relative_to(ROOT))
    done = run(
        backend, tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "--durations=15", folder
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


def test_conformance(tmp_path):
    """The column of docs/implementations.md: what passes on each backend."""
    by_backend = []
    for backend in BACKENDS:
        done = run(backend, tmp_path, "adahessian.conformance", "adahessian.keras.conformance:port")
        assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()[1:] if "  " in line]
        verdicts = {case: rest.partition("  ")[0] for case, rest in lines}
        by_backend.append(
            {case: conformance_table.cell(Outcome(case, v)) for case, v in verdicts.items()}
        )
    column, *others = by_backend
    assert "✓" in column.values() and all(other == column for other in others)
    conformance_table.check({"Keras": column}, bool(os.environ.get("UPDATE_CONFORMANCE")))
