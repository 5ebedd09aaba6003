"""What the roofline lab measures: this device's ceilings, and kernels to place under them.

Three kinds of samples, told apart by the point's "role":

- "ceiling": a large copy, a large matrix product of each dtype and the negation of one element. They are measured
  again before and after every kernel, because a shared machine changes its speed while it is measured. No
  kernel is ever its own ceiling.
- "bandwidth": variants of the copy: read only, write only, in place. They explain; nothing is predicted from them.
- "kernel", "series": what is predicted. "output" is "preallocated", or "reused" where torch allocates the output
  and its allocator hands the same pages back.
- "lesson": a case that the plain roofline gets wrong on purpose: a working set that fits the cache and, on a CPU,
  an output in fresh memory. On a GPU torch's caching allocator hands the freed block back, so none is fresh.

The copy and its variants all touch the same number of bytes, at least four times the last-level cache.

A kernel that takes its operands from main memory cycles through so many sets of inputs that none is found in
the last-level cache ("inputs": "cold"). Points with one "series" differ in one size, from which the regime can
be read. For each kernel the same calls are also profiled and, on a CPU, timed on one thread and watched for
page faults.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from efflab.catalog import BYTES_PER_ELEMENT
from efflab.experiments.runner import Case, Plan, Unavailable, out_of_memory, plain
from efflab.measure import device as devices
from efflab.measure import timer
from efflab.measure.memory import keep_pages
from efflab.records import Environment, Record, Sample, Timing, median

DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn"}
MATRIX_KERNELS = ("matmul", "gemv", "attention_prefill", "attention_decode")  # these run on matrix units
SEED = 0
DRIFT = 0.10  # measure a kernel again where a ceiling changed by more than this around it
SLOWER = 0.25  # and where the matrix product took this much longer than its best in this run
FRESH_FOR = 1.0  # s; a ceiling older than this is measured again before the next kernel

# How long and how often to measure, by scale.
TIMER: dict[str, dict[str, Any]] = {
    "smoke": {"time_limit": 0.03, "shortest": 1e-3, "most": 8},
    "cpu": {"time_limit": 0.4, "shortest": 5e-3, "most": 40},
    "gpu": {"time_limit": 0.5, "shortest": 10e-3, "most": 60},
}
# A ceiling is never given fewer than six values: from fewer no 95% interval of the median can be had.
CEILING_TIMER = {"time_limit": 0.08, "fewest": 6, "most": 12}


@dataclass
class Built:
    """A kernel that is ready to be called: one call for each set of inputs.

    `working_set` is the bytes of the tensors that one call touches, read off the tensors.
    """

    calls: list[Callable[[], Any]]
    working_set: int


def _matmul(point: dict[str, Any], make: Make) -> Built:
    m, n, k = point["m"], point["n"], point["k"]
    if point["dtype"] == "fp8":
        return _matmul_fp8(m, n, k, make)

    def one() -> tuple[Callable[[], Any], int]:
        # The weight is stored [n, k] and used transposed, as torch.nn.Linear does.
        a, weight, out = make(m, k), make(n, k), make.empty(m, n)
        b = weight.t()
        return lambda: make.torch.mm(a, b, out=out), _bytes(a, weight, out)

    return make.sets(point, one)


def _matmul_fp8(m: int, n: int, k: int, make: Make) -> Built:
    torch = make.torch
    if not hasattr(torch, "_scaled_mm"):
        raise Unavailable(f"torch {torch.__version__} has no scaled fp8 matrix product")
    one = torch.ones((), device=make.device)
    a = torch.randn(m, k, device=make.device, generator=make.generator).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device=make.device, generator=make.generator).to(torch.float8_e4m3fn)

    def call() -> Any:
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return Built([call], _bytes(a, b, call()))


def _gemv(point: dict[str, Any], make: Make) -> Built:
    def one() -> tuple[Callable[[], Any], int]:
        a, x, out = make(point["m"], point["n"]), make(point["n"]), make.empty(point["m"])
        return lambda: make.torch.mv(a, x, out=out), _bytes(a, x, out)

    return make.sets(point, one)


def _unfused_chain(point: dict[str, Any], make: Make) -> Built:
    torch, n, k = make.torch, point["elements"], point["operations"]

    def one() -> tuple[Callable[[], Any], int]:
        # Two buffers in turn: every operation reads one array and writes another, none works in place.
        x, y, z = make(n), make.empty(n), make.empty(n)

        def call() -> None:
            source, target, spare = x, y, z
            for i in range(k):
                if i % 2:
                    torch.add(source, 0.001, out=target)
                else:
                    torch.mul(source, 0.999, out=target)
                source, target, spare = target, spare, target

        return call, _bytes(x, y, z) if k > 1 else _bytes(x, y)

    return make.sets(point, one)


def _fused_chain(point: dict[str, Any], make: Make) -> Built:
    torch, n, k = make.torch, point["elements"], point["operations"]
    if k == 1:

        def one() -> tuple[Callable[[], Any], int]:
            x = make(n)
            if point["output"] == "fresh":
                if make.device.type != "cpu":
                    raise Unavailable("on a GPU torch's caching allocator hands the same block back: none is fresh")
                return lambda: torch.relu(x), 2 * _bytes(x)
            out = make.empty(n)
            return lambda: torch.clamp_min(x, 0.0, out=out), _bytes(x, out)

        return make.sets(point, one)
    if make.device.type == "cpu" and devices.compiler() is None:
        raise Unavailable("torch.compile needs a C++ compiler on a CPU and finds none; install g++")

    def chain(x: Any, out: Any) -> None:
        y = x
        for i in range(k):
            y = y + 0.001 if i % 2 else y * 0.999
        out.copy_(y)

    compiled = torch.compile(chain, fullgraph=True, dynamic=False)

    def compiled_one() -> tuple[Callable[[], Any], int]:
        x, out = make(n), make.empty(n)
        return lambda: compiled(x, out), _bytes(x, out)

    built = make.sets(point, compiled_one)
    built.calls[0]()  # compile before the timer's warm-up
    return built


def _softmax(point: dict[str, Any], make: Make) -> Built:
    def one() -> tuple[Callable[[], Any], int]:
        x, out = make(point["rows"], point["columns"]), make.empty(point["rows"], point["columns"])
        return lambda: make.torch.softmax(x, -1, out=out), _bytes(x, out)

    return make.sets(point, one)


def _layer_norm(point: dict[str, Any], make: Make) -> Built:
    # torch's layer norm has no out= that avoids a copy, so its output is under 32 MiB: see `memory.keep_pages`.
    columns = point["columns"]
    weight, bias = make(columns), make(columns)

    def one() -> tuple[Callable[[], Any], int]:
        x = make(point["rows"], columns)
        return lambda: make.torch.nn.functional.layer_norm(x, (columns,), weight, bias), 2 * _bytes(x) + _bytes(
            weight, bias
        )

    return make.sets(point, one)


def _attention(point: dict[str, Any], make: Make, queries: int, keys: int, causal: bool) -> Built:
    attention = make.torch.nn.functional.scaled_dot_product_attention
    batch, heads, kv, dim = (point[n] for n in ("batch", "query_heads", "kv_heads", "head_dim"))
    options: dict[str, Any] = {"is_causal": causal} if causal else {}
    if heads != kv:
        options["enable_gqa"] = True

    def one() -> tuple[Callable[[], Any], int]:
        q, k, v = make(batch, heads, queries, dim), make(batch, kv, keys, dim), make(batch, kv, keys, dim)
        return lambda: attention(q, k, v, **options), 2 * _bytes(q) + _bytes(k, v)

    return make.sets(point, one)


BUILDERS: dict[str, Callable[[dict[str, Any], Make], Built]] = {
    "matmul": _matmul,
    "gemv": _gemv,
    "unfused_chain": _unfused_chain,
    "fused_chain": _fused_chain,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "attention_prefill": lambda p, make: _attention(p, make, p["sequence_length"], p["sequence_length"], p["causal"]),
    "attention_decode": lambda p, make: _attention(p, make, 1, p["context_length"], False),
}


def _bytes(*tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Make:
    """Make random tensors of one dtype on one device. Never zeros: they draw less power, so they run faster."""

    def __init__(self, device: Any, dtype: str, cache: int, memory: int) -> None:
        self.torch = devices.import_torch()
        self.device, self.dtype = device, getattr(self.torch, DTYPES[dtype])
        self.generator = self.torch.Generator(device=device).manual_seed(SEED)
        self._cache, self._memory = cache, memory

    def __call__(self, *shape: int) -> Any:
        """A tensor of normal random numbers."""
        return self.torch.randn(*shape, device=self.device, dtype=self.dtype, generator=self.generator)

    def empty(self, *shape: int) -> Any:
        """An output whose pages exist already."""
        return self.torch.empty(*shape, device=self.device, dtype=self.dtype).fill_(1)

    def sets(self, point: dict[str, Any], one: Callable[[], tuple[Callable[[], Any], int]]) -> Built:
        """One call, or so many that their working sets exceed four times the last-level cache together."""
        call, working_set = one()
        calls = [call]
        if point["inputs"] == "cold":
            wanted = math.ceil(4 * self._cache / working_set)
            if wanted * working_set > self._memory / 4:
                raise Unavailable(
                    f"{wanted} sets of inputs of {working_set} B, which exceed the cache, do not fit into a quarter "
                    "of the memory"
                )
            calls += [one()[0] for _ in range(wanted - 1)]
        return Built(calls, working_set)


@dataclass
class Session:
    """The state that the cases of one run share: the ceilings measured last, and how often.

    A point's "peak_dtype" names the product that bounds its arithmetic: of its own dtype for matrix kernels, else of
    fp32, since elementwise operations, softmax and layer norm run on the vector units whatever the storage.
    """

    scale: str
    device: Any
    environment: Environment
    sizes: dict[str, int]
    warnings: list[str]
    index: Iterator[int] = field(default_factory=itertools.count)
    last: dict[str, tuple[float, float]] = field(default_factory=dict)  # name: (when, median s)
    best: dict[str, float] = field(default_factory=dict)  # name: least median s
    calls: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = timer.clock_for(self.device)
        self.cache = devices.last_level_cache(self.environment) if self.scale != "smoke" else 2**18
        self.memory = self.environment.memory or 4 * 2**30

    def make(self, dtype: str) -> Make:
        """What makes this run's tensors of a dtype."""
        return Make(self.device, dtype, self.cache, self.memory)

    # Ceilings

    def ceiling_point(self, name: str) -> dict[str, Any]:
        """The point of a ceiling: "copy", "overhead", "overhead-waited" or "matmul-<dtype>"."""
        point: dict[str, Any] = {"case": f"ceiling-{name}", "role": "ceiling"}
        if name.startswith("matmul-"):
            dtype = name.removeprefix("matmul-")
            n = self.sizes[name]
            return point | {
                "kernel": "matmul", "m": n, "n": n, "k": n, "bytes_per_element": _element(dtype), "dtype": dtype,
                "inputs": "warm", "output": "preallocated",
            }  # fmt: skip
        if name == "copy":
            return point | {
                "kernel": "copy", "elements": self.sizes["copy"], "bytes_per_element": 4,
                "bytes_moved": 8 * self.sizes["copy"], "dtype": "fp32",
            }  # fmt: skip
        return point | {"kernel": "negate", "elements": 1, "bytes_per_element": 4, "dtype": "fp32"}

    def _ceiling_calls(self, name: str) -> list[Callable[[], Any]]:
        if name not in self.calls:
            make = self.make(name.removeprefix("matmul-") if name.startswith("matmul-") else "fp32")
            torch = make.torch
            if name.startswith("matmul-"):
                self.calls[name] = _matmul(self.ceiling_point(name), make).calls
            elif name == "copy":
                a, b = make(self.sizes["copy"]), make.empty(self.sizes["copy"])
                self.calls[name] = [lambda: b.copy_(a)]
            else:
                x, y = make(1), make.empty(1)
                self.calls[name] = [lambda: torch.neg(x, out=y)]
        return self.calls[name]

    def measure_ceiling(self, name: str) -> Sample:
        """Measure a ceiling now."""
        with devices.float32_as(name.removeprefix("matmul-")):
            time_it = timer.waited if name == "overhead-waited" else timer.back_to_back
            limit = min(CEILING_TIMER["time_limit"], TIMER[self.scale]["time_limit"])
            options = CEILING_TIMER | {"shortest": TIMER[self.scale]["shortest"], "time_limit": limit}
            timed = time_it(self._ceiling_calls(name), self.clock, **options)
        self.last[name] = (time.monotonic(), median(timed.values))
        self.best[name] = min(self.best.get(name, math.inf), self.last[name][1])
        point = self.ceiling_point(name) | {"index": next(self.index)}
        return Sample(
            point=point, metric="time", unit="s", values=timed.values, status="ok", message="", timing=timed.timing
        )

    def ceilings_for(self, point: dict[str, Any]) -> list[str]:
        """The ceilings that a kernel is held against."""
        names = ["copy", "overhead"] + (["overhead-waited"] if self.device.type != "cpu" else [])
        peak = f"matmul-{point['peak_dtype']}"
        return [*names, peak] if peak in self.sizes else names

    def stale(self, name: str) -> bool:
        when, _ = self.last.get(name, (-math.inf, 0.0))
        return time.monotonic() - when > FRESH_FOR

    # Kernels

    def samples(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Ceilings, the kernel, ceilings again; then the profile, one thread and the page faults."""
        fresh = self.device.type == "cpu" and point["output"] == "fresh"
        if self.device.type == "cpu":
            keep_pages(not fresh)
        try:
            yield from self._samples(point)
        finally:
            if fresh:
                keep_pages(True)

    def _samples(self, point: dict[str, Any]) -> Iterator[Sample]:
        with devices.float32_as(point["dtype"]):
            built = BUILDERS[point["kernel"]](point, self.make(point["dtype"]))
            names = self.ceilings_for(point)
            earlier: list[Sample] = []  # ceilings, in the order in which they are measured
            after: list[Sample] = []  # those right after the kernel
            before: dict[str, float] = {}  # of each ceiling the time that was measured last, s

            def measure() -> timer.Timed:
                earlier.extend(after)
                after.clear()
                for name in names:
                    if self.stale(name):
                        earlier.append(self.measure_ceiling(name))
                    before[name] = self.last[name][1]
                options = TIMER[self.scale] | {"cold": point["inputs"] == "cold"}
                timed = timer.back_to_back(built.calls, self.clock, **options)
                after.extend([self.measure_ceiling(name) for name in names])
                return timed

            def disturbed(_: timer.Timed) -> str:
                said = [
                    f"the time of {n} changed by {self.last[n][1] / before[n] - 1:+.0%}"
                    for n in names
                    if n != "overhead" and not 1 - DRIFT <= self.last[n][1] / before[n] <= 1 + DRIFT
                ]
                said += [
                    f"{n} took {self.last[n][1] / self.best[n] - 1:.0%} longer than its best"
                    for n in names
                    if n.startswith("matmul-") and self.last[n][1] > (1 + SLOWER) * self.best[n]
                ]
                return f"around it {' and '.join(said)}" if said else ""

            try:
                timed = timer.undisturbed(
                    measure,
                    lambda said: self.warnings.append(f"{point['case']}: {said}"),
                    attempts=1 if self.scale == "smoke" else timer.ATTEMPTS,
                    disturbed=disturbed,
                )
            finally:
                yield from earlier  # also where the kernel fails: the next ones are held against them
            self.warnings.extend(f"{point['case']}: {w}" for w in timed.warnings)
            yield Sample(point=point, metric="time", unit="s", values=timed.values, status="ok", timing=timed.timing)
            yield from after
            yield from self._secondary(point, built, timed)

    def _secondary(self, point: dict[str, Any], built: Built, timed: timer.Timed) -> Iterator[Sample]:
        def sample(metric: str, unit: str, values: list[float], timing: Timing | None = None) -> Sample:
            return Sample(point=point, metric=metric, unit=unit, values=values, status="ok", timing=timing)

        yield sample("working_set", "B", [float(built.working_set)])
        try:
            operators, wall = profile(built.calls, self.clock, median(timed.values), self.device)
            yield sample("operator_time", "s", [operators])
            yield sample("profiled_time", "s", [wall])
        except Exception as error:
            said = plain(f"{type(error).__name__}: {error}")
            self.warnings.append(f"{point['case']}: not profiled: {said}")
            if out_of_memory(error):
                for metric in ("operator_time", "profiled_time"):
                    yield Sample(point=point, metric=metric, unit="s", values=[], status="oom", message=said)
        if self.device.type != "cpu":
            waited = timer.waited(built.calls, self.clock, **TIMER[self.scale] | {"time_limit": 0.05, "most": 10})
            yield sample("waited_time", "s", waited.values, waited.timing)
            return
        if timed.page_faults is not None:
            yield sample("page_faults", "", [timed.page_faults])
        if devices.import_torch().get_num_threads() > 1:
            options = {"time_limit": 0.1, "fewest": 3, "most": 5, "shortest": TIMER[self.scale]["shortest"]}
            with devices.threads(1):
                alone = timer.back_to_back(built.calls, self.clock, cold=point["inputs"] == "cold", **options)
            yield sample("time_one_thread", "s", alone.values, alone.timing)


def profile(calls: list[Callable[[], Any]], clock: timer.Clock, seconds: float, device: Any) -> tuple[float, float]:
    """Seconds per call inside operators (on a GPU: kernels on the device), and seconds of wall time per call.

    Both under torch.profiler, which slows short calls down; they are compared with each other only.
    """
    torch = devices.import_torch()
    from torch.profiler import ProfilerActivity

    n = max(3, min(200, math.ceil(0.05 / seconds)))
    sequence = [calls[i % len(calls)] for i in range(n)]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profiled:
        clock.synchronize()
        begin = clock.now()
        for call in sequence:
            call()
        clock.synchronize()
        wall = clock.now() - begin
    events = profiled.key_averages()
    if device.type == "cuda":
        # Kernels and copies only: the operators that launched them carry the same time again.
        on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
        inside = sum(e.self_device_time_total for e in on_device)
    else:
        inside = sum(e.self_cpu_time_total for e in events if not e.key.startswith("ProfilerStep"))
    return inside * 1e-6 / n, wall / n


# The sweep


def _point(case: str, kernel: str, dtype: str, arguments: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {
        "case": case, "role": "kernel", "kernel": kernel, **arguments, "bytes_per_element": _element(dtype),
        "dtype": dtype, "peak_dtype": dtype if kernel in MATRIX_KERNELS else "fp32", "inputs": "warm",
        "output": "preallocated",
    } | extra  # fmt: skip


def _element(dtype: str) -> int:
    return int(BYTES_PER_ELEMENT[dtype])


def _square(n: int, dtype: str, name: str | None = None, **extra: Any) -> dict[str, Any]:
    return _point(name or f"matmul-{n}", "matmul", dtype, {"m": n, "n": n, "k": n}, **extra)


def _linear(m: int, n: int, dtype: str, **extra: Any) -> dict[str, Any]:
    return _point(
        f"linear-batch-{m}", "matmul", dtype, {"m": m, "n": n, "k": n}, series="linear by batch", inputs="cold", **extra
    )


def _relu(n: int, dtype: str, name: str | None = None, **extra: Any) -> dict[str, Any]:
    arguments = {"elements": n, "operations": 1}
    return _point(name or f"relu-{n}", "fused_chain", dtype, arguments, series="relu by elements", **extra)


def _relu_fresh(n: int, dtype: str) -> dict[str, Any]:
    arguments = {"elements": n, "operations": 1}
    return _point("relu-fresh", "fused_chain", dtype, arguments, inputs="cold", output="fresh", role="lesson")


def _softmax_rows(rows: int, columns: int, dtype: str, name: str | None = None, **extra: Any) -> dict[str, Any]:
    arguments = {"rows": rows, "columns": columns}
    return _point(name or f"softmax-{rows}", "softmax", dtype, arguments, series="softmax by rows", **extra)


def _chain(kind: str, n: int, k: int, dtype: str, **extra: Any) -> dict[str, Any]:
    return _point(f"chain-{k}-{kind}", f"{kind}_chain", dtype, {"elements": n, "operations": k}, inputs="cold", **extra)


def _prefill(b: int, h: int, kv: int, s: int, d: int, dtype: str, causal: bool) -> dict[str, Any]:
    arguments = {
        "batch": b, "query_heads": h, "kv_heads": kv, "sequence_length": s, "head_dim": d, "causal": causal
    }  # fmt: skip
    name = f"attention-prefill{'-causal' if causal else ''}"
    return _point(name, "attention_prefill", dtype, arguments, output="reused")


def _decode(
    b: int, h: int, kv: int, t: int, d: int, dtype: str, name: str | None = None, **extra: Any
) -> dict[str, Any]:
    arguments = {"batch": b, "query_heads": h, "kv_heads": kv, "context_length": t, "head_dim": d}
    return _point(
        name or f"attention-decode-{t}", "attention_decode", dtype, arguments, output="reused",
        series="attention decode by context", **extra,
    )  # fmt: skip


def _layer_norm_rows(rows: int, columns: int, dtype: str, name: str | None = None, **extra: Any) -> dict[str, Any]:
    return _point(
        name or f"layer-norm-{rows}", "layer_norm", dtype, {"rows": rows, "columns": columns}, output="reused",
        series="layer norm by rows", **extra,
    )  # fmt: skip


def smoke_points() -> list[dict[str, Any]]:
    """Seconds, for tests; sizes too small to say anything about a device. No torch.compile."""
    return [
        _square(16, "fp32", "matmul-tiny", series="matmul by size"),
        _square(64, "fp32", "matmul-medium", series="matmul by size"),
        _square(192, "fp32", "matmul-large", series="matmul by size"),
        _point("gemv", "gemv", "fp32", {"m": 512, "n": 512}, inputs="cold"),
        _relu(64, "fp32", "relu-tiny"),
        _relu(2**12, "fp32", "relu-in-cache", role="lesson"),
        _relu(2**18, "fp32", "relu-large", inputs="cold"),
        _chain("unfused", 2**18, 8, "fp32"),
        _softmax_rows(256, 256, "fp32", "softmax-large"),
        _point("layer-norm", "layer_norm", "fp32", {"rows": 256, "columns": 256}, output="reused"),
        _prefill(1, 2, 2, 64, 16, "fp32", causal=False),
        _prefill(1, 2, 2, 64, 16, "fp32", causal=True),
        _decode(1, 2, 2, 256, 16, "fp32", "attention-decode", inputs="cold"),
    ]


def cpu_points(fast_bf16: bool) -> list[dict[str, Any]]:
    """Under two minutes on two cores."""
    by_size = {"series": "matmul by size"}
    by_operations = {"series": "fused chain by operations"}
    points = [
        _square(2048, "fp32", "matmul-large", **by_size),
        _square(512, "fp32", "matmul-medium", **by_size),
        _square(256, "fp32", **by_size, role="series"),
        _square(128, "fp32", **by_size, role="series"),
        _square(64, "fp32", **by_size, role="series"),
        _square(32, "fp32", "matmul-tiny", **by_size),
        _linear(1, 4096, "fp32"),
        _linear(4, 4096, "fp32", role="series"),
        _linear(16, 4096, "fp32"),
        _linear(64, 4096, "fp32", role="series"),
        _linear(256, 4096, "fp32", role="series"),
        _point("gemv", "gemv", "fp32", {"m": 4096, "n": 4096}, inputs="cold"),
        _relu(2**24, "fp32", "relu-large", inputs="cold"),
        _relu(2**22, "fp32", inputs="cold", role="series"),
        _relu(2**18, "fp32", "relu-in-cache", role="lesson"),
        _relu(2**14, "fp32", role="series"),
        _relu(2**10, "fp32", role="series"),
        _relu(2**6, "fp32", "relu-tiny"),
        _relu_fresh(2**24, "fp32"),
        _chain("unfused", 2**24, 8, "fp32"),
        _chain("fused", 2**24, 8, "fp32", **by_operations),
        _chain("fused", 2**24, 32, "fp32", **by_operations, role="series"),
        _chain("fused", 2**24, 128, "fp32", **by_operations, role="series"),
        _softmax_rows(16384, 1024, "fp32", "softmax-large", inputs="cold"),
        _softmax_rows(4096, 1024, "fp32", inputs="cold", role="series"),
        _softmax_rows(256, 1024, "fp32", role="series"),
        _softmax_rows(16, 1024, "fp32", role="series"),
        _softmax_rows(1, 1024, "fp32", "softmax-tiny"),
        _layer_norm_rows(7168, 1024, "fp32", "layer-norm", inputs="cold"),
        _layer_norm_rows(512, 1024, "fp32", role="series"),
        _prefill(1, 8, 8, 1024, 64, "fp32", causal=False),
        _prefill(1, 8, 8, 1024, 64, "fp32", causal=True),
        _decode(4, 8, 8, 4096, 64, "fp32", "attention-decode", inputs="cold"),
        _decode(4, 8, 8, 256, 64, "fp32", role="series"),
    ]
    if fast_bf16:
        points.insert(1, _square(2048, "bf16", "matmul-bf16"))
    return points


def gpu_points(dtype: str, fp8: bool, tf32: bool) -> list[dict[str, Any]]:
    """For one GPU; `dtype` is its 16-bit type with a matrix path."""
    by_size = {"series": "matmul by size"}
    by_operations = {"series": "fused chain by operations"}
    points = [
        _square(16384, dtype, "matmul-large", **by_size),
        _square(4096, dtype, **by_size),
        _square(2048, dtype, **by_size, role="series"),
        _square(1024, dtype, "matmul-medium", **by_size),
        _square(512, dtype, **by_size, role="series"),
        _square(128, dtype, "matmul-tiny", **by_size),
        _square(2048, "fp32", "matmul-fp32"),
        *([_square(4096, "tf32", "matmul-tf32")] if tf32 else []),
        *([_square(4096, "fp8", "matmul-fp8", output="reused")] if fp8 else []),
        _linear(1, 8192, dtype),
        _linear(4, 8192, dtype, role="series"),
        _linear(16, 8192, dtype),
        _linear(64, 8192, dtype, role="series"),
        _linear(256, 8192, dtype),
        _linear(1024, 8192, dtype, role="series"),
        _point("gemv", "gemv", dtype, {"m": 8192, "n": 8192}, inputs="cold"),
        _relu(2**28, dtype, "relu-large", inputs="cold"),
        _relu(2**26, dtype, inputs="cold", role="series"),
        _relu(2**22, dtype, "relu-in-cache", role="lesson"),
        _relu(2**18, dtype, role="series"),
        _relu(2**14, dtype, role="series"),
        _relu(2**6, dtype, "relu-tiny"),
        _chain("unfused", 2**27, 8, dtype),
        _chain("fused", 2**27, 8, dtype, **by_operations),
        _chain("fused", 2**27, 32, dtype, **by_operations, role="series"),
        _chain("fused", 2**27, 128, dtype, **by_operations, role="series"),
        _softmax_rows(65536, 4096, dtype, "softmax-large", inputs="cold"),
        _softmax_rows(16384, 4096, dtype, inputs="cold", role="series"),
        _softmax_rows(1024, 4096, dtype, role="series"),
        _softmax_rows(64, 4096, dtype, role="series"),
        _softmax_rows(1, 4096, dtype, "softmax-tiny"),
        _layer_norm_rows(65536, 4096, dtype, "layer-norm", inputs="cold"),
        _layer_norm_rows(1024, 4096, dtype, role="series"),
        _prefill(4, 32, 8, 4096, 128, dtype, causal=False),
        _prefill(4, 32, 8, 4096, 128, dtype, causal=True),
        _decode(32, 32, 8, 4096, 128, dtype, "attention-decode", inputs="cold"),
        _decode(32, 32, 8, 128, 128, dtype, role="series"),
    ]
    return points


class Roofline:
    """The experiment: see the module's text."""

    topic = "roofline"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor."""
        points, sizes = self._sweep(scale, environment)
        warnings: list[str] = []
        session = Session(scale, device, environment, sizes, warnings)
        if resumed:
            used = [s.point["index"] for s in resumed.samples if "index" in s.point]
            session.index = itertools.count(max((int(i) for i in used), default=-1) + 1)
        if scale != "smoke" and 8 * sizes["copy"] < 4 * session.cache:
            warnings.append(
                f"the copy touches {8 * sizes['copy']} B, under four times the last-level cache of {session.cache} B: "
                "an eighth of the memory is no larger"
            )
        spec = {
            "scale": scale, "seed": SEED, "last_level_cache": session.cache, "drift": DRIFT, "timer": TIMER[scale],
            "ceiling_timer": CEILING_TIMER, "ceilings": sizes, "cases": [p["case"] for p in points],
        }  # fmt: skip

        def case(point: dict[str, Any]) -> Case:
            return Case(point, lambda: session.samples(point))

        return Plan(spec, [self._bandwidth(kind, session) for kind in BANDWIDTHS] + [case(p) for p in points], warnings)

    def _sweep(self, scale: str, environment: Environment) -> tuple[list[dict[str, Any]], dict[str, int]]:
        cache = devices.last_level_cache(environment)
        memory = environment.memory or 4 * 2**30
        if scale == "smoke":
            return smoke_points(), {"copy": 2**20, "matmul-fp32": 256}
        if scale == "cpu":
            fast = devices.has_fast_bf16()
            size = 1024 if (environment.cores or 1) <= 8 else 4096
            sizes = {"copy": _power_of_two(max(2**24, cache // 2), memory // 64), "matmul-fp32": size}
            return cpu_points(fast), sizes | ({"matmul-bf16": size} if fast else {})
        major, _, minor = (environment.compute_capability or "0.0").partition(".")
        nvidia, version = environment.kind == "cuda", (int(major), int(minor or 0))
        dtype = "bf16" if not nvidia or version >= (8, 0) else "fp16"
        tf32, fp8 = nvidia and version >= (8, 0), nvidia and version >= (8, 9)
        sizes = {"copy": _power_of_two(2**28, memory // 64), "matmul-fp32": 4096, f"matmul-{dtype}": 8192}
        sizes |= {"matmul-tf32": 8192} if tf32 else {}
        sizes |= {"matmul-fp8": 8192} if fp8 else {}
        return gpu_points(dtype, fp8, tf32), sizes

    def _bandwidth(self, kind: str, session: Session) -> Case:
        read, written = BANDWIDTHS[kind]
        n = 2 * session.sizes["copy"]  # one array of the size of the copy's two
        point = {
            "case": f"bandwidth-{kind}", "role": "bandwidth", "kernel": kind, "elements": n, "bytes_per_element": 4,
            "bytes_moved": 4 * n * (read + written), "dtype": "fp32",
        }  # fmt: skip

        def samples() -> Iterator[Sample]:
            make = session.make("fp32")
            x = make(n)
            call = {"read": lambda: x.sum(), "write": lambda: x.fill_(1.5), "in-place": lambda: x.neg_()}[kind]
            if session.stale("copy"):
                yield session.measure_ceiling("copy")
            timed = timer.back_to_back([call], session.clock, **TIMER[session.scale])
            yield Sample(point=point, metric="time", unit="s", values=timed.values, status="ok", timing=timed.timing)
            yield session.measure_ceiling("copy")

        return Case(point, samples)


# How often variants of the copy read and write their one array, as large as the copy's two together.
BANDWIDTHS = {"read": (1, 0), "write": (0, 1), "in-place": (1, 1)}


def _power_of_two(wanted: int, most: int) -> int:
    return 2 ** min(math.ceil(math.log2(wanted)), math.floor(math.log2(max(most, 2**16))))


EXPERIMENT = Roofline()
