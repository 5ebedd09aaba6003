"""Reconciliation on records whose every number the test chose, so that each result is known by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from efflab import lab, records
from efflab.errors import EfflabError
from efflab.experiments import precision as experiment
from efflab.experiments import runner
from efflab.reconcile import precision
from efflab.records import Environment, Prediction, Record, Sample

PEAK, OVERHEAD = 100e9, 2e-5  # FLOP/s of fp32, s
R = 1 / math.sqrt(32 * math.log(2))  # rms rounding error of a format with spacing 1 at one


def sample(
    point: dict[str, Any], value: float, metric: str = "time", unit: str = "s", spread: float = 0.0, **changes: Any
) -> Sample:
    values = [value * f for f in (1 - spread, 1.0, 1 + spread)] if spread else [value]
    return Sample(**{"point": point, "metric": metric, "unit": unit, "values": values, "status": "ok"} | changes)


def product(n: int, dtype: str = "fp32", role: str = "product", **extra: Any) -> dict[str, Any]:
    return {"case": f"matmul-{dtype}-{n}", "role": role, "kernel": "matmul", "m": n, "n": n, "k": n, "dtype": dtype,
            "bytes_per_element": 4, "series": f"{dtype} by size"} | extra  # fmt: skip


def error(n: int, dtype: str, role: str = "error", **extra: Any) -> dict[str, Any]:
    return product(n, dtype, role, case=f"error-{dtype}-{n}", series=f"{dtype} error by size") | extra


SHAPE = {
    "layers": 2, "sequence_length": 100, "microbatch": 3, "hidden_size": 40, "intermediate_size": 160,
    "query_heads": 5, "head_dim": 8, "vocabulary": 70,
}  # fmt: skip


def step(what: str, weights: str = "fp32", attention: str = "math", **extra: Any) -> dict[str, Any]:
    return {"case": f"{what}-{weights}-{attention}", "role": what, "weights": weights, "attention": attention,
            "dropout": False, "recomputation": "none", "method": "counted", "series": what} | SHAPE | extra  # fmt: skip


def calibration(dtype: str = "fp32", peak: float = PEAK, overhead: float = OVERHEAD, n: int = 2000) -> list[Sample]:
    return [
        sample(product(32, dtype, "calibration", case=f"overhead-{dtype}"), overhead),
        sample(product(n, dtype, "calibration"), 2 * n**3 / peak),
    ]


def blocks(terms: int = 2000, size: float = 200) -> Sample:
    """The error of an fp32 product whose sums run in blocks of `size` terms, by hand."""
    additions = (size + 1) / 2 + (terms / size + 1) / 2 - size / terms
    return sample(error(terms, "fp32", "calibration"), R * 2**-23 * math.sqrt(2 + additions), "error", "")


def record(*middle: Sample, kind: str = "cpu", device: str = "Some CPU", **changes: Any) -> Record:
    environment = Environment(
        device=device, kind=kind, count=1, memory=changes.pop("memory", 2**34), threads=2, cores=2,
        caches={"L3": 2**25}, torch="2.13", python="3.11", efflab="0.1", platform="Linux x86_64",
    )  # fmt: skip
    data: dict[str, Any] = {
        "id": "r", "topic": "precision", "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:01:00Z",
        "environment": environment, "spec": {"scale": "cpu", "instructions": ["avx2", "avx512_bf16", "avx512f"]},
        "samples": [*calibration(), blocks(), *middle],
    }  # fmt: skip
    return Record(**data | changes)


def only(found: Record) -> precision.Row:
    (row,) = precision.points(found)
    return row


# Time


def test_a_product_takes_its_operations_at_the_largest_ones_rate_and_the_overhead() -> None:
    row = only(record(sample(product(500), 3e-3)))
    assert row.predicted == pytest.approx(2e-5 + 2 * 500**3 / 100e9)
    assert row.measured == 3e-3
    assert row.ratio == pytest.approx(3e-3 / 2.52e-3)
    assert row.error == pytest.approx((2.52e-3 - 3e-3) / 3e-3)
    assert (row.metric, row.unit.symbol, row.dtype, row.regime, row.datasheet) == ("time", "s", "fp32", "", None)


def test_on_a_gpu_launches_overlap() -> None:
    found = record(sample(product(50), 1e-5), sample(product(500), 3e-3), kind="cuda", device="Unknown GPU")
    assert [r.predicted for r in precision.points(found)] == pytest.approx([2e-5, 2.5e-3])


def test_a_data_sheet_gives_a_second_time() -> None:
    # H200 SXM: 66.9 TFLOP/s in fp32 on the CUDA cores.
    found = record(sample(product(1900), 2e-3), kind="cuda", device="NVIDIA H200", memory=150_000_000_000 * 94 // 100)
    assert only(found).datasheet == pytest.approx(2 * 1900**3 / 66.9e12)
    assert "data sheet" in precision.table(found)[0]
    assert "66.9 TFLOP/s" in precision.calibration_text(found)


def test_no_product_predicts_itself() -> None:
    fast, slow = (only(record(sample(product(500), t))) for t in (1e-3, 1.0))
    assert fast.predicted == slow.predicted
    assert precision.points(record()) == []
    failed = sample(product(2000, "bf16", "calibration"), 1, values=[], status="failed", message="too long")
    lacking = [sample(product(32, "bf16", "calibration", case="overhead-bf16"), 1e-5), failed]
    # The largest that was measured takes the place of the one that was not, and is not predicted.
    found = record(*lacking, sample(product(500, "bf16"), 1e-3), sample(product(1000, "bf16"), 8e-3))
    row = only(found)
    assert row.case == "matmul-bf16-500"
    assert row.predicted == pytest.approx(1e-5 + 1e-3)
    assert "matmul-bf16-2000 was not measured: too long" in precision.missing(found)


def test_a_missing_overhead_is_named() -> None:
    with pytest.raises(EfflabError, match="overhead-bf16"):
        precision.points(record(sample(product(500, "bf16"), 1e-3), sample(product(1000, "bf16"), 8e-3)))


def test_calibration_gives_peaks_and_speedups() -> None:
    found = precision.calibration(record(*calibration("bf16", 300e9), *calibration("fp16", 20e9)))
    assert found["peak-fp32"] == pytest.approx(100e9)
    assert found["peak-bf16"] == pytest.approx(300e9)
    assert found["speedup-bf16"] == pytest.approx(3)
    assert found["speedup-fp16"] == pytest.approx(0.2)
    assert found["block"] == pytest.approx(200, rel=1e-6)
    assert set(found) <= set(precision.CALIBRATION)
    assert precision.calibration(record(samples=[])) == {}


@pytest.mark.parametrize(
    ("dtype", "peak", "said", "unsaid"),
    [
        ("fp16", 20e9, "fp16 is 5 times slower than fp32 here. The processor lists no instruction", "does not explain"),
        ("fp8", 20e9, "No CPU instruction multiplies it", "lists no"),
        ("bf16", 20e9, "lists avx512_bf16: the record does not explain it", "lists no"),
        ("fp16", 200e9, "200 GFLOP/s", "slower"),
        ("fp16", 100e9, "100 GFLOP/s", "slower"),
        ("fp8", 83.5e9, "fp8 is 1.2 times slower than fp32 here. No CPU instruction multiplies it", "lists no"),
        ("fp8", 98e9, "fp8 is 2.0% slower than fp32 here. No CPU instruction multiplies it", "lists no"),
    ],
)
def test_a_slow_dtype_is_explained_by_what_the_processor_lists(dtype: str, peak: float, said: str, unsaid: str) -> None:
    text = precision.calibration_text(record(*calibration(dtype, peak)))
    assert said in text
    assert unsaid not in text
    assert "asimdhp" not in text, "an Arm instruction"
    silent = record(*calibration(dtype, peak), spec={"scale": "cpu"})
    assert "instruction" not in precision.calibration_text(silent)


def test_explanations_of_times_follow_the_records_own_numbers() -> None:
    assert only(record(sample(product(500), 2.52e-3))).explanation == "As predicted, within 1%."
    assert only(record(sample(product(500), 2.7e-3))).explanation == "As predicted, within 10%."
    assert "Unsteady" in only(record(sample(product(500), 2.5e-3, spread=0.6))).explanation

    alone = record(sample(product(500), 5e-3), sample(product(500), 5e-3, "time_one_thread"))
    assert "on one thread" in only(alone).explanation
    hindered = record(sample(product(500), 5e-3), sample(product(500), 2e-3, "time_one_thread"))
    pair = "One thread is faster than 2: it takes 2 ms, 2 take 5 ms. Consistent with something else that used the cores"
    assert pair in only(hindered).explanation
    assert "cost more than they bring" in only(hindered).explanation, "of a small product this may be too"
    for n, seconds in ((500, 7e-3), (1500, 0.2)):
        at = product(n)
        hindered = record(sample(at, seconds), sample(at, seconds / 3.3 if n == 500 else 0.15, "time_one_thread"))
        assert "used the cores while this was measured." in only(hindered).explanation
        assert "cost more" not in only(hindered).explanation
    shared = record(sample(product(500), 5e-3), sample(product(500), 10e-3, "time_one_thread"))
    assert "thread" not in only(shared).explanation

    def two(small: float, large: float) -> str:
        times = (2e-5 + 2 * 250**3 / PEAK + small, 2e-5 + 2 * 500**3 / PEAK + large)
        rows = precision.points(record(*[sample(product(n), t) for n, t in zip((250, 500), times, strict=True)]))
        return rows[0].explanation

    assert "cost of every call" in two(1e-3, 1e-3)
    assert "converting or repacking" in two(1e-3, 4e-3)
    assert "too small a product" in two(1e-3, 8e-4 / 8)

    fast = only(record(sample(product(500), 1e-3))).explanation
    assert "It reaches 250 GFLOP/s" in fast
    assert "cache" in fast, "3 MB fit into 32 MiB and 48 MB do not"
    slow_tiny = [*calibration(overhead=2e-3), blocks()]
    assert "2 ms of the prediction is" in only(record(samples=[*slow_tiny, sample(product(500), 2.6e-3)])).explanation
    large = only(record(sample(product(1900), 0.05))).explanation
    assert "cache" not in large


def test_an_overhead_that_was_disturbed_is_named() -> None:
    """fp16 as one run had it: 7.98 ms where 21 µs are usual."""
    times = {256: 1.1e-3, 512: 6.5e-3, 1024: 48e-3}
    products = [sample(product(n, "fp16"), t) for n, t in times.items()]
    found = record(*calibration("fp16", 45e9, overhead=7.98e-3, n=2048), *products)
    said = {r.case: r.explanation for r in precision.points(found)}
    for n in (256, 512):
        assert said[f"matmul-fp16-{n}"].startswith(
            "The overhead was disturbed: the tiny product took 7.98 ms, the one of size 256 1.1 ms. Without it "
        )
    assert "5.97 ms are predicted" in said["matmul-fp16-512"]
    assert "The overhead of fp16 was disturbed" in precision.calibration_text(found)
    assert "The overhead of fp32" not in precision.calibration_text(found)

    # Everything was disturbed but the product on one thread.
    point = product(256, "fp16")
    slow = [sample(point, 9e-3), sample(point, 1e-3, "time_one_thread")]
    found = record(*calibration("fp16", 45e9, overhead=7.98e-3, n=2048), *slow)
    assert "The overhead of fp16 was disturbed" in precision.calibration_text(found)

    # Comparable to the whole product, and not longer: it may be the library too.
    found = record(*calibration("fp16", 45e9, overhead=0.9e-3, n=2048), products[0])
    assert "Consistent with an overhead that was disturbed" in only(found).explanation

    # A GPU launches a small product as long as a tiny one.
    launched = [*calibration(overhead=6e-6), blocks(), sample(product(250), 5e-6)]
    assert "disturbed" not in precision.text(record(samples=launched, kind="cuda", device="Unknown GPU"))
    launched = [*calibration(overhead=6e-4), blocks(), sample(product(250), 3.2e-4)]
    found = record(samples=launched, kind="cuda", device="Unknown GPU")
    assert only(found).explanation.startswith("The overhead was disturbed")


def test_a_run_says_which_timed_cases_were_disturbed() -> None:
    """What calibrates counts, what is not timed does not, and a quarter is the limit, as of the exercise."""
    untimed = [sample(step(p, w), 5e6, "memory", "B") for p in precision.MEMORY for w in precision.STATE]
    steady = [sample(product(n), 2 * n**3 / PEAK) for n in (100, 200, 300, 400, 500, 600)]
    assert lab.disturbed(record(*steady, *untimed)) == ""

    def warned(*cases: str) -> str:
        return lab.disturbed(record(*steady, *untimed, warnings=[f"{c}: disturbed: something ran" for c in cases]))

    said = warned("overhead-fp32", "matmul-fp32-2000")
    assert said.startswith(
        "Disturbed while it was measured: 2 of 8 timed cases (matmul-fp32-2000, overhead-fp32). Predictions rest on "
        "matmul-fp32-2000, overhead-fp32."
    )
    assert said.endswith("keeps their warnings.")
    assert warned("overhead-fp32", "matmul-fp32-2000", "matmul-fp32-100").endswith(lab.AGAIN), "3 of 8"
    assert warned("matmul-fp32-100", "matmul-fp32-200").endswith(lab.AGAIN), "2 of the 6 that are predicted"
    assert warned("matmul-fp32-100").endswith("keeps their warnings.")
    assert warned("step-fp32-math", "matmul-fp32-1") == "", "not timed"
    other = lab.disturbed(record(*steady, warnings=["matmul-fp32-100: measured, but what follows failed"]))
    assert other == "", "a warning that does not doubt the time"
    wide = sample(product(700), 7e-3, spread=0.4)
    assert "1 of 9 timed cases (matmul-fp32-700)" in lab.disturbed(record(*steady, *untimed, wide))


def test_the_text_repeats_what_the_record_warns_of() -> None:
    found = record(
        sample(product(500), 2.52e-3), warnings=["matmul-fp32-500: wide: it spans 80%", "matmul-fp32-500: disturbed: x"]
    )
    assert "Disturbed while measured, as the record warns: matmul-fp32-500." in precision.text(found)
    assert "Disturbed" not in precision.text(record(sample(product(500), 2.52e-3)))


# Error


@pytest.mark.parametrize(
    ("dtype", "inputs", "result", "sums"),
    [("bf16", 2**-7, 2**-7, True), ("fp16", 2**-10, 2**-10, True), ("tf32", 2**-10, 0, True),
     ("fp8", 2**-3, 2**-7, True), ("fp32", 2**-23, 0, True)],
)  # fmt: skip
def test_an_error_is_of_both_inputs_the_sums_and_the_result(
    dtype: str, inputs: float, result: float, sums: bool
) -> None:
    row = only(record(sample(error(400, dtype), 1e-3, "error", "")))
    additions = (201) / 2 + (400 / 200 + 1) / 2 - 200 / 400
    expected = R * math.sqrt(2 * inputs**2 + result**2 + 2**-46 * additions)
    assert row.predicted == pytest.approx(expected, rel=1e-6)
    assert row.unit.symbol == ""


def test_predicted_errors_are_those_of_numpys_own_formats() -> None:
    """Sums in float64 of rounded inputs, rounded once more: everything but the blocks, by another library."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200, 200))
    exact = a @ b.T
    for dtype, narrow, wide in (
        ("bf16", ml_dtypes.bfloat16, ml_dtypes.bfloat16), ("fp16", np.float16, np.float16),
        ("fp8", ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16),
    ):  # fmt: skip
        x, w = (m.astype(np.float32).astype(narrow).astype(float) for m in (a, b))
        out = (x @ w.T).astype(np.float32).astype(wide).astype(float)
        seen = np.linalg.norm(out - exact) / np.linalg.norm(exact)
        assert precision.expected_error(dtype, 200, 200, 200) == pytest.approx(seen, rel=0.02), dtype
    steps = [np.abs(m).max() / 127 for m in (a, b)]
    x, w = (np.rint(m / s) * s for m, s in zip((a, b), steps, strict=True))
    seen = np.linalg.norm(x @ w.T - exact) / np.linalg.norm(exact)
    assert precision.expected_error("int8", 200, 200, 200) == pytest.approx(seen, rel=0.15)


