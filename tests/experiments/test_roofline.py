"""The roofline's sweep: its points carry what was run, checked by counting and by numbers."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from efflab.experiments import roofline, runner
from efflab.formulas.roofline import KERNELS
from efflab.measure import device, timer
from efflab.records import Record, Sample, Timing, load_record
from tests.experiments.machine import environment

SWEEPS = {
    "smoke": roofline.smoke_points(),
    "cpu": roofline.cpu_points(True),
    "gpu": roofline.gpu_points("bf16", True, True),
}
POINTS = [pytest.param(p, id=f"{scale}-{p['case']}") for scale, points in SWEEPS.items() for p in points]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A smoke run on this CPU."""
    found, path = runner.run(
        roofline.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path_factory.mktemp("run"), report=lambda _: None
    )
    assert load_record(path) == found
    return found


@pytest.mark.parametrize("point", POINTS)
def test_points_carry_exactly_what_their_formulas_take(point: dict[str, Any]) -> None:
    for function in KERNELS[point["kernel"]]:
        for name in inspect.signature(function).parameters:
            assert name in point, f"{point['case']} lacks {name}"
        assert function(**{n: point[n] for n in inspect.signature(function).parameters}) > 0
    width = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}[point["dtype"]]
    assert point["bytes_per_element"] == width
    products = {"matmul", "gemv", "attention_prefill", "attention_decode"}
    assert point["peak_dtype"] == (point["dtype"] if point["kernel"] in products else "fp32")


@pytest.mark.parametrize("scale", SWEEPS)
def test_sweeps_are_wide_enough(scale: str) -> None:
    points = SWEEPS[scale]
    assert len({p["case"] for p in points}) == len(points), "two cases share a name"
    if scale == "smoke":
        return
    kernels = [p for p in points if p["role"] == "kernel"]
    assert len(kernels) >= 10
    assert {p["kernel"] for p in kernels} == set(KERNELS)
    series: dict[str, int] = {}
    for p in points:
        if p.get("series"):
            series[p["series"]] = series.get(p["series"], 0) + 1
    assert sum(n >= 5 for n in series.values()) >= 3
    lessons = {p["case"] for p in points if p["role"] == "lesson"}
    assert lessons == {"cpu": {"relu-in-cache", "relu-fresh"}, "gpu": {"relu-in-cache"}}[scale]


def test_no_output_is_called_fresh_on_a_gpu() -> None:
    assert not [p["case"] for scale in ("smoke", "gpu") for p in SWEEPS[scale] if p["output"] == "fresh"]
    with pytest.raises(runner.Unavailable, match="caching allocator"):
        roofline.BUILDERS["fused_chain"](roofline._relu_fresh(2**10, "fp32"), Meta("fp32"))


def test_no_kernel_has_the_shape_of_a_ceiling() -> None:
    for scale, kind, capability in (("cpu", "cpu", "AVX512"), ("gpu", "cuda", "9.0"), ("gpu", "cuda", "7.5"),
                                    ("gpu", "rocm", None), ("smoke", "cpu", None)):  # fmt: skip
        points, sizes = roofline.EXPERIMENT._sweep(
            scale, environment(kind=kind, compute_capability=capability, cores=64 if scale == "cpu" else 2)
        )
        for p in points:
            if p["kernel"] == "matmul" and p["m"] == p["n"] == p["k"]:
                assert sizes.get(f"matmul-{p['dtype']}") != p["n"], p["case"]


