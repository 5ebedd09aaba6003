"""Several processes that measure together: starting them, timing them, and what becomes of them when one fails.

`Launch` starts the processes (ranks) with torchrun, as a subprocess of its own, and yields what rank 0 says. On one
node:

    python -m torch.distributed.run --standalone --nproc-per-node=RANKS -m efflab.measure.distributed TARGET FOLDER

In a Slurm job of several nodes one such command runs on each node, under srun, and the first node is where they meet.
TARGET is "module:function"; each rank calls that function with its `World`.

A rank says things with `World.emit`: lines of JSON in a file of the launch's folder, which every node has to see. What
was said before a rank died is therefore kept. Each rank is watched by a small process of its own, which writes down how
it ended. From those notes `RankFailed` names the rank that failed first: the others' errors say only that it is gone.
When a launch ends, for whatever reason, none of its processes is left. Where this process itself is killed, only Linux
can see to that.

`Launch.close` asks the ranks to stop before it ends them. They find that out with `World.stopping`, between two steps,
and all of them at the same one, so that they can write a checkpoint.

The energy of one node's devices the parent reads itself (`efflab.measure.energy`). It sees no other node's: there the
first rank of each node keeps an account (`NodeAccount`), and `energy_of` adds them up.

Collectives that are measured use NCCL on GPUs and gloo on CPUs. Whatever only coordinates (`barrier`, `share`,
`gather`) goes through gloo: a rank that waits there leaves its core and its GPU idle.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import gc
import importlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efflab.errors import EfflabError
from efflab.measure import device as devices
from efflab.measure import energy, memory, timer
from efflab.records import Energy, Timing, median, plain

TIMEOUT = 120.0  # s; for a collective that is measured; then a rank is taken to hang
WAITING = 900.0  # s; for those who wait while others measure
STARTING = 300.0  # s; until the first rank runs: torch may come over a slow network drive
STOP_WAIT = 45.0  # s; what the ranks get to finish a step and write a checkpoint
GRACE = 5.0  # s; between SIGTERM and SIGKILL
NOTES = 60.0  # s; for which a network drive may hide what another node wrote
POLL = 0.1  # s; how often the parent looks
# What an outer torchrun sets: a launch inside of it would take them for its own.
TORCHRUN = re.compile(
    r"(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|ROLE_NAME|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
    r"|PET_.*)"  # PET_NNODES and others are defaults of torchrun's options
)
STREAM, STOP = "said.jsonl", "stop"
# What errors say that a rank gets because another one does not answer, or is gone.
LATE = re.compile(r"timed out|time ?out", re.IGNORECASE)
GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|closed by peer|broken pipe|remote process exited|socket|NCCL",
    re.IGNORECASE,
)
# What they say where nodes do not find each other.
NETWORK = re.compile(
    r"connectFullMesh|rendezvous|getaddrinfo|resolve|no route to host|unable to find|connection (timed out|refused)",
    re.IGNORECASE,
)
# What ends a rank; its watcher passes it on.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class RankFailed(EfflabError):
    """A rank ended a launch.

    Attributes:
        rank: which; None where the ranks did not start or none of them says why.
        node: index of its node.
        signal: that ended it, such as 9; None where none did.
        out_of_memory: it ran out of memory, on the host or on the device.
        outside: no rank failed; somebody ended them all, such as Slurm.
    """

    def __init__(
        self,
        message: str,
        rank: int | None = None,
        node: int | None = None,
        signal: int | None = None,
        out_of_memory: bool = False,
        outside: bool = False,
    ) -> None:
        super().__init__(message)
        self.rank, self.node, self.signal = rank, node, signal
        self.out_of_memory, self.outside = out_of_memory, outside


class Stopping(Exception):
    """Raised on every rank at the same step: somebody asked the run to stop."""


# The parent: starting ranks and ending them


@dataclass(frozen=True)
class Layout:
    """Where ranks run.

    Attributes:
        nodes: names of the nodes, as Slurm has them; empty means this machine alone.
        per_node: ranks on each.
        threads: that torch may use in each rank.
        device: "cpu" or "cuda".
        first_device: number of the GPU that the first rank of a node takes.
    """

    per_node: int
    nodes: tuple[str, ...] = ()
    threads: int = 1
    device: str = "cpu"
    first_device: int = 0

    def __post_init__(self) -> None:
        for name in ("per_node", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise EfflabError(f"layout: {name} must be a whole number above zero, got {value!r}.")
        if self.device not in ("cpu", "cuda"):
            raise EfflabError(f"layout: device must be 'cpu' or 'cuda', got {self.device!r}.")

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.per_node * max(1, len(self.nodes))

    @property
    def backend(self) -> str:
        """Of the collectives that are measured."""
        return "nccl" if self.device == "cuda" else "gloo"

    @property
    def bound(self) -> int | None:
        """Cores that each rank is bound to; None where ranks share a node's cores freely."""
        return len(found) if (found := cores_of(0, self)) else None


