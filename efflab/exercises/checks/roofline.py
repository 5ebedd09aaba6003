"""Checkers of the roofline's code and measurement exercises."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

from efflab.errors import EfflabError
from efflab.exercises.checks import NotYet, Subject, close, written
from efflab.exercises.checks.records import (
    FEWEST_REPEATS,
    at_scale,
    command,
    measured,
    own,
    plausible,
    steady,
    text,
    timed_well,
    within_datasheet,
)
from efflab.reconcile import roofline as reconcile
from efflab.records import Record, Sample, median
from efflab.units import BYTE, BYTE_PER_SECOND, FLOP_PER_SECOND, show

MOST_WRITES = 256  # operations on `out` in scale_shift_relu: blocks of rows are fine, single elements are not


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
            (
                "bits for bytes",
                flops / moved / 8,
                "an eighth of what is right. bytes_per_element is in bytes already: there are no bits to convert.",
            ),
            (
                "bytes for bits",
                flops / moved * 8,
                "8 times what is right. bytes_per_element is in bytes already: there are no bits to convert.",
            ),
            ("forgot the inputs", flops / (b * m * n), "the value without reading the two inputs."),
            (
                "read once per use",
                flops / (b * (2 * m * n * k + m * n)),
                "the value without any reuse. Compulsory traffic reads each input once; caches hold what is reused.",
            ),
        ):
            if close(got, value):
                raise NotYet(f"{said}, {why}", name)
        if any(close(got, round(flops / moved, digits), 1e-12) for digits in range(1, 7)):
            raise NotYet(
                f"{said}; unrounded it is {flops / moved:.9g}. Do not round: return the quotient as it is.", "rounded"
            )
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
        # Only a text is compared: an array would answer element by element.
        if isinstance(got, str) and got == right:
            continue
        call = function.describe(**arguments)
        if not isinstance(got, str) or got not in ("compute", "memory", "overhead"):
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
        if got < 1:
            raise NotYet(f"{said}. A batch is a whole number of at least 1.", "not whole")
        if got > 1e15:
            raise NotYet(f"{said}. That is far too many: from batch {right} on this layer is compute-bound.")
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
        """Counts operations that write `out`, and tensors of new storage that are as large as the input."""

        def __init__(self, x: torch.Tensor, out: torch.Tensor) -> None:
            super().__init__()
            self.size, self.out = x.untyped_storage().nbytes(), out.untyped_storage().data_ptr()
            self.known, self.fresh, self.writes = {x.untyped_storage().data_ptr(), self.out}, [], 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            self.writes += any(self.is_out(value) for value in _written(function, args, kwargs or {}))
            if self.writes > MOST_WRITES:
                raise NotYet(
                    f"{call} has written out by more than {MOST_WRITES} operations: one for each element or row? Each "
                    "pays its overhead. Let one operation work on the whole tensor.",
                    "a loop over elements",
                )
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() >= self.size // 2:
                    address = leaf.untyped_storage().data_ptr()
                    if address not in self.known:
                        self.known.add(address)
                        # The tensor is kept, so that its address is not used again.
                        self.fresh.append((str(function).removeprefix("aten."), leaf))
            return result

        def is_out(self, value: Any) -> bool:
            return isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == self.out

    function = Subject(answer, "scale_shift_relu", "x", "out")
    generator = torch.Generator().manual_seed(5)
    # The last is large, so that what NumPy or Python allocate for it stands out.
    for shape, dtype in (
        ((1000,), torch.float32), ((64, 33), torch.float32), ((5, 6, 7), torch.float64), ((512, 1024), torch.float32),
    ):  # fmt: skip
        x = torch.randn(shape, generator=generator, dtype=dtype)
        before, out = x.clone(), torch.full(shape, float("nan"), dtype=dtype)
        storage = out.data_ptr()
        call = f"scale_shift_relu(x, out) on shape {tuple(shape)}"
        watch = Watch(x, out)
        with watch, _PythonMemory() as memory:
            function(x=x, out=out)
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
        if x.numel() > 10**5 and memory.peak > x.untyped_storage().nbytes() // 2:
            raise NotYet(
                f"{call} gives the right values, but NumPy or Python allocated {show(memory.peak, BYTE)} meanwhile, "
                f"and x has {show(x.untyped_storage().nbytes(), BYTE)}. Stay with PyTorch operations that write into "
                "out.",
                "fresh memory",
            )
        if not watch.writes:
            raise NotYet(
                f"{call} gives the right values, but no PyTorch operation wrote out: it was filled through NumPy or by "
                "its address, which no GPU tensor allows. Use PyTorch operations with out=out or in place.",
                "not PyTorch",
            )


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that a dispatched operation writes, by its schema."""
    return [
        value
        for i, argument in enumerate(function._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
        and (value := args[i] if i < len(args) else kwargs.get(argument.name)) is not None
    ]  # fmt: skip


class _PythonMemory:
    """The most bytes that Python and NumPy had allocated at once inside a `with`, above what was there before."""

    peak = 0

    def __enter__(self) -> _PythonMemory:
        self.tracing = tracemalloc.is_tracing()
        if not self.tracing:
            tracemalloc.start()
        tracemalloc.reset_peak()
        self.before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = tracemalloc.get_traced_memory()[1] - self.before
        if not self.tracing:
            tracemalloc.stop()


KERNELS_NEEDED = 8
# How far a kernel may lie above this device's own ceilings before its time is not believed. Ceilings are measured
# too, a larger product may be a little better than the one that set the ceiling, and a copy pays for its writes
# twice on most CPUs, which a kernel that only reads does not.
COMPUTE_NOISE, MEMORY_NOISE = 1.3, 2.0
ROLES = ("kernel", "series", "lesson", "ceiling", "bandwidth")


def own_record(answer: Any) -> str:
    """A record of the learner's own device, well timed, steady, and bounded by its ceilings."""
    record = own("roofline", answer)
    kernels, ceilings = _kernels(record), _ceilings(record)
    if len(kernels) < KERNELS_NEEDED:
        raise NotYet(
            f"Record {record.id} has {len(kernels)} timed kernels; {KERNELS_NEEDED} are needed. "
            f"Run '{command('roofline')}'."
        )
    timed_well(record)
    at_scale(record)
    if "copy" not in ceilings or not any(name.startswith("matmul-") for name in ceilings):
        raise NotYet(
            f"Record {record.id} holds no measured ceilings (a large copy, a large matrix product). "
            f"Run '{command('roofline')}', which measures them beside the kernels."
        )
    said = steady(record, kernels)
    _bounded(kernels, ceilings, record)
    return (
        f"{len(kernels)} kernels, {said}, each warmed up and repeated at least {FEWEST_REPEATS} times; none beats the "
        "device's ceilings."
    )


def _kernels(record: Record) -> list[Sample]:
    """The timed kernels, the entries that the check reads looked at."""
    found = []
    for sample in measured(record, "time"):
        entries = {name: text(sample, name, "roofline") for name in ("case", "role", "kernel", "dtype")}
        if entries["role"] not in ROLES:
            raise NotYet(f"{entries['case']}: its role is {entries['role']!r}; one of {', '.join(ROLES)} is expected.")
        if entries["role"] in ("kernel", "series", "lesson"):
            _counted(sample)
            found.append(sample)
    return found


def _counted(sample: Sample) -> tuple[float, float]:
    """FLOP and bytes of a sample's kernel."""
    try:
        return reconcile.counts(sample.point)
    except (EfflabError, ArithmeticError, TypeError, ValueError) as error:
        case = sample.point["case"]
        said = str(error) if case in str(error) else f"{case}: {error}"
        raise NotYet(f"{said.rstrip('.')}. Measure with '{command('roofline')}'.", "damaged") from None


def _ceilings(record: Record) -> dict[str, float]:
    """The record's ceilings by name, each a positive number."""
    try:
        found = reconcile.measured_ceilings(record)
        if bad := [name for name, value in found.items() if not 0 < value < math.inf]:
            raise ValueError(f"{bad[0]} is {found[bad[0]]}")
    except (EfflabError, ArithmeticError, KeyError, TypeError, ValueError) as error:
        lacking = f"a point lacks {error}" if isinstance(error, KeyError) else str(error)
        raise NotYet(
            f"The ceilings of record {record.id} cannot be read: {lacking}. Measure with '{command('roofline')}'.",
            "damaged",
        ) from None
    return found


def _bounded(kernels: list[Sample], ceilings: dict[str, float], record: Record) -> None:
    """No kernel is faster than physics, or than the device's own ceilings, allows."""
    for sample in kernels:
        case, seconds = str(sample.point["case"]), median(sample.values)
        # The product that bounds a kernel stands in its point. Where it does not, it is that of the kernel's own dtype.
        dtype = str(sample.point.get("peak_dtype", sample.point["dtype"]))
        flops, moved = _counted(sample)
        within_datasheet(record, case, flops / seconds, dtype)
        # A dtype whose ceiling was not measured may well be faster than one whose was.
        plausible(
            case, flops / seconds, ceilings.get(f"matmul-{dtype}", math.inf), unit=FLOP_PER_SECOND,
            noise=COMPUTE_NOISE, than="the measured ceiling",
            why="Above 1 by more than the noise, the time or the ceiling is wrong. Was the machine busy while "
            "one of them was measured? Close other programs and run it again.",
        )  # fmt: skip
        # From a cache, bytes may well come faster than from memory.
        if sample.timing and sample.timing.cold:
            plausible(
                case, moved / seconds, ceilings["copy"], unit=BYTE_PER_SECOND, noise=MEMORY_NOISE,
                than="what the copy reached", why="These bytes did not come from memory.",
            )  # fmt: skip


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (matmul_intensity, regime, chain_bytes, time_it, compute_bound_batch, scale_shift_relu, own_record)
}