def test_the_largest_of_many_normal_numbers() -> None:
    rng = np.random.default_rng(0)
    largest = [np.abs(rng.standard_normal(10_000)).max() for _ in range(300)]
    assert precision.normal_largest(10_000) == pytest.approx(np.median(largest), rel=0.02)


def test_the_largest_of_absurdly_many_is_a_number() -> None:
    """Where 0.5^(1/count) rounds to one: a damaged record must not stop the reader."""
    assert precision.normal_largest(1) == pytest.approx(0.6744897501960817)
    # P(|x| > z) is about 2 φ(z) / z (1 - 1/z²), and a share log 2 / count exceeds the median.
    for count in (1e9, 2.0**62, 2.0**124):
        z = precision.normal_largest(count)
        tail = 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / z * (1 - 1 / z**2)
        assert tail == pytest.approx(math.log(2) / count, rel=0.01)
    found = record(sample(error(2**31, "int8"), 0.02, "error", ""))
    assert precision.text(found) == precision.text(found)
    assert only(found).predicted > 0.02


def test_a_truncated_input_errs_as_predicted() -> None:
    """float32 inputs without their last 13 bits, as tensor cores read them, by numpy's own bits."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 400, 400)).astype(np.float32)
    x, w = ((m.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(float) for m in (a, b))
    exact = a.astype(float) @ b.T.astype(float)
    seen = np.linalg.norm(x @ w.T - exact) / np.linalg.norm(exact)
    assert precision.truncated_inputs_error(2**-10) == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize(("factor", "said"), [(1.0, "As predicted"), (2.0, "truncation"), (2.6, "truncation"),
                                              (5.0, "fewer bits than fp32")])  # fmt: skip
def test_tf32_inputs_may_be_truncated(factor: float, said: str) -> None:
    def row(value: float, dtype: str = "tf32") -> precision.Row:
        return only(record(sample(error(400, dtype), value, "error", ""), kind="cuda", device="Unknown GPU"))

    predicted = row(1e-3).predicted
    found = row(factor * predicted).explanation
    assert said in found
    if said == "truncation":
        assert "Consistent with truncation of the inputs." in found
        assert "sums" not in found
        assert "truncation" not in row(factor * row(1e-3, "fp16").predicted, "fp16").explanation


def test_running_sums_in_float32_err_as_predicted() -> None:
    """One running sum for each element, in float32 with numpy: block_size = terms."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 60, 800))
    total = np.zeros((60, 60), np.float32)
    for k in range(800):
        total += np.outer(a[:, k].astype(np.float32), b[:, k].astype(np.float32))
    exact = a @ b.T
    seen = np.linalg.norm(total - exact) / np.linalg.norm(exact)
    # Here the products are rounded as well, one more rounding a term.
    assert precision.expected_error("fp32", 800, 60, 800) == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize("size", [60.0, 200.0, 2000.0])
