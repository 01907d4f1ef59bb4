"""Settings of the whole suite."""

import os

# Two processes with two threads each slow each other tenfold, and the suite starts processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whoever runs the tests may have an account, which is not where their trainings belong.
os.environ["WANDB_MODE"] = "disabled"
# What `make test` hands down would make each `make` of a test another one than a user types.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(name, None)

# When it is imported, submitit sets logging up anew, which closes all handlers there are; absl's
# (of JAX's libraries) then closes its stream, which can be pytest's own. So before any of them.
import submitit  # noqa: E402, F401
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items):
    """JAX compiles every problem anew: minutes, which `make test` leaves to `make test-all`."""
    for item in items:
        if item.path.parent.name == "jax":
            item.add_marker("slow")
