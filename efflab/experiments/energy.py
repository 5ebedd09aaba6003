"""What the energy lab measures: joules and seconds of a small model's calls, and how far the counter can be trusted.

The model is a stack of square matrix products with ReLU between them, without biases: weights and inputs are normal
random numbers, never zeros: the values alone change the power of a product (Gregersen, Patel & Choukse 2024,
arXiv:2409.18324). The point's "role" says what a case is:

- "idle": power of the device while this process leaves it alone.
- "calibration": a square matrix product of each dtype, far beyond the ridge point, and a copy beyond the cache.
  "bytes" is what the copy reads and writes. Nothing is predicted of them.
- "inference": a forward pass of a batch; "calibrates" marks the two batches that calibrate the line of times
  (`spec.line`). "training": a step of forward, backward and SGD, whose learning rate of 0
  leaves the weights as they are.
- "counter": one long window of training steps, of which "energy" is what the counter gained and "integrated" the
  trapezoid rule over power readings of the same window.
- "window": what the counter gained ("gain") in windows of one length, one after the other, while a steady load goes
  on: the differences as they are.
- "limit": a GPU's power limit, and those between which an administrator may set it. It is read, never set.

Every other case holds windows of a whole number of calls each. A value of "time" or "energy" is one window's, per
call. Without an energy counter there are the times alone, and `spec` says why.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from efflab.experiments.runner import Case, Plan, Unavailable
from efflab.measure import device as devices
from efflab.measure import energy, monitor, timer
from efflab.measure.memory import keep_pages
from efflab.records import Environment, Record, Sample, Timing, Window

DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ON_CPU = ("fp32", "bf16")
SEED = 0
RATE = 0.0  # learning rate: the update takes the same time, and the weights do not run away
LONGEST = 5.0  # s; a call that takes longer is left out
INTERVAL = 0.05  # s between two power readings
QUEUED = 0.1  # s of work that waits on a GPU while windows are read, so that it never runs dry


@dataclass(frozen=True)
class Scale:
    """How much is measured at one scale.

    Attributes:
        width, layers, batches, training: of the model; `training` is the batch of a training step.
        line: the two of `batches` whose times calibrate. Of the smaller ones some take another kernel: a product with a
            vector.
        product: rows of the square product.
        load: rows of the product that is the steady load under the short windows.
        windows: s of a window by counter; "none" where there is none.
        repeats: windows of a case.
        settle: s of calls before the first window, so that power and clock have settled.
        rest: s without work before the idle windows.
        long: s of the window that is also integrated, by counter.
        lengths: s of the short windows, by counter. None is a whole number of periods: such a window always holds as
            many changes of the counter, and hides its error.
        updates: of the counter that windows of one length cover at least, all together.
    """

    width: int
    layers: int
    batches: tuple[int, ...]
    line: tuple[int, int]
    training: int
    product: int
    load: int
    windows: dict[str, float]
    repeats: int
    settle: float
    rest: float
    long: dict[str, float]
    lengths: dict[str, tuple[float, ...]]
    updates: int


SCALES = {
    "smoke": Scale(
        width=64, layers=2, batches=(1, 4, 16), line=(4, 16), training=4, product=96, load=32,
        windows={"none": 0.02, "rapl": 0.02, "nvml-counter": 0.3}, repeats=3, settle=0.0, rest=0.05,
        long={"rapl": 0.2, "nvml-counter": 1.0},
        lengths={"rapl": (3.3e-4, 3.3e-3, 0.0333), "nvml-counter": (0.013, 0.13, 0.33)}, updates=12,
    ),
    "cpu": Scale(
        width=2048, layers=4, batches=(1, 2, 4, 8, 16, 32, 64, 128), line=(8, 128), training=32, product=1024,
        load=128, windows={"none": 0.3, "rapl": 1.0}, repeats=5, settle=0.2, rest=2.0, long={"rapl": 2.0},
        lengths={"rapl": (3.3e-4, 1.3e-3, 3.3e-3, 0.0133, 0.0333, 0.1333)}, updates=20,
    ),
    "gpu": Scale(
        width=8192, layers=4, batches=(1, 4, 16, 64, 256, 1024, 4096), line=(16, 4096), training=1024, product=8192,
        load=4096, windows={"none": 0.5, "nvml-counter": 2.0}, repeats=3, settle=0.5, rest=3.0,
        long={"nvml-counter": 10.0}, lengths={"nvml-counter": (0.013, 0.033, 0.13, 0.33, 1.03, 3.03)}, updates=20,
    ),
}  # fmt: skip
FEWEST = 12  # short windows of one length
FEW = 3  # of those that last LASTS s or longer
LASTS = 1.0


@dataclass
class Session:
    """What the cases of one run share."""

    scale: str
    device: Any
    environment: Environment
    counter: str
    warnings: list[str]
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _meter: energy.Meter | None = None
    _weights: tuple[str, list[Any]] | None = None

    def __post_init__(self) -> None:
        self.clock = timer.clock_for(self.device)
        self.of = SCALES[self.scale]

    @property
    def meter(self) -> energy.Meter:
        """The counter, opened when the first case asks for it and closed with the run."""
        if self._meter is None:
            self._meter = self.held.enter_context(energy.Meter([self.device]))
        return self._meter

    @property
    def threads(self) -> int | None:
        """Of a CPU that torch uses; None: as many as it does now.

        RAPL counts whole packages, so that all of them work where it is read. Without it there are times alone, and
        one thread's repeat: several wait for each other on a busy machine.
        """
        return 1 if self.device.type == "cpu" and self.counter == "none" else None

    # What is called

    def random(self, dtype: str, *shape: int) -> Any:
        """Normal random numbers, the same in every run."""
        torch = devices.import_torch()
        generator = torch.Generator(device=self.device).manual_seed(SEED + len(shape))
        return torch.randn(*shape, device=self.device, generator=generator).to(getattr(torch, DTYPES[dtype]))

    def weights(self, dtype: str) -> list[Any]:
        """The model's, one matrix [width, width] for each layer, stored as torch.nn.Linear stores it."""
        if self._weights is None or self._weights[0] != dtype:
            self._weights = None  # its memory goes before new memory is asked for
            torch, n = devices.import_torch(), self.of.width
            generator = torch.Generator(device=self.device).manual_seed(SEED)
            made = [
                torch.randn(n, n, device=self.device, generator=generator)
                .div_(math.sqrt(n))
                .to(getattr(torch, DTYPES[dtype]))
                .requires_grad_()
                for _ in range(self.of.layers)
            ]
            self._weights = dtype, made
        return self._weights[1]

    def forward(self, weights: Sequence[Any], x: Any) -> Any:
        """The model's output for a batch [batch, width]."""
        for i, weight in enumerate(weights):
            x = (x.relu_() if i else x) @ weight.t()
        return x

    def infer(self, dtype: str, batch: int) -> Callable[[], Any]:
        """A forward pass that keeps nothing for a backward pass."""
        torch = devices.import_torch()
        weights, x = self.weights(dtype), self.random(dtype, batch, self.of.width)

        def call() -> Any:
            with torch.inference_mode():
                return self.forward(weights, x)

        return call

    def step(self, dtype: str) -> Callable[[], Any]:
        """A training step. The gradient of the output is given, so that there is no loss to compute."""
        torch = devices.import_torch()
        weights, x = self.weights(dtype), self.random(dtype, self.of.training, self.of.width)
        given = self.random(dtype, self.of.training, self.of.width)

        def call() -> None:
            gradients = torch.autograd.grad(self.forward(weights, x), weights, given)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.sub_(gradient, alpha=RATE)

        return call

    def product(self, dtype: str, n: int) -> Callable[[], Any]:
        """A square product."""
        torch = devices.import_torch()
        a, weight = self.random(dtype, n, n), self.random(dtype, n, n)
        out = torch.empty_like(a).fill_(1)  # its pages exist before it is timed
        return lambda: torch.mm(a, weight.t(), out=out)

    def copy(self) -> Callable[[], Any]:
        """A copy of an array in fp32."""
        torch = devices.import_torch()
        a = self.random("fp32", self.copied // 8)
        b = torch.empty_like(a).fill_(1)
        return lambda: b.copy_(a)

    @property
    def copied(self) -> int:
        """B that the copy reads and writes: eight times the last-level cache, or a sixteenth of the memory."""
        if self.scale == "smoke":
            return 2**20
        cache, memory = devices.last_level_cache(self.environment), self.environment.memory or 4 * 2**30
        return min(8 * cache, memory // 16) // 8 * 8

    # Windows

    def windows(self, point: dict[str, Any], make: Callable[[], Callable[[], Any]]) -> Iterator[Sample]:
        """Time, and where there is a counter energy, of a call: windows of a whole number of calls."""
        with self.ready(point["dtype"]):
            call = make()
            joules: list[float] = []
            missing: list[str] = []

            def measure() -> timer.Timed:
                joules.clear()
                missing.clear()
                warmup, seconds = self.warm_up(call)
                loops = math.ceil(self.of.windows[self.counter] / seconds)
                return timer.together(
                    [self.window(call, loops, 0 if i else warmup, joules, missing) for i in range(self.of.repeats)]
                )

            timed = timer.undisturbed(
                measure,
                lambda said: self.warnings.append(f"{point['case']}: {said}"),
                attempts=1 if self.scale == "smoke" else timer.ATTEMPTS,
            )
        self.warnings.extend(f"{point['case']}: {w}" for w in timed.warnings)
        yield Sample(point=point, metric="time", unit="s", values=timed.values, status="ok", timing=timed.timing)
        if self.counter != "none":
            yield _energies(point, "energy", joules, missing)

    def window(
        self, call: Callable[[], Any], loops: int, warmup: int, joules: list[float], missing: list[str]
    ) -> timer.Timed:
        """One window of so many calls; its energy per call is added to `joules`, or why there is none to `missing`."""
        mark = self.meter.begin()
        took = self.clock.elapsed(lambda: _repeat(call, loops))
        reading = self.meter.since(mark)
        found = None
        if reading.total is None:
            missing.append(reading.why)
        else:
            joules.append(reading.total / loops)
            found = Window(joules=reading.total, seconds=reading.seconds, calls=loops)
        timing = Timing(
            clock=self.clock.name, mode="back-to-back", loops=loops, warmup=warmup, stop="repeat limit", energy=found
        )
        wanted = self.of.windows[self.counter]
        return timer.Timed([took / loops], timing, timer.short([took / loops], loops, wanted, "the warm-up was slower"))

    def warm_up(self, call: Callable[[], Any]) -> tuple[int, float]:
        """Call until power and clock have settled. How many calls that were, and s of one.

        Raises:
            Unavailable: a call takes longer than the lab allows.
        """
        first = self.clock.elapsed(call)  # loads what is loaded once
        calls, loops, took = 1, 1, self.clock.elapsed(call)
        if min(first, took) > LONGEST:
            raise Unavailable(f"a call takes {took:.3g} s, longer than the lab allows")
        calls += 1
        spent = 0.0
        enough = max(self.of.settle, self.of.windows[self.counter] / 10)
        while spent < enough:
            loops = min(10 * loops, max(1, math.ceil(enough / 2 * loops / took))) if took > 0 else 10 * loops
            took = self.clock.elapsed(lambda: _repeat(call, loops))  # noqa: B023  it is called at once
            calls += loops
            spent += took
        return calls, took / loops

    @contextlib.contextmanager
    def ready(self, dtype: str) -> Iterator[None]:
        """Torch as a case needs it.

        Raises:
            Unavailable: the device does not multiply in this dtype.
        """
        if why := devices.missing_for(dtype, self.device):
            raise Unavailable(why)
        if self.device.type == "cpu":
            keep_pages(True)
        with devices.threads(self.threads), devices.float32_as(dtype):
            yield

    # What only a counter can say

    def idle(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Power in windows in which nothing is asked of the device."""
        time.sleep(self.of.rest)
        watts: list[float] = []
        missing: list[str] = []
        for _ in range(self.of.repeats):
            mark = self.meter.begin()
            time.sleep(self.of.windows[self.counter])
            reading = self.meter.since(mark)
            if reading.total is None:
                missing.append(reading.why)
            else:
                watts.append(reading.total / reading.seconds)
        yield _energies(point, "power", watts, missing)

    def compared(self, point: dict[str, Any]) -> Iterator[Sample]:
        """A long window of training steps: what the counter gained, and power readings of it integrated."""
        length = self.of.long[self.counter]
        gained: list[float] = []
        integrated: list[float] = []
        seconds: list[float] = []
        missing: list[str] = []
        with self.ready(point["dtype"]):
            call = self.step(point["dtype"])
            for _ in range(self.of.repeats):
                with monitor.Monitor(self.device, INTERVAL) as seen:
                    began = time.perf_counter()
                    if "power" not in seen.sources:
                        raise Unavailable(seen.missing["power"])
                    # A product may average its power over a second: what ran before the window is in its readings.
                    loops = math.ceil(length / 5 / self.warm_up(call)[1])
                    took = self.clock.elapsed(lambda: _repeat(call, loops))  # noqa: B023  it is called at once
                    loops = math.ceil(length / (took / loops))
                    mark = self.meter.begin()
                    _repeat(call, loops)
                    reading = self.meter.since(mark)
                if "power" in seen.missing:
                    missing.append(seen.missing["power"])
                elif reading.total is None:
                    missing.append(reading.why)
                else:
                    begin = mark.at - began
                    gained.append(reading.total)
                    seconds.append(reading.seconds)
                    integrated.append(integral(seen.elapsed, seen.series["power"], begin, begin + reading.seconds))
        yield _energies(point, "energy", gained, missing)
        if not missing:
            yield Sample(point=point, metric="integrated", unit="J", values=integrated, status="ok")
            yield Sample(point=point, metric="time", unit="s", values=seconds, status="ok")

    def short(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Windows of one length under a steady load, read without waiting for it."""
        length, period = point["length"], self.meter.period
        count = max(FEW if length >= LASTS else FEWEST, math.ceil(self.of.updates * period / length))
        gains: list[float] = []
        seconds: list[float] = []
        with self.ready(point["dtype"]):
            load = Load(self.product(point["dtype"], self.of.load), self.device)
            load.go_on(max(self.of.settle, 2 * period))
            for _ in range(count):
                mark = self.meter.begin(wait=False)
                load.go_on(length)
                reading = self.meter.gained(mark, wait=False)
                if reading.total is None:
                    raise Unavailable(reading.why)
                gains.append(reading.total)
                seconds.append(reading.seconds)
            self.clock.synchronize()
        yield Sample(point=point, metric="gain", unit="J", values=gains, status="ok")
        yield Sample(point=point, metric="time", unit="s", values=seconds, status="ok")

    def limits(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The GPU's power limits."""
        found = energy.limits(self.device)
        for metric, name in (
            ("limit", "enforced"), ("limit_default", "default"), ("limit_least", "least"), ("limit_most", "most"),
        ):  # fmt: skip
            if name in found:
                yield Sample(point=point, metric=metric, unit="W", values=[found[name]], status="ok")


class Load:
    """Calls that follow each other for as long as somebody watches.

    On a GPU they are queued ahead, so that it works on while the host waits; on a CPU they are made by this thread.
    """

    def __init__(self, call: Callable[[], Any], device: Any) -> None:
        self._call, self._device = call, device
        self._queue: deque[Any] = deque()
        call()
        clock = timer.clock_for(device)
        self._seconds = min(clock.elapsed(call) for _ in range(3))

    def go_on(self, seconds: float) -> None:
        """Return after so long; the load has gone on all the while, and on a GPU still does."""
        end = time.perf_counter() + seconds
        if self._device.type == "cpu":
            while time.perf_counter() < end:
                self._call()
            return
        cuda = devices.import_torch().cuda
        while (left := end - time.perf_counter()) > 0:
            while self._queue and self._queue[0].query():
                self._queue.popleft()
            while len(self._queue) * self._seconds < 2 * QUEUED and time.perf_counter() < end:
                self._call()
                done = cuda.Event()
                done.record(cuda.current_stream(self._device))
                self._queue.append(done)
            time.sleep(min(left, QUEUED / 2))


def _repeat(call: Callable[[], Any], loops: int) -> None:
    for _ in range(loops):
        call()


def _energies(point: dict[str, Any], metric: str, values: list[float], missing: list[str]) -> Sample:
    """A sample of every window's value; failed where one of them has none."""
    unit = {"energy": "J", "power": "W"}[metric]
    if missing:
        return Sample(point=point, metric=metric, unit=unit, values=[], status="failed", message=missing[0])
    return Sample(point=point, metric=metric, unit=unit, values=list(values), status="ok")


def integral(times: Sequence[float], values: Sequence[float], begin: float, end: float) -> float:
    """The integral of a series over a window by the trapezoid rule. Before the first and after the last of its times
    it is taken to stay as it is there.

    Args:
        times: s, rising; at least one.
        values: one for each time.
        begin, end: of the window, s.
    """
    import numpy as np

    inside = [t for t in times if begin < t < end]
    at = np.array([begin, *inside, end])
    y = np.interp(at, times, values)
    return float(np.sum(np.diff(at) * (y[1:] + y[:-1]) / 2))


class EnergyLab:
    """The experiment: see the module's text."""

    topic = "energy"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor."""
        with energy.Meter([device]) as meter:
            counter, why, period = meter.source, meter.why, meter.period
        warnings: list[str] = []
        session = Session(scale, device, environment, counter, warnings)
        of = session.of
        dtypes = list(DTYPES) if device.type == "cuda" else list(ON_CPU)
        cases = list(_cases(session, dtypes))
        spec: dict[str, Any] = {
            "scale": scale, "seed": SEED, "width": of.width, "layers": of.layers, "batches": list(of.batches),
            "line": list(of.line), "training_batch": of.training, "dtypes": dtypes, "window": of.windows[counter],
            "repeats": of.repeats, "settle": of.settle, "rest": of.rest,
            "threads": session.threads or devices.import_torch().get_num_threads(),
            "counter": counter, "why": why, "period": period,
            "instructions": devices.instructions(device),
            "cases": [c.name for c in cases],
        }  # fmt: skip
        return Plan(spec, cases, warnings, close=session.held.close)


def _cases(session: Session, dtypes: list[str]) -> Iterator[Case]:
    of, counted = session.of, session.counter != "none"

    def timed(case: str, role: str, make: Callable[[], Callable[[], Any]], **more: Any) -> Case:
        point: dict[str, Any] = {"case": case, "role": role, **more}
        return Case(point, lambda: session.windows(point, make))

    def other(
        samples: Callable[[dict[str, Any]], Iterator[Sample]], metric: str, unit: str, point: dict[str, Any]
    ) -> Case:
        return Case(point, lambda: samples(point), metric, unit)

    if counted:
        yield other(session.idle, "power", "W", {"case": "idle", "role": "idle"})
    for dtype in dtypes:
        yield timed(
            f"product-{dtype}", "calibration", lambda d=dtype: session.product(d, of.product), dtype=dtype, m=of.product
        )
    yield timed("stream", "calibration", session.copy, dtype="fp32", bytes=session.copied)
    for dtype, batch in itertools.product(dtypes, of.batches):
        yield timed(
            f"infer-{dtype}-{batch}", "inference", lambda d=dtype, b=batch: session.infer(d, b), dtype=dtype,
            batch=batch, width=of.width, layers=of.layers, series=f"{dtype} by batch", calibrates=batch in of.line,
        )  # fmt: skip
    for dtype in dtypes:
        yield timed(
            f"train-{dtype}", "training", lambda d=dtype: session.step(d), dtype=dtype, batch=of.training,
            width=of.width, layers=of.layers,
        )  # fmt: skip
    if counted:
        point = {
            "case": "counter", "role": "counter", "dtype": "fp32", "batch": of.training,
            "length": of.long[session.counter],
        }  # fmt: skip
        yield other(session.compared, "energy", "J", point)
        for length in of.lengths[session.counter]:
            point = {"case": f"window-{length * 1e3:g}", "role": "window", "dtype": "fp32", "length": length}
            yield other(session.short, "gain", "J", point | {"m": of.load})
    if session.device.type == "cuda":
        yield other(session.limits, "limit", "W", {"case": "limit", "role": "limit"})


EXPERIMENT = EnergyLab()