def test_the_block_size_is_found_from_the_error(size: float) -> None:
    found = record(samples=[*calibration(), blocks(2000, size)])
    assert precision.block_size(found)[2] == pytest.approx(size, rel=1e-3)
    said = precision.calibration_text(found)
    assert ("Consistent with one running sum" if size == 2000 else f"blocks of about {size:.0f} terms") in said


def test_explanations_of_errors() -> None:
    def said(dtype: str, factor: float, *more: Sample) -> str:
        point = error(400, dtype)
        predicted = only(record(sample(point, 1e-3, "error", ""))).predicted
        return only(record(sample(point, factor * predicted, "error", ""), *more)).explanation

    assert said("bf16", 1.005) == "As predicted, within 1%."
    assert "fewer bits than fp32" in said("bf16", 2.0)
    assert "pairwise" in said("fp32", 0.2)
    assert "another blocking" in said("fp32", 1.3)
    largest = Sample(point=error(400, "int8"), metric="absmax", unit="", values=[7.25, 5.5], status="ok")
    assert "7.25 and 5.5" in said("int8", 1.4, largest)
    assert said("int8", 1.4) == precision.NOTHING


def test_without_a_calibrating_error_none_is_predicted() -> None:
    with pytest.raises(EfflabError, match="calibrating fp32"):
        precision.points(record(samples=[sample(error(400, "bf16"), 1e-3, "error", "")]))


