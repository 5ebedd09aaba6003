"""Checkers of the roofline's code and measurement exercises."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from efflab.catalog import match_device
from efflab.exercises.checks import NotYet, Subject, close, own, written
from efflab.formulas import reading
from efflab.formulas.roofline import KERNELS
from efflab.records import Record, Sample, median
from efflab.units import BYTE_PER_SECOND, FLOP_PER_SECOND, show


def matmul_intensity(answer: Any) -> None:
    """FLOP/B of an (m, k) by (k, n) product."""
    function = Subject(answer, "matmul_intensity", "m", "n", "k", "bytes_per_element")
    draw = random.Random(1)
    cases = [(2, 3, 4, 2), (512, 4096, 1024, 2), (8192, 1, 8192, 2)]
    cases += [
        (draw.randint(1, 5000), draw.randint(1, 5000), draw.randint(1, 5000), draw.choice([1, 2, 4, 8]))
        for _ in range(20)
    ]
    for m, n, k, b in cases:
        arguments = {"m": m, "n": n, "k": k, "bytes_per_element": b}
        got, call = function.number(**arguments), function.describe(**arguments)
        flops, moved = 2 * m * n * k, b * (m * k + k * n + m * n)
        if close(got, flops / moved):
            continue
        said = written(call, got)
        for name, value, why in (
            (
                "counted a multiply-add as one",
                flops / moved / 2,
                "half of what is right. A multiply and an add are two operations.",
            ),
            (
                "forgot the write",
                flops / (b * (m * k + k * n)),
                "the value without writing the result. Its m·n elements cross the bus too.",
            ),
            (
                "counted elements",
                flops * b / moved,
                "operations per element. Multiply the traffic by bytes_per_element.",
            ),
            ("turned it over", moved / flops, "bytes per operation. Intensity is operations per byte."),
            ("forgot the inputs", flops / (b * m * n), "the value without reading the two inputs."),
            (
                "read once per use",
                flops / (b * (2 * m * n * k + m * n)),
                "the value without any reuse. Compulsory traffic reads each input once; caches hold what is reused.",
            ),
        ):
            if close(got, value):
                raise NotYet(f"{said}, {why}", name)
        raise NotYet(f"{said}. By hand: {flops} FLOP over {moved} B, so {flops / moved:.6g} FLOP/B.")


def regime(answer: Any) -> None:
    """Which of the three terms is largest."""
    function = Subject(answer, "regime", "flops", "bytes_moved", "peak_performance", "memory_bandwidth", "overhead")
    h200 = {"peak_performance": 989.4e12, "memory_bandwidth": 4.8e12, "overhead": 5e-6}
    cpu = {"peak_performance": 197e9, "memory_bandwidth": 36e9, "overhead": 1.1e-6}
    cases: list[tuple[str, dict[str, float], str]] = [
        ("a BF16 matmul of 8192³ on an H200", {"flops": 2 * 8192**3, "bytes_moved": 6 * 8192**2, **h200}, "compute"),
        (
            "a BF16 matrix-vector product of 16384² on an H200",
            {"flops": 2 * 16384**2, "bytes_moved": 2 * (16384**2 + 2 * 16384), **h200},
            "memory",
        ),
        ("adding 1,000 numbers on an H200", {"flops": 1e3, "bytes_moved": 12e3, **h200}, "overhead"),
        ("a BF16 matmul of 256³ on an H200", {"flops": 2 * 256**3, "bytes_moved": 6 * 256**2, **h200}, "overhead"),
        ("a copy of 1 GB on an H200: no arithmetic at all", {"flops": 0, "bytes_moved": 2e9, **h200}, "memory"),
        (
            "an FP32 matmul of 1024³ on two CPU cores",
            {"flops": 2 * 1024**3, "bytes_moved": 12 * 1024**2, **cpu},
            "compute",
        ),
        (
            "the same matmul in a call that costs a second",
            {"flops": 2 * 1024**3, "bytes_moved": 12 * 1024**2, **cpu, "overhead": 1.0},
            "overhead",
        ),
    ]
    draw = random.Random(2)
    for _ in range(30):
        c = {"flops": 10 ** draw.uniform(3, 14), "bytes_moved": 10 ** draw.uniform(3, 11), **draw.choice([h200, cpu])}
        times = {
            "compute": c["flops"] / c["peak_performance"],
            "memory": c["bytes_moved"] / c["memory_bandwidth"],
            "overhead": c["overhead"],
        }
        cases.append(("a kernel drawn at random", c, max(times, key=times.__getitem__)))
    for what, arguments, right in cases:
        got = function(**arguments)
        if got == right:
            continue
        call = function.describe(**arguments)
        if got not in ("compute", "memory", "overhead"):
            raise NotYet(f'{written(call, got)}. Return one of the texts "compute", "memory" and "overhead".')
        compute = arguments["flops"] / arguments["peak_performance"]
        memory = arguments["bytes_moved"] / arguments["memory_bandwidth"]
        times = f"compute {compute:.3g} s, memory {memory:.3g} s, overhead {arguments['overhead']:.3g} s"
        if right == "overhead":
            raise NotYet(
                f'{what} is "{right}", not "{got}": {times}. Compare the overhead with both others first.',
                "forgot the overhead",
            )
        if {got, right} == {"compute", "memory"}:
            raise NotYet(
                f'{what} is "{right}", not "{got}": {times}. The regime is the largest of the three times.', "swapped"
            )
        raise NotYet(f'{what} is "{right}", not "{got}": {times}. The overhead is not the largest of the three here.')


def chain_bytes(answer: Any) -> None:
    """Traffic of an elementwise chain, fused or not."""
    function = Subject(answer, "chain_bytes", "elements", "operations", "bytes_per_element", "fused")
    draw = random.Random(3)
    cases = [(2**28, 3, 4, False), (2**28, 3, 4, True), (10, 1, 2, False), (10, 1, 2, True)]
    cases += [
        (draw.randint(1, 10**9), draw.randint(1, 60), draw.choice([1, 2, 4, 8]), draw.random() < 0.5) for _ in range(20)
    ]
    for n, k, b, fused in cases:
        arguments = {"elements": n, "operations": k, "bytes_per_element": b, "fused": fused}
        got, call = function.number(**arguments), function.describe(**arguments)
        right = 2 * n * b * (1 if fused else k)
        if close(got, right):
            continue
        said = written(call, got)
        if k > 1 and close(got, 2 * n * b * (k if fused else 1)):
            raise NotYet(
                f"{said}. That is the traffic of the {'un' if fused else ''}fused chain.", "ignored or swapped fused"
            )
        if close(got, right / 2):
            raise NotYet(f"{said}, half of what is right. Each pass reads the array and writes it.", "forgot the write")
        if close(got, right / b):
            raise NotYet(f"{said}, which counts elements. Multiply by bytes_per_element.", "counted elements")
        if close(got, (k + 1) * n * b):
            raise NotYet(
                f"{said}. The result of each unfused step is written to memory and read again by the next.",
                "kept the intermediates",
            )
        passes = "one pass" if fused else f"{k} passes"
        raise NotYet(f"{said}. By hand: {passes}, each reading and writing {n} × {b} B: {right} B.")


class FakeDevice:
    """An asynchronous device with a clock of its own, so that a timer can be checked without waiting.

    `run` queues a kernel and returns at once. `synchronize` waits until the queue is empty. `clock` reads the
    host's clock. The first kernels are slow (compilation, cold caches) and now and then one is disturbed.
    """

    LAUNCH, KERNEL, FIRST, DISTURBED = 5e-6, 2e-3, 50e-3, 21e-3

    def __init__(self, slow: int, disturb_every: int = 0, limit: int = 10_000) -> None:
        self.now = 100.0
        self.idle_at = 100.0
        self.slow = slow
        self.disturb_every = disturb_every
        self.limit = limit
        self.events: list[str] = []
        self.busy_at_clock: list[bool] = []
        self.runs = 0
        self.costs: list[float] = []

    def run(self) -> None:
        self.runs += 1
        if self.runs > self.limit:
            raise NotYet(f"run was called more than {self.limit} times. How often should it be?")
        self.events.append("run")
        self.now += self.LAUNCH
        cost = self.KERNEL * (1 + 0.04 * (self.runs * 3 % 7 - 3))  # no two calls take quite the same time
        if self.runs <= self.slow:
            cost = self.FIRST
        elif self.disturb_every and (self.runs - self.slow) % self.disturb_every == 0:
            cost = self.DISTURBED
        self.costs.append(cost)
        self.idle_at = max(self.now, self.idle_at) + cost

    def synchronize(self) -> None:
        self.events.append("sync")
        self.now = max(self.now, self.idle_at)

    def clock(self) -> float:
        self.events.append("clock")
        self.busy_at_clock.append(self.idle_at > self.now)
        return self.now


def time_it(answer: Any) -> None:
    """A timer of an asynchronous device: warm-up, synchronise, each repeat on its own, median."""
    function = Subject(answer, "time_it", "run", "synchronize", "clock", "warmup", "repeats")
    for warmup, repeats, disturb in ((3, 9, 0), (3, 9, 4), (2, 10, 4), (1, 1, 0), (5, 31, 7)):
        device = FakeDevice(slow=warmup, disturb_every=disturb)
        got = function.number(
            run=device.run, synchronize=device.synchronize, clock=device.clock, warmup=warmup, repeats=repeats
        )
        events = device.events
        call = f"time_it(..., warmup={warmup}, repeats={repeats})"
        if "run" not in events:
            raise NotYet(f"{call} never called run().")
        if "clock" not in events:
            raise NotYet(f"{call} never read clock(). Use the clock that is passed in: a test can then supply its own.")
        if "run" not in events[: events.index("clock")]:
            raise NotYet(
                f"{call} timed the very first call, which took {device.FIRST * 1e3:.0f} ms for compilation and cold "
                f"caches; later ones take {device.KERNEL * 1e3:.0f} ms. Call run() {warmup} times before the first "
                "clock reading.",
                "no warm-up",
            )
        if "sync" not in events:
            raise NotYet(
                f"{call} gives {got:.3g} s, but a call takes {device.KERNEL:.3g} s. run() only queues the work: call "
                "synchronize() before each clock reading.",
                "no synchronisation",
            )
        before = events[: events.index("clock")].count("run")
        if before != warmup:
            raise NotYet(
                f"{call} made {before} calls before the first clock reading; warmup asks for {warmup}.", "warm-up count"
            )
        if device.busy_at_clock[0]:
            raise NotYet(
                f"{call} read the clock while the warm-up was still running on the device, so the first repeat waits "
                "for it. Call synchronize() after the warm-up.",
                "no synchronisation before the start",
            )
        if any(device.busy_at_clock):
            raise NotYet(
                f"{call} read the clock while the device was still working: the time is that of the launch. Call "
                "synchronize() between run() and the second clock reading.",
                "no synchronisation before the end",
            )
        timed = device.runs - warmup
        if timed != repeats:
            raise NotYet(f"{call} timed {timed} calls; repeats asks for {repeats}.", "repeat count")
        if events.count("clock") <= repeats and repeats > 1:
            raise NotYet(
                f"{call} read the clock {events.count('clock')} times for {repeats} repeats. Time each repeat on its "
                "own: from one total you cannot take a median, and one disturbed call spoils it.",
                "one total",
            )
        costs = sorted(cost + device.LAUNCH for cost in device.costs[warmup:])
        low, high = costs[(repeats - 1) // 2], costs[repeats // 2]
        if 0.99 * low <= got <= 1.01 * high:
            continue
        for name, value, why in (
            ("mean", sum(costs) / repeats, "the mean. Disturbed calls pull it up; the median stays."),
            ("total", sum(costs), "the time of all repeats together, not of one call."),
            ("minimum", costs[0], "the fastest repeat. The exercise asks for the median."),
            ("maximum", costs[-1], "the slowest repeat, which tells about the disturbance."),
            ("milliseconds", low * 1e3, "the median in milliseconds. Return seconds, as clock() does."),
        ):
            if close(got, value, 0.01):
                raise NotYet(f"{call} gives {got:.4g}: {why}", name)
        raise NotYet(f"{call} gives {got:.4g} s; the median of its repeats is {(low + high) / 2:.4g} s.")


def compute_bound_batch(answer: Any) -> None:
    """Least whole batch at which a layer's arithmetic takes as long as its traffic; infinity where none does."""
    function = Subject(
        answer, "compute_bound_batch", "inputs", "outputs", "bytes_per_element", "peak_performance", "memory_bandwidth"
    )

    def terms(batch: int, i: int, o: int, b: int, peak: float, bandwidth: float) -> tuple[float, float]:
        return 2 * batch * i * o / peak, b * (i * o + batch * (i + o)) / bandwidth

    h200, a100 = (989.4e12, 4.8e12), (312e12, 2.039e12)
    cases = [
        (8192, 8192, 2, *h200),
        (8192, 28672, 2, *h200),
        (4096, 4096, 2, *a100),
        (128, 128, 2, *h200),
        (64, 4096, 2, *h200),
    ]
    draw = random.Random(4)
    cases += [
        (draw.randrange(64, 16384), draw.randrange(64, 16384), draw.choice([1, 2, 4]), *draw.choice([h200, a100]))
        for _ in range(20)
    ]
    for i, o, b, peak, bandwidth in cases:
        case = (i, o, b, peak, bandwidth)
        arguments = {
            "inputs": i,
            "outputs": o,
            "bytes_per_element": b,
            "peak_performance": peak,
            "memory_bandwidth": bandwidth,
        }
        got, call = function.number(**arguments), function.describe(**arguments)
        said = written(call, got)
        # With ever more rows the weights stop counting and the intensity tends to this limit.
        limit = 2 * i * o / (b * (i + o))
        ridge = peak / bandwidth
        if limit <= ridge:
            if got != math.inf:
                raise NotYet(
                    f"{said}. However large the batch, the activations' own traffic holds the intensity below "
                    f"{limit:.4g} FLOP/B, under the ridge point of {ridge:.4g}: return math.inf.",
                    "no batch suffices",
                )
            continue
        exact = b * i * o / bandwidth / (2 * i * o / peak - b * (i + o) / bandwidth)
        right = max(1, math.ceil(exact - 1e-9))
        if got == right:
            continue
        if got == math.inf:
            raise NotYet(f"{said}, but from batch {right} on this layer is compute-bound.")
        weights_only = peak * b / (2 * bandwidth)
        if got in (math.ceil(weights_only), round(weights_only), math.floor(weights_only)) or close(
            got, weights_only, 1e-3
        ):
            compute, memory = terms(math.ceil(weights_only), *case)
            raise NotYet(
                f"{said}, which counts the weights alone. At that batch the arithmetic takes {compute * 1e6:.4g} µs "
                f"and the traffic, activations in and out included, {memory * 1e6:.4g} µs.",
                "forgot the activations",
            )
        if got != int(got):
            raise NotYet(f"{said}. A batch is a whole number: the least one that suffices.", "not whole")
        compute, memory = terms(int(got), *case)
        below = "still memory-bound" if compute < memory else "not the least batch that is compute-bound"
        raise NotYet(
            f"{said}. There the arithmetic takes {compute * 1e6:.5g} µs and the traffic {memory * 1e6:.5g} µs: {below}."
        )


