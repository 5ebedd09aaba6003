"""What the lab of distributed training measures: collectives, steps, scaling, memory, and training that is killed.

A small GPT is trained by several processes (ranks), each on a device of its own; on a CPU each has its threads. What
the ranks do stands in `efflab.experiments.ranks`; here stands which cases there are and how their launches follow each
other. One launch of all ranks measures every case but the last: smaller numbers of ranks are the first ones while the
others wait. The point's "role" says what a case is:

- "fit": all-reduces of FP32 from which latency and bandwidth are fitted; "all-reduce": others, held out.
- "calibration": the step without communication. "alone": on rank 0 while the others wait; "together": on every rank at
  once; both also with a part of the batch; "reducer": DistributedDataParallel whose messages are not sent.
- "step": "ddp" with the batch of one rank on each (weak scaling) and "strong" with the batch divided among them;
  "flat" and "per-tensor" average the gradients by hand after the backward pass, as one message and as one for each
  tensor; "accumulate" adds up microbatches and communicates once.
- "efficiency": the step alone against the steps of the same turn. "straggler": the last rank comes late.
- "sampler": orders in which the ranks see the samples. "gradient": DDP's against one process's.
- "noise-fit", "noise": squared norms of gradients of three batch sizes.
- "memory": what rank 0 holds under DDP, ZeroRedundancyOptimizer (stage 1) and FSDP2 (stage 3).
- "curve": the loss of a training run with checkpoints; "resume": the same one, of which a rank is killed and which is
  started again.

All times of steps of one number of ranks are taken in turns.
"""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efflab.errors import EfflabError
from efflab.experiments import runner
from efflab.experiments.runner import Case, Plan, RunFailed, Unavailable
from efflab.experiments.text import corpus
from efflab.measure import device as devices
from efflab.measure import distributed
from efflab.records import Energy, Environment, Record, Sample, Timing, identifier

KI, MI, GI = 2**10, 2**20, 2**30
MICROBATCHES = 4  # of a step that accumulates gradients
STAGES = {0: "ddp", 1: "zero1", 3: "fsdp"}
KILLED = "killed"  # the file in which a rank notes when it killed itself
MOST_ON_CPU = 8  # ranks on a node without GPUs
MOST_AT_ONCE = 64  # sequences of all ranks whose gradient one process takes, which holds their activations
PARTIAL = ("alone-part", "together-part")
METHODS = {"ddp": "ddp", "strong": "ddp", "flat": "flat", "per-tensor": "per-tensor", "accumulate": "ddp"}


@dataclass(frozen=True)
class Scale:
    """What is measured at one scale.

    Attributes:
        model: of the steps and of the memory; its microbatch is that of one rank.
        microbatch: sequences.
        bucket_bytes: of DDP; None means torch's own.
        fit_sizes, held_out_sizes: of messages, B.
        timer: of the steps of one number of ranks; the limit is for all of them together.
        message_timer: of the all-reduces of one number of ranks. On a CPU they wake each other, which takes one time or
            ten: a value is the mean of many.
        delay: of the straggler, s.
        trained: the model of the curve, without its vocabulary.
        curve, resume, noise, sampler: see `spec`.
    """

    model: dict[str, int]
    microbatch: int
    bucket_bytes: int | None
    fit_sizes: tuple[int, ...]
    held_out_sizes: tuple[int, ...]
    timer: dict[str, Any]
    message_timer: dict[str, Any]
    delay: float
    trained: dict[str, int]
    curve: dict[str, Any]
    resume: dict[str, int]
    noise: dict[str, int]
    sampler: dict[str, int] = field(default_factory=lambda: {"samples": 101, "epochs": 4})


def _gpt(layers: int, hidden: int, heads: int, length: int, vocabulary: int | None = None) -> dict[str, int]:
    found = {
        "layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden, "query_heads": heads,
        "head_dim": hidden // heads, "sequence_length": length,
    }  # fmt: skip
    return found if vocabulary is None else found | {"vocabulary": vocabulary}