def test_old_gpus_get_only_dtypes_that_they_have() -> None:
    dtypes = {}
    for capability in ("7.5", "8.0", "8.9", "10.0"):
        points, sizes = roofline.EXPERIMENT._sweep("gpu", environment(kind="cuda", compute_capability=capability))
        dtypes[capability] = {p["dtype"] for p in points}
        assert {f"matmul-{p['dtype']}" for p in points if p["kernel"] == "matmul"} <= set(sizes)
    assert dtypes["7.5"] == {"fp16", "fp32"}
    assert dtypes["8.0"] == {"bf16", "fp32", "tf32"}
    assert dtypes["8.9"] == dtypes["10.0"] == {"bf16", "fp32", "tf32", "fp8"}


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize("cache", [2**20, 2**25, 400 * 2**20])
def test_the_copy_and_every_variant_exceed_the_cache_and_fit_the_memory(scale: str, cache: int) -> None:
    where = environment(caches={"L3": cache}, kind="cuda" if scale == "gpu" else "cpu", compute_capability="9.0")
    _, sizes = roofline.EXPERIMENT._sweep(scale, where)
    session = roofline.Session(scale, torch.device("cpu"), where, sizes, [])
    footprints = {"copy": 2 * 4 * session.ceiling_point("copy")["elements"]}
    for kind in ("read", "write", "in-place"):
        point = roofline.EXPERIMENT._bandwidth(kind, session).point
        footprints[kind] = 4 * point["elements"]  # one array
        assert point["bytes_moved"] == footprints[kind] * (2 if kind == "in-place" else 1)
    assert len(set(footprints.values())) == 1, footprints
    for kind, footprint in footprints.items():
        assert footprint >= 4 * cache, kind
        assert footprint <= 2**34 / 4, kind