def cores_of(local_rank: int, layout: Layout) -> list[int] | None:
    """The cores that a rank of a node is bound to, among those that this process may use; None where it is not bound.

    On a CPU each of several ranks gets cores of its own. Otherwise a rank's communication, whose thread polls, takes
    turns with another rank's computation, and a small message takes one time or five.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(allowed) // layout.per_node
    if layout.device != "cpu" or layout.per_node == 1 or share < layout.threads:
        return None
    return allowed[local_rank * share : (local_rank + 1) * share]


def job_nodes() -> tuple[str, ...]:
    """The nodes of the Slurm job that this process runs in; empty outside one and where there is only one.

    Raises:
        EfflabError: the job has several nodes and Slurm's commands do not answer.
    """
    job = devices.slurm()
    if job is None or job.nodes == 1:
        return ()
    listed = os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_NODELIST") or ""
    names = tuple(_scontrol("show", "hostnames", listed).split())
    if len(names) != job.nodes:
        raise EfflabError(f"Slurm: job {job.job} has {job.nodes} nodes and scontrol names {len(names)} of {listed!r}.")
    if not shutil.which("srun"):
        raise EfflabError(f"Slurm: job {job.job} has {job.nodes} nodes and srun is not found. Extend PATH.")
    return names


def _scontrol(*words: str) -> str:
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise EfflabError(f"Slurm: 'scontrol {' '.join(words)}' does not answer: {said.strip()}") from None
    return done.stdout


def address(node: str) -> str:
    """Where other nodes reach a node of the job: its name where that resolves, else the address that Slurm has."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        match = re.search(r"\bNodeAddr=(\S+)", _scontrol("-o", "show", "node", node))
        return match[1] if match else node


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def default_buckets() -> tuple[int, int]:
    """Bytes of the first bucket of DistributedDataParallel, and of the others, where nothing else is asked for."""
    import torch.distributed as dist

    devices.import_torch()
    return int(dist._DEFAULT_FIRST_BUCKET_BYTES), 25 * 2**20  # the second is documented: bucket_cap_mb is 25 MiB


def interconnect(layout: Layout) -> str | None:
    """What connects the first two GPUs of a node, as NVML says: "NV18" for so many NVLinks, or their common ancestor.

    None where there are no two of them, or NVML does not say.
    """
    if layout.device != "cuda" or layout.per_node < 2:
        return None
    torch, at = devices.import_torch(), layout.first_device
    with contextlib.suppress(devices.NoNVML), devices.nvml(torch.device("cuda", at)) as (pynvml, first):
        links = 0
        with contextlib.suppress(Exception):
            for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
                links += pynvml.nvmlDeviceGetNvLinkState(first, link) == pynvml.NVML_FEATURE_ENABLED
        if links:
            return f"NV{links}"
        with contextlib.suppress(Exception), devices.nvml(torch.device("cuda", at + 1)) as (_, second):
            level = pynvml.nvmlDeviceGetTopologyCommonAncestor(first, second)
            return {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}.get(level)
    return None


def check_shared(layout: Layout) -> None:
    """Refuse GPUs of this node that take one process at a time, since the parent holds one of them too.

    Raises:
        EfflabError: says which.
    """
    torch = devices.import_torch()
    for number in range(layout.first_device, layout.first_device + layout.per_node if layout.device == "cuda" else 0):
        mode = None
        with contextlib.suppress(Exception), devices.nvml(torch.device("cuda", number)) as (pynvml, handle):
            mode = pynvml.nvmlDeviceGetComputeMode(handle)
            mode = mode if mode == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS else None
        if mode is not None:
            raise EfflabError(
                f"GPU {number} is in compute mode EXCLUSIVE_PROCESS: it takes one process at a time, and this "
                "experiment needs two on it, the run and a rank. An administrator changes it: 'nvidia-smi -c DEFAULT'."
            )


def ask_to_stop(folder: Path) -> None:
    """Ask the ranks of a launch to stop.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / STOP).write_bytes(b"1")


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody did.

    The file is there from the start and is opened each time: a network drive looks anew when a file is opened, and
    remembers for a minute that there is none.
    """
    with contextlib.suppress(OSError):
        return bool((folder / STOP).read_bytes())
    return False


