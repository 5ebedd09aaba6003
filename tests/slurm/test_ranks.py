"""Ranks on two nodes, started by srun from within a job."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = """
import os, signal, time
import torch
from efflab.measure import energy
from efflab.measure.distributed import Stopping

WATTS = {"n1": 100.0, "n2": 50.0}[os.environ["SLURMD_NODENAME"]]


class Made(energy.Meter):
    def __init__(self, of):
        super().__init__(of)
        self.source = "nvml-counter"  # which goes on between launches


energy.counter = lambda *_: energy.Counter("a made-up counter", lambda: WATTS * time.perf_counter())
energy.Meter = Made

def works(world):
    held = torch.ones(2) * (world.rank + 1)
    torch.distributed.all_reduce(held, group=world.group())
    said = world.objects([world.rank, world.node, world.local_rank, os.environ["SLURM_NODEID"]])
    world.emit({"sum": held.tolist(), "ranks": said})

def dies(world):
    world.barrier()
    if world.rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()

def goes_on(world):
    while not world.stopping():
        world.emit({"step": 1})
        time.sleep(0.05)
    world.emit({"checkpoint": 1})
    raise Stopping
"""
PROGRAM = """
import json, sys, time
from pathlib import Path
from efflab.measure import distributed

out = Path(sys.argv[1])
layout = distributed.Layout(2, distributed.job_nodes())
found = {"nodes": layout.nodes}

def launch(target, folder=None):
    folder = out / (folder or target)
    return distributed.Launch(
        f"targets:{target}", {}, layout=layout, folder=folder, timeout=60, waiting=60, accounts=out / "accounts"
    )


def energy_after(ranks):
    return distributed.energy_of(out / "accounts", 2, ranks).model_dump()

with launch("works") as ranks:
    found["works"] = list(ranks)
found["energy"] = [energy_after(ranks)]
began = time.perf_counter()
with launch("dies") as ranks:
    try:
        list(ranks)
    except distributed.RankFailed as error:
        found["dies"] = [error.rank, error.node, error.signal, str(error)]
found["energy"].append(energy_after(ranks))
ranks = launch("goes_on")
next(iter(ranks))
found["between"] = time.perf_counter() - began
ranks.close()
found["energy"].append(energy_after(ranks))
found["accounts"] = {p.stem: json.loads(p.read_text()) for p in (out / "accounts").glob("*.json")}
found["goes_on"] = [ranks.process.returncode, (out / "goes_on" / distributed.STREAM).read_text().splitlines()[-2:]]
ranks = launch("goes_on", "killed")
next(iter(ranks))
ranks.kill()
found["energy"].append(energy_after(ranks))


def left():
    here = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):  # both nodes are on this machine
        try:
            if str(out / "killed").encode() in path.read_bytes().split(b"\\0"):
                here.append(path.read_text())
        except OSError:
            pass
    return here


deadline = time.monotonic() + 15  # a watcher may just be ending
while left() and time.monotonic() < deadline:
    time.sleep(0.2)
found["left"] = left()
(out / "found.json").write_text(json.dumps(found))
"""


def test_ranks_of_two_nodes(slurm, tmp_path):
    """They work together; one that is killed on the second node is named; asked to stop, all write a checkpoint."""
    (tmp_path / "targets.py").write_text(TARGETS)
    (tmp_path / "program.py").write_text(PROGRAM)
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\nexport PYTHONPATH={ROOT}:{tmp_path}\nexec {sys.executable} {tmp_path}/program.py {tmp_path}\n"
    )
    log = tmp_path / "job.log"
    job = slurm.submit(
        "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", f"--output={log}", str(script), cwd=ROOT
    )  # fmt: skip
    assert slurm.wait(job) == "COMPLETED", log.read_text()[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["nodes"] == ["n1", "n2"]
    (said,) = found["works"]
    assert said["sum"] == [10, 10]
    assert [rank for rank, *_ in said["ranks"]] == [0, 1, 2, 3]
    # torchrun numbers the nodes in an order of its own, two ranks on each.
    assert [[node, local] for _, node, local, _ in said["ranks"]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert {slurm_node for *_, slurm_node in said["ranks"]} == {"0", "1"}
    rank, node, number, message = found["dies"]
    assert (rank, node, number) == (3, 1, 9), message
    assert message.startswith("rank 3 (node 1) was ended by SIGKILL")
    status, last = found["goes_on"]
    assert status == 0
    assert [json.loads(line) for line in last] == [{"checkpoint": 1}, {"stopped": True}]
    assert found["left"] == []
    first, none, whole, killed = found["energy"]
    assert first["source"] == whole["source"] == "nvml-counter"
    assert none["joules"] is killed["joules"] is None
    assert "of 2 nodes handed over no reading at the end" in none["why"]
    seconds = {node: account["seconds"] for node, account in found["accounts"].items()}
    assert whole["joules"] == pytest.approx(100 * seconds["n1"] + 50 * seconds["n2"], rel=1e-3)
    assert whole["window_s"] == max(seconds.values())
    # The launch that a rank ended is in it, and what lies before and after that.
    assert whole["window_s"] > first["window_s"] + found["between"]
    assert not slurm.run("squeue", "-h", "--steps").stdout.strip(), "no step is left"
