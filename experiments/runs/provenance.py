"""With what, where and from which commit something was computed."""

import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runs.lease import job_id
from experiments.runs.metrics import read_json

if TYPE_CHECKING:
    import torch

GIT_SECONDS = 60  # after which a commit is not known: a training does not wait for it


def session(device: "torch.device") -> dict[str, Any]:
    """Where and with what a training was started or continued."""
    import torch

    return {
        "command": shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]]),
        "job": job_id(),
        **git_state(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_state() -> dict[str, Any]:
    """Commit of the harness and whether files differ from it; None outside of a repository.

    A snapshot of the code, which `slurm.submit` makes for a job, says of which commit it is.
    """
    if (of_snapshot := Path(__file__).parents[2] / "commit.json").exists():
        return read_json(of_snapshot)

    def git(*arguments: str) -> str | None:
        # Looking must not take the lock of somebody who is just committing.
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", check=True,
                timeout=GIT_SECONDS,
            ).stdout.strip()  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