class Launch:
    """A function that runs on every rank, in processes of its own.

    Args:
        target: "module:function"; the function takes a `World`.
        arguments: JSON, as `World.arguments` gives them to every rank.
        layout: how many ranks, where.
        folder: of this launch alone, made here, seen by every node.
        timeout: of a collective that is measured, s.
        waiting: how long ranks wait for each other where nothing is measured, s.
        starting: until the first rank runs, s.
        accounts: folder in which each node of a Slurm job keeps account of its devices' energy, the same one for all
            launches of a run; None: nobody does.

    Iterating gives what rank 0 says, and raises `RankFailed` where a rank fails. Use it as a context, or call `close`.
    """

    def __init__(
        self,
        target: str,
        arguments: dict[str, Any],
        *,
        layout: Layout,
        folder: str | os.PathLike[str],
        timeout: float = TIMEOUT,
        waiting: float = WAITING,
        starting: float = STARTING,
        accounts: Path | None = None,
    ) -> None:
        for name, value in (("timeout", timeout), ("waiting", waiting), ("starting", starting)):
            if not (isinstance(value, int | float) and value > 0 and math.isfinite(value)):
                raise EfflabError(f"launch: {name} must be greater than zero, got {value!r}.")
        if not re.fullmatch(r"[\w.]+:\w+", target):
            raise EfflabError(f"launch: target {target!r} is not of the form 'module:function'.")
        self.layout, self.folder = layout, Path(folder).absolute()
        self._read = 0
        self._rest = b""
        self._deadline = time.monotonic() + starting
        try:
            self.folder.mkdir(parents=True)
            settings = {
                "arguments": arguments, "device": layout.device, "first_device": layout.first_device,
                "threads": layout.threads, "per_node": layout.per_node, "timeout": timeout, "waiting": waiting,
                "accounts": str(accounts.absolute()) if accounts else None,
            }  # fmt: skip
            if accounts:
                accounts.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(json.dumps(settings, allow_nan=False))
            (self.folder / STREAM).touch()
            (self.folder / STOP).touch()
            log = open(self.folder / "log.txt", "wb")  # noqa: SIM115  # the subprocess inherits it
        except FileExistsError:
            raise EfflabError(f"launch: {self.folder} exists. Give each launch a folder of its own.") from None
        except OSError as error:
            raise EfflabError(f"launch: {self.folder} cannot be written: {error.strerror}.") from None
        with log:
            command = ["guard", str(os.getpid()), *command_line(target, self.folder, layout)]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "efflab.measure.distributed", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=clean_environment(layout),
                start_new_session=True,  # so that Ctrl-C reaches this process alone, which then asks the ranks
            )  # fmt: skip

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            ended = self.process.poll() is not None  # before reading, so that nothing is said after the last look
            yield from self._said()
            if ended:
                break
            if self._deadline < time.monotonic() and not self._begun():
                self.kill()
            time.sleep(POLL)
        if self.process.returncode != 0:
            self._gone(NOTES if self.layout.nodes else 2 * GRACE)
            raise self.failure()
        self._gone()

    def _begun(self) -> bool:
        """Whether a rank runs; not looked for again once one did."""
        if any(self.folder.glob("begun-*.json")):
            self._deadline = math.inf
        return self._deadline == math.inf

    def _said(self) -> list[dict[str, Any]]:
        """The whole lines that came since the last look. The file is opened anew, which makes network drives look."""
        with open(self.folder / STREAM, "rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self, patience: float = STOP_WAIT) -> None:
        """Ask the ranks to stop, give them some seconds, then end whatever is left. Ctrl-C ends the patience."""
        try:
            if self.process.poll() is None:
                with contextlib.suppress(OSError):
                    ask_to_stop(self.folder)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
        finally:
            self.kill()

    def kill(self) -> None:
        """End all processes of this launch now."""
        if self.process.poll() is None:
            self.process.terminate()  # torchrun and srun pass it on
            try:
                self.process.wait(3 * GRACE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._gone()

    def _gone(self, patience: float = 2 * GRACE) -> None:
        """Wait until every rank that began has ended; each one's watcher ends it when torchrun is gone."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            _look_anew(self.folder)
            begun, ended = (
                {p.stem.partition("-")[2] for p in self.folder.glob(f"{kind}-*.json")} for kind in ("begun", "ended")
            )
            if begun <= ended:
                return
            time.sleep(0.05)

    def failure(self) -> RankFailed:
        """Which rank ended this launch, and how, from the notes that the ranks and their watchers left."""
        found = diagnose(self.folder)
        if self.layout.nodes and NETWORK.search(str(found)):
            found.args = (
                f"{found}\nIf the nodes do not reach each other: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the "
                "interface of their common network, as 'ip address' names it on each of them.",
            )
        return found


def _look_anew(folder: Path) -> None:
    """Change a folder and change it back, which makes a network drive list it anew."""
    probe = folder / "look"
    with contextlib.suppress(OSError):
        probe.touch()
        probe.unlink()


def energy_of(accounts: Path, nodes: int, last: Launch) -> Energy:
    """What the devices of all nodes took, from the first rank's start to the latest reading of the last launch.

    Args:
        accounts: of the launches of one run.
        nodes: how many keep one.
        last: the latest launch of the run. When it is over, each node has to have read its counters at the end.

    Returns:
        What was measured; else source "none", with why. A sum that lacks a node is none.
    """
    ended = last.process.poll() is not None  # before reading
    _look_anew(accounts)
    found = []
    for path in sorted(accounts.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    found = [one for one in found if one["launch"] == last.folder.name and (one["over"] or not ended)]
    if len(found) < nodes:
        return Energy(why=f"{nodes - len(found)} of {nodes} nodes handed over no reading at the end of their ranks")
    why = next((one["why"] for one in found if one["why"]), "")
    if why or len({one["source"] for one in found}) > 1:
        return Energy(why=why or "the nodes have different counters")
    counted = sum(len(one["first"]["joules"]) for one in found)
    first = found[0]
    return Energy(
        source=first["source"], joules=sum(one["joules"] for one in found), window_s=max(o["seconds"] for o in found),
        period_s=first["period"], shared=next((one["shared"] for one in found if one["shared"]), ""),
        of=f"{counted} device{'s' * (counted > 1)} of {nodes} nodes, on one of them {first['of']}"[:500],
    )  # fmt: skip


def command_line(target: str, folder: Path, layout: Layout) -> list[str]:
    """The command that starts a layout's ranks: torchrun, under srun where there are several nodes."""
    worker = [f"--nproc-per-node={layout.per_node}", "-m", "efflab.measure.distributed", target, str(folder)]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if not layout.nodes:
        return [*torchrun, "--standalone", "--local-addr=localhost", *worker]  # the host's name need not resolve
    count = len(layout.nodes)
    # srun takes no number of cores over from the job. What ended with an error, or a node that is done long before the
    # others, ends all nodes.
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return [
        "srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60",
        *([f"--cpus-per-task={cores}"] if cores else []),
        sys.executable, "-m", "efflab.measure.distributed", "node",
        f"--nnodes={count}", f"--rdzv-id={secrets.token_hex(4)}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint={address(layout.nodes[0])}:{free_port()}", *worker,
    ]  # fmt: skip


def clean_environment(layout: Layout) -> dict[str, str]:
    """The environment of a launch: this process's, without what an outer torchrun set, with this efflab first."""
    found = {k: v for k, v in os.environ.items() if not TORCHRUN.fullmatch(k)}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        found[name] = str(layout.threads)
    path = [str(Path(__file__).parents[2]), *filter(None, [found.get("PYTHONPATH")])]
    found["PYTHONPATH"] = os.pathsep.join(path)
    if not layout.nodes and sys.platform == "linux":
        found.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host whose own name does not resolve can still measure
    # NCCL takes prefixes, lists and exclusions; gloo takes names.
    interface = found.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    if layout.nodes and interface in {name for _, name in socket.if_nameindex()}:
        found.setdefault("GLOO_SOCKET_IFNAME", interface)
    return found


def diagnose(folder: Path) -> RankFailed:
    """The rank that failed first in a launch's folder, its error and the end of its traceback."""
    notes: dict[str, dict[int, dict[str, Any]]] = {"begun": {}, "error": {}, "ended": {}}
    for kind, found in notes.items():
        for path in folder.glob(f"{kind}-*.json"):
            with contextlib.suppress(OSError, ValueError):
                note = json.loads(path.read_text())
                found[note["rank"]] = note
    errors, ended = notes["error"], notes["ended"]
    first: list[tuple[float, int]] = []  # ranks that failed of themselves, with when
    later: list[tuple[float, int]] = []  # ranks that failed because of another one
    silent: list[int] = []  # ranks that were ended from outside: by torchrun, because another one failed, or by Slurm
    late = False  # somebody waited in vain
    for rank in {*errors, *ended}:
        note = errors.get(rank) or ended[rank]
        if rank in errors:
            (later if note["because"] else first).append((note["time"], rank))
            late = late or note["because"] == "late"
        elif note["asked"] or note["signal"] == signal.SIGTERM:
            silent.append(rank)
        elif note["signal"] == signal.SIGABRT:  # as a watchdog of NCCL ends a process that waits in vain
            later.append((note["time"], rank))
            late = True
        elif not note["finished"]:
            first.append((note["time"], rank))
    if first:
        return _failed(folder, min(first)[1], errors, ended)
    if late and len(silent) == 1:
        return _failed(folder, silent[0], errors, ended, hung=True)
    log = folder / "log.txt"
    if lost := sorted({*notes["begun"]} - {*errors, *ended}):
        node = notes["begun"][lost[0]]["node"]
        return RankFailed(
            f"rank {lost[0]} (node {node}) is gone and left no word, as when its node fails. The log of all ranks is "
            f"{log}", lost[0], node,
        )  # fmt: skip
    if silent and not late:
        return RankFailed("the ranks were ended from outside", outside=True)
    if later:
        return _failed(folder, min(later)[1], errors, ended)
    end = "\n".join(_text(log).splitlines()[-6:])
    what = "torchrun ended with an error, and no rank did" if ended else "the ranks did not start"
    return RankFailed(f"{what}. The end of the log:\n{end}\nThe whole log is {log}")


def _failed(
    folder: Path, rank: int, errors: dict[int, dict[str, Any]], ended: dict[int, dict[str, Any]], hung: bool = False
) -> RankFailed:
    note = errors.get(rank) or ended[rank]
    who = f"rank {rank} (node {note['node']})"
    number = ended.get(rank, {}).get("signal")
    if rank in errors:
        how = f"failed: {note['type']}: {note['message']}"
    elif hung:
        how = "did not answer in time, and the others gave up"
        number = None
    elif number:
        how = f"was ended by {signal.Signals(number).name}"
        if number == signal.SIGKILL:
            how += ", as the kernel does when memory runs out"
    else:
        how = f"ended before it was done, with exit status {note['status']}"
    path = folder / f"rank-{rank}.txt"
    where = note.get("where") or _stack(path)
    said = f"{who} {how}."
    if where:
        said += f"\n{where.rstrip()}\nThe whole traceback is {path}"
    else:
        said += f" The log of all ranks is {folder / 'log.txt'}"
    return RankFailed(said, rank, note["node"], number, bool(note.get("out_of_memory")))


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def _stack(path: Path) -> str:
    """The most recent calls of the main thread, which faulthandler writes last."""
    said = _text(path).rpartition("(most recent call first):\n")[2]
    return "\n".join(said.splitlines()[:4])


# A rank's process, and the one that watches it


def main(arguments: Sequence[str]) -> int:
    """What `python -m efflab.measure.distributed` does, by its first word.

    "guard PID COMMAND …" ends the command with this parent; "node OPTIONS …" is torchrun on one node of several; and
    "TARGET FOLDER" is a rank, torchrun's worker.

    Returns:
        The exit status.
    """
    if arguments[0] == "guard":
        _end_with_parent(int(arguments[1]))
        os.execvp(arguments[2], list(arguments[2:]))
    if arguments[0] == "node":
        # Slurm knows the nodes' names. torchrun would ask this host for its own, which may be one that only it knows.
        here, first = os.environ["SLURMD_NODENAME"], os.environ["SLURM_NODEID"] == "0"
        own = [f"--local-addr={address(here)}", f"--rdzv-conf=is_host={int(first)}"]
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *own, *arguments[1:]])
    target, folder = arguments
    return _watched(target, Path(folder))


