"""Reconciliation on records whose every number the test chose, so that each result is known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efflab import reconcile, records
from efflab.errors import EfflabError
from efflab.reconcile import roofline
from efflab.records import Environment, Prediction, Record, Sample

PEAK, BANDWIDTH, OVERHEAD = 200e9, 40e9, 1e-6  # FLOP/s, B/s, s


def sample(point: dict[str, Any], seconds: float, metric: str = "time", unit: str = "s", spread: float = 0.0) -> Sample:
    values = [seconds * f for f in (1 - spread, 1.0, 1 + spread)]
    return Sample(point=point, metric=metric, unit=unit, values=values, status="ok")


def ceilings(index: int, peak: float = PEAK, bandwidth: float = BANDWIDTH, overhead: float = OVERHEAD) -> list[Sample]:
    n, elements = 1000, 10**7
    return [
        sample({"case": "ceiling-copy", "role": "ceiling", "kernel": "copy", "bytes_moved": 8 * elements,
                "index": 10 * index}, 8 * elements / bandwidth),
        sample({"case": "ceiling-overhead", "role": "ceiling", "kernel": "negate", "index": 10 * index + 1}, overhead),
        sample({"case": "ceiling-matmul-fp32", "role": "ceiling", "kernel": "matmul", "m": n, "n": n, "k": n,
                "index": 10 * index + 2}, 2 * n**3 / peak),
    ]  # fmt: skip


def record(*middle: Sample, kind: str = "cpu", device: str = "Some CPU", memory: int = 2**34, **changes: Any) -> Record:
    environment = Environment(
        device=device, kind=kind, count=1, memory=memory, threads=2, cores=2, caches={"L3": 2**25}, torch="2.13",
        python="3.11", efflab="0.1", multiprocessors=132 if kind == "cuda" else None,
    )  # fmt: skip
    data: dict[str, Any] = {
        "id": "r", "topic": "roofline", "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:01:00Z",
        "environment": environment, "spec": {"scale": "cpu"}, "samples": [*ceilings(0), *middle, *ceilings(1)],
    }  # fmt: skip
    return Record(**data | changes)


def relu(elements: int, case: str = "relu", **extra: Any) -> dict[str, Any]:
    return {"case": case, "role": "kernel", "kernel": "fused_chain", "elements": elements, "operations": 1,
            "bytes_per_element": 4, "dtype": "fp32", "inputs": "cold", "output": "preallocated"} | extra  # fmt: skip


def matmul(n: int, case: str = "matmul", **extra: Any) -> dict[str, Any]:
    return {"case": case, "role": "kernel", "kernel": "matmul", "m": n, "n": n, "k": n, "bytes_per_element": 4,
            "dtype": "fp32", "inputs": "warm", "output": "preallocated"} | extra  # fmt: skip


def only(found: Record) -> roofline.Row:
    (row,) = roofline.points(found)
    return row


def test_a_memory_bound_kernel_by_hand() -> None:
    row = only(record(sample(relu(10**8), 25e-3)))
    assert row.flops == 1e8
    assert row.bytes_moved == 8e8
    assert row.arithmetic_intensity == 0.125
    assert row.predicted == pytest.approx(1e-6 + 8e8 / 40e9)
    assert row.performance == pytest.approx(1e8 / 25e-3)
    assert row.ratio == pytest.approx(25e-3 / 0.020001)
    assert row.error == pytest.approx((0.020001 - 25e-3) / 25e-3)
    assert row.by_intensity == "memory"
    assert row.datasheet_time is None
    assert row["case"] == row.case == "relu"
    assert dict(row)["measured"] == 25e-3
    with pytest.raises(KeyError):
        row["__class__"]


def test_a_compute_bound_and_an_overhead_bound_kernel_by_hand() -> None:
    row = only(record(sample(matmul(2000), 0.08)))
    assert row.predicted == pytest.approx(1e-6 + 1.6e10 / 200e9)
    assert row.by_intensity == "compute"
    assert row.explanation == "As predicted, within 25%."
    row = only(record(sample(relu(10), 1.1e-6)))
    assert row.by_intensity == "overhead"
    assert row.predicted == pytest.approx(1e-6 + 80 / 40e9)


def test_an_unfused_chain_pays_for_each_operation() -> None:
    point = relu(10**6, kernel="unfused_chain", operations=8)
    assert only(record(sample(point, 1e-3))).predicted == pytest.approx(8 * (1e-6 + 8e6 / 40e9))


def test_on_a_gpu_launches_overlap() -> None:
    row = only(record(sample(relu(10**8), 25e-3), kind="cuda", device="Unknown GPU"))
    assert row.predicted == pytest.approx(8e8 / 40e9)
    row = only(record(sample(relu(10), 1e-6), kind="cuda", device="Unknown GPU"))
    assert row.predicted == pytest.approx(1e-6)
    point = relu(10, kernel="unfused_chain", operations=8)
    assert only(record(sample(point, 8e-6), kind="cuda", device="Unknown GPU")).predicted == pytest.approx(8e-6)


def test_the_data_sheet_gives_a_second_prediction() -> None:
    # H200 SXM: 4.8 TB/s, 66.9 TFLOP/s in fp32 on the CUDA cores.
    found = record(sample(relu(10**9), 2e-3), kind="cuda", device="NVIDIA H200", memory=150_000_000_000 * 94 // 100)
    row = only(found)
    assert row.datasheet_time == pytest.approx(8e9 / 4.8e12)
    assert row.predicted == pytest.approx(8e9 / 40e9)
    head, rows, _ = roofline.table(found)
    assert "data sheet" in head
    assert len(rows[0]) == len(head)


def test_ceilings_are_the_ones_around_the_kernel() -> None:
    first, second = sample(relu(10**8, "a"), 20e-3), sample(relu(10**8, "b"), 40e-3)
    samples = [*ceilings(0, bandwidth=40e9), first, *ceilings(1, bandwidth=40e9), *ceilings(2, bandwidth=20e9), second,
               *ceilings(3, bandwidth=20e9), *ceilings(4, bandwidth=999e9)]  # fmt: skip
    a, b = roofline.points(record(samples=samples))
    assert a.ceilings.bandwidth == pytest.approx(40e9)
    assert b.ceilings.bandwidth == pytest.approx(20e9)
    between = [*ceilings(0, bandwidth=40e9), first, *ceilings(1, bandwidth=20e9)]
    (row,) = roofline.points(record(samples=between))
    assert row.ceilings.bandwidth == pytest.approx(30e9)
    assert "Unsteady" in row.explanation


def test_a_kernel_never_predicts_itself() -> None:
    fast, slow = (only(record(sample(matmul(2000), t))) for t in (0.08, 8.0))
    assert fast.predicted == slow.predicted
    lonely = record(samples=[sample(matmul(1000, peak_dtype="fp32"), 0.01)])
    with pytest.raises(EfflabError, match="ceiling-matmul-fp32"):
        roofline.points(lonely)
    with pytest.raises(EfflabError, match="peak_dtype"):
        roofline.points(record(samples=[sample(matmul(1000), 0.01)]))


def test_the_point_says_whose_peak_bounds_it() -> None:
    bf16 = sample({"case": "ceiling-matmul-bf16", "role": "ceiling", "kernel": "matmul", "m": 1000, "n": 1000,
                   "k": 1000, "index": 99}, 2e9 / 800e9)  # fmt: skip
    point = matmul(2000) | {"dtype": "bf16", "bytes_per_element": 2}
    rows = roofline.points(record(sample(point | {"peak_dtype": "bf16"}, 0.02), bf16))
    assert rows[0].ceilings.peak == pytest.approx(800e9)
    rows = roofline.points(record(sample(point | {"peak_dtype": "fp32"}, 0.02), bf16))
    assert rows[0].ceilings.peak == pytest.approx(200e9)
    rows = roofline.points(record(sample(point, 0.02), bf16))  # a record from before the field: what was measured next
    assert rows[0].ceilings.peak == pytest.approx(800e9)


@pytest.mark.parametrize(
    ("exponent", "sizes", "expected"),
    [
        (3.0, (512, 1024, 2048), ("compute",)),
        (0.0, (512, 1024, 2048), ("overhead",)),
    ],
)
def test_regime_by_size_of_a_matrix_product(exponent: float, sizes: tuple[int, ...], expected: tuple[str, ...]) -> None:
    samples = [sample(matmul(n, f"m{n}", series="s"), 1e-4 * (n / 512) ** exponent) for n in sizes]
    rows = roofline.points(record(*samples))
    assert [r.by_size for r in rows] == [expected] * 3


def test_regime_by_size_keeps_both_where_sizes_cannot_tell() -> None:
    rows = roofline.points(record(*[sample(relu(n, f"r{n}", series="s"), n * 1e-9) for n in (10**6, 10**7)]))
    assert {r.by_size for r in rows} == {("memory", "compute")}
    rows = roofline.points(record(*[
        sample(relu(10**7, f"k{k}", operations=k, series="s"), 1e-3) for k in (8, 32)
    ]))  # fmt: skip
    assert {r.by_size for r in rows} == {("overhead", "memory")}
    assert only(record(sample(relu(10**6), 1e-3))).by_size == ()


@pytest.mark.parametrize(
    ("point", "seconds", "inside", "expected"),
    [
        (relu(10), 1e-5, 2e-6, "overhead"),
        (relu(10), 1e-6, 9e-7, "overhead"),
        (relu(10**8), 2e-2, 2e-2, "memory"),
        (matmul(2000), 8e-2, 8e-2, "compute"),
    ],
)
def test_regime_by_profiler(point: dict[str, Any], seconds: float, inside: float, expected: str) -> None:
    found = record(
        sample(point, seconds), sample(point, inside, "operator_time"), sample(point, seconds, "profiled_time")
    )
    assert only(found).by_profile == expected
    text = roofline.evidence(found, point["case"])
    assert expected in text
    with pytest.raises(EfflabError, match="case"):
        roofline.evidence(found, "nothing")


def test_explanations_follow_the_records_own_numbers() -> None:
    inside = relu(2**18, inputs="warm")
    cached = record(sample(inside, 1e-5), sample(inside, 2 * 2**20, "working_set", "B"))
    assert "last-level cache" in only(cached).explanation
    outside = relu(2**18, inputs="cold")
    uncached = record(sample(outside, 1e-5), sample(outside, 2 * 2**20, "working_set", "B"))
    assert "last-level cache" not in only(uncached).explanation
    assert "does not explain" in only(uncached).explanation

    fresh = relu(2**24, output="fresh")
    pays = record(sample(fresh, 20e-3), sample(fresh, 16385.0, "page_faults", ""))
    assert "16,385 page faults" in only(pays).explanation
    spared = record(sample(fresh, 20e-3), sample(fresh, 0.0, "page_faults", ""))
    assert "page faults" not in only(spared).explanation

    big = matmul(2000)
    alone = record(sample(big, 0.16), sample(big, 0.16, "time_one_thread"))
    assert "one thread" in only(alone).explanation
    shared = record(sample(big, 0.16), sample(big, 0.32, "time_one_thread"))
    assert "one thread" not in only(shared).explanation
    hindered = record(sample(big, 0.16), sample(big, 0.08, "time_one_thread"))
    assert "One thread is faster than 2: one thread takes 80 ms" in only(hindered).explanation

    small = record(sample(matmul(64, "small", series="s"), 3e-5), sample(matmul(2048, "large", series="s"), 0.086))
    assert "too small a product to fill the units" in roofline.points(small)[0].explanation

    few = record(sample(matmul(512), 1e-2), kind="cuda", device="Unknown GPU")
    assert "262,144 elements for 132 multiprocessors" in only(few).explanation
    assert "128" not in only(few).explanation, "the record does not hold the library's tile size"

    noisy = record(sample(matmul(2000), 0.08, spread=0.6))
    assert "Unsteady" in only(noisy).explanation


def bandwidths(read: float, in_place: float) -> list[Sample]:
    moved = 8 * 10**7
    return [
        sample({"case": f"bandwidth-{kind}", "role": "bandwidth", "kernel": kind, "bytes_moved": moved}, moved / rate)
        for kind, rate in (("read", read), ("in-place", in_place))
    ]


def gemv(n: int) -> dict[str, Any]:
    return {"case": "gemv", "role": "kernel", "kernel": "gemv", "m": n, "n": n, "bytes_per_element": 4, "dtype": "fp32",
            "inputs": "cold", "output": "preallocated"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "in_place", "named"), [("cpu", 60e9, True), ("cpu", 41e9, False), ("cuda", 60e9, False)]
)
def test_a_line_read_before_it_is_written_needs_the_in_place_rate_of_a_cpu(
    kind: str, in_place: float, named: bool
) -> None:
    n = 10**4  # 400 MB; at 60 GB/s faster than the copy's 40
    found = record(*bandwidths(60e9, in_place), sample(gemv(n), 4e8 / 60e9), kind=kind, device="Some device")
    said = only(found).explanation
    assert "60 GB/s" in said
    assert "40 GB/s" in said
    assert ("written line" in said) == named
    if named:
        assert said.index("consistent with") < said.index("written line")


@pytest.mark.parametrize(
    ("rate", "said", "unsaid"),
    [(18e9, "on one thread", "One core moves"), (28e9, "One core moves as much as 2", "library")],
)
def test_one_core_that_uses_up_the_memory_is_no_library_on_one_thread(rate: float, said: str, unsaid: str) -> None:
    n = 10**4
    seconds = (4 * n * n + 8 * n) / rate
    found = record(*bandwidths(45e9, 40e9), sample(gemv(n), seconds), sample(gemv(n), seconds, "time_one_thread"))
    explanation = only(found).explanation
    assert said in explanation
    assert unsaid not in explanation


def prefill(**extra: Any) -> dict[str, Any]:
    return {"case": "prefill", "role": "kernel", "kernel": "attention_prefill", "batch": 1, "query_heads": 8,
            "kv_heads": 8, "sequence_length": 1000, "head_dim": 64, "causal": False, "bytes_per_element": 4,
            "dtype": "fp32", "inputs": "warm", "output": "reused"} | extra  # fmt: skip


@pytest.mark.parametrize(("each", "named"), [(5e-10, True), (5e-11, False), (5e-9, False), (None, False)])
def test_softmax_explains_attention_only_where_its_own_rate_fits(each: float | None, named: bool) -> None:
    """8 million scores at 0.5 ns are the 4 ms that are missing; at a tenth or ten times the rate they are not."""
    softmax = {"case": "soft", "role": "series", "kernel": "softmax", "rows": 1000, "columns": 1000,
               "bytes_per_element": 4, "dtype": "fp32"}  # fmt: skip
    beside = [sample(softmax, each * 10**6)] if each else []
    work = 4 * 8 * 1000 * 1000 * 64 / PEAK
    rows = roofline.points(record(*beside, sample(prefill(), work + 4e-3)))
    said = next(r for r in rows if r.case == "prefill").explanation
    assert ("softmax" in said) == named
    if not named:
        assert "does not explain" in said


def test_no_cause_without_a_number_or_a_mark() -> None:
    """The words that name a cause stand behind "consistent with"."""
    fast = record(sample(matmul(2000), 0.05))
    said = only(fast).explanation
    assert "320 GFLOP/s" in said
    assert "200 GFLOP/s" in said
    assert "suits" not in said


def test_a_kernel_that_agrees_keeps_its_note_in_the_text() -> None:
    found = record(sample(matmul(2000, "steady"), 0.08), sample(matmul(2000, "noisy"), 0.08, spread=0.6))
    said = roofline.text(found)
    assert "noisy: As predicted, within 25%. Unsteady" in said
    assert "steady: As" not in said


def test_softmax_is_blamed_on_arithmetic_only_where_the_cache_does_not_help() -> None:
    def softmax(rows: int, case: str, inputs: str) -> dict[str, Any]:
        return {"case": case, "role": "kernel", "kernel": "softmax", "rows": rows, "columns": 1000,
                "bytes_per_element": 4, "dtype": "fp32", "inputs": inputs, "series": "s"}  # fmt: skip

    def run(cached_seconds: float) -> str:
        small, large = softmax(100, "small", "warm"), softmax(10_000, "large", "cold")
        found = record(
            sample(small, cached_seconds), sample(small, 8e5, "working_set", "B"), sample(large, 6e-3),
            sample(large, 8e7, "working_set", "B"),
        )  # fmt: skip
        return next(r for r in roofline.points(found) if r.case == "large").explanation

    assert "exponentials" in run(6e-5)  # the same rate in the cache
    assert "exponentials" not in run(2e-5)  # three times faster in the cache: memory does bound it


def test_summary_medians_and_the_worst() -> None:
    found = record(
        sample(relu(10**8, "a"), 0.020001 * 1.1), sample(relu(10**8, "b"), 0.020001 * 2),
        sample(relu(10**8, "c"), 0.020001 * 16), sample(relu(10**8, "d", role="lesson"), 9.0),
    )  # fmt: skip
    said = roofline.summary(found)
    assert said.startswith("3 kernels. Median error of the predicted time 50%; 1 within")
    assert "Worst: c" in said
    assert "−94%" in said


def test_what_was_not_measured_is_said() -> None:
    point = relu(10**9, "huge")
    gone = Sample(point=point, metric="time", unit="s", values=[], status="oom", message="too large")
    found = record(gone)
    assert roofline.points(found) == []
    assert roofline.missing(found) == ["huge ran out of memory: too large"]
    assert "No kernel" in roofline.summary(found)
    found = record(gone, sample(relu(10**8), 0.02))
    assert "huge ran out of memory" in roofline.summary(found)
    assert roofline.text(found) == roofline.text(found)


def test_points_that_lack_an_argument_and_other_topics_are_named() -> None:
    point = relu(10**6)
    del point["elements"]
    with pytest.raises(EfflabError, match="elements"):
        roofline.points(record(sample(point, 1.0)))
    with pytest.raises(EfflabError, match="mystery"):
        roofline.points(record(sample(relu(1, kernel="mystery"), 1.0)))
    with pytest.raises(EfflabError, match="precision"):
        roofline.points(record(topic="precision"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": None}, "dtype"), ({"m": "abc"}, "point.m must be a number"), ({"m": 0}, "point.m"),
        ({"m": True}, "point.m"), ({"m": 10**400}, "point.m"), ({"k": None}, "point.k"),
        ({"series": 3}, "point.series"),
        ({"kernel": "mystery"}, "mystery"), ({"kernel": 3}, "point.kernel"), ({"case": None}, "point.case"),
        ({"peak_dtype": 1}, "point.peak_dtype"),
    ],
)  # fmt: skip
def test_a_damaged_point_is_named_by_every_reader(change: dict[str, Any], said: str) -> None:
    """A record can follow the schema and still hold a point that no formula takes."""
    point = {k: v for k, v in (matmul(2000) | change).items() if v is not None}
    found = Record.model_validate(record(sample(relu(10**8), 0.02), sample(point, 0.08)).model_dump(by_alias=True))
    for read in (roofline.points, roofline.table, roofline.summary, roofline.text, roofline.missing,
                 roofline.calibration_text, roofline.measured_ceilings, roofline.calibration):  # fmt: skip
        with pytest.raises(EfflabError) as caught:
            read(found)
        assert said in str(caught.value)
        assert "record r: samples[4]" in str(caught.value)


def test_a_flag_that_is_no_flag_and_a_damaged_ceiling_are_named() -> None:
    with pytest.raises(EfflabError, match=r"samples\[3\].*point\.causal must be true or false"):
        roofline.points(record(sample(prefill(causal="yes"), 1.0)))
    broken = ceilings(0)
    del broken[0].point["bytes_moved"]
    with pytest.raises(EfflabError, match=r"samples\[0\].*bytes_moved"):
        roofline.points(record(samples=[*broken, sample(relu(10**8), 0.02), *ceilings(1)]))


# Calculators


def saved(outputs: dict[str, tuple[float, str]], **inputs: Any) -> Prediction:
    return Prediction.new("roofline", outputs, inputs=inputs, source="calculator", calculator="any")


def test_a_calculators_time_meets_the_case_of_the_same_kernel_sizes_and_dtype() -> None:
    found = record(sample(matmul(2000, "a"), 0.08), sample(matmul(1000, "b"), 0.01))
    same = {"kernel": "matmul", "m": 1000, "n": 1000, "k": 1000, "dtype": "fp32", "overhead": 0.0}
    times = {"time": (0.02, "s"), "flops": (2e9, "FLOP"), "compute_time": (0.01, "s")}
    (row,) = roofline.answers(found, saved(times, **same)).values()
    assert (row.case, row.predicted, row.measured) == ("b", 0.02, 0.01)
    assert (row.ratio, row.error, row.explanation) == (0.5, 1.0, "")
    for change in ({"m": 1001}, {"dtype": "bf16"}, {"kernel": "custom"}, {"accelerator": "H200 SXM"}):
        assert roofline.answers(found, saved(times, **same | change)) == {}
    assert roofline.answers(found, saved(times, **same, accelerator="custom"))
    del same["k"]
    assert roofline.answers(found, saved(times, **same)) == {}


def test_every_roofline_calculator_can_meet_a_measurement() -> None:
    from efflab import calculators

    given: dict[str, Any] = {"accelerator": "custom", "dtype": "fp32"}
    chain = {"elements": 10**6, "operations": 8}
    found = record(
        sample(prefill(causal=True), 0.01),
        sample(relu(10**6, "unfused", operations=8, kernel="unfused_chain"), 0.01),
        sample(relu(10**6, "fused", operations=8), 0.002), sample(matmul(512, "square"), 0.01),
    )  # fmt: skip

    def cases(name: str, **more: Any) -> dict[str, str]:
        prediction = calculators.get(name).evaluate(**given, **more).prediction()
        assert set(roofline.answers(found, prediction)) <= set(roofline.asked(prediction))
        return {n: r.case for n, r in roofline.answers(found, prediction).items()}

    sizes = {"batch": 1, "query_heads": 8, "kv_heads": 8, "sequence_length": 1000, "head_dim": 64}
    assert cases("roofline-explorer", kernel="attention_prefill", mask="causal", **sizes) == {"time": "prefill"}
    assert cases("roofline-explorer", kernel="attention_prefill", mask="full", **sizes) == {}
    assert cases("fusion", **chain) == {"unfused_chain_time": "unfused", "fused_chain_time": "fused"}
    assert cases("overhead", size=512)["time"] == "square"


def test_the_module_offers_what_a_topic_must() -> None:
    for name in reconcile.topics():
        module = reconcile.topic(name)
        wanted = [n for n in vars(reconcile.Topic) if not n.startswith("_")]
        wanted += list(reconcile.Topic.__annotations__)
        assert len(wanted) >= 15
        assert [n for n in wanted if not hasattr(module, n)] == []
        assert module.PICTURES[0] == name


def test_a_case_for_cpus_only_is_said_on_a_gpu() -> None:
    middle = [sample(relu(10**8, "relu-large"), 0.02)]
    said = roofline.compare(record(*middle, kind="cuda", device="Unknown GPU"), "relu-fresh", "relu-large")
    assert "case for CPUs" in said
    with pytest.raises(EfflabError, match="relu-fresh"):
        roofline.compare(record(*middle), "relu-fresh", "relu-large")


def test_the_text_is_the_same_every_time_and_aligned() -> None:
    found = record(sample(relu(10**8, "a"), 0.02), sample(matmul(2000, "b"), 0.08))
    text = roofline.text(found)
    assert text == roofline.text(Record.model_validate(found.model_dump(by_alias=True)))
    assert "40 GB/s" in text
    assert "200 GFLOP/s" in text
    assert "5 FLOP/B" in text
    banner = roofline.banner(found)
    assert "Some CPU" in banner
    assert "2026-11-21" in banner
    assert "Nothing is measured now." in banner
    shipped = found.model_copy(update={"id": records.recorded("roofline")[-1].id})
    assert "Not measured here." in roofline.banner(shipped), "it comes with the course"
    assert "not complete" in roofline.banner(record(finished=None))
    lines = reconcile.columns(["a", "bb"], [["1", "2"], ["333", "4"]], (0,)).splitlines()
    assert lines == ["  a  bb", "───  ──", "  1  2", "333  4"]


def test_error_and_percent() -> None:
    assert reconcile.error(2.0, 1.0) == 1.0
    assert reconcile.error(0.5, 1.0) == -0.5
    said = [reconcile.percent(v) for v in (0.123, -0.5, 0.0, -0.0001, -0.001, 0.0041, 0.0096, 0.0101, 12.0)]
    assert said == ["+12%", "−50%", "0%", "0%", "−0.1%", "+0.4%", "+1.0%", "+1%", "+1,200%"]
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(EfflabError, match="measured"):
            reconcile.error(1.0, bad)
    with pytest.raises(EfflabError, match="roofline"):
        reconcile.topic("rofline")
