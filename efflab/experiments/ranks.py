"""What each rank does in the lab of distributed training. `efflab.experiments.ddp` says which cases there are.

`measure` and `train` are what `efflab.measure.distributed.Launch` calls on every rank. They get the cases as JSON and
say what they found, case after case:

    {"case": NAME, "samples": [{"metric", "unit", "values", "timing"}, …], "warnings": […]}
    {"case": NAME, "unavailable": WHY}

The model is a GPT of torch modules, so that torch's own DistributedDataParallel and fully_shard can wrap it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import itertools
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efflab import records
from efflab.errors import EfflabError
from efflab.experiments.runner import plain
from efflab.experiments.text import corpus, windows
from efflab.measure import device as devices
from efflab.measure import memory
from efflab.measure.distributed import Call, Marks, Stopping, Turns, World, in_turns

torch = devices.import_torch()
from torch import distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

SEED = 0
PARTS = ("forward_time", "backward_time", "update_time")
SMALL = 2.0**-60  # what messages begin with: sums of sums stay finite
MOST_DOUBLINGS = 150  # of them within one value
CHECKPOINT = "checkpoint.pt"


# The model


class Layer(nn.Module):
    """Layer norm, causal attention, layer norm and a GELU MLP, each pair with a residual and dropout."""

    def __init__(self, size: dict[str, int], dropout: float) -> None:
        super().__init__()
        h, f = size["hidden_size"], size["intermediate_size"]
        self.heads, self.dropout = size["query_heads"], dropout
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)
        self.qkv, self.out = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.up, self.down = nn.Linear(h, f), nn.Linear(f, h)

    def forward(self, x: Any) -> Any:
        """[microbatch, sequence length, hidden size] to the same."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout, self.training)


class GPT(nn.Module):
    """A GPT that returns the mean cross-entropy of a batch, nats. Input and output share their matrix."""

    def __init__(self, size: dict[str, int], dropout: float = 0.0) -> None:
        super().__init__()
        h = size["hidden_size"]
        self.embedding = nn.Embedding(size["vocabulary"], h)
        self.positions = nn.Embedding(size["sequence_length"], h)
        self.layers = nn.ModuleList(Layer(size, dropout) for _ in range(size["layers"]))
        self.norm = nn.LayerNorm(h)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Any, targets: Any) -> Any:
        """The loss of token numbers against the next ones, both [microbatch, sequence length]."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def shape(size: dict[str, int]) -> dict[str, int]:
    """How many parameters and tensors the model has, and the bytes of its gradients in FP32; computes nothing."""
    with torch.device("meta"):
        model = GPT(size)
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "tensors": len([*model.parameters()]), "gradient_bytes": 4 * count}


def made(size: dict[str, int], device: Any, dropout: float = 0.0) -> GPT:
    """The model with the same weights on every rank."""
    torch.manual_seed(SEED)
    return GPT(size, dropout).to(device)


def optimizer(parameters: Any, rate: float, kind: Callable[..., Any] = torch.optim.AdamW) -> Any:
    """AdamW, fused: one kernel, or one loop on a CPU, for all tensors."""
    return kind(parameters, lr=rate, weight_decay=0.0, fused=True)


def random_batch(size: dict[str, int], microbatch: int, device: Any, seed: int) -> tuple[Any, Any]:
    """Random tokens and targets."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, microbatch, size["sequence_length"])
    tokens, targets = torch.randint(size["vocabulary"], shape, generator=generator).to(device)
    return tokens, targets


# Steps