def test_variants_of_the_copy_touch_the_array_that_their_point_names(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = roofline.Make.__call__
    monkeypatch.setattr(roofline.Make, "__call__", lambda self, *shape: made.append(shape[0]) or real(self, *shape))
    session = roofline.Session("smoke", torch.device("cpu"), environment(), {"copy": 2**12}, [])
    for kind in ("read", "write", "in-place"):
        case = roofline.EXPERIMENT._bandwidth(kind, session)
        made.clear()
        list(case.samples())
        assert made[0] == case.point["elements"] == 2**13


def test_a_memory_too_small_for_the_copy_is_said() -> None:
    plan = roofline.EXPERIMENT.plan("cpu", torch.device("cpu"), environment(memory=2**30, caches={"L3": 2**28}), None)
    assert any("last-level cache" in w for w in plan.warnings)
    plan = roofline.EXPERIMENT.plan("cpu", torch.device("cpu"), environment(), None)
    assert plan.warnings == []


def test_ceilings_get_enough_values_for_an_interval(record: Record) -> None:
    found = [s for s in record.samples if s.point.get("role") == "ceiling"]
    assert found
    assert all(6 <= len(s.values) <= 12 for s in found)
    for sample in record.samples:
        if sample.timing and sample.timing.stop == "stable":
            assert len(sample.values) in (6, 12, 20, 30, 40, 60)


@pytest.mark.parametrize(
    ("error", "statuses"),
    [(RuntimeError("CUDA out of memory. Tried 2 GiB"), {"oom"}), (RuntimeError("no permission for counters"), set())],
)
def test_a_failed_profile_says_why(error: Exception, statuses: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> tuple[float, float]:
        raise error

    monkeypatch.setattr(roofline, "profile", broken)
    session = roofline.Session("smoke", torch.device("cpu"), environment(), {"copy": 2**12, "matmul-fp32": 16}, [])
    found = list(session.samples(roofline.smoke_points()[0]))
    profiled = [s for s in found if s.metric in ("operator_time", "profiled_time")]
    assert {s.status for s in profiled} == statuses
    assert all(str(error) in s.message for s in profiled)
    assert any(str(error) in w for w in session.warnings)
    assert any(s.metric == "time" and s.status == "ok" and s.point["role"] == "kernel" for s in found)


def build(point: dict[str, Any], cache: int = 2**16) -> roofline.Built:
    make = roofline.Make(torch.device("cpu"), point["dtype"], cache, 2**33)
    return roofline.BUILDERS[point["kernel"]](point, make)


COUNTED = ("matmul", "attention_prefill", "attention_decode")  # torch's counter knows no product with a vector


@pytest.mark.parametrize(
    "point", [p for p in roofline.smoke_points() if p["kernel"] in COUNTED], ids=lambda p: p["case"]
)
def test_flop_of_the_real_call_agree_with_torchs_own_counter(point: dict[str, Any]) -> None:
    call = build(point).calls[0]
    # The CPU's fused attention is one operator that the counter does not know; the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    formula = KERNELS[point["kernel"]][0]
    counted = counter.get_total_flops()
    expected = formula(**{n: point[n] for n in inspect.signature(formula).parameters})
    if point.get("causal"):
        # The counter takes no account of the mask: half of its pairs, and half of the diagonal, are skipped.
        s = point["sequence_length"]
        counted = counted * (s + 1) / (2 * s)
    assert counted == pytest.approx(expected)


@pytest.mark.parametrize("point", roofline.smoke_points(), ids=lambda p: p["case"])
def test_working_set_agrees_with_the_formulas_bytes(point: dict[str, Any]) -> None:
    built = build(point)
    formula = KERNELS[point["kernel"]][1]
    expected = formula(**{n: point[n] for n in inspect.signature(formula).parameters})
    if point["kernel"] == "unfused_chain":
        expected = 3 * point["elements"] * point["bytes_per_element"]  # its buffers are moved many times
    assert built.working_set == pytest.approx(expected)


def test_cold_inputs_exceed_the_cache_together_and_warm_ones_are_one() -> None:
    point = next(p for p in roofline.smoke_points() if p["case"] == "gemv")
    built = build(point, cache=2**24)
    assert len(built.calls) * built.working_set >= 4 * 2**24
    assert len(build(point | {"inputs": "warm"}, cache=2**24).calls) == 1
    with pytest.raises(runner.Unavailable, match="memory"):
        make = roofline.Make(torch.device("cpu"), "fp32", 2**30, 2**28)
        roofline.BUILDERS["gemv"](point, make)


def test_chains_compute_the_same_and_are_not_in_place() -> None:
    seen: list[torch.Tensor] = []
    point = roofline._chain("unfused", 1000, 5, "fp32")
    make = roofline.Make(torch.device("cpu"), "fp32", 2**10, 2**30)
    real = make.empty

    class Spy(roofline.Make):
        def __call__(self, *shape: int) -> torch.Tensor:
            seen.append(super().__call__(*shape))
            return seen[-1]

        def empty(self, *shape: int) -> torch.Tensor:
            seen.append(real(*shape))
            return seen[-1]

    roofline.BUILDERS["unfused_chain"](point, Spy(torch.device("cpu"), "fp32", 2**10, 2**30)).calls[0]()
    x, y, _z = seen[:3]
    expected = x.double().clone()
    for i in range(5):
        expected = expected + 0.001 if i % 2 else expected * 0.999
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(x, y)


def test_inputs_are_random_and_not_zero() -> None:
    make = roofline.Make(torch.device("cpu"), "fp32", 2**20, 2**30)
    values = make(10_000)
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05
    assert not torch.equal(make(100), make(100))


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compiler", lambda: None)
    with pytest.raises(runner.Unavailable, match=r"g\+\+"):
        build(roofline._chain("fused", 1000, 8, "fp32"))


# A run


def test_a_smoke_run_measures_every_case_every_way(record: Record) -> None:
    for case in record.spec["cases"]:
        metrics = {s.metric for s in record.samples if s.point["case"] == case and s.status == "ok"}
        assert {"time", "working_set", "operator_time", "profiled_time"} <= metrics, case


def test_ceilings_stand_around_every_kernel(record: Record) -> None:
    cases = [s.point["case"] for s in record.samples]
    for i, sample in enumerate(record.samples):
        if sample.metric == "time" and sample.point["role"] == "kernel":
            for ceiling in ("ceiling-copy", "ceiling-matmul-fp32", "ceiling-overhead"):
                assert ceiling in cases[:i]
                assert ceiling in cases[i + 1 : i + 5], "measured right after it"


def test_timings_say_how_they_were_taken(record: Record) -> None:
    for sample in record.samples:
        if sample.metric == "time":
            assert sample.timing is not None
            assert sample.timing.clock == "perf_counter"
            assert sample.timing.cold == (sample.point.get("inputs") == "cold")


def test_threads_and_precision_are_as_before(tmp_path: Path) -> None:
    threads, precision = torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision
    session = roofline.Session("smoke", torch.device("cpu"), environment(), {"copy": 2**12, "matmul-fp32": 16}, [])
    list(session.samples(roofline.smoke_points()[0]))
    assert torch.get_num_threads() == threads
    assert torch.backends.cuda.matmul.fp32_precision == precision


def disturbed(monkeypatch: pytest.MonkeyPatch, fails: bool) -> tuple[list[Sample], list[str]]:
    """Samples and warnings of a kernel around which the copy becomes half as fast; it may fail the second time."""
    kernels = iter([[1.0] * 3, RuntimeError("no more") if fails else [2.0] * 3])
    ceilings = iter([[1.0] * 3] * 3 + [[1.5] * 3] + [[1.0] * 3] * 2 + [[1.5] * 3] + [[1.0] * 3] * 2)
    timing = Timing(clock="perf_counter", mode="back-to-back", loops=1, warmup=1)

    def back_to_back(*_: Any, **options: Any) -> timer.Timed:
        values = next(kernels if "cold" in options else ceilings)
        if isinstance(values, RuntimeError):
            raise values
        return timer.Timed(values, timing, [])

    monkeypatch.setattr(timer, "back_to_back", back_to_back)
    monkeypatch.setattr(roofline, "FRESH_FOR", 1e9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    sizes, found = {"copy": 2**12, "matmul-fp32": 16}, list[Sample]()
    session = roofline.Session("cpu", torch.device("cpu"), environment(), sizes, [])
    with pytest.raises(RuntimeError, match="no more") if fails else contextlib.nullcontext():
        for sample in session.samples(roofline._square(16, "fp32")):
            found.append(sample)
    return [s for s in found if s.metric == "time"], session.warnings


def test_a_kernel_is_measured_again_where_a_ceiling_changed_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, warnings = disturbed(monkeypatch, fails=False)
    ceilings = ["ceiling-copy", "ceiling-overhead", "ceiling-matmul-fp32"]
    assert [s.point["case"] for s in found] == [*ceilings, *ceilings, "matmul-16", *ceilings]
    assert found[6].values == [2.0] * 3, "the first attempt is thrown away"
    assert [s.point["index"] for s in found if "index" in s.point] == [*range(9)]
    assert warnings == ["matmul-16: measured again, since around it the time of copy changed by +50%"]


def test_ceilings_around_a_kernel_that_fails_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = disturbed(monkeypatch, fails=True)
    assert [s.point["index"] for s in found] == [*range(6)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_fresh_large_output_pays_page_faults_and_a_given_one_does_not() -> None:
    session = roofline.Session("smoke", torch.device("cpu"), environment(), {"copy": 2**12, "matmul-fp32": 16}, [])
    faults = {}
    for name, output in (("given", "preallocated"), ("fresh", "fresh")):
        point = roofline._relu(2**24, "fp32", name) | {"output": output}
        found = [s for s in session.samples(point) if s.metric == "page_faults"]
        faults[name] = found[0].values[0]
    assert faults["given"] < 100
    assert faults["fresh"] > 0.9 * 2**24 * 4 / 2**21, "at least one fault for every huge page"


@pytest.mark.gpu
def test_a_smoke_run_on_a_gpu(tmp_path: Path) -> None:
    record, _ = runner.run(roofline.EXPERIMENT, scale="smoke", device="cuda", out=tmp_path, report=lambda _: None)
    assert all(s.status == "ok" for s in record.samples)
    assert {s.timing.clock for s in record.samples if s.timing} == {"cuda-events", "perf_counter+synchronize"}


class Meta(roofline.Make):
    """Tensors that have shapes and dtypes but no memory, so that the largest sweep can be called anywhere."""

    def __init__(self, dtype: str) -> None:
        self.torch, self.device, self.dtype = torch, torch.device("meta"), getattr(torch, roofline.DTYPES[dtype])
        self._cache, self._memory = 50 * 2**20, 140 * 10**9

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=self.dtype)

    empty = __call__


@pytest.mark.parametrize(
    "point",
    [p for p in SWEEPS["gpu"] if p["dtype"] != "fp8" and not (p["kernel"] == "fused_chain" and p["operations"] > 1)],
    ids=lambda p: p["case"],
)
def test_the_calls_of_the_gpu_sweep_take_their_operands(point: dict[str, Any]) -> None:
    built = roofline.BUILDERS[point["kernel"]](point, Meta(point["dtype"]))
    built.calls[-1]()
    moved = KERNELS[point["kernel"]][1]
    expected = moved(**{n: point[n] for n in inspect.signature(moved).parameters})
    if point["kernel"] == "unfused_chain":
        expected = 3 * point["elements"] * point["bytes_per_element"]
    assert built.working_set == pytest.approx(expected)
    cold = point["inputs"] == "cold"
    assert (len(built.calls) * built.working_set >= 4 * 50 * 2**20) or not cold
    assert len(built.calls) * built.working_set < 40 * 10**9