# Memory: s b h = 12,000 elements, a s² b = 150,000


H, F, S, B, A, L, V = 40, 160, 100, 3, 5, 2, 70
PARAMETERS = V * H + S * H + L * (4 * H * H + 4 * H + 2 * H * F + F + H + 4 * H) + 2 * H


@pytest.mark.parametrize(("weights", "sizes"), [("fp32", (4, 4, 8)), ("bf16", (2, 2, 4)), ("autocast", (4, 4, 8))])
def test_states_are_parameters_times_bytes(weights: str, sizes: tuple[int, ...]) -> None:
    expected = precision.expected_bytes(step("step", weights), "cpu")
    assert [expected[p] for p in ("weights", "gradients", "optimizer")] == [PARAMETERS * n for n in sizes]


@pytest.mark.parametrize(
    ("kind", "options", "per_layer"),
    [
        # Korthikanti's 34 s b h + 5 a s² b, with its two bytes and byte masks
        ("cuda", {"weights": "bf16", "dropout": True}, 34 * 12_000 + 5 * 150_000),
        ("cuda", {"weights": "bf16"}, 32 * 12_000 + 2 * 150_000),
        ("cuda", {"weights": "bf16", "attention": "sdpa", "dropout": True}, 34 * 12_000),
        ("cuda", {"dropout": True}, (64 + 2) * 12_000 + (4 + 4 + 1) * 150_000),
        ("cpu", {"dropout": True}, (64 + 8) * 12_000 + 12 * 150_000),
        ("cpu", {}, 64 * 12_000 + 4 * 150_000),
        ("cpu", {"recomputation": "full", "dropout": True}, 4 * 12_000),
    ],
)
def test_activations_by_hand(kind: str, options: dict[str, Any], per_layer: int) -> None:
    expected = precision.expected_bytes(step("activations", **options), kind)
    assert expected["activations"] == 2 * per_layer
    element = 2 if options.get("weights") == "bf16" else 4
    assert expected["outside"] == 2 * 12_000 * element + 4 * S * B * V
    assert expected["step"] == sum(expected[p] for p in precision.PARTS) + expected["activations"] + expected["outside"]


