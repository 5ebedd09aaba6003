"""Ranks: real ones that work, die, hang and are asked to stop, and their timing with pretended ones."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efflab.errors import EfflabError
from efflab.measure import device as devices
from efflab.measure import distributed, energy
from efflab.measure.distributed import Call, Launch, Layout, RankFailed, Stopping, in_turns

# What the ranks of these tests do.
TARGETS = """
import os, signal, sys, time
import torch
from efflab.measure.distributed import Call, Marks, Stopping, in_turns


def works(world):
    world.make_groups([2])
    said = {"arguments": world.arguments, "device": str(world.device), "backend": world.backend}
    said["ranks"] = world.gather([world.rank, world.local_rank, world.node, torch.get_num_threads()])
    said["shared"] = world.share([10.0 * world.rank + 7])
    said["objects"] = world.objects({"rank": world.rank})
    said["environment"] = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "MASTER_ADDR")}
    import efflab
    said["efflab"] = efflab.__file__
    if world.rank < 2:
        held = torch.ones(3) * (world.rank + 1)
        torch.distributed.all_reduce(held, group=world.group(2))
        said["sum of two"] = held.tolist()
        marks = Marks(world, ["short", "long"])

        def step():
            marks.mark()
            time.sleep(0.001)
            marks.mark()
            time.sleep(0.01 * (world.rank + 1))
            marks.mark()

        counts = [0, 0]
        calls = [Call(step, parts=marks.durations), Call(lambda: counts.__setitem__(0, counts[0] + 1), alone=True)]
        turns = in_turns(world, 2, calls, time_limit=0.2, most=4, shortest=1e-3)
        said["turns"] = [[t.values, t.parts, t.timing.loops] for t in turns]
        said["calls"] = world.gather([counts[0]], 2)
    else:
        world.emit({"from": world.rank})  # not heard
    world.barrier()
    held = torch.ones(2) * (world.rank + 1)
    torch.distributed.all_reduce(held, group=world.group())
    said["sum of all"] = held.tolist()
    world.emit(said)


def fails(world):
    world.emit({"before": 1})
    world.barrier()
    how = world.arguments["how"]
    if world.rank == 1:
        if how == "raises":
            time.sleep(0.05)
            raise ValueError("the batch is empty")
        if how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "leaves":
            os._exit(0)
        if how == "exits":
            sys.exit(3)
        if how == "hangs":
            time.sleep(1000)
    held = torch.ones(1)
    torch.distributed.all_reduce(held)
    world.barrier()


def goes_on(world):
    step = 0
    while not world.stopping():
        step += 1
        world.emit({"step": step})
        time.sleep(0.02)
    world.emit({"checkpoint": step})
    raise Stopping
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that ranks import `targets` from, and an environment as inside of an outer torchrun."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "targets.py").write_text(TARGETS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "5")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "outer")
    return tmp_path / "modules"


def start(tmp_path: Path, target: str, ranks: int = 2, timeout: float = 20.0, **arguments: Any) -> Launch:
    folder = tmp_path / "launch"
    return Launch(f"targets:{target}", arguments, layout=Layout(ranks), folder=folder, timeout=timeout, waiting=60)


