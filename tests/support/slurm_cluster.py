"""A real Slurm on this machine: munge, a controller and four nodes, below one directory.

By hand: `python tests/support/slurm_cluster.py` starts one, prints the SLURM_CONF to export, and
stops it on Ctrl-C. As root every node has its own host name and process namespace, so that killing
its daemon is the crash of a whole node.
"""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
NODES = 4

CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A job that was requeued may start again only when its old credential has expired. 5 s is the least:
# anything shorter is taken for the default, 120 s.
AuthInfo=socket={dir}/munge/sock,cred_expire=5
StateSaveLocation={dir}/ctld
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0,defer_batch
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=300
SlurmctldTimeout=10
SlurmdTimeout=8
InactiveLimit=0
Waittime=0
BatchStartTimeout=10
MessageTimeout=6
GresTypes=gpu
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=abrupt Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""  # noqa: E501


def install() -> None:
    """Install Debian's packages where they are missing and we are root.

    Raises:
        RuntimeError: naming what is missing, and how to get it.
    """
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        if os.getuid() == 0 and shutil.which("apt-get"):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update"], ["install", "-y", "--no-install-recommends"]):
                packages = ["slurm-wlm", "munge"] if "install" in command else []
                subprocess.run(["apt-get", "-qq", *command, *packages], check=True, env=environment)
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise RuntimeError(
            f"{', '.join(missing)} not found: these tests need a real Slurm; "
            "as root, `apt-get install slurm-wlm munge`"
        )


class Cluster:
    """Four nodes, n1 to n4, with four (claimed) CPUs and two (claimed) GPUs each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemons: dict[str, subprocess.Popen] = {}
        self.own_namespaces = (
            os.getuid() == 0
            and not subprocess.run(
                ["unshare", "-m", "-u", "-p", "--fork", "true"], stderr=subprocess.DEVNULL
            ).returncode
        )

    def start(self) -> None:
        """Bring it up; returns when all nodes are idle."""
        install()
        self.directory.chmod(0o755)  # munge insists that everybody can reach its socket
        for name in ("munge", "ctld", "spool", "run", "log", *(f"spool/n{n}" for n in nodes())):
            (self.directory / name).mkdir(parents=True)
        host = os.uname().nodename
        names = " ".join(f"n{n}" for n in nodes())
        hosts = Path("/etc/hosts").read_text(encoding="utf-8") + f"\n127.0.0.1 {names}\n"
        (self.directory / "hosts").write_text(hosts)
        port = 20000 + os.getpid() % 20000
        lines = [
            f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + n} CPUs=4 "
            "RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
            for n in nodes()
        ]
        conf = CONF.format(
            host=host, port=port, user=getpass.getuser(), dir=self.directory, nodes="\n".join(lines)
        )
        (self.directory / "slurm.conf").write_text(conf)
        gres = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
        (self.directory / "gres.conf").write_text(gres)
        (self.directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        os.environ["SLURM_CONF"] = str(self.directory / "slurm.conf")
        self._start_munge()
        self._daemon("slurmctld", ["slurmctld", "-D"])
        for n in nodes():
            self.start_node(f"n{n}")
        self.wait_for(lambda: self.node_states().count("idle") == NODES, "idle nodes")

    def _start_munge(self) -> None:
        munge = self.directory / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        munge.chmod(0o755)
        files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log",
                 "seed-file": "seed"}  # fmt: skip
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self._daemon("munged", ["munged", "--foreground", *options])
        self.wait_for(lambda: (munge / "sock").exists(), "munge's socket")

    def start_node(self, name: str) -> None:
        """Start a node's daemon, also after a crash."""
        command = ["slurmd", "-D", "-N", name]
        if self.own_namespaces:
            script = f"hostname {name}; mount --bind {self.directory}/hosts /etc/hosts; exec "
            command = ["unshare", "-m", "-u", "-p", "--fork", "--mount-proc", "sh", "-c",
                       script + " ".join(command)]  # fmt: skip
        self._daemon(name, command)

    def reconfigure(self, old: str, new: str) -> None:
        """Change the configuration of the running cluster."""
        path = self.directory / "slurm.conf"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        run("scontrol", "reconfigure")

    def crash_node(self, name: str) -> None:
        """Kill a node with all that runs on it."""
        os.kill(self._slurmd(name), signal.SIGKILL)
        self.daemons.pop(name).wait()

    def cut_off_node(self, name: str) -> list[int]:
        """Stop a node from talking to the controller; its jobs live on.

        Returns:
            What has to be killed in the end.
        """
        pid = self._slurmd(name)
        os.kill(pid, signal.SIGSTOP)
        return [pid]

    def _slurmd(self, name: str) -> int:
        pid = self.daemons[name].pid
        if not self.own_namespaces:
            return pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()[0])

    def _daemon(self, name: str, command: list[str]) -> None:
        with (self.directory / "log" / f"{name}.out").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def node_states(self) -> list[str]:
        done = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%t"],
                              capture_output=True, text=True)  # fmt: skip
        return done.stdout.split()

    def jobs(self) -> dict[str, str]:
        """The state of every job, array members one by one, that the controller remembers."""
        lines = run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for(self, condition, what: str, seconds: float = 600.0) -> float:
        """Wait until a condition holds; returns the seconds it took.

        Raises:
            TimeoutError: with what the cluster looked like.
        """
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if condition():
                return time.monotonic() - start
            time.sleep(0.1)
        seen = subprocess.run(["squeue", "-t", "all"], capture_output=True, text=True).stdout
        seen += subprocess.run(["sinfo", "-N", "-l"], capture_output=True, text=True).stdout
        raise TimeoutError(f"no {what} after {seconds} s\n{seen}")

    def stop(self) -> None:
        """End all jobs and daemons."""
        subprocess.run(["scancel", "--me"], capture_output=True)
        for name in reversed(list(self.daemons)):
            if name.startswith("n"):
                try:
                    os.kill(self._slurmd(name), signal.SIGKILL)
                except (IndexError, FileNotFoundError, ProcessLookupError):
                    pass
            else:
                self.daemons[name].terminate()
            try:
                self.daemons[name].wait(10)
            except subprocess.TimeoutExpired:
                self.daemons[name].kill()
                self.daemons[name].wait()
        self.daemons.clear()
        os.environ.pop("SLURM_CONF", None)


def nodes() -> range:
    return range(1, NODES + 1)


def run(*command: str, **environment: Path | str) -> str:
    """The output of a command that must succeed."""
    variables = {**os.environ, **{key: str(value) for key, value in environment.items()}}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=variables
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(directory)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that daemons are not left
    try:
        cluster.start()
        print(f"export SLURM_CONF={directory}/slurm.conf   # Ctrl-C stops the cluster", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