def test_where_a_peak_is_measured_one_recomputed_layer_counts() -> None:
    expected = precision.expected_bytes(step("step", recomputation="full", method="allocator"), "cuda")
    layer = 64 * 12_000 + 4 * 150_000
    assert layer > expected["outside"]
    assert expected["step"] == sum(expected[p] for p in (*precision.PARTS, "activations")) + layer


def test_what_the_formula_lacks_is_named_to_the_byte() -> None:
    norms = 2 * 2 * 2 * S * B * 4  # two layers, two norms, mean and deviation of each row
    base = precision.expected_bytes(step("activations"), "cpu")["activations"]

    def said(extra: float, **options: Any) -> str:
        point = step("activations", **options)
        predicted = precision.expected_bytes(point, "cpu")["activations"]
        return only(record(sample(point, predicted + extra, "memory", "B"))).explanation

    assert said(0) == "As predicted, to the byte."
    assert said(norms).endswith("Nothing is left over.")
    assert "layer norms: 9.6 kB" in said(norms)
    assert said(norms + 5000).endswith("Left over: 5 kB.")
    assert said(norms - 5000).endswith("Left over: −5 kB.")
    assert said(norms + 4 * S * B * A * L, attention="sdpa").endswith("Nothing is left over.")
    assert said(norms / 2, weights="bf16").endswith("Nothing is left over."), "on a CPU they are bf16 too"
    assert not said(0.5 * base).startswith("As predicted")

    point = step("activations", "autocast", "sdpa")
    predicted = precision.expected_bytes(point, "cpu")["activations"]
    copies = 123_456.0
    extra = norms + 4 * S * B * A * L + 2 * 12_000 * 4 + copies
    found = record(sample(point, predicted + extra, "memory", "B"), sample(point, copies, "weight_copies", "B"))
    assert "copies of the weights, which autocast makes and the backward pass needs: 123 kB" in only(found).explanation
    assert only(found).explanation.endswith("Nothing is left over.")