def _end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when its parent ends, whatever ended that. Only Linux can."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG; it outlives exec
    if os.getppid() != parent:
        sys.exit(1)


def _note(folder: Path, kind: str, **entries: Any) -> None:
    """Write down something about this rank, whole or not at all."""
    rank = int(os.environ["RANK"])
    entries = {"rank": rank, "node": int(os.environ["GROUP_RANK"]), "time": time.time(), **entries}
    with contextlib.suppress(OSError):  # a full disk; the exit status still says that something failed
        _replace(folder / f"{kind}-{rank}.json", entries)


def _replace(path: Path, entries: dict[str, Any]) -> None:
    path.with_suffix(".tmp").write_text(json.dumps(entries))
    os.replace(path.with_suffix(".tmp"), path)


def _watched(target: str, folder: Path) -> int:
    """Run a rank in a process of its own and write down how it ended, also where it could not do so itself.

    torch is not imported here, so that forking is safe and the watcher is small.
    """
    parent, watcher = os.getppid(), os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until each of the two knows what to do with them
    child = os.fork()
    if child == 0:
        _end_with_parent(watcher, signal.SIGKILL)
        if sys.platform == "linux":
            os.setpgid(0, 0)  # torchrun ends its worker's group: a second SIGTERM would cut the traceback short
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return _rank(target, folder)
    asked: list[float] = []

    def end(*_: Any) -> None:
        """Pass SIGTERM on; a rank that is stuck gets SIGKILL a little later."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL if asked and time.monotonic() - asked[0] > GRACE else signal.SIGTERM)
        if not asked:
            asked.append(time.monotonic())

    def look() -> None:
        while True:
            time.sleep(POLL)
            if os.getppid() != parent or (asked and time.monotonic() - asked[0] > GRACE):
                end()

    for number in SIGNALS:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _note(folder, "begun", pid=child)
    threading.Thread(target=look, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finished = status == 0 and (folder / f"finished-{os.environ['RANK']}.json").exists()
    _note(
        folder, "ended", status=max(status, 0), signal=-status if status < 0 else None, asked=bool(asked),
        finished=finished,
    )  # fmt: skip
    return 0 if finished else max(status, 1)


def _rank(target: str, folder: Path) -> int:
    """Call the target with this rank's world; an exception is written down before anything is torn down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trace = open(folder / f"rank-{os.environ['RANK']}.txt", "w")  # noqa: SIM115  # faulthandler keeps it
    faulthandler.enable(file=trace)
    # Also where it hangs in a call of C: the traceback is written by the signal's handler itself.
    faulthandler.register(signal.SIGTERM, file=trace, all_threads=True, chain=True)
    try:
        _bind(json.loads((folder / "settings.json").read_text()))
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        world = World(folder)
        try:
            function(world)
        except Stopping:
            world.emit({"stopped": True})
        world.close()
        _note(folder, "finished")
        return 0
    except BaseException as error:
        said = str(error)
        name, because = type(error).__name__, ""
        if name == "RuntimeError" or name.startswith("Dist"):
            because = "late" if LATE.search(said) else "gone" if GONE.search(said) or name != "RuntimeError" else ""
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        _note(
            folder, "error", type=name, message=said, where=where, because=because,
            out_of_memory=memory.out_of_memory(error),
        )  # fmt: skip
        with contextlib.suppress(OSError):
            trace.write("".join(traceback.format_exception(error)))
            trace.flush()
        os._exit(1)  # without tearing down what may wait for other ranks


