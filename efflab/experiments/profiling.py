"""What the profiling lab measures: where the time of a training step goes, and what each mend gains.

The training loop and its five planted faults stand in `faults`. Kinds of cases, told apart by the point's "role":

- "calibration": the step with all faults, its profile, the rate of a large product, the time to make one batch, the
  time to be handed one by a worker, and the step of the loop without other faults where batches lie ready. Predictions
  are made of these.
- "ablation": all faults but one. "ladder": the first faults mended, one more each time.
- "loader": the loop with the loader's fault alone, its batches made by 0, 1, 2, … worker processes; on a GPU also
  with page-locked memory.
- "seed": loss curves: the same seed again, another seed, without faults, and with another number of threads (on a
  GPU: with deterministic algorithms).
- "monitor": the counters of `efflab.measure.monitor` while the loop runs with all faults and with none. For a counter
  that this machine lacks there is a warning in place of a sample.
- "evidence": the profile of the loop without faults: what of each part is left after its mend.

A step of "ablation" and "ladder" is timed in turns with a step of the loop with all faults, whose time is the metric
"baseline": a drift of the machine falls on both.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import gzip
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efflab import records
from efflab.errors import EfflabError
from efflab.experiments import runner
from efflab.experiments.faults import (
    ALL,
    BETAS,
    DECAY,
    EPSILON,
    FAULTS,
    NONE,
    RANGE,
    RATE,
    SEED,
    VARIANT,
    WINDOW,
    Batches,
    Loop,
    count_tiny,
    counted,
    data_set,
    text_of,
    with_vocabulary,
)  # fmt: skip
from efflab.experiments.runner import Case, Plan, Unavailable
from efflab.measure import device as devices
from efflab.measure import memory, timer
from efflab.measure.monitor import NAMES, Monitor
from efflab.records import Environment, Record, Sample, Timing

BOTH = {"all-faults": ALL, "clean": NONE}
PARTS = (*FAULTS, "forward", "backward", "optimizer")  # of a profiled step; on a GPU also "wait"
WHOLE = ("", "step", "loop")  # ranges that are no part
NODE = "autograd::engine::evaluate_function: "  # begins the names of what autograd runs in the backward pass
THREADS = 1  # on a CPU, so that a worker has a core of its own
WARM = 5  # steps of a loop before anything is measured
READY = 16  # batches that lie ready
MOST_TRACED = 50  # steps in a trace


@dataclass(frozen=True)
class Scale:
    """What is measured at one scale.

    Attributes:
        text: of `efflab.experiments.text`.
        size: of the decoder.
        timer: options of the timer for one turn.
        turns: how often the loops of a case take turns.
        profiled: steps under the profiler.
        peak: rows of the product whose rate stands for the peak.
        workers: of the loader cases.
        curve: steps of a loss curve.
        window: s that a monitored loop runs.
        interval: s between two readings of the monitor.
    """

    text: str
    size: dict[str, int]
    timer: dict[str, Any]
    turns: int
    profiled: int
    peak: int
    workers: tuple[int, ...]
    curve: int
    window: float
    interval: float


SCALES = {
    "smoke": Scale(
        text="topics",
        size={"layers": 2, "sequence_length": 16, "microbatch": 4, "hidden_size": 16, "intermediate_size": 64,
              "query_heads": 2, "head_dim": 8},
        timer={"time_limit": 0.02, "shortest": 1e-4, "most": 10}, turns=2, profiled=3, peak=128, workers=(0, 1, 2),
        curve=8, window=0.3, interval=0.05,
    ),
    "cpu": Scale(
        text="topics",
        size={"layers": 2, "sequence_length": 32, "microbatch": 32, "hidden_size": 24, "intermediate_size": 96,
              "query_heads": 2, "head_dim": 12},
        timer={"time_limit": 0.15, "shortest": 1e-3, "most": 60}, turns=8, profiled=10, peak=1024, workers=(0, 1, 2),
        curve=60, window=3.0, interval=0.1,
    ),
    "gpu": Scale(
        text="topics",
        size={"layers": 8, "sequence_length": 256, "microbatch": 32, "hidden_size": 512, "intermediate_size": 2048,
              "query_heads": 8, "head_dim": 64},
        timer={"time_limit": 1.0, "shortest": 0.2, "most": 60}, turns=4, profiled=10, peak=8192,
        workers=(0, 1, 2, 4, 8), curve=60, window=3.0, interval=0.1,
    ),
}  # fmt: skip


# A profile


@dataclass
class Profile:
    """Steps under torch.profiler. Every list has one value for each step.

    Attributes:
        step: s of the step.
        ranges: s by part, without the parts inside of it. What is left of the step is between the parts.
        events: what the profiler wrote down, by part; each cost time that is in the ranges.
        operators: calls of operators by the loop or by autograd, without those that operators call.
        kernels, kernel_time: of a GPU, kernels and copies started by part and the s that they took; else empty.
    """

    step: list[float]
    ranges: dict[str, list[float]]
    events: dict[str, list[float]]
    operators: list[float]
    kernels: dict[str, list[float]]
    kernel_time: dict[str, list[float]]


def profiled(loops: Mapping[str, Loop], steps: int) -> Any:
    """torch's profile of some steps of each loop, one loop after the other; each step is waited for at its end.

    Args:
        loops: by the name of the range around the loop's steps.
        steps: of each; one more before them warms up the profiler.
    """
    torch = devices.import_torch()
    from torch.profiler import ProfilerActivity

    cuda = any(loop.device.type == "cuda" for loop in loops.values())
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)

    def run(some: int) -> None:
        for name, loop in loops.items():
            with torch.profiler.record_function(RANGE + name):
                for _ in range(some):
                    with loop.range("step"):
                        loop.step()
                        if cuda:
                            with loop.range("wait"):
                                torch.cuda.synchronize(loop.device)
        found.step()

    try:
        for loop in loops.values():
            loop.ranges = True
            for _ in range(WARM):
                loop.step()
        with torch.profiler.profile(activities=activities, schedule=schedule) as found:
            run(1)
            run(steps)
    finally:
        for loop in loops.values():
            loop.ranges = False
    return found


def profile(loop: Loop, steps: int) -> Profile:
    """Where the time of some steps of a loop goes."""
    return read_profile(profiled({"loop": loop}, steps).events(), loop.device.type == "cuda")


def read_profile(events: Iterable[Any], on_gpu: bool) -> Profile:
    """The parts of the steps that a profile holds.

    A range covers what the loop does inside of it. Of the backward pass of what "tiny" touches there is none: autograd
    runs it. There an event belongs to "tiny" if it has the sequence number of an operation of the forward pass that
    lies in a range of "tiny". The engine's time before such an event counts with it.

    Args:
        events: of torch's profile.
        on_gpu: the steps ended with a wait and started kernels.
    """
    cpu = devices.import_torch().autograd.DeviceType.CPU
    events = sorted((e for e in events if e.device_type == cpu), key=lambda e: e.time_range.start)
    whole = [e for e in events if e.name == RANGE + "step"]
    parts = [*PARTS, *(["wait"] if on_gpu else [])]
    ranges, counts, kernels, kernel_time = ({p: [0.0] * len(whole) for p in parts} for _ in range(4))
    calls = [0.0] * len(whole)
    part_of = _parts_of(events)
    begins = [e.time_range.start for e in whole]
    done = list(begins)  # until when autograd's engine had worked on other nodes
    for event in events:
        k = bisect.bisect_right(begins, event.time_range.start) - 1
        part = part_of[id(event)]
        if k < 0 or event.time_range.start > whole[k].time_range.end or part is None:
            continue  # not in a step, or between its parts
        if event.name.startswith(RANGE):
            seconds = event.time_range.elapsed_us() * 1e-6
            ranges[part][k] += seconds
            if (around := _range_around(event)) in ranges:
                ranges[around][k] -= seconds
            done[k] = event.time_range.start
        elif event.name.startswith(NODE):
            if part == "tiny":
                seconds = (event.time_range.end - done[k]) * 1e-6
                ranges["tiny"][k] += seconds
                ranges["backward"][k] -= seconds
            done[k] = event.time_range.end
        counts[part][k] += 1
        within = event.cpu_parent
        if event.name.startswith("aten::") and not (within is not None and within.name.startswith("aten::")):
            calls[k] += 1
        if not event.is_user_annotation:  # a range carries the kernels of what is inside of it once more
            kernels[part][k] += len(event.kernels)
            kernel_time[part][k] += sum(kernel.duration for kernel in event.kernels) * 1e-6
    step = [e.time_range.elapsed_us() * 1e-6 for e in whole]
    return Profile(step, ranges, counts, calls, *((kernels, kernel_time) if on_gpu else ({}, {})))


def _range_around(event: Any) -> str:
    """The part of the range that an event lies in, "" where there is none."""
    around = event.cpu_parent
    while around is not None and not around.name.startswith(RANGE):
        around = around.cpu_parent
    return "" if around is None else around.name.removeprefix(RANGE)


def _parts_of(events: list[Any]) -> dict[int, str | None]:
    """The part that each event belongs to, by the event's id(); None for what lies between the parts.

    The events are in the order of their beginnings.
    """
    found: dict[int, str | None] = {}
    by_number: dict[tuple[int, int], str] = {}
    for event in events:
        name = event.name.removeprefix(RANGE) if event.name.startswith(RANGE) else _range_around(event)
        found[id(event)] = None if name in WHOLE else name
        if event.sequence_nr >= 0 and name in ("forward", "tiny"):
            # An operation that autograd has nothing to do for carries the number of the next one for which it has.
            by_number[event.thread, event.sequence_nr] = name
    for event in events:
        node = event
        while node is not None and not node.name.startswith(NODE):
            node = node.cpu_parent
        if node is not None:
            tiny = by_number.get((node.fwd_thread, node.sequence_nr)) == "tiny"
            found[id(event)] = "tiny" if tiny else "backward"
    return found


def trace(path: str | os.PathLike[str], scale: str | None = None, device: str | None = None, steps: int = 3) -> Path:
    """Write a trace of a few steps of the loop with all faults, and then of the loop without any.

    It is JSON in Chrome's trace event format, compressed, and opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

    Args:
        path: the file, named *.json.gz; never overwritten.
        scale, device: as `runner.run` takes them.
        steps: of each loop.

    Raises:
        EfflabError: another name, a file that exists, a number of steps that is not allowed, or a scale or device that
            does not fit.
        NotSaved: it cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(".json.gz"):
        raise EfflabError(f"trace: {path.name!r} is no name for a compressed trace. Let it end in .json.gz.")
    if path.exists():
        raise EfflabError(f"{path}: the file exists and is not overwritten. Choose another name.")
    if not 1 <= steps <= MOST_TRACED:
        raise EfflabError(f"trace: steps must lie between 1 and {MOST_TRACED}, got {steps!r}.")
    chosen = devices.choose(device)
    scale = scale or runner.default_scale(chosen)
    runner.check_scale(EXPERIMENT, scale, chosen)
    of = SCALES[scale]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_measured(chosen))
        loops = {name: stack.enter_context(Loop(of.text, of.size, chosen, faults)) for name, faults in BOTH.items()}
        found = profiled(loops, steps)
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "trace.json"
            found.export_chrome_trace(str(exported))
            data = json.loads(exported.read_text())
    data.pop("traceName", None)  # the path of a file that is gone
    return records.write(path, gzip.compress(json.dumps(data).encode(), mtime=0))


