"""A sweep of twelve runs, two of them preempted, one node killed: the table is the same."""

import shutil
import tempfile
from pathlib import Path

import pytest
from support import slurm_demo
from support.slurm_cluster import Cluster


@pytest.mark.slow
def test_a_disturbed_sweep_ends_with_the_table_of_an_undisturbed_one():
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge insists that everybody can reach its socket
    cluster = Cluster(folder / "cluster")
    cluster.directory.mkdir()
    try:
        cluster.start()
        print(slurm_demo.demonstrate(cluster, folder))
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