def _bind(settings: dict[str, Any]) -> None:
    """Bind this process, and the threads that it will start, to the cores of its rank."""
    layout = Layout(settings["per_node"], threads=settings["threads"], device=settings["device"])
    if cores := cores_of(int(os.environ["LOCAL_RANK"]), layout):
        os.sched_setaffinity(0, cores)


class World:
    """What a rank knows of the others.

    Attributes:
        rank, ranks: this one's number, and how many there are.
        local_rank, node: its number on its node, and its node's number.
        device: the torch device that it measures.
        backend: of the collectives that are measured.
        arguments: as they were given to `Launch`.
        folder: of the launch.

    Groups are the first so many ranks; all ranks make the smaller ones together, with `make_groups`.
    """

    def __init__(self, folder: Path) -> None:
        torch = devices.import_torch()
        import torch.distributed as dist

        settings = json.loads((folder / "settings.json").read_text())
        self.folder, self.arguments = folder, settings["arguments"]
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank, self.node = int(os.environ["LOCAL_RANK"]), int(os.environ["GROUP_RANK"])
        torch.set_num_threads(settings["threads"])
        self._timeouts = [datetime.timedelta(seconds=settings[name]) for name in ("timeout", "waiting")]
        if settings["device"] == "cuda":
            self.device = torch.device("cuda", settings["first_device"] + self.local_rank)
            torch.cuda.set_device(self.device)
            self.backend = "nccl"
        else:
            self.device, self.backend = torch.device("cpu"), "gloo"
        self._account: NodeAccount | None = None
        if settings["accounts"] and self.local_rank == 0:
            here = range(settings["first_device"], settings["first_device"] + settings["per_node"])
            of = [torch.device("cuda", i) for i in here] if settings["device"] == "cuda" else [self.device]
            with contextlib.suppress(Exception):  # no energy is worth a run: without an account it is not measured
                self._account = NodeAccount(Path(settings["accounts"]), folder.name, of)
        # Without device_id. With it, ranks outside a new group take part in splitting NCCL's communicator, also where
        # the new group is one of gloo, whose members do not: with three GPUs or more they wait for each other.
        dist.init_process_group(self.backend, timeout=self._timeouts[0])
        self.clock = timer.clock_for(self.device)
        self._groups: dict[int, tuple[Any, Any]] = {}
        self._groups[self.ranks] = (dist.group.WORLD, self._new_group(self.ranks, "gloo", self._timeouts[1]))
        self._stream = open(folder / STREAM, "ab", buffering=0) if self.rank == 0 else None  # noqa: SIM115

    @staticmethod
    def _new_group(ranks: int, backend: str, timeout: datetime.timedelta) -> Any:
        import torch.distributed as dist

        return dist.new_group(range(ranks), timeout=timeout, backend=backend)

    def _pair(self, ranks: int | None) -> tuple[Any, Any]:
        ranks = self.ranks if ranks is None else ranks
        if ranks not in self._groups:
            raise EfflabError(f"no group of {ranks} ranks was made. All ranks call make_groups([{ranks}]) first.")
        return self._groups[ranks]

    def make_groups(self, counts: Sequence[int]) -> None:
        """Make the groups of the first so many ranks. Every rank calls it with the same counts."""
        short, long = self._timeouts
        for n in counts:
            if n not in self._groups:
                self._groups[n] = (self._new_group(n, self.backend, short), self._new_group(n, "gloo", long))

    def group(self, ranks: int | None = None) -> Any:
        """The group for collectives that are measured, of the first so many ranks."""
        return self._pair(ranks)[0]

    def control(self, ranks: int | None = None) -> Any:
        """The group for what only coordinates: gloo."""
        return self._pair(ranks)[1]

    def barrier(self, ranks: int | None = None) -> None:
        """Wait for the first so many ranks, without using a core or the GPU."""
        devices.import_torch().distributed.barrier(group=self.control(ranks))

    def share(self, numbers: Sequence[float], ranks: int | None = None) -> list[float]:
        """Rank 0's numbers, on every rank; the others give as many."""
        torch = devices.import_torch()
        held = torch.tensor(list(numbers), dtype=torch.float64)
        torch.distributed.broadcast(held, 0, group=self.control(ranks))
        return held.tolist()

    def gather(self, numbers: Sequence[float], ranks: int | None = None) -> list[list[float]]:
        """Every rank's numbers, on every rank; each gives as many."""
        torch = devices.import_torch()
        own = torch.tensor(list(numbers), dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(ranks or self.ranks)]
        torch.distributed.all_gather(found, own, group=self.control(ranks))
        return [t.tolist() for t in found]

    def objects(self, held: Any, ranks: int | None = None) -> list[Any]:
        """Every rank's object, on every rank; pickled, so not for what is timed."""
        found: list[Any] = [None] * (ranks or self.ranks)
        devices.import_torch().distributed.all_gather_object(found, held, group=self.control(ranks))
        return found

    def emit(self, said: dict[str, Any]) -> None:
        """Say something to the parent. Only rank 0 is heard.

        Raises:
            EfflabError: the folder cannot be written.
        """
        if self._stream is not None:
            line = json.dumps(said, allow_nan=False).encode() + b"\n"
            try:
                while line:
                    line = line[self._stream.write(line) :]
            except OSError as error:
                raise EfflabError(f"{self.folder / STREAM}: cannot be written: {error.strerror}.") from None

    def stopping(self, ranks: int | None = None) -> bool:
        """Whether the run was asked to stop, as rank 0 sees it. All of the first so many ranks call it together."""
        seen = self.rank == 0 and asked_to_stop(self.folder)
        return bool(self.share([float(seen)], ranks)[0])

    def count(self, over: bool = False) -> None:
        """Let the nodes that keep account of their energy read it now; `over`: for the last time in this launch."""
        if self._account is not None:
            self._account.count(over)

    def close(self) -> None:
        """Wait for the others and leave the groups."""
        dist = devices.import_torch().distributed
        self.barrier()
        self.count(over=True)
        dist.destroy_process_group()