SMOKE = Scale(
    model=_gpt(2, 64, 2, 32, 128),
    microbatch=8,
    bucket_bytes=None,
    fit_sizes=(KI, 16 * KI, 256 * KI, 4 * MI),
    held_out_sizes=(64 * KI, MI),
    timer={"time_limit": 0.5, "shortest": 1e-3, "most": 6},
    message_timer={"time_limit": 0.3, "shortest": 1e-3, "most": 6},
    delay=0.02,
    trained=_gpt(2, 64, 2, 32) | {"microbatch": 4},
    curve={"text": "topics", "steps": 200, "checkpoint_steps": 10, "learning_rate": 2e-3, "dropout": 0.1},
    resume={"steps": 40, "checkpoint_steps": 10, "killed_at": 27},
    noise={"steps": 5, "batch": 2, "draws": 32},
)
CPU = Scale(
    model=_gpt(4, 256, 4, 64, 1024),
    microbatch=8,
    bucket_bytes=4 * MI,
    fit_sizes=tuple(4**i * KI for i in range(9)),
    held_out_sizes=(32 * KI, 512 * KI, 8 * MI, 32 * MI),
    timer={"time_limit": 30.0, "shortest": 10e-3, "fewest": 6, "most": 30},
    message_timer={"time_limit": 16.0, "shortest": 50e-3, "fewest": 6, "most": 30},
    delay=0.1,
    trained=_gpt(2, 128, 4, 64) | {"microbatch": 8},
    curve={"text": "topics", "steps": 150, "checkpoint_steps": 20, "learning_rate": 2e-3, "dropout": 0.1},
    resume={"steps": 100, "checkpoint_steps": 20, "killed_at": 53},
    noise={"steps": 10, "batch": 4, "draws": 192},
)
GPU = Scale(
    model=_gpt(8, 1024, 16, 512, 8192),
    microbatch=8,
    bucket_bytes=None,
    fit_sizes=tuple(4**i * KI for i in range(11)),
    held_out_sizes=(32 * KI, 512 * KI, 8 * MI, 128 * MI, 512 * MI),
    timer={"time_limit": 30.0, "shortest": 20e-3, "fewest": 6, "most": 40},
    message_timer={"time_limit": 15.0, "shortest": 20e-3, "fewest": 6, "most": 40},
    delay=0.1,
    trained=_gpt(4, 256, 8, 256) | {"microbatch": 16},
    curve={"text": "library", "steps": 400, "checkpoint_steps": 50, "learning_rate": 1e-3, "dropout": 0.1},
    resume={"steps": 200, "checkpoint_steps": 50, "killed_at": 137},
    noise={"steps": 20, "batch": 4, "draws": 256},
)


def scale_of(name: str, device: Any) -> Scale:
    """What a scale measures on a device; "multi" is the GPU's or the CPU's, on all ranks that there are."""
    if name == "multi":
        name = "gpu" if device.type == "cuda" else "cpu"
    return {"smoke": SMOKE, "cpu": CPU, "gpu": GPU}[name]