# The experiment


@contextlib.contextmanager
def _as_measured(device: Any, threads: int = THREADS) -> Iterator[None]:
    """On a CPU a number of threads, and freed memory stays with the process; on a GPU float32 is no TF32."""
    on_cpu = device.type == "cpu"
    if on_cpu:  # else a step pays page faults or does not, as it happens to have allocated before
        memory.keep_pages(True)
    with devices.threads(threads if on_cpu else None), devices.float32_as("fp32"):
        yield


@dataclass
class Session:
    """What the cases of one run share."""

    scale: Scale
    device: Any
    warnings: list[str]

    def __post_init__(self) -> None:
        self.clock = timer.clock_for(self.device)

    @functools.cached_property
    def size(self) -> dict[str, int]:
        """The decoder's size."""
        return with_vocabulary(self.scale.text, self.scale.size)

    def point(self, case: str, role: str, faults: Iterable[str], **more: Any) -> dict[str, Any]:
        """The point of a case that runs the loop."""
        size, (parameters, flops) = self.size, counted(self.size)
        return {
            "case": case, "role": role, "faults": ",".join(sorted(faults)), "batch": size["microbatch"],
            "context": size["sequence_length"], "tokens": size["microbatch"] * size["sequence_length"],
            "layers": size["layers"], "hidden_size": size["hidden_size"], "vocabulary": size["vocabulary"],
            "parameters": parameters, "flops": flops, "seed": SEED, "workers": 0, "pinned": False,
            "threads": THREADS if self.device.type == "cpu" else 0, **more,
        }  # fmt: skip

    def loop(self, point: dict[str, Any]) -> Loop:
        """The loop of a point."""
        faults = [name for name in point["faults"].split(",") if name]
        options = {name: point[name] for name in ("seed", "workers", "pinned", "ready") if name in point}
        return Loop(self.scale.text, self.scale.size, self.device, faults, **options)

    def sample(self, point: dict[str, Any], metric: str, timed: timer.Timed) -> Sample:
        """A sample of what was timed; its warnings go into the record."""
        self.warnings.extend(f"{point['case']}: {w}" for w in timed.warnings)
        return Sample(point=point, metric=metric, unit="s", values=timed.values, status="ok", timing=timed.timing)

    def take_turns(self, *calls: Callable[[], Any], turns: int = 0) -> list[timer.Timed]:
        """`timer.in_turns` as the scale says."""
        return timer.in_turns(calls, self.clock, turns or self.scale.turns, self.scale.timer)

    # What the cases do

    def step(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a step."""
        if point["pinned"] and self.device.type != "cuda":
            raise Unavailable("page-locked memory speeds up copies to a GPU, and this device is a CPU")
        with _as_measured(self.device), self.loop(point) as loop:
            yield self.sample(point, "time", self.take_turns(loop.step)[0])

    def against_all_faults(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a step, in turns with that of a step with all faults."""
        everything = point | {"faults": ",".join(FAULTS)}
        with _as_measured(self.device), self.loop(everything) as faulty, self.loop(point) as loop:
            baseline, mended = self.take_turns(faulty.step, loop.step)
        yield self.sample(point, "time", mended)
        if mended.warnings:
            baseline = dataclasses.replace(baseline, warnings=[])  # one doubt for a case is enough
        yield self.sample(point, "baseline", baseline)

    def batch(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time between two batches where this process does nothing but ask for them.

        Without workers that is the time to make one. With a worker it is the longer one of two: what the worker needs
        to make a batch and to send it, and what this process needs to receive it. Items of the mended data set are
        slices, so that making a batch of them is a small part, and the rest is the handing over.
        """
        items = data_set(self.scale.text, self.size["sequence_length"], "loader" in point["faults"].split(","))
        batches = Batches(items, self.size["microbatch"], workers=point["workers"])
        with _as_measured(self.device), contextlib.closing(batches):
            clock = timer.CPUClock()
            (timed,) = timer.in_turns([lambda: next(batches)], clock, self.scale.turns, self.scale.timer)
        yield self.sample(point, "time", timed)

    def peak(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a large product."""
        torch = devices.import_torch()
        n = self.scale.peak
        generator = torch.Generator(device=self.device).manual_seed(SEED)
        a, b = (torch.randn(n, n, device=self.device, generator=generator) for _ in range(2))
        out = torch.empty_like(a)
        with _as_measured(self.device):
            (timed,) = self.take_turns(lambda: torch.mm(a, b, out=out))
        yield self.sample(point, "time", timed)

    def profile(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Where the time of a step goes."""
        with _as_measured(self.device), self.loop(point) as loop:
            half = self.scale.turns // 2
            before = self.take_turns(loop.step, turns=half)
            found = profile(loop, self.scale.profiled)
            plainly = timer.together([*before, *self.take_turns(loop.step, turns=half)])
        waits = "+synchronize" if self.device.type == "cuda" else ""
        timing = Timing(clock="torch.profiler" + waits, mode="waited", loops=1, warmup=WARM + 1, stop="repeat limit")

        def sample(metric: str, unit: str, values: list[float]) -> Sample:
            clocked = timing if unit == "s" else None
            return Sample(point=point, metric=metric, unit=unit, values=values, status="ok", timing=clocked)

        yield sample("time", "s", found.step)
        yield self.sample(point, "baseline", plainly)
        for part, values in found.ranges.items():
            # A nested range may end a rounding after the one around it.
            yield sample(f"range_{part}", "s", [max(0.0, v) for v in values])
        for part, values in found.events.items():
            yield sample(f"events_{part}", "", values)
        yield sample("operators", "", found.operators)
        if found.kernels:
            yield sample("kernels", "", [sum(step) for step in zip(*found.kernels.values(), strict=True)])
            yield sample("kernel_time", "s", [sum(step) for step in zip(*found.kernel_time.values(), strict=True)])
            for part, values in found.kernel_time.items():
                yield sample(f"kernel_{part}", "s", values)
        for ending, written_out in (("", True), ("_mended", False)):
            number, bytes_ = count_tiny(self.size, written_out)
            yield sample(f"operators_tiny{ending}", "", [float(number)])
            yield sample(f"bytes_tiny{ending}", "B", [float(bytes_)])

    def curve(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The loss of every step of a short training."""
        torch = devices.import_torch()
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        name = "CUBLAS_WORKSPACE_CONFIG"  # torch asks for it before it promises anything of cuBLAS
        workspace = os.environ.get(name)
        try:
            if point["deterministic"]:
                os.environ.setdefault(name, ":4096:8")
                # Not warn_only: attention would then take an algorithm that adds in any order.
                torch.use_deterministic_algorithms(True)
            with _as_measured(self.device, int(point["threads"]) or THREADS), self.loop(point) as loop:
                for _ in range(self.scale.curve):
                    loop.step()
                losses = loop.losses
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            if workspace is None:
                os.environ.pop(name, None)
        if not all(map(math.isfinite, losses)):
            raise EfflabError("the loss is not finite: training diverged")
        yield Sample(point=point, metric="loss", unit="nats", values=losses, status="ok")

    def monitor(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The device's counters while the loop runs."""
        options = {"time_limit": self.scale.window, "most": 10**6, "stable": 1e-9}
        with _as_measured(self.device), self.loop(point) as loop:
            for _ in range(WARM):
                loop.step()
            with Monitor(self.device, self.scale.interval) as monitor:
                timed = timer.back_to_back([loop.step], self.clock, **self.scale.timer | options)
        yield self.sample(point, "time", timed)
        yield Sample(point=point, metric="elapsed", unit="s", values=monitor.elapsed, status="ok")
        for name, values in monitor.series.items():
            read = point | {"source": monitor.sources[name]}
            yield Sample(point=read, metric=name, unit=NAMES[name], values=values, status="ok")
        for name, reason in monitor.missing.items():
            self.warnings.append(runner.plain(f"{point['case']}: no {name}: {reason}"))


class Profiling:
    """The experiment: see the module's text."""

    topic = "profiling"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor on the device."""
        of, warnings = SCALES[scale], list[str]()
        session = Session(of, device, warnings)
        text = text_of(of.text)
        on_gpu = device.type == "cuda"
        cases = []

        def add(
            case: str, role: str, faults: Iterable[str], does: Any, result: Any = ("time", "s"), **more: Any
        ) -> None:
            point = session.point(case, role, faults, **more)
            cases.append(Case(point, lambda: does(point), *result))

        add("all-faults", "calibration", ALL, session.step)
        add("profile", "calibration", ALL, session.profile)
        square = {"m": of.peak, "n": of.peak, "k": of.peak, "dtype": "fp32"}
        point = {"case": "peak", "role": "calibration", "threads": THREADS if not on_gpu else 0, **square}
        cases.append(Case(point, lambda: session.peak(point)))
        add("batch-load", "calibration", {"loader"}, session.batch)
        add("hand-over", "calibration", NONE, session.batch, workers=1)
        add("compute", "calibration", {"loader"}, session.step, ready=READY)
        for name in FAULTS:
            add(f"without-{name}", "ablation", ALL - {name}, session.against_all_faults, mended=name)
        for count in range(2, len(FAULTS) + 1):
            mended = FAULTS[:count]
            add(f"mended-{count}", "ladder", ALL - {*mended}, session.against_all_faults, mended=",".join(mended))
        add("profile-clean", "evidence", NONE, session.profile)
        for workers in of.workers:
            if workers <= max(2, environment.cores or 1):
                add(f"workers-{workers}", "loader", {"loader"}, session.step, workers=workers)
        if on_gpu:
            add("workers-2-pinned", "loader", {"loader"}, session.step, workers=2, pinned=True)
        loss = {"result": ("loss", "nats"), "deterministic": False, "steps": of.curve}
        for case, faults, more in (
            ("seed-0", ALL, {}),
            ("seed-0-again", ALL, {}),
            ("seed-1", ALL, {"seed": 1}),
            ("seed-0-clean", NONE, {}),
            # Without faults: torch's own layer norm adds up in an order that depends on the threads.
            *([(f"seed-0-deterministic{n}", NONE, {"deterministic": True}) for n in ("", "-again")] if on_gpu else []),
            *([] if on_gpu else [("seed-0-threads", NONE, {"threads": 2})]),
        ):
            add(case, "seed", faults, session.curve, **loss | more)
        for name, faults in BOTH.items():
            add(f"monitor-{name}", "monitor", faults, session.monitor, interval=of.interval)
        spec: dict[str, Any] = {
            "scale": scale, "seed": SEED, "faults": list(FAULTS), "timer": of.timer, "turns": of.turns,
            "text": text.name, "text_of_python": platform.python_version(), "sha256": text.sha256,
            "characters": len(text.characters), "decoder": session.size, "variant": VARIANT.name, "precision": "fp32",
            "optimizer": f"AdamW, learning rate {RATE:g}, betas {BETAS[0]} and {BETAS[1]}, epsilon {EPSILON:g}, "
            f"weight decay {DECAY:g}",
            "window": WINDOW, "profiled_steps": of.profiled, "monitored": of.window, "interval": of.interval,
            "threads": THREADS if not on_gpu else None, "workers": "spawned", "cases": [c.name for c in cases],
        }  # fmt: skip
        return Plan(spec, cases, warnings)


EXPERIMENT = Profiling()
