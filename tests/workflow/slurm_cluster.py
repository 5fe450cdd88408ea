"""A real SLURM cluster of one node on this machine, for tests: no systemd, no database, no file outside one temporary folder.

Its three daemons listen on 127.0.0.1, at ports that were free, and on a socket in the folder. They are stopped by the pid
files they wrote. Root and an ordinary user can start it; jobs run as the one who did.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
# Debian keeps daemons where an ordinary user's PATH does not look.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
# A user's defaults for SLURM or Snakemake, or the SLURM job in which the tests themselves run, are not part of a test.
FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SINFO_", "SNAKEMAKE_")

# The sizes of the node are what jobs may ask for together, whatever this machine has (config_overrides).
CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={uid}
SlurmdUser={uid}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
KillWait=2
MinJobAge=3600
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    folder: Path
    env: dict[str, str]
    """The environment in which SLURM's programs, and Snakemake, find it."""

    def ask(self, *command: str) -> list[str]:
        """Lines that one of SLURM's programs prints."""
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()


def missing() -> list[str]:
    """Programs that a cluster needs and this machine lacks."""
    return [program for program in (*DAEMONS, *CLIENTS) if not shutil.which(program, path=PATH)]


@contextmanager
def running(cpus: int = 2, memory_mb: int = 16000) -> Iterator[Cluster]:
    """A cluster for the length of a block, taken down however the block ends."""
    # Not pytest's folder: munged wants a way to its socket that is open to all users, and a socket's path is at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder, _environment(folder))
    try:
        _start(cluster, cpus, memory_mb)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**own, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": os.pathsep.join([str(folder / "bin"), PATH])}


def _start(cluster: Cluster, cpus: int, memory_mb: int) -> None:
    folder = cluster.folder
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    ctld_port, slurmd_port = _free_ports(2)
    host = socket.gethostname().split(".")[0]
    settings = {"ctld_port": ctld_port, "slurmd_port": slurmd_port, "uid": os.getuid(), "host": host}
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, cpus=cpus, memory_mb=memory_mb, **settings))
    # The SLURM plugin takes SLURM_CONF from the srun inside a job; on a real cluster srun reads /etc/slurm. This one brings it back.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF="{folder}/slurm.conf" exec "{shutil.which("srun", path=PATH)}" "$@"\n')
    srun.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    # In a container the folders above may have owners that munged holds to be a fault; an ordinary user keeps that check.
    force = ["--force"] if os.getuid() == 0 else []
    _launch(cluster, "munged", *force, *(f"--{option}={folder / name}" for option, name in files.items()))
    _launch(cluster, "slurmctld")
    _launch(cluster, "slurmd", "-N", "localhost")
    _wait(cluster, lambda: _idle(cluster), "the node is idle")


def _idle(cluster: Cluster) -> bool:
    try:
        return cluster.ask("sinfo", "--noheader", "--format=%T") == ["idle"]
    except subprocess.CalledProcessError:  # slurmctld does not answer yet
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _launch(cluster: Cluster, daemon: str, *options: str) -> None:
    """Starts a daemon, which puts itself in the background."""
    command = [shutil.which(daemon, path=PATH) or daemon, *options]
    with (cluster.folder / "start.log").open("ab") as log:  # not a pipe: the daemon would hold its other end
        done = subprocess.run(command, env=cluster.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{daemon} did not start\n{_logs(cluster)}")


def _wait(cluster: Cluster, happens: Callable[[], bool], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds:g} s: {what}\n{_logs(cluster)}")
        time.sleep(0.1)


def _logs(cluster: Cluster) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(cluster.folder.glob("*.log")))


def _stop(cluster: Cluster) -> None:
    # Jobs that still run would outlive the daemons.
    if (cluster.folder / "slurmctld.pid").exists():
        with suppress(subprocess.SubprocessError, RuntimeError):
            cluster.ask("scancel", "--partition=main")
            _wait(cluster, lambda: not cluster.ask("squeue", "--noheader"), "no job is left")
    living = [(daemon, pid) for daemon in DAEMONS if (pid := _pid(cluster, daemon)) and _lives(daemon, pid)]
    for _, pid in living:
        os.kill(pid, signal.SIGTERM)
    with suppress(RuntimeError):
        _wait(cluster, lambda: not any(_lives(*one) for one in living), "the daemons have ended", seconds=15)
    for daemon, pid in living:
        if _lives(daemon, pid):
            os.kill(pid, signal.SIGKILL)


def _pid(cluster: Cluster, daemon: str) -> int | None:
    try:
        return int((cluster.folder / f"{daemon}.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _lives(daemon: str, pid: int) -> bool:
    """Whether the process is still this daemon: not ended (an ended one has no command), not another that got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return Path(command.split("\0")[0]).name == daemon