class Step:
    """A training step on one batch again and again, with its parts marked.

    Args:
        model: the model, or what wraps it.
        update: its optimizer; with a learning rate of 0 the weights stay and it takes the same time.
        microbatches: of which the gradients are added; a wrapped model communicates in the last one only.
        reduce: called between backward pass and update.
        before: called first.
    """

    def __init__(
        self,
        world: World,
        model: nn.Module,
        update: Any,
        batch: tuple[Any, Any],
        *,
        microbatches: int = 1,
        reduce: Callable[[], Any] | None = None,
        before: Callable[[], Any] | None = None,
    ) -> None:
        self.model, self.optimizer, self.batch, self.microbatches = model, update, batch, microbatches
        self.reduce, self.before = reduce, before
        self.marks = Marks(world, PARTS)

    def __call__(self) -> None:
        if self.before:
            self.before()
        self.marks.mark()
        for _ in range(self.microbatches - 1):
            with self.model.no_sync():  # type: ignore[operator]
                (self.model(*self.batch) / self.microbatches).backward()
        loss = self.model(*self.batch)
        self.marks.mark()
        (loss / self.microbatches).backward()
        if self.reduce:
            self.reduce()
        self.marks.mark()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.marks.mark()

    def call(self, *, alone: bool = False) -> Call:
        """This step, to be timed."""
        return Call(self, alone=alone, parts=self.marks.durations)


def wrapped(world: World, model: nn.Module, ranks: int, bucket_bytes: int | None) -> Any:
    """The model as DistributedDataParallel wraps it for the first so many ranks.

    Args:
        bucket_bytes: size of a bucket; None means torch's own, 25 MiB with a first one of 1 MiB.
    """
    from torch.nn.parallel import DistributedDataParallel

    more = {"device_ids": [world.device.index]} if world.device.type == "cuda" else {}
    cap = None if bucket_bytes is None else bucket_bytes // 2**20
    return DistributedDataParallel(model, process_group=world.group(ranks), bucket_cap_mb=cap, **more)


def silent(counts: list[int]) -> Callable[[Any, Any], Any]:
    """A communication hook that sends nothing: it counts the buckets' bytes and hands them back."""

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch reads the annotations, and would refuse strings
        buffer = bucket.buffer()
        counts.append(buffer.numel() * buffer.element_size())
        future: Any = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else [])
        future.set_result(buffer)
        return future

    return hook


def flattened(model: nn.Module, group: Any, ranks: int, name: str, sent: dict[str, int]) -> Callable[[], None]:
    """Average the gradients as one message; `sent[name]` says how many were sent."""

    def reduce() -> None:
        gradients = [p.grad for p in model.parameters()]
        flat = torch._utils._flatten_dense_tensors(gradients)
        dist.all_reduce(flat, group=group)
        flat /= ranks
        torch._foreach_copy_(gradients, list(torch._utils._unflatten_dense_tensors(flat, gradients)))
        sent[name] = 1

    return reduce


def one_by_one(model: nn.Module, group: Any, ranks: int, name: str, sent: dict[str, int]) -> Callable[[], None]:
    """Average every gradient by itself; `sent[name]` says how many messages were sent."""

    def reduce() -> None:
        sent[name] = 0
        for p in model.parameters():
            dist.all_reduce(p.grad, group=group)
            p.grad /= ranks
            sent[name] += 1

    return reduce


# Cases of the first launch


