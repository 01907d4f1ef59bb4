"""How many cores there are, and how many threads a training on the CPU has.

The order in which threads add up numbers is part of a result on a CPU. So their number is fixed: it
is one, or what `OMP_NUM_THREADS` says, whatever else runs beside the training.
"""

import os
from pathlib import Path

from experiments.errors import UserError

VARIABLE = "OMP_NUM_THREADS"
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def threads_per_run() -> int:
    """Threads of a training on the CPU.

    Raises:
        UserError: `OMP_NUM_THREADS` is no number above 0.
    """
    text = os.environ.get(VARIABLE, "").partition(",")[0].strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{VARIABLE} = '{text}': must be a whole number, 1 or more")
    return int(text)


def cores() -> int:
    """Cores that this process may use: a container or a job may have fewer than the machine."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(mine or 1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such quota here: the file is absent, or says "max"
        return mine or 1
