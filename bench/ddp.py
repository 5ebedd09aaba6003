"""The step of data-parallel training in the lab's harness against a bare loop: `python -m bench.ddp`.

Both run in turns in the same ranks and begin together. The bare loop is what a training script that torchrun starts
consists of: no marks, and two looks at the clock around so many steps.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from efflab.experiments import ddp as lab
from efflab.experiments import ranks
from efflab.measure import distributed
from efflab.records import quantile

TURNS, STEPS = 16, 5  # of each, and how many steps a turn takes


def both(world: distributed.World) -> None:
    """What a rank does: turns of both, the first one alternating."""
    size, microbatch = world.arguments["size"], world.arguments["microbatch"]
    cap = world.arguments["bucket_bytes"]
    batch = ranks.random_batch(size, microbatch, world.device, world.rank)

    wrapped = ranks.wrapped(world, ranks.made(size, world.device), world.ranks, cap)
    call = ranks.Step(world, wrapped, ranks.optimizer(wrapped.parameters(), 0.0), batch).call()
    call = dataclasses.replace(call, most_loops=STEPS)

    model = DistributedDataParallel(ranks.made(size, world.device), bucket_cap_mb=cap // 2**20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    tokens, targets = batch

    def bare() -> float:
        world.barrier()
        begin = time.perf_counter()
        for _ in range(STEPS):
            loss = model(tokens, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return max(row[0] for row in world.gather([(time.perf_counter() - begin) / STEPS]))

    def harness() -> float:
        options: dict[str, Any] = {"time_limit": 1e9, "fewest": 1, "most": 1, "shortest": 1e9}
        (turns,) = distributed.in_turns(world, world.ranks, [call], **options)
        return turns.values[0]

    gc.disable()  # for both: in_turns does it for the harness
    for timed in (bare, harness):  # warm up
        timed()
    for turn in range(TURNS):
        order = (bare, harness) if turn % 2 else (harness, bare)
        found = {timed.__name__: timed() for timed in order}
        world.emit(found)


def ratio(tmp: Path) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile over the turns of the harness's time to the bare loop's."""
    scale = lab.CPU
    arguments = {"size": scale.model, "microbatch": scale.microbatch, "bucket_bytes": scale.bucket_bytes}
    with distributed.Launch("bench.ddp:both", arguments, layout=distributed.Layout(2), folder=tmp / "ratio") as launch:
        found = [said["harness"] / said["bare"] for said in launch]
    return quantile(found, 0.25), quantile(found, 0.5), quantile(found, 0.75)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(print("harness to bare loop: quartiles {:.3f}, {:.3f}, {:.3f}".format(*ratio(Path(folder)))))
