"""A Slurm of its own on this machine: one controller, two nodes, everything in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
# Of a job that is over, one way or another.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
# "localhost" and the name of this machine are special to Slurm, so these names lead nowhere.
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=caat
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits for so many seconds.
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/linear
PropagateResourceLimits=NONE
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    tools = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if tools:
        return f"{', '.join(tools)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


class Cluster:
    """The daemons, from construction to :meth:`close`; ``folder`` is theirs. Commands run in ``work``."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "PATH": _path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (self.folder / "state").mkdir()
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        text = CONFIGURATION.format(
            folder=self.folder, host=socket.gethostname(), nodes=NODES, ports=_free_ports(3)
        )
        (self.folder / "slurm.conf").write_text(text)
        files = {f"--{name}-file": munge / name for name in ("key", "pid", "log", "seed")}
        files["--socket"] = munge / "socket"
        self._daemon("munged", "--foreground", "--force", *(f"{name}={path}" for name, path in files.items()))
        self._until(lambda: (munge / "socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))
        self._until(lambda: self._states() == {"idle"}, "nodes")

    def close(self) -> None:
        """End the jobs, then the daemons, by their process ids."""
        if len(self._daemons) > 1:
            self._ask("scancel", "--user=root")
            end = time.monotonic() + 30
            while self._ask("squeue", "--noheader") and time.monotonic() < end:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, **variables: str) -> str:
        """What ``command`` prints; it must succeed."""
        result = subprocess.run(
            command,
            cwd=self.work,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def sbatch(self, *arguments: str, **variables: str) -> str:
        """Submit; returns the job's number."""
        return self.run("sbatch", "--parsable", *arguments, **variables).strip()

    def state(self, job: str) -> str:
        """Of the job, or the states of the tasks of an array, joined."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        jobs = [line for line in shown.splitlines() if "JobState=" in line]
        return " ".join(line.split("JobState=")[1].split()[0] for line in jobs)

    def wait(self, job: str, seconds: float = 240, until: Sequence[str] = ENDED) -> str:
        """Until the job (all tasks of the array) ended, or is in such a state; returns the states."""
        self._until(lambda: all(s in until for s in self.state(job).split()), f"job {job}", seconds)
        return self.state(job)

    def _states(self) -> set[str]:
        """Of the nodes."""
        return set(self._ask("sinfo", "--noheader", "--partition=batch", "--Node", "--format=%T").split())

    def _ask(self, *command: str) -> str:
        """What ``command`` prints, if it succeeds."""
        result = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return result.stdout

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}-{len(self._daemons)}.out").open("wb")
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)
        )

    def _until(self, what, name: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            ended = [str(daemon.args) for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                raise AssertionError(f"waited in vain for {name}; ended: {ended}\n{self._logs()}")
            time.sleep(0.5)

    def _logs(self) -> str:
        logs = [*self.folder.glob("*.out"), *self.folder.glob("*.log"), *self.work.glob("*.out")]
        queue = self._ask("squeue")
        return queue + "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