class Bench:
    """One rank's part in the cases that share a launch."""

    def __init__(self, world: World) -> None:
        self.world, self.of = world, world.arguments
        self.size: dict[str, int] = self.of["model"]
        self.options: dict[str, Any] = self.of["timer"]

    def sample(self, metric: str, unit: str, values: list[float], **more: Any) -> dict[str, Any]:
        return {"metric": metric, "unit": unit, "values": [float(v) for v in values], **more}

    def timed(self, turns: Turns, metric: str = "time") -> dict[str, Any]:
        assert turns.timing is not None
        return self.sample(metric, "s", turns.values, timing=turns.timing.model_dump())

    def say(self, case: str, samples: list[dict[str, Any]], warnings: list[str] | None = None) -> None:
        """What a case found, if it is one that was asked for."""
        if case in self.of["cases"]:
            self.world.emit({"case": case, "samples": samples, "warnings": warnings or []})

    def unavailable(self, case: str, why: str) -> None:
        if case in self.of["cases"]:
            self.world.emit({"case": case, "unavailable": plain(why)})

    def wanted(self, names: list[str]) -> bool:
        return bool({*names} & {*self.of["cases"]})

    # Collectives

    def messages(self, ranks: int, sizes: dict[str, int]) -> None:
        """The time of one all-reduce of FP32 for each size, in turns: a disturbance then meets all sizes alike."""
        if not self.wanted([*sizes]):
            return
        world = self.world
        start, held = self.pair(max(sizes.values()), ranks)
        fitting = {name: nbytes for name, nbytes in sizes.items() if nbytes <= 4 * len(start)}
        for name in sizes.keys() - fitting.keys():
            self.unavailable(name, f"the memory of a device does not hold two messages of {sizes[name]} bytes")

        def call(count: int) -> Call:
            message, first = held[:count], start[:count]
            return Call(
                lambda: dist.all_reduce(message, group=world.group(ranks)),
                prepare=lambda: message.copy_(first),
                most_loops=int(MOST_DOUBLINGS // math.log2(ranks)),  # each sum is at most so many times larger
                collective=True,
            )

        found = in_turns(world, ranks, [call(n // 4) for n in fitting.values()], **self.of["message_timer"])
        for name, turns in zip(fitting, found, strict=True):
            self.say(name, [self.timed(turns)], turns.warnings)

    def pair(self, nbytes: int, ranks: int) -> tuple[Any, Any]:
        """Random numbers and room for as many: so many bytes, or what fits on each of the ranks."""
        world = self.world
        generator = torch.Generator(device=world.device).manual_seed(SEED + world.rank)
        while True:
            start = held = None
            try:
                start = torch.randn(nbytes // 4, device=world.device, generator=generator).mul_(SMALL)
                held = torch.empty_like(start)
                fits = 1.0
            except Exception as error:
                if not memory.out_of_memory(error):
                    raise
                fits = 0.0
            if min(row[0] for row in world.gather([fits], ranks)):
                return start, held
            nbytes //= 2

    # Steps

    def steps(self, ranks: int, names: dict[str, str]) -> None:
        """All kinds of steps on so many ranks, in turns."""
        world, of, size = self.world, self.of, self.size
        microbatch: int = of["microbatch"]
        part = microbatch // ranks if microbatch % ranks == 0 else 0
        cap = of["bucket_bytes"]
        whole = random_batch(size, microbatch, world.device, SEED + world.rank)
        shared = tuple(t[: part or 1] for t in whole)
        counts: list[int] = []  # bytes of the buckets that the hook got
        sent: dict[str, int] = {}  # messages by hand
        delays: list[float] = []

        plain_model = made(size, world.device)
        hooked, ddp = (wrapped(world, made(size, world.device), ranks, cap) for _ in range(2))
        hooked.register_comm_hook(None, silent(counts))
        local, silenced, synced = (
            functools.partial(Step, world, model, optimizer(model.parameters(), 0.0))
            for model in (plain_model, hooked, ddp)
        )
        calls: dict[str, Call] = {
            "alone": local(whole).call(alone=True),
            "together": local(whole).call(),
            "reducer": silenced(whole).call(),
            "ddp": synced(whole).call(),
            "accumulate": synced(whole, microbatches=of["microbatches"]).call(),
        }
        if ranks > 1:
            if part:
                calls["alone-part"] = local(shared).call(alone=True)
                calls["together-part"] = local(shared).call()
                calls["strong"] = synced(shared).call()
            for name, kind in (("flat", flattened), ("per-tensor", one_by_one)):
                calls[name] = local(whole, reduce=kind(plain_model, world.group(ranks), ranks, name, sent)).call()
            late = functools.partial(self.sleep, of["delay"], delays) if world.rank == ranks - 1 else None
            calls["straggler"] = synced(whole, before=late).call()
        found = dict(zip(calls, in_turns(world, ranks, [*calls.values()], **self.options), strict=True))
        # How many buckets one backward pass fills, once they follow the order of the gradients.
        counts.clear()
        hooked(*whole).backward()
        for kind, turns in found.items():
            samples = [self.timed(turns)]
            if kind in ("alone", "together", "alone-part", "together-part"):
                samples += [self.sample(name, "s", turns.parts[name]) for name in PARTS if name in turns.parts]
            if kind in ("ddp", "strong", "flat", "per-tensor", "accumulate", "reducer"):
                samples.append(self.sample("buckets", "", [sent.get(kind, len(counts))]))
            if kind == "straggler":
                loops = turns.timing.loops if turns.timing else 1
                held = delays if world.rank == ranks - 1 else []
                held = self.world.objects(held, ranks)[ranks - 1][-loops * len(turns.values) :]
                means = [sum(held[i : i + loops]) / loops for i in range(0, len(held), loops)]
                samples.append(self.sample("delay", "s", means))
            self.say(names[kind], samples, turns.warnings)
        if ranks > 1:
            alone = found["alone"].values
            weak = [a / b for a, b in zip(alone, found["ddp"].values, strict=True)]
            self.say(names["efficiency-weak"], [self.sample("efficiency", "", weak)])
            if part:
                strong = [a / (ranks * b) for a, b in zip(alone, found["strong"].values, strict=True)]
                self.say(names["efficiency-strong"], [self.sample("efficiency", "", strong)])
            else:
                why = f"{ranks} ranks cannot share a batch of {microbatch} evenly"
                for kind in ("alone-part", "together-part", "strong", "efficiency-strong"):
                    self.unavailable(names[kind], why)

    def sleep(self, delay: float, delays: list[float]) -> None:
        """Come late, by so many seconds after the device is done."""
        self.world.clock.synchronize()
        begin = time.perf_counter()
        time.sleep(delay)
        delays.append(time.perf_counter() - begin)

    # Samples, gradients, noise

    def sampler(self, ranks: int, name: str, set_epoch: bool) -> None:
        """Orders in which the ranks see the samples over some epochs, and samples that come twice in one."""
        from torch.utils.data.distributed import DistributedSampler

        samples, epochs = self.of["sampler"]["samples"], self.of["sampler"]["epochs"]
        world = self.world
        # One for each rank; where there are fewer than are asked for, a rank takes the part of several.
        own = {
            r: DistributedSampler(range(samples), num_replicas=ranks, rank=r, shuffle=True, seed=SEED)
            for r in range(world.rank, ranks, min(world.ranks, ranks))
        }
        orders, repeated = set(), []
        for epoch in range(epochs):
            if set_epoch:
                for one in own.values():
                    one.set_epoch(epoch)
            seen: dict[int, tuple[int, ...]] = {}
            for found in world.objects({r: tuple(one) for r, one in own.items()}, min(world.ranks, ranks)):
                seen |= found
            orders.add(tuple(seen[r] for r in range(ranks)))
            drawn = [i for indices in seen.values() for i in indices]
            repeated.append(len(drawn) - len({*drawn}))
        self.say(name, [self.sample("orders", "", [len(orders)]), self.sample("repeated", "", repeated)])

    def gradient(self, ranks: int, name: str, microbatch: int) -> None:
        """Relative difference of DDP's gradient from that of all ranks' samples in one process."""
        from efflab.experiments.amp import difference

        world = self.world
        batches = [random_batch(self.size, microbatch, world.device, SEED + r) for r in range(ranks)]
        ddp = wrapped(world, made(self.size, world.device), ranks, self.of["bucket_bytes"])
        for _ in range(2):  # the second one with the buckets in their final order
            ddp.zero_grad(set_to_none=True)
            ddp(*batches[world.rank]).backward()
        if world.rank == 0:
            model = made(self.size, world.device)
            model(*(torch.cat(column) for column in zip(*batches, strict=True))).backward()
            whole = [p.grad for p in model.parameters()]
            parts = made(self.size, world.device)
            for batch in batches:
                (parts(*batch) / ranks).backward()
            samples = [
                self.sample("difference", "", [difference([p.grad for p in ddp.module.parameters()], whole)]),
                self.sample("rounding", "", [difference([p.grad for p in parts.parameters()], whole)]),
            ]
            self.say(name, samples)

    def noise(self, names: dict[int, str]) -> None:
        """Squared norms of gradients of several batch sizes, at the same weights, of text that is drawn at random.

        As in data-parallel training, the gradient of a larger batch is the mean of those of small ones.
        """
        world, of = self.world, self.of["noise"]
        text = Text(self.of)
        model = made(text.size, world.device)
        trained = optimizer(model.parameters(), self.of["curve"]["learning_rate"])
        generator = torch.Generator().manual_seed(SEED)
        for _ in range(of["steps"]):  # away from the first weights, at which all gradients are alike
            model(*text.draw(of["batch"] * 4, generator, world.device)).backward()
            trained.step()
            trained.zero_grad(set_to_none=True)
        most = max(names)
        found: dict[int, list[list[float]]] = {times: [] for times in names}
        for draw in range(of["draws"]):
            batches = [text.draw(of["batch"], generator, world.device) for _ in range(most)]  # alike on all ranks
            if draw % world.ranks == world.rank:
                gradients = []
                for batch in batches:
                    model(*batch).backward()
                    gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
                    model.zero_grad(set_to_none=True)
                for times in names:
                    means = [sum(gradients[i : i + times]) / times for i in range(0, most, times)]
                    found[times].append([float(g.square().sum()) for g in means])
        for times, name in names.items():
            rows = [row for rank in world.objects(found[times]) for row in rank]
            self.say(name, [self.sample("norm_squared", "", list(itertools.chain(*rows)))])

    # Memory

    def memory(self, ranks: int, name: str, stage: int) -> None:
        """Bytes of weights, gradients and optimizer state on rank 0 after a step."""
        world, cuda = self.world, self.world.device.type == "cuda"
        before = 0
        if cuda:  # what earlier cases left is none of this one's
            gc.collect()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated(world.device)
        batch = random_batch(self.size, self.of["microbatch"], world.device, SEED + world.rank)
        model = made(self.size, world.device)
        if stage == 3:
            held, update = self.sharded(model, ranks)
        else:
            held = wrapped(world, model, ranks, self.of["bucket_bytes"])
            if stage == 1:
                from torch.distributed.optim import ZeroRedundancyOptimizer

                update = ZeroRedundancyOptimizer(
                    held.parameters(), torch.optim.AdamW, process_group=world.group(ranks), lr=0.0, weight_decay=0.0
                )
            else:
                update = optimizer(held.parameters(), 0.0)
        for _ in range(2):
            update.zero_grad(set_to_none=True)
            world.clock.synchronize()
            if cuda:
                torch.cuda.reset_peak_memory_stats(world.device)
            held(*batch).backward()
            update.step()
        world.clock.synchronize()
        states = memory.optimizer_tensors(update.optim if stage == 1 else update)
        kept = [*held.parameters(), *(p.grad for p in held.parameters()), *states]
        kept = [t.to_local() if hasattr(t, "to_local") else t for t in kept]
        samples = [self.sample("state_bytes", "B", [memory.tensor_bytes(kept)])]
        if cuda:
            samples.append(self.sample("peak_bytes", "B", [torch.cuda.max_memory_allocated(world.device) - before]))
        self.say(name, samples)

    def sharded(self, model: GPT, ranks: int) -> tuple[Any, Any]:
        """The model as FSDP2 shards it, layer by layer, and its optimizer."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        mesh = DeviceMesh.from_group(self.world.group(ranks), self.world.device.type)
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, optimizer(model.parameters(), 0.0)


def measure(world: World) -> None:
    """Do the groups of cases that are asked for, in order. Ranks beyond a group's number wait."""
    bench = Bench(world)
    world.make_groups(world.arguments["counts"])
    for group in world.arguments["groups"]:
        if world.stopping():
            raise Stopping
        kind, ranks = group["kind"], group.get("ranks", world.ranks)
        # Those who measure may be asked to stop while the others wait; then all stop after the barrier.
        with contextlib.suppress(Stopping):
            if world.rank < ranks:
                given = {k: v for k, v in group.items() if k not in ("kind", "ranks")}
                if kind == "curve":
                    curve(world, bench)
                elif kind == "noise":
                    bench.noise({int(k): v for k, v in given["names"].items()})
                else:
                    getattr(bench, kind)(ranks, **given)
        world.barrier()
        world.count()
    if world.stopping():
        raise Stopping


def answer(world: World) -> None:
    """Say that every number of ranks that is measured can add something up: whether a launch can work at all."""
    counts: list[int] = world.arguments["counts"]
    world.make_groups(counts)
    for ranks in counts:
        if world.rank < ranks:
            held = torch.ones(1, device=world.device)
            dist.all_reduce(held, group=world.group(ranks))
            held.item()
        world.barrier()
    world.emit({"answered": True})


# Training with checkpoints


class Text:
    """The text that is trained on, as windows of tokens."""

    def __init__(self, of: dict[str, Any]) -> None:
        found = corpus(of["curve"]["text"], 10, 6000)
        self.size = of["trained"]
        self.inputs, self.targets = windows(torch.tensor(found.training), self.size["sequence_length"])

    def draw(self, count: int, generator: Any, device: Any) -> tuple[Any, Any]:
        """Windows drawn at random, with replacement."""
        at = torch.randint(len(self.inputs), (count,), generator=generator)
        return self.inputs[at].to(device), self.targets[at].to(device)


class Training:
    """A data-parallel training run that goes on at its last checkpoint.

    Args:
        folder: of the checkpoint; every rank sees it.
        steps: of the whole run.
    """

    def __init__(self, world: World, folder: Path, steps: int) -> None:
        from torch.utils.data.distributed import DistributedSampler

        self.world, self.of, self.folder, self.steps = world, world.arguments["curve"], folder, steps
        self.text = Text(world.arguments)
        if world.device.type == "cuda":  # so that a run that goes on repeats the one that was not stopped
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.microbatch = self.text.size["microbatch"]
        self.model = wrapped(world, made(self.text.size, world.device, self.of["dropout"]), world.ranks, None)
        self.optimizer = optimizer(self.model.parameters(), self.of["learning_rate"])
        self.sampler = DistributedSampler(self.text.inputs, world.ranks, world.rank, seed=SEED, drop_last=True)
        self.per_epoch = len(self.sampler) // self.microbatch
        torch.manual_seed(SEED + world.rank)  # of dropout: other on every rank
        self.losses: list[float] = []
        self.resumed: list[int] = []
        self.checkpoint_times: list[float] = []
        self.path = folder / CHECKPOINT
        self._order: tuple[int, list[int]] = (-1, [])
        if world.share([float(self.path.exists())])[0]:
            self.load()

    @property
    def step(self) -> int:
        """Steps that are done."""
        return len(self.losses)

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same where a checkpoint is taken up."""
        return {
            "model": self.text.size, "ranks": self.world.ranks, **self.of,
            "sequences": len(self.text.inputs), "torch": str(torch.__version__),
        }  # fmt: skip

    def batch(self) -> tuple[Any, Any]:
        """This rank's sequences of the present step."""
        epoch, position = divmod(self.step, self.per_epoch)
        if self._order[0] != epoch:
            self.sampler.set_epoch(epoch)
            self._order = (epoch, [*self.sampler])
        at = self._order[1][position * self.microbatch : (position + 1) * self.microbatch]
        return self.text.inputs[at].to(self.world.device), self.text.targets[at].to(self.world.device)

    def advance(self) -> None:
        """One step. The loss that is kept is the mean over all ranks."""
        loss = self.model(*self.batch())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rows = self.world.gather([float(loss.detach())])
        self.losses.append(sum(row[0] for row in rows) / len(rows))

    def save(self) -> None:
        """Write a checkpoint, whole or not at all; a disk that refuses it does not end the run."""
        begin = time.perf_counter()
        state = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self.world.device) if self.world.device.type == "cuda" else None
        states = self.world.objects((state, cuda))
        if self.world.rank == 0:
            held = io.BytesIO()
            content = {
                "identity": self.identity, "model": self.model.module.state_dict(), "step": self.step,
                "optimizer": self.optimizer.state_dict(), "losses": self.losses, "resumed": self.resumed,
                "epoch": self.step // self.per_epoch, "random": states, "times": self.checkpoint_times,
            }  # fmt: skip
            torch.save(content, held)
            try:
                records.write(self.path, held.getvalue(), replace=True)
            except records.NotSaved as error:
                if error.kept:
                    with contextlib.suppress(OSError):
                        error.kept.unlink()
                        error.kept.parent.rmdir()
                self.world.emit({"warning": plain(f"no checkpoint after step {self.step}: {error}")})
        self.world.barrier()
        self.checkpoint_times.append(time.perf_counter() - begin)

    def load(self) -> None:
        """Take up the checkpoint.

        Raises:
            EfflabError: it is of another run, or damaged.
        """
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise EfflabError(
                f"{self.path}: the checkpoint cannot be read: {error}. Remove it, or add --restart."
            ) from None
        own = self.identity
        differing = [k for k in {*own, *content["identity"]} if own.get(k) != content["identity"].get(k)]
        if differing:
            raise EfflabError(
                f"{self.path}: the checkpoint is of another run: {', '.join(sorted(differing))} differ. Remove it, or "
                "add --restart."
            )
        self.model.module.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.losses, self.checkpoint_times = content["losses"], content["times"]
        self.resumed = [*content["resumed"], len(self.losses)]
        state, cuda = content["random"][self.world.rank]
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.world.device)

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Train to the end, with a checkpoint every so many steps and when the run is asked to stop."""
        while self.step < self.steps:
            self.advance()
            if self.step % self.of["checkpoint_steps"] == 0 and self.step < self.steps:
                self.save()
            after()
            if self.world.stopping():
                if self.step % self.of["checkpoint_steps"]:
                    self.save()
                raise Stopping


def curve(world: World, bench: Bench) -> None:
    """The training run that nobody kills. It goes on where it was stopped."""
    folder = Path(world.arguments["workspace"]) / "curve"
    training = Training(world, folder, world.arguments["curve"]["steps"])
    training.run()
    samples = [bench.sample("loss", "nats", training.losses)]
    if training.checkpoint_times:
        samples.append(bench.sample("checkpoint_time", "s", training.checkpoint_times))
    if training.resumed:
        samples.append(bench.sample("resumed_at", "", training.resumed))
    bench.say("curve", samples)


def train(world: World) -> None:
    """The same training run, of which a rank may be told to kill itself after a step."""
    of = world.arguments["resume"]
    training = Training(world, Path(world.arguments["workspace"]) / "resumed", of["steps"])
    world.emit({"resumed_at": training.step})
    kill_at = world.arguments["kill_at"]

    def after() -> None:
        world.emit({"step": training.step, "loss": training.losses[-1], "time": time.time()})
        if kill_at is not None and training.step == kill_at:
            world.barrier()  # so that the step is said before a rank is gone
            if world.rank == world.ranks - 1:
                (world.folder / world.arguments["killed"]).write_text(repr(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)

    training.run(after)
    world.emit({"losses": training.losses})
