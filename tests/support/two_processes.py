"""The real command in two processes that train one run."""

import os
import socket
import subprocess
import sys

from support.harness import REPOSITORY
from support.patience import PATIENCE


def start_two(root, *words, **environment):
    """Start `experiments.run` twice, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "experiments.run", *map(str, words)]
    environment = {**os.environ, "RUNS_ROOT": str(root), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}  # fmt: skip
    return [
        subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
                         env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip


def end(processes):
    """Their exit codes, and what both wrote to stderr."""
    outputs = [one.communicate(timeout=PATIENCE)[1] for one in processes]
    return [one.returncode for one in processes], "\n".join(outputs)