def test_step_counters_of_the_optimizer() -> None:
    point = step("optimizer")
    counters = 4 * (2 * 12 + 4)  # 12 tensors a layer, two embeddings, two of the last norm
    found = record(sample(point, 8 * PARAMETERS + counters, "memory", "B"))
    assert "28 tensors: 112 B. Nothing is left over." in only(found).explanation


def test_a_peak_is_explained_by_what_the_allocator_says() -> None:
    point = step("step", method="allocator")
    predicted = precision.expected_bytes(point, "cuda")["step"]
    found = record(
        sample(point, 1.3 * predicted, "memory", "B"), sample(point, 1.01 * predicted, "after_forward", "B"),
        sample(point, 4096.0, "rounding", "B"), kind="cuda", device="Unknown GPU",
    )  # fmt: skip
    said = only(found).explanation
    assert "At the end of the forward pass" in said
    assert "higher. Consistent with gradients of activations" in said
    assert "4.1 kB of the blocks handed out were not asked for" in said
    point = step("activations", method="allocator")
    found = record(
        sample(point, 3.0e6, "memory", "B"), sample(point, 2.9e6, "counted", "B"), kind="cuda", device="Unknown GPU"
    )
    assert "2.9 MB by count; the allocator differs by 100 kB" in only(found).explanation


def test_every_byte_of_a_real_step_is_accounted_for() -> None:
    """The real experiment at smoke scale against the formulas: what remains is named, to the byte."""
    plan = experiment.EXPERIMENT.plan("smoke", torch.device("cpu"), record().environment, None)
    measured = [s for c in plan.cases if c.metric == "memory" for s in c.samples()]
    rows = precision.points(record(samples=measured))
    assert len(rows) >= 24
    for row in rows:
        assert row.explanation.endswith(("Nothing is left over.", "As predicted, to the byte.")), row
        if row.dtype != "autocast":
            assert abs(row.error) < 0.02, row


# The protocol


def full() -> Record:
    return record(
        *calibration("bf16", 300e9), sample(product(250), 4e-4), sample(product(500), 2.6e-3),
        sample(product(500, "bf16"), 9e-4), sample(product(250, "bf16"), 1e-3),
        sample(error(400, "bf16"), 2.9e-3, "error", ""), sample(error(2000, "bf16"), 2.9e-3, "error", ""),
        *[sample(step(p), n, "memory", "B") for p, n in (("weights", 2e5), ("activations", 3e6), ("step", 5e6))],
        sample(step("step"), 2e5, "weights", "B"), sample(step("activations"), 3e6, "kept_float32", "B"),
    )  # fmt: skip


