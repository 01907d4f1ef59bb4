"""A place for runs, and the real Slurm that they are sent to."""

import time
from pathlib import Path

from support.harness import DIGITS, SMALL, small_config
from support.slurm_cluster import Cluster

from experiments.runs import attempts, checkpoint, lease
from experiments.runs.directory import RunDirectory
from slurm import submit
from slurm.jobs import submitted

LONG = ("epochs=8", "checkpoint_every_steps=4")


class Lab:
    """A place for runs, and the cluster that they are sent to."""

    def __init__(self, root: Path, cluster: Cluster) -> None:
        self.root, self.cluster = root, cluster

    def submit(self, *arguments: str, **profile: str | int) -> int:
        keys = {"cluster": "slurm", "timeout_minutes": 60, "memory_gb": 1, "warning_seconds": 30,
                "setup": "[export OMP_NUM_THREADS=1]", **profile}  # fmt: skip
        path = self.root.parent / "profile.yaml"
        path.write_text("\n".join(f"{key}: {value}" for key, value in keys.items()))
        return submit.main([*arguments, "--profile", str(path)])

    def submit_one(self, **profile: str | int) -> RunDirectory:
        """Send the run that the tests disturb."""
        options = ("optimizer=adahessian", "seed=1", *SMALL, *LONG)
        assert self.submit(str(DIGITS), *options, **profile) == 0
        return RunDirectory(self.root, small_config(*LONG, optimizer="adahessian"))

    def submit_and_wait_for_a_checkpoint(self, **profile: str | int) -> tuple[RunDirectory, str]:
        directory = self.submit_one(**profile)
        self.wait_for(lambda: checkpoint.stamp(directory.path), "checkpoint")
        return directory, submitted(directory.path).job

    def wait_for(self, condition, what):
        return self.cluster.wait_for(condition, what)

    def wait_for_the_end(self, directory: RunDirectory) -> list[attempts.Attempt]:
        """Wait until the run is done and its lease released."""
        try:
            self.wait_for(lambda: directory.done, "end of the run")
            self.wait_for(lambda: not (directory.path / lease.NAME).exists(), "released lease")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(directory)}") from error
        return attempts.read(directory.path)

    def finish(self, directory: RunDirectory, since: float, fault: str) -> list[attempts.Attempt]:
        """Wait for the run to be done, note how long the fault took to survive."""
        count = len(attempts.read(directory.path))
        self.wait_for(lambda: len(attempts.read(directory.path)) > count, "new attempt")
        print(f"{fault}: training again after {time.monotonic() - since:.1f} s")
        return self.wait_for_the_end(directory)

    def log(self, directory: RunDirectory) -> str:
        job = submitted(directory.path)
        return "\n".join(path.read_text() for path in job.logs if path.exists())