def layout_of(name: str, device: Any) -> distributed.Layout:
    """Where the ranks of a scale run.

    Raises:
        EfflabError: "multi" where there is one GPU only, a device's number where it cannot be the first one, and what
            `distributed.job_nodes` raises.
    """
    torch = devices.import_torch()
    nodes = distributed.job_nodes() if name in ("smoke", "multi") else ()
    cores = devices.cores()
    if device.type == "cuda":
        count = torch.cuda.device_count()
        first = device.index or 0
        per_node = ranks_per_node(name, count - first, max(1, len(nodes)), cores)
        if name == "multi":
            if first:
                raise EfflabError(
                    f"scale 'multi' uses every GPU, and {device} was asked for. Use --scale gpu, or leave out --device "
                    "and set CUDA_VISIBLE_DEVICES to those that it may use."
                )
            if per_node * max(1, len(nodes)) < 2:
                raise EfflabError(
                    "scale 'multi' needs several GPUs and torch sees one. Use --scale gpu, or ask for more: "
                    "'efflab submit ddp --gpus 4', or '--nodes 2'."
                )
        threads = max(1, cores // per_node)
        return distributed.Layout(per_node, nodes, threads, "cuda", first)
    return distributed.Layout(ranks_per_node(name, 0, max(1, len(nodes)), cores), nodes)


def ranks_per_node(name: str, gpus: int, nodes: int, cores: int) -> int:
    """Ranks on each node at a scale, where a node has so many GPUs (0 for a CPU) and cores."""
    if name == "smoke":
        return 1 if nodes > 1 else min(2, gpus) if gpus else 2
    if gpus:
        return 1 if name == "gpu" else gpus
    return min(MOST_ON_CPU, max(1 if nodes > 1 else 2, cores))


def counts_of(ranks: int) -> list[int]:
    """The numbers of ranks that are measured: 2, 4, 8 and so on, and all; 1 where there is only one."""
    powers = itertools.takewhile(lambda n: n < ranks, (2**i for i in itertools.count(1)))
    return [*powers, ranks]


def size_name(nbytes: int) -> str:
    """A message's size as cases name it: "64MiB"."""
    for unit, name in ((GI, "GiB"), (MI, "MiB"), (KI, "KiB")):
        if nbytes % unit == 0:
            return f"{nbytes // unit}{name}"
    return f"{nbytes}B"


@dataclass
class Session:
    """What the cases of one run share: the launch that measures them, and what it said already."""

    scale: Scale
    layout: distributed.Layout
    arguments: dict[str, Any]
    groups: list[dict[str, Any]]
    warnings: list[str]
    done: set[str] = field(default_factory=set)
    curve: list[float] = field(default_factory=list)  # the loss of the run that nobody killed
    _launch: distributed.Launch | None = None
    _latest: distributed.Launch | None = None  # also when it is over
    _accounts: Path | None = None  # of the nodes' energy, in this session of the run
    _stream: Iterator[dict[str, Any]] | None = None
    _said: dict[str, dict[str, Any]] = field(default_factory=dict)
    _failed: dict[str, Exception] = field(default_factory=dict)

    def launch(self, target: str, arguments: dict[str, Any]) -> distributed.Launch:
        """Start the ranks."""
        place = runner.workspace()
        if self.layout.nodes and self._accounts is None:
            self._accounts = place / identifier("energy")
        self._latest = distributed.Launch(
            f"efflab.experiments.ranks:{target}",
            self.arguments | {"workspace": str(place)} | arguments,
            layout=self.layout,
            folder=place / identifier("launch"),
            accounts=self._accounts,
        )
        return self._latest

    def energy(self) -> Energy:
        """What the devices of all nodes took so far in this session of the run; see `distributed.energy_of`."""
        if self._latest is None or self._accounts is None:
            return Energy(why="no rank has run yet")
        return distributed.energy_of(self._accounts, len(self.layout.nodes), self._latest)

    def close(self) -> None:
        """End the ranks, after a chance to write a checkpoint."""
        launch, self._launch, self._stream = self._launch, None, None
        if launch is not None:
            launch.close()

    # The cases that share a launch

    def shared(self, point: dict[str, Any]) -> Iterator[Sample]:
        """What the ranks say of a case."""
        name = point["case"]
        while name not in self._said and name not in self._failed:
            self._listen(name)
        self.done.add(name)
        if name in self._failed:
            raise self._failed[name]
        if not {n for g in self.groups for n in _names(g)} - {*self.done, *self._failed, *self._said}:
            self.close()  # the nodes hand over their last reading before this case's energy is counted
        said = self._said.pop(name)
        if "unavailable" in said:
            raise Unavailable(said["unavailable"])
        self.warnings.extend(f"{name}: {w}" for w in said["warnings"])
        for sample in said["samples"]:
            timing = sample.pop("timing", None)
            yield Sample(point=point, status="ok", timing=Timing(**timing) if timing else None, **sample)

    def _listen(self, name: str) -> None:
        """Take in what the ranks say next. Where a rank fails, all cases of its group that are missing fail."""
        if self._stream is None:
            over = {*self.done, *self._failed}
            groups = [g for g in self.groups if {*_names(g)} - over]
            cases = [n for g in groups for n in _names(g) if n not in over]
            self._launch = self.launch("measure", {"groups": groups, "cases": cases})
            self._stream = iter(self._launch)
        try:
            said = next(self._stream, None)
            if said is None:
                raise EfflabError("the ranks ended without a result for this case")
        except Exception as error:
            self.close()
            if isinstance(error, distributed.RankFailed):
                self._failing(error)
            group = next(g for g in self.groups if name in _names(g))
            self._failed[name] = error
            for other in _names(group):
                if other not in {*self._said, *self.done, name}:
                    self._failed[other] = Unavailable(f"a rank failed in the launch that measures it; see {name}")
            return
        if "warning" in said:
            self.warnings.append(said["warning"])
        elif "case" in said:
            self._said[said["case"]] = said
        elif "stopped" in said:
            raise KeyboardInterrupt

    def _failing(self, error: distributed.RankFailed) -> None:
        """What a failure means beyond its own cases.

        Raises:
            KeyboardInterrupt: somebody ended the ranks.
            RunFailed: ranks do not even add up a number now: a GPU is lost, or the network does not work.
        """
        if error.outside:
            raise KeyboardInterrupt from None
        runner.workspace(keep=True)  # the traceback that the message names stays
        try:
            with self.launch("answer", {}) as launch:
                answers = [*launch]
        except distributed.RankFailed as second:
            if second.outside:
                raise KeyboardInterrupt from None
            raise RunFailed(f"{error}\nNor do the ranks answer when they are started once more: {second}") from None
        if {"stopped": True} in answers:
            raise KeyboardInterrupt

    # The run that is killed

    def killed(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Train until a rank is killed, start again, and compare with the run that was not."""
        self.close()
        place = runner.workspace()
        shutil.rmtree(place / "resumed", ignore_errors=True)  # of an attempt that was stopped
        of, last = self.arguments["resume"], self.layout.ranks - 1
        before, failed, folder = self._train(of["killed_at"])
        note = folder / KILLED
        if failed is None or failed.rank != last or failed.signal != signal.SIGKILL or not note.exists():
            if failed is not None:
                self._failing(failed)
            raise failed or EfflabError(f"rank {last} was to be killed after step {of['killed_at']} and was not")
        after, failed, _ = self._train(None)
        if failed is not None:
            self._failing(failed)
            raise failed
        went_on = next(int(s["resumed_at"]) for s in after if "resumed_at" in s)
        losses = next(s["losses"] for s in after if "losses" in s)
        done, again = ([s for s in said if "step" in s] for said in (before, after))
        yield _sample(point, "repeated", "", [sum(s["step"] > went_on for s in done)])
        if self.curve:
            apart = [abs(a - b) for a, b in zip(losses, self.curve, strict=False)]
            apart += [abs(s["loss"] - self.curve[s["step"] - 1]) for s in done]
            yield _sample(point, "difference", "nats", [max(apart)])
        # Of two clocks where the nodes differ, which may disagree a little.
        yield _sample(point, "restart_time", "s", [max(0.0, again[0]["time"] - float(note.read_text()))])
        yield _sample(point, "loss", "nats", losses)

    def _train(self, kill_at: int | None) -> tuple[list[dict[str, Any]], distributed.RankFailed | None, Path]:
        """Run the training to its end, good or bad: what was said, how it failed, and the launch's folder."""
        self._launch = launch = self.launch("train", {"kill_at": kill_at})
        said: list[dict[str, Any]] = []
        try:
            for one in launch:
                if "stopped" in one:
                    raise KeyboardInterrupt
                said.append(one)
        except distributed.RankFailed as error:
            if error.outside:
                raise KeyboardInterrupt from None
            return said, error, launch.folder
        return said, None, launch.folder


def _sample(point: dict[str, Any], metric: str, unit: str, values: list[float]) -> Sample:
    return Sample(point=point, metric=metric, unit=unit, values=[float(v) for v in values], status="ok")


def _names(group: dict[str, Any]) -> list[str]:
    """The cases of a group."""
    if "sizes" in group:
        return [*group["sizes"]]
    return [*group["names"].values()] if "names" in group else [group["name"]]


class DDP:
    """The experiment: see the module's text."""

    topic = "ddp"
    scales = ("smoke", "cpu", "gpu", "multi")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor."""
        from efflab.experiments import ranks  # imports torch

        of, layout = scale_of(scale, device), layout_of(scale, device)
        distributed.check_shared(layout)
        text = corpus(of.curve["text"], 10, 6000)
        trained = of.trained | {"vocabulary": text.vocabulary}
        counts = counts_of(layout.ranks)
        shape = ranks.shape(of.model)
        default = distributed.default_buckets()
        cap = of.bucket_bytes or default[1]
        spec: dict[str, Any] = {
            "scale": scale, "seed": ranks.SEED, "backend": layout.backend,
            "model": of.model | shape | {"tied_embeddings": True},
            "microbatch": of.microbatch, "microbatches": MICROBATCHES, "sequence_length": of.model["sequence_length"],
            "rank_counts": counts, "nodes": max(1, len(layout.nodes)), "ranks_per_node": layout.per_node,
            "threads_per_rank": layout.threads, "cores_per_rank": layout.bound,
            "spare_cores": max(0, devices.cores() - layout.per_node * layout.threads),
            "bucket_bytes": cap, "first_bucket_bytes": of.bucket_bytes or default[0],
            "fit_sizes": [*of.fit_sizes], "held_out_sizes": [*of.held_out_sizes], "delay": of.delay,
            "timer": of.timer, "message_timer": of.message_timer,
            "optimizer": "AdamW, fused, no weight decay", "sampler": of.sampler, "noise": of.noise,
            "trained": trained | ranks.shape(trained), "curve": of.curve, "resume": of.resume,
            "text": text.name, "sha256": text.sha256, "zero_stages": [*STAGES],
        }  # fmt: skip
        warnings: list[str] = []
        arguments = {
            "model": of.model, "microbatch": of.microbatch, "microbatches": MICROBATCHES,
            "bucket_bytes": of.bucket_bytes, "timer": of.timer, "message_timer": of.message_timer,
            "delay": of.delay, "sampler": of.sampler, "noise": of.noise, "trained": trained, "curve": of.curve,
            "resume": of.resume, "counts": counts, "killed": KILLED,
        }  # fmt: skip
        done = {str(s.point.get("case")) for s in resumed.samples} if resumed else set()
        session = Session(of, layout, arguments, [], warnings, done)
        for sample in resumed.samples if resumed else []:
            if sample.metric == "loss" and sample.point.get("case") == "curve":
                session.curve = list(sample.values)
        cases = [*_cases(session, shape)]
        spec["cases"] = [c.name for c in cases]
        changes = {
            "ranks": layout.ranks, "backend": layout.backend, "threads": layout.threads,
            "count": layout.ranks if device.type == "cuda" else max(1, len(layout.nodes)),
            "interconnect": distributed.interconnect(layout),
        }  # fmt: skip
        torch = devices.import_torch()
        here = range(layout.first_device, layout.first_device + layout.per_node)
        return Plan(
            spec, cases, warnings, environment=changes, close=session.close, nodes=max(1, len(layout.nodes)),
            devices=[torch.device("cuda", i) for i in here] if layout.device == "cuda" else [],
            energy=session.energy if layout.nodes else None,
        )  # fmt: skip

    def elsewhere(self, scale: str, *, nodes: int, gpus: int, cores: int) -> list[Case]:
        """The cases of a scale on nodes that are not here, with so many GPUs and cores each: to predict, not to run."""
        from efflab.experiments import ranks

        torch = devices.import_torch()
        of = scale_of(scale, torch.device("cuda", 0) if gpus else torch.device("cpu"))
        names = tuple(str(i) for i in range(nodes)) if nodes > 1 else ()
        each = ranks_per_node(scale, gpus, nodes, cores)
        layout = distributed.Layout(each, names, device="cuda" if gpus else "cpu")
        session = Session(of, layout, {"counts": counts_of(layout.ranks)}, [], [])
        return [*_cases(session, ranks.shape(of.model))]


def _needs_two() -> Iterator[Sample]:
    raise Unavailable("this needs two GPUs, and this run uses one; see --scale multi")
    yield


def _cases(session: Session, shape: dict[str, int]) -> Iterator[Case]:
    of, ranks = session.scale, session.layout.ranks
    # One rank shows what it can, and says of the rest that it cannot.
    counts: list[int] = session.arguments["counts"] if ranks > 1 else [1, 2]
    common = {"microbatch": of.microbatch, "gradient_bytes": shape["gradient_bytes"]}

    def case(point: dict[str, Any], metric: str = "time", unit: str = "s") -> Case:
        if point["ranks"] > ranks and point["role"] != "sampler":
            return Case(point, _needs_two, metric, unit)
        return Case(point, lambda: session.shared(point), metric, unit)

    def group(kind: str, **given: Any) -> None:
        if given.get("ranks", 1) <= ranks or kind == "sampler":
            session.groups.append({"kind": kind, **given})

    several = [n for n in counts if n > 1]
    sizes = (*(of.fit_sizes if ranks > 1 else ()), *of.held_out_sizes)
    for n in several:
        group("messages", ranks=n, sizes={f"all-reduce-{size_name(nbytes)}-{n}": nbytes for nbytes in sizes})
    for role, sizes in (("fit", of.fit_sizes if ranks > 1 else ()), ("all-reduce", of.held_out_sizes)):
        for n, nbytes in itertools.product(several, sizes):
            point: dict[str, Any] = {
                "case": f"all-reduce-{size_name(nbytes)}-{n}", "role": role, "ranks": n, "message_bytes": nbytes,
                "series": role,
            }  # fmt: skip
            yield case(point)
    for n in counts:
        names = {}
        for kind in ("alone", "together", *PARTIAL, "reducer", *METHODS, "straggler"):
            if n == 1 and kind in (*PARTIAL, "strong", "flat", "per-tensor", "straggler"):
                continue
            names[kind] = f"{kind}-{n}"
        for kind, name in names.items():
            point = {"case": name, "ranks": n, **common, "microbatches": 1, "series": kind}
            if kind in (*PARTIAL, "strong"):
                point["microbatch"] = max(1, of.microbatch // n)
            if kind in METHODS:
                point |= {"role": "step", "method": METHODS[kind]}
                point["scaling"] = "strong" if kind == "strong" else "weak"
                point["microbatches"] = MICROBATCHES if kind == "accumulate" else 1
            else:
                point["role"] = "straggler" if kind == "straggler" else "calibration"
            if kind == "straggler":
                point["sleep"] = of.delay
            yield case(point)
        if n > 1:
            for scaling in ("weak", "strong"):
                name = names[f"efficiency-{scaling}"] = f"efficiency-{scaling}-{n}"
                point = {
                    "case": name, "role": "efficiency", "ranks": n, **common, "scaling": scaling, "series": "efficiency"
                }  # fmt: skip
                yield case(point, "efficiency", "")
        group("steps", ranks=n, names=names)
    for n, set_epoch in itertools.product(several, (True, False)):
        name = f"{'' if set_epoch else 'no-'}set-epoch-{n}"
        group("sampler", ranks=n, name=name, set_epoch=set_epoch)
        point = {
            "case": name, "role": "sampler", "ranks": n, **of.sampler, "set_epoch": set_epoch, "series": "sampler"
        }  # fmt: skip
        yield case(point, "orders", "")
    for n in several:
        each = max(1, min(of.microbatch, MOST_AT_ONCE // n))
        group("gradient", ranks=n, name=f"gradient-{n}", microbatch=each)
        point = {
            "case": f"gradient-{n}", "role": "gradient", "ranks": n, **common, "microbatch": each, "series": "gradient"
        }  # fmt: skip
        yield case(point, "difference", "")
    group("noise", names={str(times): f"norm-{times}x" for times in (1, 2, 4)})
    for times in (1, 2, 4):
        point = {
            "case": f"norm-{times}x", "role": "noise" if times == 4 else "noise-fit", "ranks": ranks,
            "batch": times * of.noise["batch"], "draws": 4 // times * of.noise["draws"], "series": "noise",
        }  # fmt: skip
        yield case(point, "norm_squared", "")
    for n, (stage, method) in itertools.product(counts, STAGES.items()):
        name = f"memory-{method}-{n}"
        group("memory", ranks=n, name=name, stage=stage)
        point = {
            "case": name, "role": "memory", "ranks": n, "parameters": shape["parameters"], "zero_stage": stage,
            "series": "memory",
        }  # fmt: skip
        yield case(point, "state_bytes", "B")
    group("curve", name="curve")
    point = {
        "case": "curve", "role": "curve", "ranks": ranks, "steps": of.curve["steps"],
        "checkpoint_steps": of.curve["checkpoint_steps"], "series": "curve",
    }  # fmt: skip

    def curve(point: dict[str, Any] = point) -> Iterator[Sample]:
        for sample in session.shared(point):
            if sample.metric == "loss":
                session.curve = list(sample.values)
            yield sample

    yield Case(point, curve, "loss", "nats")
    point = {"case": "resumed", "role": "resume", "ranks": ranks, **of.resume, "series": "resume"}
    yield Case(point, lambda: session.killed(point), "repeated", "")


EXPERIMENT = DDP()