def processes(folder: Path) -> list[str]:
    """The command lines of processes that belong to a launch."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            state = path.with_name("stat").read_text().rpartition(")")[2].split()[0]
            if str(folder).encode() in words and state != "Z":
                found.append(b" ".join(words).decode())
    return found


def nothing_left(folder: Path) -> bool:
    """Whether all processes of a launch are gone, now or very soon."""
    deadline = time.monotonic() + 15
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(folder)


# Real ranks


def test_ranks_work_together(tmp_path: Path, root: Path) -> None:
    """Three ranks, of which two measure while the third waits."""
    with start(tmp_path, "works", ranks=3, text="µ", number=[1, 2.5, None]) as launch:
        (said,) = list(launch)
    assert said["arguments"] == {"text": "µ", "number": [1, 2.5, None]}
    assert (said["device"], said["backend"]) == ("cpu", "gloo")
    assert said["ranks"] == [[0, 0, 0, 1], [1, 1, 0, 1], [2, 2, 0, 1]]  # number, on its node, node, threads
    assert said["shared"] == [7]
    assert said["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert said["environment"]["OMP_NUM_THREADS"] == "1"
    assert said["environment"]["MASTER_ADDR"] == "localhost"
    assert Path(said["efflab"]) == root / "efflab" / "__init__.py", "the efflab that started them"
    assert said["sum of two"] == [3, 3, 3]
    assert said["sum of all"] == [6, 6]
    (steps, parts, loops), (alone, _, alone_loops) = said["turns"]
    assert len(steps) == len(alone) == len(parts["short"]) == len(parts["long"])
    assert loops >= 1
    # time.sleep never returns early, so that the slower rank's 20 ms are a lower bound on any machine.
    assert min(steps) >= 0.021
    assert min(parts["long"]) >= 0.02 and min(parts["short"]) >= 0.001
    assert all(s + p <= t * (1 + 1e-6) for s, p, t in zip(parts["short"], parts["long"], steps, strict=True))
    assert said["calls"][1] == [0] and said["calls"][0][0] >= alone_loops * len(alone)
    assert nothing_left(launch.folder)


@pytest.mark.parametrize(
    ("how", "number", "expected"),
    [
        ("raises", None, ["failed: ValueError: the batch is empty", 'targets.py", line', "in fails"]),
        ("memory", None, ["OutOfMemoryError"]),
        ("killed", 9, ["was ended by SIGKILL"]),
        ("leaves", None, ["ended before it was done, with exit status 0"]),
        ("exits", None, ["SystemExit: 3"]),
        ("hangs", None, ["did not answer in time", "in fails"]),
    ],
)
def test_the_rank_that_failed_first_is_named(how: str, number: int | None, expected: list[str], tmp_path: Path) -> None:
    """Not the other one, which finds its connection closed; its own traceback, and what was said before."""
    launch = start(tmp_path, "fails", timeout=3.0 if how == "hangs" else 60.0, how=how)
    said = []
    with launch, pytest.raises(RankFailed) as caught:
        for one in launch:
            said.append(one)
    assert said == [{"before": 1}]
    error = caught.value
    assert (error.rank, error.node, error.signal, error.outside) == (1, 0, number, False), str(error)
    assert error.out_of_memory == (how == "memory")
    assert str(error).startswith("rank 1 (node 0) ")
    for words in expected:
        assert words in str(error)
    named = Path(str(error).rpartition(" is ")[2])
    assert named.is_file() and named.parent == launch.folder
    assert nothing_left(launch.folder)


def test_ranks_are_asked_to_stop_and_finish_their_step(tmp_path: Path) -> None:
    said = []
    with start(tmp_path, "goes_on") as launch:
        for one in launch:
            said.append(one)
            if one.get("step") == 3:
                distributed.ask_to_stop(launch.folder)
    assert said[-1] == {"stopped": True}
    assert said[-2]["checkpoint"] == said[-3]["step"]
    assert nothing_left(launch.folder)


def test_closing_asks_first_and_a_torn_line_is_not_read(tmp_path: Path) -> None:
    launch = start(tmp_path, "goes_on")
    with start(tmp_path / "another", "goes_on", ranks=1) as other:  # two runs at once do not meet
        assert next(iter(other)) == next(iter(launch)) == {"step": 1}
    launch.close()
    assert launch.process.returncode == 0, "they ended by themselves"
    lines = (launch.folder / distributed.STREAM).read_text().splitlines()
    assert "checkpoint" in json.loads(lines[-2])
    with open(launch.folder / distributed.STREAM, "a") as stream:
        stream.write('{"half": ')
    launch._read, launch._rest = 0, b""
    assert len(launch._said()) == len(lines)
    with open(launch.folder / distributed.STREAM, "a") as stream:
        stream.write("1}\n")
    assert launch._said() == [{"half": 1}]
    assert nothing_left(launch.folder)


def test_ranks_end_with_their_parent(tmp_path: Path) -> None:
    """The parent is killed and cannot end anything itself."""
    folder = tmp_path / "launch"
    program = (
        "from efflab.measure.distributed import Launch, Layout\n"
        f"launch = Launch('targets:goes_on', {{}}, layout=Layout(2), folder={str(folder)!r})\n"
        "for said in launch: print(said, flush=True)\n"
    )
    environment = distributed.clean_environment(Layout(1))  # which has both on its path, efflab and the targets
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        assert "step" in parent.stdout.readline()
        assert len(processes(folder)) >= 5  # torchrun, two ranks and their watchers
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert nothing_left(folder)


def test_a_rank_ends_with_its_watcher(tmp_path: Path) -> None:
    """The watcher alone is killed, as when memory runs out: neither it nor its rank writes down how that came."""
    launch = start(tmp_path, "goes_on")
    stream = iter(launch)
    assert next(stream) == {"step": 1}
    with launch, pytest.raises(RankFailed, match=r"rank 1 .*left no word") as caught:
        rank = json.loads((launch.folder / "begun-1.json").read_text())["pid"]
        watcher = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(watcher, signal.SIGKILL)
        for _ in stream:
            pass
    assert (caught.value.rank, caught.value.node, caught.value.outside) == (1, 0, False)
    assert nothing_left(launch.folder)


def test_ctrl_c_lets_the_ranks_finish_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = start(tmp_path, "goes_on")
    stream = iter(launch)
    next(stream)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), launch:
        patched.setattr(distributed.time, "sleep", interrupt)
        try:
            for _ in stream:
                pass
        finally:
            patched.undo()
    assert '"stopped"' in (launch.folder / distributed.STREAM).read_text()
    assert nothing_left(launch.folder)


def test_a_launch_that_cannot_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such rendezvous')"]
    monkeypatch.setattr(distributed, "command_line", lambda *_: command)
    launch = start(tmp_path, "works")
    with launch, pytest.raises(RankFailed, match=r"did not start(.|\n)*no such rendezvous") as caught:
        list(launch)
    assert caught.value.rank is None


def test_a_port_that_is_taken_ends_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding a free one and using it, another program took it, and says nothing there."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    monkeypatch.setenv("SLURMD_NODENAME", "localhost")
    monkeypatch.setenv("SLURM_NODEID", "0")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setattr(distributed, "free_port", lambda: taken.getsockname()[1])
        folder = tmp_path / "launch"
        layout = Layout(1, ("localhost",))
        launch = Launch("targets:works", {}, layout=layout, folder=folder)
        with launch, pytest.raises(RankFailed, match="did not start") as caught:
            list(launch)
    assert caught.value.rank is None
    assert "RendezvousConnectionError" in str(caught.value), "torchrun says so, before anybody's patience ends"
    assert nothing_left(folder)


def test_a_target_that_does_not_exist(tmp_path: Path) -> None:
    launch = start(tmp_path, "missing", ranks=1)
    with launch, pytest.raises(RankFailed, match=r"rank 0.*has no attribute 'missing'"):
        list(launch)


# Bad input


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: Layout(0), "per_node"),
        (lambda t: Layout(True), "per_node"),
        (lambda t: Layout(1, threads=0), "threads"),
        (lambda t: Layout(1, device="tpu"), "device"),
        (lambda t: Launch("no colon", {}, layout=Layout(1), folder=t / "x"), "module:function"),
        (lambda t: Launch("a:b", {}, layout=Layout(1), folder=t / "x", timeout=0), "timeout"),
        (lambda t: Launch("a:b", {}, layout=Layout(1), folder=t / "x", waiting=float("nan")), "waiting"),
        (lambda t: Launch("a:b", {}, layout=Layout(1), folder=t), "exists"),
        (lambda t: Launch("a:b", {}, layout=Layout(1), folder=t / "modules/targets.py/x"), "cannot be written"),
    ],
)
def test_bad_input_is_named(make: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(EfflabError, match=said):
        make(tmp_path)


# Commands and environments


def test_one_torchrun_for_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "address", lambda node: f"{node}.cluster")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    words = distributed.command_line("a:b", Path("folder"), Layout(4, ("n7", "n8", "n9")))
    assert words[0] == "srun"
    torchrun = words.index(sys.executable)
    assert {*words[1:torchrun]} == {
        "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60", "--cpus-per-task=12",
    }  # fmt: skip
    assert words[torchrun + 1 : torchrun + 4] == ["-m", "efflab.measure.distributed", "node"]
    given = dict(w.removeprefix("--").split("=", 1) for w in words[torchrun:] if w.startswith("--") and "=" in w)
    assert (given["nnodes"], given["nproc-per-node"], given["rdzv-backend"]) == ("3", "4", "c10d")
    host, _, port = given["rdzv-endpoint"].partition(":")
    assert host == "n7.cluster" and 1024 < int(port) < 65536
    other = distributed.command_line("a:b", Path("folder"), Layout(4, ("n7", "n8", "n9")))
    assert [w for w in other if "rdzv-id" in w] != [w for w in words if "rdzv-id" in w]
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert not any("cpus" in w for w in distributed.command_line("a:b", Path("folder"), Layout(1, ("n1", "n2"))))


@pytest.mark.parametrize(("number", "hosts"), [("0", "1"), ("2", "0")])
def test_a_node_says_where_slurm_finds_it(number: str, hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where this host's own table of names says, which may be loopback; they meet at the job's first node."""

    class Became(Exception):
        """What exec does: it does not return."""

    def execv(_: str, words: list[str]) -> None:
        raise Became(*words)

    monkeypatch.setattr(distributed, "address", lambda node: f"{node}.cluster")
    monkeypatch.setattr(distributed.os, "execv", execv)
    monkeypatch.setenv("SLURMD_NODENAME", "n9")
    monkeypatch.setenv("SLURM_NODEID", number)
    with pytest.raises(Became) as caught:
        distributed.main(["node", "--nnodes=2"])
    words = [*caught.value.args]
    assert words[1:3] == ["-m", "torch.distributed.run"] and words[-1] == "--nnodes=2"
    assert {"--local-addr=n9.cluster", f"--rdzv-conf=is_host={hosts}"} < {*words}