def test_the_text_names_every_case_and_is_the_same_every_time() -> None:
    found = full()
    said = precision.text(found)
    assert said == precision.text(Record.model_validate(found.model_dump(by_alias=True)))
    for row in precision.points(found):
        assert row.case in said
    assert "300 GFLOP/s" in said
    assert "blocks of about 200 terms" in said
    summary = precision.summary(found)
    assert summary in said
    assert "4 products. Median error of the predicted time" in summary
    assert "2 errors of products." in summary
    assert "3 sizes in memory." in summary
    assert "Worst: matmul-bf16-250" in summary
    head, rows, numeric = precision.table(found)
    assert all(len(r) == len(head) for r in rows)
    assert max(numeric) < len(head) - 1
    assert "Nothing is measured now." in precision.banner(found)


def test_summaries_of_little() -> None:
    assert precision.summary(record(samples=[])) == "No case of this record was measured."
    gone = sample(step("step"), 1, "memory", "B", values=[], status="oom", message="no room")
    found = record(gone, sample(product(500), 2.5e-3), spec={"scale": "smoke"})
    assert precision.missing(found) == ["step-fp32-math ran out of memory: no room"]
    said = precision.summary(found)
    assert said.startswith("Smoke scale")
    assert "step-fp32-math ran out of memory" in said


def test_sweeps_and_the_table_by_dtype() -> None:
    found = full()
    said = precision.sweep(found, "bf16 by size")
    assert "calibrates" in said
    assert "300 GFLOP/s" in said
    assert "matmul-bf16-500" in said
    assert "step-fp32-math" in precision.sweep(found, "step")
    table = precision.sweep(found, "by dtype")
    assert "3×" in table
    assert "0.0029" in table
    with pytest.raises(EfflabError, match="by dtype"):
        precision.sweep(found, "nothing")


def test_comparisons() -> None:
    found = full()
    said = precision.compare(found, "matmul-fp32-500", "matmul-bf16-500")
    assert f"measured {2.6 / 0.9:.3g}×" in said
    assert "faster by" in said
    with pytest.raises(EfflabError, match="Did you mean"):
        precision.compare(found, "matmul-fp32-50", "matmul-bf16-500")
    with pytest.raises(EfflabError, match="one kind"):
        precision.compare(found, "matmul-fp32-500", "step-fp32-math")
    gone = sample(product(500, "fp8"), 1, values=[], status="failed", message="no fp8 here")
    assert "fp8 here" in precision.compare(
        record(gone, sample(product(500), 2e-3)), "matmul-fp32-500", "matmul-fp8-500"
    )


def test_evidence_shows_the_parts() -> None:
    found = full()
    assert "of overhead; it reaches" in precision.evidence(found, "matmul-fp32-500")
    assert "inputs 0.00235" in precision.evidence(found, "error-bf16-400")
    assert "result 0.00166" in precision.evidence(found, "error-bf16-400")
    step_said = precision.evidence(found, "step-fp32-math")
    assert "weights" in step_said
    assert "200 kB" in step_said
    assert "kept by dtype: float32 3 MB" in precision.evidence(found, "activations-fp32-math")
    with pytest.raises(EfflabError, match="case"):
        precision.evidence(found, "nothing")


def test_cases_are_what_can_be_predicted_and_describe_says_what_they_are() -> None:
    cases = precision.cases([s.point for s in full().samples])
    assert not [n for n in cases if n.startswith("overhead") or n == "matmul-fp32-2000"]
    said = precision.describe(cases, ["matmul-bf16-500", "error-bf16-400", "step-fp32-math", "weights-fp32-math"])
    assert "time of a bf16 product of two 500 × 500 matrices" in said
    assert "relative error of a bf16 product of size 400" in said
    assert "bytes of the whole step: fp32 weights, math attention" in said
    assert "step-fp32-math" in precision.describe(cases)
    assert precision.describe({})


def test_calculators_are_about_other_models() -> None:
    prediction = Prediction.new("precision", {"total": (1e9, "B")}, source="calculator", calculator="training-memory")
    assert precision.asked(prediction) == {}
    assert precision.answers(full(), prediction) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "fp12"}, "dtype"), ({"m": "abc"}, "point.m must be a number"), ({"m": 0}, "point.m"),
        ({"k": True}, "point.k"), ({"k": None}, "point.k"), ({"n": 10**400}, "point.n"), ({"case": None}, "point.case"),
    ],
)  # fmt: skip
def test_a_damaged_product_is_named_by_every_reader(change: dict[str, Any], said: str) -> None:
    point = {k: v for k, v in (product(500) | change).items() if v is not None}
    _damaged(point, 1e-3, "time", "s", said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "fp64"}, "weights"), ({"attention": None}, "attention"), ({"dropout": "yes"}, "true or false"),
        ({"recomputation": "some"}, "recomputation"), ({"method": "guessed"}, "method"), ({"layers": 0}, "layers"),
        ({"vocabulary": None}, "vocabulary"),
    ],
)  # fmt: skip
def test_a_damaged_step_is_named_by_every_reader(change: dict[str, Any], said: str) -> None:
    point = {k: v for k, v in (step("step") | change).items() if v is not None}
    _damaged(point, 1e6, "memory", "B", said)


