"""What tests on a real Slurm share: four nodes per file, and a place for runs per test."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.slurm_cluster import Cluster
from support.slurm_lab import Lab


@pytest.fixture(scope="module")
def cluster():
    # Not below pytest's directory: munge insists that everybody can reach its socket.
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def lab(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    yield Lab(tmp_path / "runs", cluster)
    subprocess.run(["scancel", "--me"], check=True)
    cluster.wait_for(lambda: cluster.node_states().count("idle") == 4, "idle nodes")
