"""Reconciliation on records whose every number the test chose, so that each result is known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efflab import reconcile
from efflab.errors import EfflabError
from efflab.reconcile import roofline
from efflab.records import Environment, Record, Sample

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
    assert row.predicted_time == pytest.approx(1e-6 + 8e8 / 40e9)
    assert row.performance == pytest.approx(1e8 / 25e-3)
    assert row.ratio == pytest.approx(25e-3 / 0.020001)
    assert row.error == pytest.approx((0.020001 - 25e-3) / 25e-3)
    assert row.by_intensity == "memory"
    assert row.datasheet_time is None
    assert row["case"] == row.case == "relu"
    assert dict(row)["measured_time"] == 25e-3
    with pytest.raises(KeyError):
        row["__class__"]


def test_a_compute_bound_and_an_overhead_bound_kernel_by_hand() -> None:
    row = only(record(sample(matmul(2000), 0.08)))
    assert row.predicted_time == pytest.approx(1e-6 + 1.6e10 / 200e9)
    assert row.by_intensity == "compute"
    assert row.explanation == "As predicted, within 25%."
    row = only(record(sample(relu(10), 1.1e-6)))
    assert row.by_intensity == "overhead"
    assert row.predicted_time == pytest.approx(1e-6 + 80 / 40e9)


def test_an_unfused_chain_pays_for_each_operation() -> None:
    point = relu(10**6, kernel="unfused_chain", operations=8)
    assert only(record(sample(point, 1e-3))).predicted_time == pytest.approx(8 * (1e-6 + 8e6 / 40e9))


def test_on_a_gpu_launches_overlap() -> None:
    row = only(record(sample(relu(10**8), 25e-3), kind="cuda", device="Unknown GPU"))
    assert row.predicted_time == pytest.approx(8e8 / 40e9)
    row = only(record(sample(relu(10), 1e-6), kind="cuda", device="Unknown GPU"))
    assert row.predicted_time == pytest.approx(1e-6)
    point = relu(10, kernel="unfused_chain", operations=8)
    assert only(record(sample(point, 8e-6), kind="cuda", device="Unknown GPU")).predicted_time == pytest.approx(8e-6)


def test_the_data_sheet_gives_a_second_prediction() -> None:
    # H200 SXM: 4.8 TB/s, 66.9 TFLOP/s in fp32 on the CUDA cores.
    found = record(sample(relu(10**9), 2e-3), kind="cuda", device="NVIDIA H200", memory=150_000_000_000 * 94 // 100)
    row = only(found)
    assert row.datasheet_time == pytest.approx(8e9 / 4.8e12)
    assert row.predicted_time == pytest.approx(8e9 / 40e9)
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
    assert fast.predicted_time == slow.predicted_time
    lonely = record(samples=[sample(matmul(1000), 0.01)])
    with pytest.raises(EfflabError, match="ceiling-matmul-fp32"):
        roofline.points(lonely)


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
    assert "hinder" in only(hindered).explanation

    small = record(sample(matmul(64, "small", series="s"), 3e-5), sample(matmul(2048, "large", series="s"), 0.086))
    assert "Too small" in roofline.points(small)[0].explanation

    few = record(sample(matmul(512), 1e-2), kind="cuda", device="Unknown GPU")
    assert "16, and the device has 132 multiprocessors" in only(few).explanation

    noisy = record(sample(matmul(2000), 0.08, spread=0.6))
    assert "Unsteady" in only(noisy).explanation


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
    assert "Not measured here" in banner
    assert "not complete" in roofline.banner(record(finished=None))
    lines = reconcile.columns(["a", "bb"], [["1", "2"], ["333", "4"]], (0,)).splitlines()
    assert lines == ["  a  bb", "───  ──", "  1  2", "333  4"]


def test_error_and_percent() -> None:
    assert reconcile.error(2.0, 1.0) == 1.0
    assert reconcile.error(0.5, 1.0) == -0.5
    assert [reconcile.percent(v) for v in (0.123, -0.5, 0.0, -0.001, 12.0)] == ["+12%", "−50%", "0%", "0%", "+1,200%"]
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(EfflabError, match="measured"):
            reconcile.error(1.0, bad)
    with pytest.raises(EfflabError, match="roofline"):
        reconcile.topic("rofline")