def scale_shift_relu(answer: Any) -> None:
    """out = relu(2x + 1), written into `out`, with no other large tensor."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        """Counts tensors of new storage that are as large as the input."""

        def __init__(self, known: set[int], size: int) -> None:
            super().__init__()
            self.known, self.size, self.fresh = known, size, []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() >= self.size // 2:
                    address = leaf.untyped_storage().data_ptr()
                    if address not in self.known:
                        self.known.add(address)
                        self.fresh.append(
                            (str(function).removeprefix("aten."), leaf)
                        )  # kept, so that no address is reused
            return result

    function = Subject(answer, "scale_shift_relu", "x", "out")
    generator = torch.Generator().manual_seed(5)
    for shape, dtype in (((1000,), torch.float32), ((64, 33), torch.float32), ((5, 6, 7), torch.float64)):
        x = torch.randn(shape, generator=generator, dtype=dtype)
        before, out = x.clone(), torch.full(shape, float("nan"), dtype=dtype)
        storage = out.data_ptr()
        watch = Watch({x.untyped_storage().data_ptr(), out.untyped_storage().data_ptr()}, x.untyped_storage().nbytes())
        with watch:
            function(x=x, out=out)
        call = f"scale_shift_relu(x, out) on shape {tuple(shape)}"
        if not torch.equal(x, before):
            raise NotYet(f"{call} changed its input x. Write into out only.", "changed the input")
        if out.shape != x.shape or out.data_ptr() != storage:
            raise NotYet(f"{call} changed out's shape or memory. Write into the tensor that was given.")
        if bool(torch.isnan(out).all()):
            raise NotYet(
                f"{call} left out as it was. `out = ...` only binds a name; use out=out or an in-place "
                "operation (its name ends with _).",
                "bound a name",
            )
        expected = torch.clamp(2 * before + 1, min=0)
        if not torch.allclose(out, expected):
            if torch.allclose(out, 2 * before + 1):
                raise NotYet(f"{call} gives 2x + 1 without the relu.", "no relu")
            i = int((out - expected).abs().nan_to_num(math.inf).argmax())
            raise NotYet(
                f"{call}: for x = {before.flatten()[i]:.4g} out is {out.flatten()[i]:.4g}, "
                f"but relu(2x + 1) is {expected.flatten()[i]:.4g}."
            )
        if watch.fresh:
            names = ", ".join(name for name, _ in watch.fresh)
            raise NotYet(
                f"{call} gives the right values, but made {len(watch.fresh)} new tensor"
                f"{'s' if len(watch.fresh) > 1 else ''} as large as x ({names}). Each costs fresh memory and its page "
                "faults: use out=out and in-place operations.",
                "fresh memory",
            )


KERNELS_NEEDED = 8
FEWEST_REPEATS = 3
# How far a kernel may lie above this device's own ceilings before its time is not believed. Ceilings are measured
# too, a larger product may be a little better than the one that set the ceiling, and a copy pays for its writes
# twice on most CPUs, which a kernel that only reads does not.
COMPUTE_NOISE, MEMORY_NOISE = 1.3, 2.0
DATA_SHEET_NOISE = 1.05


def own_record(answer: Any) -> str:
    """A record of this topic that can be trusted."""
    record = own("roofline", answer)
    kernels = [s for s in record.samples if s.metric == "time" and s.point.get("kernel") in KERNELS]
    ceilings = [s for s in kernels if s.point.get("role") == "ceiling" and s.status == "ok"]
    copies = [s for s in record.samples if s.point.get("case") == "ceiling-copy" and s.status == "ok"]
    kernels = [s for s in kernels if s.point.get("role") != "ceiling" and s.status == "ok"]
    if len(kernels) < KERNELS_NEEDED:
        raise NotYet(
            f"Record {record.id} has {len(kernels)} timed kernels; {KERNELS_NEEDED} are needed. "
            "Run 'efflab run roofline'."
        )
    for sample in [*kernels, *ceilings, *copies]:
        _timed_well(sample, record)
    if all(len(set(s.values)) == 1 for s in kernels):
        raise NotYet("All repeats of every kernel are equal to the last digit. Real repeats differ: were they copied?")
    if not ceilings or not copies:
        raise NotYet(
            f"Record {record.id} holds no measured ceilings (a large copy, a large matrix product). "
            "Run 'efflab run roofline', which measures them beside the kernels."
        )
    _possible(kernels, ceilings, copies, record)
    said = (
        f"{len(kernels)} kernels, each warmed up and repeated at least {FEWEST_REPEATS} times; none beats the "
        "device's ceilings."
    )
    if record.scale == "smoke":
        said += (
            " The scale is smoke: sizes for a test, too small to say anything about a device. For sizes that do, "
            "run 'efflab run roofline'."
        )
    return said


def _timed_well(sample: Sample, record: Record) -> None:
    """Warm-up, repeats, synchronisation."""
    case = sample.point.get("case")
    if sample.timing is None:
        raise NotYet(
            f"{case}: the record does not say how it was timed. Measure with 'efflab run roofline'.", "no timing"
        )
    if sample.timing.warmup < 1:
        raise NotYet(
            f"{case}: no warm-up. The first calls pay for compilation, lazy initialisation and cold caches.",
            "no warm-up",
        )
    if len(sample.values) < FEWEST_REPEATS:
        raise NotYet(
            f"{case}: {len(sample.values)} repeats. From fewer than {FEWEST_REPEATS} no spread can be seen.",
            "no repeats",
        )
    if record.environment.kind != "cpu" and not (
        "events" in sample.timing.clock or "synchronize" in sample.timing.clock
    ):
        raise NotYet(
            f"{case}: timed with {sample.timing.clock} on a GPU, without synchronisation. That is the launch's time.",
            "no synchronisation",
        )


def _possible(kernels: list[Sample], ceilings: list[Sample], copies: list[Sample], record: Record) -> None:
    """No kernel is faster than physics, or than the device's own ceilings, allows."""
    device = match_device(record.environment.device, record.environment.memory or 0)
    best: dict[str, float] = {}
    for sample in ceilings:
        dtype = str(sample.point.get("dtype"))
        best[dtype] = max(best.get(dtype, 0.0), _count(sample, 0) / median(sample.values))
    copy = max(float(s.point["bytes_moved"]) / median(s.values) for s in copies)
    for sample in kernels:
        case, dtype, seconds = sample.point.get("case"), str(sample.point.get("dtype")), median(sample.values)
        performance, bandwidth = _count(sample, 0) / seconds, _count(sample, 1) / seconds
        if device and dtype in device.peak_dense and performance > DATA_SHEET_NOISE * device.peak(dtype):
            raise NotYet(
                f"{case}: {show(performance, FLOP_PER_SECOND)} is more than {device.name} can do in {dtype}, "
                f"{show(device.peak(dtype), FLOP_PER_SECOND)}. The time is too short to be true.",
                "faster than the device",
            )
        # A dtype whose ceiling was not measured may well be faster than one whose was.
        ceiling = best.get(dtype, float("inf"))
        if performance > (MEMORY_NOISE if record.scale == "smoke" else COMPUTE_NOISE) * ceiling:
            raise NotYet(
                f"{case}: an efficiency of {performance / ceiling:.2f} against the measured ceiling of "
                f"{show(ceiling, FLOP_PER_SECOND)}. Above 1 by more than the noise, the time or the ceiling is "
                "wrong: was the machine busy while one of them was measured? Close other programs and run it again.",
                "efficiency above one",
            )
        # From a cache, bytes may well come faster than from memory.
        if sample.timing and sample.timing.cold and record.scale != "smoke" and bandwidth > MEMORY_NOISE * copy:
            raise NotYet(
                f"{case}: {show(bandwidth, BYTE_PER_SECOND)}, while the fastest copy reached "
                f"{show(copy, BYTE_PER_SECOND)}. These bytes did not come from memory.",
                "efficiency above one",
            )


def _count(sample: Sample, which: int) -> float:
    """Operations (0) or bytes (1) of a sample's kernel."""
    formula = KERNELS[str(sample.point["kernel"])][which]
    names = reading.read(formula)
    try:
        return float(formula(**{n: sample.point[n] for n in (*names.units, *names.options)}))
    except KeyError as error:
        raise NotYet(
            f"{sample.point.get('case')}: the point lacks {error}. Measure with 'efflab run roofline'."
        ) from None


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (matmul_intensity, regime, chain_bytes, time_it, compute_bound_batch, scale_shift_relu, own_record)
}