class NodeAccount:
    """The energy of one node's devices in all launches of a run, in a file that the next launch goes on with.

    The node's first rank reads the counters at its start, when `count` is called, and at its end. They go on between
    launches: what a launch took that was killed is in the reading of the next one.

    Args:
        folder: of the accounts, seen by every node.
        launch: name of the present one.
        of: torch devices of this node that ranks use.
    """

    def __init__(self, folder: Path, launch: str, of: Sequence[Any]) -> None:
        self._path = (
            folder / f"{os.environ.get('SLURMD_NODENAME') or platform.node()}.json"
        )  # torchrun numbers the nodes anew each time
        self._launch, self._meter = launch, energy.Meter(of)
        self._lost = ""  # why no later reading can make up for it
        if self._path.exists():
            held = json.loads(self._path.read_text())
            self._first, self._last = (energy.Mark(**held[name]) for name in ("first", "last"))
            self._lost = held["lost"]
            if self._meter.source == "rapl":  # a round that nobody saw would be missing
                self._lost = "the processors' counters (RAPL) go round, and between two launches nobody reads them"
        else:
            mark = self._meter.begin()
            self._first = self._last = energy.Mark(mark.at, mark.joules, self._meter.why or mark.why)
        self.count()

    def count(self, over: bool = False) -> None:
        """Read the counters and write down what they gained since the first launch began; see `World.count`."""
        try:
            self._count(over)
        except Exception as error:  # no energy is worth a run
            self._lost = self._lost or plain(f"{type(error).__name__}: {error}")

    def _count(self, over: bool) -> None:
        now = self._meter.begin()
        if not (self._meter.why or now.why or self._first.why):
            # The driver sets a counter to zero when it is loaded anew, which it may have passed the first mark since.
            if any(b < a for a, b in zip(self._last.joules, now.joules, strict=True)):
                self._lost = self._lost or "a counter was set to zero during the run"
            self._last = now
        reading = self._meter.since(self._first)
        entries = {
            "launch": self._launch, "over": over, "first": asdict(self._first), "last": asdict(self._last),
            "lost": self._lost, "joules": reading.total, "seconds": reading.seconds, "why": self._lost or reading.why,
            "source": self._meter.source, "of": self._meter.of, "period": self._meter.period,
            "shared": self._meter.shared,
        }  # fmt: skip
        with contextlib.suppress(OSError):  # a full disk; then the account does not say that it is over
            _replace(self._path, entries)