def _damaged(point: dict[str, Any], value: float, metric: str, unit: str, said: str) -> None:
    found = Record.model_validate(record(sample(point, value, metric, unit)).model_dump(by_alias=True))
    for read in (precision.points, precision.table, precision.summary, precision.text, precision.missing,
                 precision.calibration_text, precision.calibration, precision.peaks):  # fmt: skip
        with pytest.raises(EfflabError, match="record r: samples") as caught:
            read(found)
        assert said in str(caught.value)


def test_other_topics_units_and_zeros_are_refused() -> None:
    with pytest.raises(EfflabError, match="roofline"):
        precision.points(record(topic="roofline"))
    with pytest.raises(EfflabError, match="a memory in 's'"):
        precision.points(record(sample(step("step"), 1.0, "memory", "s")))
    with pytest.raises(EfflabError, match="greater than zero"):
        precision.points(record(sample(error(400, "bf16"), 0.0, "error", "")))


def test_pictures_are_drawn_of_what_there_is() -> None:
    plots = pytest.importorskip("efflab.plots.precision")
    import matplotlib

    matplotlib.use("Agg")
    found = full()
    axes = plots.precision(found).axes[0]
    assert any("bf16: 300 GFLOP/s" in t.get_text() for t in axes.texts)
    bars = plots.memory(found).axes[0].patches
    expected = precision.expected_bytes(step("step"), "cpu")
    assert [b.get_width() for b in bars[:5]] == [expected[p] for p in plots.PARTS]
    for draw in (plots.precision, plots.memory):
        with pytest.raises(EfflabError, match="to draw"):
            draw(record(samples=[]))


def overlapping(figure: Any) -> list[str]:
    """The labels of the picture that leave its frame, or cover another one, a marker or the line of fp64."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    axes = figure.axes[0]
    frame, boxes = axes.get_window_extent(), {}
    for note in axes.texts:
        boxes[note.get_text()] = Text.get_window_extent(note)
    others = []
    for points in axes.collections:
        x, y = axes.transData.transform(points.get_offsets()[0])
        others.append(Bbox.from_extents(x - 5, y - 5, x + 5, y + 5))
    for line in axes.lines:
        x = axes.transData.transform((line.get_xdata()[0], 1e-3))[0]
        others.append(Bbox.from_extents(x - 1, frame.y0, x + 1, frame.y1))
    return [
        text
        for text, box in boxes.items()
        if not (frame.containsx(box.x0) and frame.containsx(box.x1))
        or not (frame.containsy(box.y0) and frame.containsy(box.y1))
        or any(box.overlaps(o) for o in [*others, *(b for t, b in boxes.items() if t != text)])
    ]


GPU = {  # FLOP/s and error, near those of an H200
    "fp64": (60e12, 0), "fp32": (50e12, 3e-7), "tf32": (400e12, 7.6e-4), "bf16": (780e12, 2.9e-3),
    "fp16": (760e12, 3.6e-4), "fp8": (1400e12, 0.038), "int8": (1450e12, 0.02),
}  # fmt: skip


def test_no_label_of_the_picture_leaves_it_or_covers_another() -> None:
    plots = pytest.importorskip("efflab.plots.precision")
    import matplotlib

    matplotlib.use("Agg")
    for found in records.recorded("precision"):
        assert overlapping(plots.precision(found)) == []
    gpu = [s for d, (rate, _) in GPU.items() for s in calibration(d, rate)]
    gpu += [sample(error(2000, d), e, "error", "") for d, (_, e) in GPU.items() if e]
    figure = plots.precision(record(samples=gpu, kind="cuda", device="Unknown GPU"))
    assert len(figure.axes[0].texts) == 6
    assert overlapping(figure) == []
    matplotlib.use("svg")  # which measures no texts of its own
    try:
        plots.precision(records.recorded("precision")[-1])
    finally:
        matplotlib.use("Agg")


def test_a_run_that_was_recorded_reconciles(tmp_path: Any) -> None:
    found, path = runner.run(experiment.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)
    assert precision.text(records.load_record(path)) == precision.text(found)