def test_on_one_node_nothing_of_slurm_is_asked() -> None:
    words = distributed.command_line("a:b", Path("folder"), Layout(3))
    assert "srun" not in words and "--standalone" in words
    assert "--local-addr=localhost" in words, "the host's own name need not resolve"
    assert words[-5:] == ["--nproc-per-node=3", "-m", "efflab.measure.distributed", "a:b", "folder"]


def test_the_environment_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    found = distributed.clean_environment(Layout(2, threads=3))
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & {*found}
    assert "GROUP_WORLD_SIZE" not in found and "PET_NNODES" not in found
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"
    assert (found["SLURM_JOB_ID"], found["NCCL_SOCKET_IFNAME"]) == ("17", "ib0")
    assert "GLOO_SOCKET_IFNAME" not in distributed.clean_environment(Layout(2, ("n1", "n2")))
    for value in ("lo", "=lo"):  # an interface that there is
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
        assert distributed.clean_environment(Layout(2, ("n1", "n2")))["GLOO_SOCKET_IFNAME"] == "lo"
    for value in ("^lo", "l", "lo,ib0", ""):  # of NCCL alone: an exclusion, a prefix, a list
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
        assert "GLOO_SOCKET_IFNAME" not in distributed.clean_environment(Layout(2, ("n1", "n2")))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert distributed.clean_environment(Layout(2))["GLOO_SOCKET_IFNAME"] == "eth7"
    assert distributed.clean_environment(Layout(2, ("n1", "n2")))["GLOO_SOCKET_IFNAME"] == "eth7"