# Time


@dataclass(frozen=True)
class Call:
    """Something that ranks do and that is timed.

    Attributes:
        run: one call.
        alone: rank 0 does it while the others wait.
        prepare: called before each value, not timed.
        parts: what a value consists of, by name, s: called after each value, for one call on this rank.
        most_loops: calls in one value at most.
        collective: all ranks end it together; one call more, not timed, lets them begin together.
    """

    run: Callable[[], Any]
    alone: bool = False
    prepare: Callable[[], Any] | None = None
    parts: Callable[[], dict[str, float]] | None = None
    most_loops: int = 10**6
    collective: bool = False


@dataclass
class Turns:
    """The values of one call, s, one for each turn: the slowest rank's. `parts` are that same rank's."""

    values: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    timing: Timing | None = None
    warnings: list[str] = field(default_factory=list)


def in_turns(
    world: World,
    ranks: int,
    calls: Sequence[Call],
    *,
    time_limit: float,
    fewest: int = timer.FEWEST,
    most: int = timer.MOST,
    shortest: float = timer.SHORTEST,
    stable: float = timer.STABLE,
) -> list[Turns]:
    """Time calls on the first so many ranks, one value of each in turn. Those ranks call it together.

    All begin a value together; its time is that of the slowest rank. Rank 0 chooses how many calls a value takes, and
    when the medians of all calls are known well enough (see `timer`) or a limit is reached.

    Args:
        ranks: how many measure.
        calls: what is timed.
        time_limit: for all turns together, s.
        fewest, most: turns.
        shortest: of a value, s.
        stable: half of the relative width of the median's interval at which it counts as known.

    Returns:
        For each call its values; on every rank the same.

    Raises:
        Stopping: the run was asked to stop.
        Exception: what a call raises.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _in_turns(world, ranks, calls, time_limit, fewest, most, shortest, stable)
    finally:
        if collecting:
            gc.enable()


def _in_turns(
    world: World, ranks: int, calls: Sequence[Call], time_limit: float, fewest: int, most: int, shortest: float,
    stable: float,
) -> list[Turns]:  # fmt: skip
    clock = world.clock

    def value(call: Call, loops: int) -> tuple[float, dict[str, float]]:
        took, parts = 0.0, {}
        if call.prepare:
            call.prepare()
        clock.synchronize()
        world.barrier(ranks)
        if call.collective:
            call.run()  # ranks leave a barrier at different times, and a collective nearly together
            clock.synchronize()
        if world.rank == 0 or not call.alone:

            def run() -> None:
                for _ in range(loops):
                    call.run()

            took = clock.elapsed(run) / loops
            parts = call.parts() if call.parts else {}
        rows = world.gather([took, *parts.values()] if not call.alone else [took], ranks)
        if call.alone:
            return rows[0][0], parts
        slowest = max(rows, key=lambda row: row[0])
        return slowest[0], dict(zip(parts, slowest[1:], strict=True))

    loops, warmup = [], []
    for call in calls:
        count, made = 1, 0
        for _ in range(4):  # the first value holds one-time costs; then the count is that of steady ones
            took, _parts = value(call, count)
            made += count
            wanted = max(1, min(call.most_loops, math.ceil(1.2 * shortest / took) if took > 0 else 10 * count))
            (held,) = world.share([min(wanted, 10 * count)], ranks)
            if held <= count and made > count:
                break
            count = int(max(count, held))
        loops.append(count)
        warmup.append(made)
    found = [Turns() for _ in calls]
    begin = clock.now()
    while True:
        for turns, call, count in zip(found, calls, loops, strict=True):
            took, parts = value(call, count)
            turns.values.append(took)
            for name, part in parts.items():
                turns.parts.setdefault(name, []).append(part)
        n = len(found[0].values)
        known = n in timer.CHECKS and all(
            timer.half_width(t.values, timer.CHECKS[n]) <= stable * median(t.values) for t in found
        )
        late = n >= fewest and clock.now() - begin >= time_limit
        asked = world.rank == 0 and asked_to_stop(world.folder)
        known, late, asked = map(bool, world.share([known, late, asked], ranks))
        if asked:
            raise Stopping
        if known or late or n >= most:
            stop = "stable" if known else "repeat limit" if n >= most else "time limit"
            break
    for turns, call, count, made in zip(found, calls, loops, warmup, strict=True):
        # Without the energy of these calls: a value lasts milliseconds and other calls follow each, while a counter
        # changes every 0.1 s. The energy of the whole run is in its record.
        # Where more calls are not allowed, 1,000 times the clock's resolution has to do.
        wanted = min(shortest, timer.SHORTEST / 5) if count == call.most_loops else shortest
        timing = Timing(clock=clock.name, mode="back-to-back", loops=count, warmup=made, stop=stop)  # type: ignore[arg-type]
        timed = timer.together([timer.Timed(turns.values, timing, timer.short(turns.values, count, wanted))])
        turns.timing, turns.warnings = timed.timing, timed.warnings
    return found


class Marks:
    """Points in time inside a call, on the device's own clock: how long its parts take.

    Args:
        clock: the device's.
        names: of the parts, in their order; `mark` is called once before the first and once after each.
    """

    def __init__(self, world: World, names: Sequence[str]) -> None:
        self._device, self._names = world.device, tuple(names)
        self._marks: list[Any] = []

    def mark(self) -> None:
        """One part ends here and the next begins."""
        if self._device.type == "cuda":
            event = devices.import_torch().cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def durations(self) -> dict[str, float]:
        """Mean time of each part since the last look, s; call it when the device is done."""
        marks, self._marks = self._marks, []
        width = len(self._names) + 1
        rows = [marks[i : i + width] for i in range(0, len(marks), width)]

        def between(a: Any, b: Any) -> float:
            return a.elapsed_time(b) * 1e-3 if self._device.type == "cuda" else b - a

        return {
            name: sum(between(row[i], row[i + 1]) for row in rows) / len(rows) for i, name in enumerate(self._names)
        }


if __name__ == "__main__":
    from efflab.measure import distributed  # this file once more, under the name that a target knows it by

    sys.exit(distributed.main(sys.argv[1:]))
