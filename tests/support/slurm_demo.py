"""The sweep of docs/slurm.md, disturbed.

`python tests/support/slurm_demo.py` prints what the page shows.

Sends configs/sweeps/digits-lr.yaml as a job array to a real Slurm of four nodes, preempts two of
its jobs and kills a node under others, and compares with the same sweep on this machine alone.
"""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.slurm_cluster import Cluster, run  # noqa: E402

from experiments.plans.sweeps import expand
from experiments.reports import sweeps as reports_sweeps
from experiments.results import sweeps
from experiments.runs import attempts, checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.runs.states import read_state
from slurm.jobs import submitted

SWEEP = Path(__file__).parents[2] / "configs" / "sweeps" / "digits-lr.yaml"
PROFILE = """\
cluster: slurm
partition: main
timeout_minutes: 60
memory_gb: 5  # of a node's 8: one run per node
warning_seconds: 30
array_parallelism: 4
setup: [export OMP_NUM_THREADS=1]
"""


def send(root: Path, profile: str) -> list[RunDirectory]:
    """Submit the sweep with its runs below `root`."""
    run(sys.executable, "-m", "slurm.submit", str(SWEEP), "--profile", profile, RUNS_ROOT=root)
    return [RunDirectory(root, planned.config) for planned in expand(SWEEP)]


def disturb(cluster: Cluster, runs: list[RunDirectory]) -> list[str]:
    """Preempt two running jobs, then kill the node of a third; returns what was done to whom."""
    said = []
    hit: set[Path] = set()
    for kind in ("preempted", "preempted", "its node killed"):
        victim = None
        while victim is None:
            victim = next((one for one in runs if one.path not in hit
                           and checkpoint.stamp(one.path)
                           and read_state(one.path)[0] == "running"), None)  # fmt: skip
            time.sleep(0.1)
        path = victim.path
        hit.add(path)
        node = run("squeue", "-h", "-j", submitted(path).job, "-o", "%N").strip()
        if not node:
            raise RuntimeError(f"{path} ended before it could be disturbed")
        if kind == "preempted":
            run("srun", "--partition=high", f"--nodelist={node}", "--exclusive", "sleep", "1")
        else:
            cluster.crash_node(node)
        said.append(f"{path.parent.name}/{path.name} on {node}: {kind}")
    return said


def rows(runs: list[RunDirectory]) -> list[list[dict]]:
    return [[without_times(row) for row in read_metrics(one.metrics_path)]
            for one in runs]  # fmt: skip


def table(root: Path) -> str:
    """The report's table of the sweep, in Markdown."""
    results = sweeps.read_sweep(SWEEP, root)
    columns = reports_sweeps.columns(results)
    lines = [columns, ["---"] * len(columns), *reports_sweeps.rows(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def demonstrate(cluster: Cluster, folder: Path) -> str:
    """The disturbed sweep beside the undisturbed one.

    Raises:
        AssertionError: they differ.
    """
    (folder / "profile.yaml").write_text(PROFILE)
    start = time.monotonic()
    disturbed = send(folder / "disturbed", str(folder / "profile.yaml"))
    said = disturb(cluster, disturbed)
    undisturbed = send(folder / "undisturbed", "local")  # beside what is left of the other
    cluster.wait_for(lambda: all(one.done for one in disturbed), "end of the sweep")
    seconds = time.monotonic() - start
    cluster.wait_for(lambda: all(one.done for one in undisturbed), "local sweep")
    assert rows(disturbed) == rows(undisturbed)
    found = table(folder / "disturbed")
    assert found == table(folder / "undisturbed")
    tries = [attempts.read(one.path) for one in disturbed]
    again = [f"{one.path.parent.name}/{one.name}: "
             + ", then ".join(str(attempt.reason or "killed") for attempt in attempted)
             for one, attempted in zip(disturbed, tries, strict=True)
             if len(attempted) > 1]  # fmt: skip
    assert len(again) >= 3
    listed = "\n".join(f"- {line}" for line in [*said, *again])
    return f"{listed}\n\n{len(disturbed)} runs in {seconds:.0f} s.\n\n{found}\n"


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder / "cluster")
    cluster.directory.mkdir()
    folder.chmod(0o755)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that daemons are not left
    try:
        cluster.start()
        print(demonstrate(cluster, folder))
        print(run(sys.executable, "-m", "slurm.status", RUNS_ROOT=folder / "disturbed"))
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