def test_nodes_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, str] = {"hostnames": "n1\nn2\n", "node": "NodeName=n1 Arch=x86_64 NodeAddr=127.0.0.1 State=IDLE"}
    monkeypatch.setattr(distributed, "_scontrol", lambda *words: said[words[2 if words[0] == "-o" else 1]])
    monkeypatch.setattr(distributed.shutil, "which", lambda name: f"bin/{name}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert distributed.job_nodes() == ()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert distributed.job_nodes() == ()
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert distributed.job_nodes() == ("n1", "n2")
    assert distributed.address("localhost") == "localhost"
    assert distributed.address("n1.no-such-domain.invalid") == "127.0.0.1"
    monkeypatch.setattr(distributed.shutil, "which", lambda name: None)
    with pytest.raises(EfflabError, match="srun is not found"):
        distributed.job_nodes()
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    with pytest.raises(EfflabError, match="has 3 nodes and scontrol names 2"):
        distributed.job_nodes()


def test_slurm_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EfflabError, match="scontrol show hostnames n1"):
        distributed._scontrol("show", "hostnames", "n1")


# Which rank failed first, from notes that are made up


def noted(folder: Path, kind: str, rank: int, when: float, **entries: Any) -> None:
    base: dict[str, Any] = {"rank": rank, "node": rank // 2, "time": when}
    if kind == "begun":
        base |= {"pid": 1000 + rank}
    elif kind == "ended":
        base |= {"status": 0, "signal": None, "asked": False, "finished": False}
    else:
        base |= {"type": "RuntimeError", "message": "m", "where": "", "because": "", "out_of_memory": False}
    folder.mkdir(exist_ok=True)
    (folder / f"{kind}-{rank}.json").write_text(json.dumps(base | entries))


@given(order=st.permutations(range(4)), how=st.sampled_from(["error", "signal", "status"]))
def test_the_first_to_fail_of_itself_is_found(
    order: list[int], how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever numbers the ranks have, and also where clocks of nodes let the others' errors seem to come first."""
    folder = tmp_path_factory.mktemp("notes")
    culprit, *others = order
    if how == "error":
        noted(folder, "error", culprit, 10.0, type="ValueError", message="the cause")
        noted(folder, "ended", culprit, 10.1, status=1)
    elif how == "signal":
        noted(folder, "ended", culprit, 10.0, signal=9)
    else:
        noted(folder, "ended", culprit, 10.0, status=4)
    for i, rank in enumerate(others[:2]):
        noted(folder, "error", rank, 9.5 + i, because="gone", message="Connection closed by peer")
        noted(folder, "ended", rank, 9.6 + i, status=1)
    noted(folder, "ended", others[2], 11.0, signal=15, asked=True)
    found = distributed.diagnose(folder)
    assert (found.rank, found.node) == (culprit, culprit // 2)
    assert {"error": "the cause", "signal": "SIGKILL", "status": "exit status 4"}[how] in str(found)


def test_a_rank_that_nobody_hears_of_hangs(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    noted(folder, "ended", 0, 5.0, signal=6)  # NCCL's watchdog
    noted(folder, "error", 1, 5.1, because="late", message="Timed out waiting 3000ms")
    noted(folder, "ended", 2, 6.0, signal=15, asked=True)
    (folder / "rank-2.txt").write_text("Current thread (most recent call first):\n  File x.py, line 7 in loader\n")
    found = distributed.diagnose(folder)
    assert (found.rank, found.signal) == (2, None)
    assert "did not answer in time" in str(found) and "line 7 in loader" in str(found)


def test_ranks_that_somebody_ended_did_not_fail(tmp_path: Path) -> None:
    """As Slurm cancels a job: SIGTERM to all, of which one still finds its connection closed."""
    folder = tmp_path / "notes"
    noted(folder, "error", 0, 5.0, because="gone", message="Connection closed by peer")
    noted(folder, "ended", 0, 5.1, status=1)
    noted(folder, "ended", 1, 5.0, signal=15)
    found = distributed.diagnose(folder)
    assert found.outside and found.rank is None


def test_a_rank_that_left_no_note_is_gone(tmp_path: Path) -> None:
    """As when its node fails; the others find out, or are ended."""
    folder = tmp_path / "notes"
    noted(folder, "error", 0, 5.0, because="gone", message="Connection closed by peer")
    noted(folder, "ended", 0, 5.1, status=1)
    noted(folder, "ended", 1, 5.2, signal=15, asked=True)
    for rank in (0, 1, 2):
        noted(folder, "begun", rank, 1.0)
    found = distributed.diagnose(folder)
    assert (found.rank, found.node, found.outside) == (2, 1, False)


def test_torchrun_that_fails_after_its_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    for rank in (0, 1):
        noted(folder, "begun", rank, 1.0)
        noted(folder, "ended", rank, 5.0, finished=True)
    (folder / "log.txt").write_text("the store is closed\n")
    said = str(distributed.diagnose(folder))
    assert "torchrun ended with an error, and no rank did" in said and "the store is closed" in said


@pytest.mark.parametrize(("nodes", "named"), [((), False), (("n1", "n2"), True)])
def test_nodes_that_do_not_find_each_other(nodes: tuple[str, ...], named: bool, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    noted(folder, "error", 0, 5.0, message="Gloo connectFullMesh failed with timed out")
    noted(folder, "ended", 0, 5.1, status=1)
    launch = SimpleNamespace(folder=folder, layout=Layout(1, nodes))
    found = Launch.failure(launch)  # type: ignore[arg-type]
    assert found.rank == 0 and str(found).startswith("rank 0 (node 0) failed")
    assert ("GLOO_SOCKET_IFNAME" in str(found)) == named
    noted(folder, "error", 0, 5.0, message="the batch is empty")
    assert "GLOO_SOCKET_IFNAME" not in str(Launch.failure(launch))  # type: ignore[arg-type]


# Timing, with ranks that are made up


class Pretended:
    """A world of two ranks seen from the first one; each call of the other takes as long as a script says."""

    rank = 0

    def __init__(self, folder: Path, other: Iterator[float]) -> None:
        self.folder, self.other = folder, other
        self.seconds = 0.0
        self.clock = SimpleNamespace(
            name="pretended", now=lambda: self.seconds, synchronize=lambda: None, elapsed=self.elapsed
        )
        self.waited = 0

    def elapsed(self, run: Callable[[], None]) -> float:
        begin = self.seconds
        run()
        return self.seconds - begin

    def barrier(self, ranks: int) -> None:
        self.waited += 1

    def gather(self, numbers: list[float], ranks: int) -> list[list[float]]:
        return [numbers, [next(self.other), *(100.0 for _ in numbers[1:])]]

    def share(self, numbers: list[float], ranks: int) -> list[float]:
        return [float(n) for n in numbers]

    def spend(self, seconds: float) -> Callable[[], None]:
        return lambda: setattr(self, "seconds", self.seconds + seconds)


@pytest.mark.parametrize(("other", "value", "part"), [(0.5, 2.0, 2.0), (3.0, 3.0, 100.0)])
def test_the_slowest_rank_counts_with_its_own_parts(other: float, value: float, part: float, tmp_path: Path) -> None:
    world = Pretended(tmp_path, itertools.repeat(other))
    call = Call(world.spend(2.0), parts=lambda: {"forward": 2.0})
    (turns,) = in_turns(world, 2, [call], time_limit=1e9, most=60, shortest=1e-3)  # type: ignore[arg-type]
    assert turns.values == [value] * 6 and turns.parts == {"forward": [part] * 6}
    assert turns.timing is not None and (turns.timing.stop, turns.timing.loops) == ("stable", 1)
    assert turns.warnings == []


def test_a_call_alone_is_the_first_ranks(tmp_path: Path) -> None:
    world = Pretended(tmp_path, itertools.repeat(50.0))
    call = Call(world.spend(2.0), alone=True, parts=lambda: {"forward": 1.0})
    (turns,) = in_turns(world, 2, [call], time_limit=1e9, shortest=1e-3)  # type: ignore[arg-type]
    assert {*turns.values} == {2.0} and {*turns.parts["forward"]} == {1.0}


@given(
    seconds=st.floats(1e-6, 10.0), shortest=st.floats(1e-3, 1.0), most=st.integers(1, 9),
    cap=st.one_of(st.just(10**6), st.integers(1, 50)),
)  # fmt: skip
def test_a_value_lasts_long_enough_or_has_as_many_calls_as_it_may(
    seconds: float, shortest: float, most: int, cap: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = Pretended(tmp_path_factory.mktemp("world"), itertools.repeat(0.0))
    prepared: list[int] = []
    call = Call(world.spend(seconds), prepare=lambda: prepared.append(1), most_loops=cap)
    (turns,) = in_turns(  # type: ignore[arg-type]
        world, 2, [call], time_limit=1e9, fewest=1, most=most, shortest=shortest
    )
    assert turns.timing is not None
    loops = turns.timing.loops
    assert loops <= cap
    assert loops * seconds >= shortest * 0.99 or loops == cap or loops >= 1000, "ten times more in each of four trials"
    assert len(turns.values) == min(most, 6) and len(prepared) == world.waited
    assert turns.values == pytest.approx([seconds] * len(turns.values))


def test_turns_end_by_a_limit_and_when_the_run_is_to_stop(tmp_path: Path) -> None:
    world = Pretended(tmp_path, itertools.cycle([1.0, 9.0]))
    calls = [Call(world.spend(1.0)), Call(world.spend(1.0))]
    for limit, most, stop, count in ((1e9, 5, "repeat limit", 5), (6.5, 60, "time limit", 4)):
        found = in_turns(world, 2, calls, time_limit=limit, most=most, shortest=1e-3)  # type: ignore[arg-type]
        assert [len(t.values) for t in found] == [count, count]
        assert {t.timing.stop for t in found if t.timing} == {stop}
    (tmp_path / distributed.STOP).touch()
    assert len(in_turns(world, 2, calls, time_limit=1e9, most=2, shortest=1e-3)) == 2  # type: ignore[arg-type]
    distributed.ask_to_stop(tmp_path)
    with pytest.raises(Stopping):
        in_turns(world, 2, calls, time_limit=1e9, shortest=1e-3)  # type: ignore[arg-type]


@given(loops_allowed=st.integers(1, 20), seconds=st.floats(1e-5, 1e-2))
def test_values_that_are_too_short_are_named(
    loops_allowed: int, seconds: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Calls that may not be repeated at will have to last 1,000 times the clock's resolution of 0.5 µs."""
    world = Pretended(tmp_path_factory.mktemp("world"), itertools.repeat(0.0))
    calls = [Call(world.spend(seconds), most_loops=loops_allowed), Call(world.spend(seconds))]
    capped, free = in_turns(world, 2, calls, time_limit=1e9, shortest=20e-3)  # type: ignore[arg-type]
    assert capped.timing is not None
    count = capped.timing.loops
    assert count == loops_allowed or count * seconds >= 20e-3
    assert bool(capped.warnings) == (count * seconds < (0.5e-3 if count == loops_allowed else 10e-3))
    assert all(w.startswith("short: ") for w in capped.warnings) and free.warnings == []


def test_ranks_begin_a_collective_together(tmp_path: Path) -> None:
    """One call more before each value, of which nothing is timed: here the first call after a barrier takes long."""
    world = Pretended(tmp_path, itertools.repeat(0.0))
    made: list[float] = []

    def run() -> None:
        made.append(5.0 if len(made) == 0 or world.waited > waited[-1] else 1.0)
        waited.append(world.waited)
        world.seconds += made[-1]

    for collective, value in ((True, 1.0), (False, 5.0)):
        made, waited = [], [0]
        call = Call(run, most_loops=1, collective=collective)
        (turns,) = in_turns(world, 2, [call], time_limit=1e9, most=3, shortest=1e-3)  # type: ignore[arg-type]
        assert turns.values == [value] * 3
        assert turns.timing is not None and turns.timing.loops == 1


# Cores


@given(
    cores=st.sets(st.integers(0, 300), min_size=1, max_size=64), per_node=st.integers(1, 12), threads=st.integers(1, 4)
)
def test_each_rank_of_a_cpu_has_cores_of_its_own(cores: set[int], per_node: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
        layout = Layout(per_node, threads=threads)
        found = [distributed.cores_of(rank, layout) for rank in range(per_node)]
        assert {distributed.cores_of(r, Layout(per_node, threads=threads, device="cuda")) for r in range(per_node)} == {
            None
        }
        if per_node == 1 or per_node * threads > len(cores):  # alone, or some core would serve two
            assert found == [None] * per_node and layout.bound is None
            return
        held = [core for one in found for core in one or []]
        assert len(held) == len({*held}) and {*held} <= cores
        assert {len(one or []) for one in found} == {layout.bound} and (layout.bound or 0) >= threads
        assert len(cores) - len(held) < per_node, "a rank could have one core more"


# Energy of several nodes


class Nodes:
    """Nodes whose ranks keep account, each of two GPUs with counters that are set by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.clock = 1000.0
        self.joules = {"a": [7.0, 0.0], "b": [50.0, 60.0]}
        self.refused = ""
        self.kind = "cuda"
        folder.mkdir()
        monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: self.clock))
        monkeypatch.setattr(energy, "counter", self._counter)

    def _counter(self, device: Any, held: contextlib.ExitStack) -> energy.Counter:
        node = os.environ["SLURMD_NODENAME"]
        if self.refused == node:
            raise energy.NoCounter("this GPU is cut into slices")
        return energy.Counter(f"the counter of GPU {device.index}", lambda: self.joules[node][device.index])

    def begin(self, node: str, launch: str) -> distributed.NodeAccount:
        """What the first rank of a node does at its start."""
        self._patch.setenv("SLURMD_NODENAME", node)
        return distributed.NodeAccount(self.folder, launch, [torch.device(self.kind, i) for i in (0, 1)])

    def take(self, seconds: float, **joules: float) -> None:
        """Time passes, and each GPU of a node takes so much."""
        self.clock += seconds
        for node, more in joules.items():
            self.joules[node] = [held + more for held in self.joules[node]]

    def energy(self, launch: str, over: bool = True) -> Any:
        """What the parent makes of the accounts."""
        process = SimpleNamespace(poll=lambda: 0 if over else None)
        last: Any = SimpleNamespace(folder=Path(launch), process=process)
        return distributed.energy_of(self.folder, 2, last)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(tmp_path / "accounts", monkeypatch)


def test_the_energy_of_nodes_counts_on_where_a_launch_is_killed(nodes: Nodes) -> None:
    """200 J and 20 J of each of two GPUs, in three stretches of which nobody saw the second one's end."""
    first = [nodes.begin(node, "first") for node in "ab"]
    nodes.take(10.0, a=100.0, b=10.0)
    for account in first:
        account.count()
    seen = nodes.energy("first", over=False)
    assert (seen.joules, seen.window_s) == (220.0, 10.0)
    nodes.take(5.0, a=40.0, b=4.0)
    killed = nodes.energy("first")
    assert (killed.source, killed.joules) == ("none", None)
    assert killed.why == "2 of 2 nodes handed over no reading at the end of their ranks"
    nodes.take(3.0, a=10.0, b=1.0)  # between two launches
    second = [nodes.begin(node, "second") for node in "ba"]
    nodes.take(2.0, a=50.0, b=5.0)
    second[0].count(over=True)
    assert nodes.energy("second").why.startswith("1 of 2 nodes")
    second[1].count(over=True)
    whole = nodes.energy("second")
    assert (whole.source, whole.joules, whole.window_s, whole.period_s) == ("nvml-counter", 440.0, 20.0, 0.1)
    assert (
        whole.of == "4 devices of 2 nodes, on one of them 2 counters, from the counter of GPU 0 to the counter of GPU 1"
    )
    assert nodes.energy("third", over=False).why.startswith("2 of 2 nodes"), "its ranks have not begun"


def test_a_counter_that_was_set_to_zero_between_two_launches_is_found(nodes: Nodes) -> None:
    """Also where it has passed its first reading again, so that the difference looks like an energy."""
    for node in "ab":
        nodes.begin(node, "first")
    nodes.take(10.0, a=100.0, b=100.0)
    for node in "ab":
        nodes.begin(node, "second").count(over=True)
    assert nodes.energy("second").joules == 400.0
    nodes.joules["a"] = [0.0, 0.0]
    third = [nodes.begin(node, "third") for node in "ab"]
    nodes.take(10.0, a=50.0, b=50.0)
    for account in third:
        account.count(over=True)
    found = nodes.energy("third")
    assert (found.joules, found.why) == (None, "a counter was set to zero during the run")


def test_a_node_without_a_counter_leaves_no_sum(nodes: Nodes) -> None:
    nodes.refused = "b"
    accounts = [nodes.begin(node, "first") for node in "ab"]
    nodes.take(10.0, a=100.0, b=100.0)
    for account in accounts:
        account.count(over=True)
    found = nodes.energy("first")
    assert (found.source, found.joules, found.why) == ("none", None, "this GPU is cut into slices")
    nodes.refused = ""
    nodes.begin("b", "second").count(over=True)
    nodes.begin("a", "second").count(over=True)
    assert nodes.energy("second").joules is None, "what it took before is not known"


def test_processors_of_several_nodes_are_counted_within_one_launch_only(nodes: Nodes) -> None:
    nodes.kind = "cpu"
    for launch, joules in (("first", 400.0), ("second", None)):
        accounts = [nodes.begin(node, launch) for node in "ab"]
        nodes.take(10.0, a=100.0, b=100.0)
        for account in accounts:
            account.count(over=True)
        found = nodes.energy(launch)
        assert found.joules == joules
    assert "go round" in found.why


def test_a_launch_without_nodes_keeps_no_account(tmp_path: Path) -> None:
    """Its devices are the parent's, which reads them itself; twice would be once too often."""
    with start(tmp_path, "works") as launch:
        list(launch)
    assert json.loads((launch.folder / "settings.json").read_text())["accounts"] is None
    assert not [p.name for p in tmp_path.rglob("*.json") if p.parent != launch.folder]


# GPUs, pretended


def test_ranks_of_gpus_bind_no_device_to_their_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device bound, torch splits NCCL's communicator on ranks outside a new group, and not on its members."""
    import torch.distributed as dist

    called: list[tuple[str, Any, dict[str, Any]]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: called.append(("init", a, k)))
    monkeypatch.setattr(dist, "new_group", lambda *a, **k: called.append(("group", [*a[0]], k)))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.append(("device", device, {})))
    monkeypatch.setattr(distributed.timer, "clock_for", lambda device: None)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    settings = {
        "arguments": {}, "device": "cuda", "first_device": 0, "threads": 1, "timeout": 5.0, "waiting": 60.0,
        "accounts": None,
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    threads = torch.get_num_threads()
    try:
        world = distributed.World(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert called[0] == ("device", torch.device("cuda", 1), {})
    assert called[1][:2] == ("init", ("nccl",)) and "device_id" not in called[1][2]
    with pytest.raises(EfflabError, match="no group of 2 ranks"):
        world.group(2)
    world.make_groups([2, 4])
    made = [(held, k["backend"], k["timeout"].total_seconds()) for what, held, k in called if what == "group"]
    assert made == [([0, 1, 2, 3], "gloo", 60.0), ([0, 1], "nccl", 5.0), ([0, 1], "gloo", 60.0)]


@pytest.mark.parametrize(("mode", "refused"), [(0, False), (2, False), (3, True)])
def test_gpus_that_take_one_process_are_refused(mode: int, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    nvml = SimpleNamespace(
        NVML_COMPUTEMODE_EXCLUSIVE_PROCESS=3,
        nvmlDeviceGetComputeMode=lambda index: asked.append(index) or (mode if index == 2 else 0),
    )
    monkeypatch.setattr(devices, "nvml", lambda device: contextlib.nullcontext((nvml, device.index)))
    with pytest.raises(EfflabError, match=r"GPU 2 .*EXCLUSIVE_PROCESS") if refused else contextlib.nullcontext():
        distributed.check_shared(Layout(2, device="cuda", first_device=1))
    assert asked == [1, 2]
    distributed.check_shared(Layout(2))
    assert asked == [1, 2]


def test_events_measure_parts_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0

        def record(self) -> None:
            self.at = next(ticks) ** 2

        def elapsed_time(self, other: Event) -> float:
            return float(other.at - self.at)  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    marks = distributed.Marks(SimpleNamespace(device=torch.device("cuda", 0)), ["forward", "backward"])  # type: ignore[arg-type]
    for _ in range(6):
        marks.mark()
    # 0, 1, 4 and 9, 16, 25: the means of 1 and 7, and of 3 and 9
    assert marks.durations() == pytest.approx({"forward": 4e-3, "backward": 6e-3})
    for _ in range(3):
        marks.mark()
    assert marks.durations() == pytest.approx({"forward": 13e-3, "backward": 15e-3})


@pytest.mark.parametrize(("links", "level", "said"), [(18, 10, "NV18"), (0, 10, "PIX"), (0, 50, "SYS"), (0, 77, None)])
def test_what_connects_two_gpus(links: int, level: int, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def state(handle: int, link: int) -> int:
        if link >= links:
            raise RuntimeError("not supported")
        return 1

    nvml = SimpleNamespace(
        NVML_NVLINK_MAX_LINKS=18, NVML_FEATURE_ENABLED=1, nvmlDeviceGetNvLinkState=state,
        nvmlDeviceGetTopologyCommonAncestor=lambda a, b: level,
    )  # fmt: skip
    monkeypatch.setattr(devices, "nvml", lambda device: contextlib.nullcontext((nvml, device.index)))
    assert distributed.interconnect(Layout(2, device="cuda")) == said
    assert distributed.interconnect(Layout(1, device="cuda")) is None
    assert distributed.interconnect(Layout(2)) is None

    def refuses(device: Any) -> Any:
        raise devices.NoNVML("none")

    monkeypatch.setattr(devices, "nvml", refuses)
    assert distributed.interconnect(Layout(2, device="cuda")) is None
