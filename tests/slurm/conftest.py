"""A real Slurm on this one machine: a controller and two nodes with pretended GPUs, for the tests alone.

It starts its own daemons with its own configuration and stops only what it started.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from efflab import submit
from efflab.errors import EfflabError

MEND = "install Debian's packages slurm-wlm and munge"
CONF = """
ClusterName=efflab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={d}/munge/munge.socket
SlurmUser=root
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmdPidFile={d}/run/slurmd.%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=8000 Gres=gpu:fake:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=8000 Gres=gpu:fake:2
PartitionName=lab Nodes=n[1-2] Default=YES MaxTime=01:00:00 State=UP
"""


class Slurm:
    """The running cluster: its environment and a few commands."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command with this cluster's configuration."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, **options)  # type: ignore[call-overload]

    def submit(self, *arguments: str, cwd: Path) -> str:
        """Submit a batch script; the job's id."""
        done = self.run("sbatch", "--parsable", *arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def empty(self, seconds: float = 30) -> None:
        """Cancel what is left in the queue and wait until none of it runs."""
        deadline = time.time() + seconds
        while left := self.run("squeue", "-h", "-o", "%i").stdout.split():
            self.run("scancel", *left)
            if time.time() > deadline:
                raise EfflabError(f"jobs {', '.join(left)} are not gone {seconds} s after they were cancelled")
            time.sleep(0.3)

    def wait(self, job: str, seconds: float = 180) -> str:
        """Wait until a job has ended; its final state. (`sbatch --wait` would round up to ten seconds.)"""
        deadline = time.time() + seconds
        while time.time() < deadline:
            state = self.run("scontrol", "show", "job", job).stdout
            found = [w.removeprefix("JobState=") for w in state.split() if w.startswith("JobState=")]
            if found and found[0] not in {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING"}:
                return found[0]
            time.sleep(0.3)
        raise EfflabError(f"job {job} did not end in {seconds} s:\n{self.run('scontrol', 'show', 'job', job).stdout}")


@pytest.fixture
def book(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty lab book, in a process that this cluster answers. Cancels what a test has left in the queue."""
    folder = tmp_path / "book"
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("EFFLAB_LABBOOK", str(folder))
    for name in ("EFFLAB_CLUSTER", "EFFLAB_PYTHON", "EFFLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(submit, "POLL", (0.5, 2.0))  # this controller has nobody else to answer
    monkeypatch.setattr(submit, "_find", lambda path: Path(path) if path else None)  # no cluster.yml of this machine
    yield folder
    slurm.empty()


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of two nodes on this machine."""
    lacking = [p for p in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(p)]
    reason = f"needs {', '.join(lacking)}: {MEND}" if lacking else ""
    if not reason and os.geteuid() != 0:
        reason = "needs root: slurmd starts jobs as their user"
    if reason:
        if os.environ.get("EFFLAB_REQUIRE_ALL") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    # Munge refuses folders that others may write and a socket that others cannot reach.
    d = Path("/run") / f"efflab-slurm-{os.getpid()}"
    for name in ("state", "spool", "run", "log", "munge"):
        (d / name).mkdir(parents=True)
    d.chmod(0o755)
    munge = pwd.getpwnam("munge")
    key = d / "munge/munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (d / "munge", key):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    controller, n1, n2 = _ports(3)
    conf = d / "slurm.conf"
    conf.write_text(CONF.format(d=d, controller=controller, n1=n1, n2=n2))
    # A pretended GPU is any device file; a container without terminals gets a bare count.
    files = "File=/dev/tty[1-2]" if Path("/dev/tty2").exists() else "Count=2"
    (d / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu Type=fake {files}\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
    environment["SLURM_CONF"] = str(conf)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        munged = shutil.which("munged")
        subprocess.run(
            ["setpriv", f"--reuid={munge.pw_uid}", f"--regid={munge.pw_gid}", "--clear-groups", str(munged),
             f"--socket={d}/munge/munge.socket", f"--key-file={key}", f"--pid-file={d}/munge/munged.pid",
             f"--log-file={d}/munge/munged.log", f"--seed-file={d}/munge/munged.seed"],
            check=True,
        )  # fmt: skip
        (d / "munge").chmod(0o755)
        daemons.append(subprocess.Popen(["slurmctld", "-D", "-i"], env=environment, stderr=subprocess.DEVNULL))
        for node in ("n1", "n2"):
            daemons.append(subprocess.Popen(["slurmd", "-D", "-N", node], env=environment, stderr=subprocess.DEVNULL))
        cluster = Slurm(d, environment)
        deadline = time.time() + 60
        while cluster.run("sinfo", "-h", "-o", "%T").stdout.split() != ["idle"]:
            if time.time() > deadline:
                logs = "\n".join(p.read_text(errors="replace")[-1500:] for p in sorted((d / "log").glob("*")))
                pytest.fail(f"Slurm did not come up: {cluster.run('sinfo').stdout}\n{logs}")
            time.sleep(0.3)
        yield cluster
        cluster.empty()  # the daemons would leave a job's processes running
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        pid = d / "munge/munged.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
        shutil.rmtree(d, ignore_errors=True)
