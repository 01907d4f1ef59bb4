"""Profiles: what a submission asks of a cluster, one YAML file each."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from experiments.config.sections import NotNegative, Positive, Section, validate
from experiments.config.yaml_reader import read_yaml_file
from experiments.errors import UserError, nearest

FOLDER = Path(__file__).parent / "profiles"

# A task that was killed (out of memory, a crash below Python) cannot ask for its requeue. Its
# shell does: after SIGABRT, SIGBUS, SIGFPE, SIGKILL and SIGSEGV, and after a SIGUSR2 that came
# before anybody listened. `slurm.job` sees to it that this has an end.
AFTER = """\
code=$?
case $code in 134|135|136|137|139|140)
  scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}" ;;
esac
exit $code""".splitlines()  # noqa: E501

# Whatever ends the job's shell during its setup, a failed line or an `exit`, says where.
GUARD = """\
stopped() {
  echo "error: the profile's setup ended the job, exit code $1, at: $setup_line" >&2
  exit $(($1 ? $1 : 1))
}
trap 'stopped $?' EXIT""".splitlines()


class Profile(Section):
    """A profile's keys; those from `partition` to `setup` mean something to Slurm alone.

    Without `array_parallelism`, 16 runs of a submission are trained at a time on Slurm; on this
    machine as many as there are cores, or one where there is a GPU.
    """

    cluster: Literal["slurm", "local", "debug"]
    timeout_minutes: Positive
    nodes: Positive = 1
    gpus_per_node: NotNegative = 0
    tasks_per_node: Positive = 1  # one process per GPU: with 8 GPUs per node and run, 8
    array_parallelism: Positive | None = None  # runs of one submission at a time: see below
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: Positive = 1
    memory_gb: Positive | None = None  # per node
    warning_seconds: Positive = 120  # from the signal to the end of the time limit
    directives: dict[str, str | int | bool] = {}  # further lines for sbatch, without `--`
    setup: list[str] = []  # shell commands before the run: modules, environment; all must succeed

    @model_validator(mode="after")
    def _check(self) -> "Profile":
        tasks, gpus = self.tasks_per_node, self.gpus_per_node
        if gpus > 1 and tasks != gpus:
            raise ValueError(f"{gpus} GPUs per node need tasks_per_node: {gpus}, one for each")
        if self.cluster != "slurm" and self.nodes > 1:
            raise ValueError(f"nodes: {self.nodes} need a Slurm cluster")
        if self.warning_seconds >= 60 * self.timeout_minutes:
            raise ValueError(f"warning_seconds {self.warning_seconds}: longer than timeout_minutes")
        return self

    def parameters(self, name: str) -> dict[str, Any]:
        """What submitit's AutoExecutor is told."""
        parameters = {
            "name": name,
            "timeout_min": self.timeout_minutes,
            "nodes": self.nodes,
            "gpus_per_node": self.gpus_per_node or None,
            "tasks_per_node": self.tasks_per_node,
            "cpus_per_task": self.cpus_per_task,
            "mem_gb": self.memory_gb,
        }
        if self.cluster == "slurm":
            parameters |= {
                "slurm_partition": self.partition,
                "slurm_account": self.account,
                "slurm_qos": self.qos,
                "slurm_constraint": self.constraint,
                "slurm_array_parallelism": self.array_parallelism or 16,
                "slurm_signal_delay_s": self.warning_seconds,
                "slurm_additional_parameters": {"requeue": True, **self.directives},
                "slurm_setup": checked(self.setup) if self.setup else None,
                "slurm_teardown": AFTER,
                # One process of several that dies must not leave the others waiting for it.
                "slurm_srun_args": ["--kill-on-bad-exit=1"],
            }
        return {key: value for key, value in parameters.items() if value is not None}


def checked(setup: Sequence[str]) -> list[str]:
    """The lines of a setup; the first one that fails ends the job.

    After them the shell is in the folder where it was before: Python looks for the code there.
    """
    lines = list(GUARD)
    for line in [*setup, 'cd "$SLURM_SUBMIT_DIR"']:
        shown = shlex.quote(" ".join(line.split()))
        lines += [f"setup_line={shown}", line, "setup_code=$?",
                  "[ $setup_code = 0 ] || exit $setup_code"]  # fmt: skip
    return [*lines, "trap - EXIT"]


def load_profile(name: str) -> Profile:
    """The profile of a name (`slurm/profiles/NAME.yaml`) or in a file.

    Raises:
        UserError: there is none, or a key or value in it is wrong.
    """
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if name not in known and not (name.endswith((".yaml", ".yml")) and path.is_file()):
        raise UserError(f"no profile '{name}'; {nearest(name, known)}, or a file of your own")
    return validate(Profile, read_yaml_file(path), path)
