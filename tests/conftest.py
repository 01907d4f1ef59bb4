"""Settings of the whole suite."""

import contextlib
import os

# Two processes with two threads each slow each other tenfold, and the suite starts processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whoever runs the tests may have an account, which is not where their trainings belong.
os.environ["WANDB_MODE"] = "disabled"
# What `make test` hands down would make each `make` of a test another one than a user types.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(name, None)

# When it is imported, submitit sets logging up anew, which closes all handlers there are; absl's
# (of JAX's libraries) then closes its stream, which can be pytest's own. So before any of them,
# where there is one: the library's tests run on a bare machine, too.
with contextlib.suppress(ModuleNotFoundError):
    import submitit  # noqa: E402, F401
import pytest  # noqa: E402

with contextlib.suppress(ModuleNotFoundError):  # some of Keras' tests run where it is not
    import torch  # noqa: E402

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the library's tests compute")


def pytest_configure(config):
    device = config.getoption("--device")
    if device == "cpu":
        return
    os.environ["JAX_PLATFORMS"] = "cpu"  # JAX would take most of a GPU's memory for itself
    torch.set_default_device(device)
    torch.backends.cudnn.allow_tf32 = False  # tolerances are float32's
    torch.backends.cudnn.deterministic = True  # many tests compare bits
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for those that ask for more

    class Generator(torch.Generator):
        """A generator of the default device, as whatever else is made without a device."""

        def __new__(cls, device=None):
            return super().__new__(cls, device or torch.get_default_device())

    torch.Generator = Generator


# Begun last, each of these would keep one worker busy when the others have ended.
LONGEST = (
    "tests/cluster/",
    "tests/harness/benchmarks/test_gpu.py",
    "tests/harness/runs/test_mutations.py",
    "tests/library/test_replicas.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests share a worker, and all that need the Slurm cluster do: there is one."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "cluster" if file.startswith("tests/cluster/") else file

    config.option.loadscopereorder = False  # the order of collection
    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    """The longest first, for several workers; and what `make test` leaves to `make test-all`.

    JAX compiles every problem anew, for minutes.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    on_gpu = config.getoption("--device") != "cpu"
    for item in items:
        if on_gpu and (mark := item.get_closest_marker("cpu_only")):
            item.add_marker(pytest.mark.skip(reason=mark.kwargs["reason"]))
        if item.path.parent.name == "jax":
            item.add_marker("slow")
