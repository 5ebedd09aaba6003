"""The check of the learner's own record of precision: a plausible one passes, each impossibility is named.

The records are made up, so that each test changes one thing.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.exercises import check
from efflab.records import recorded
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, smoke, unfinished

RATES = {"fp32": 50e9, "bf16": 100e9}  # FLOP/s of the made-up processor
# A product of rounded normal numbers is off by √2 times the rms of uniform rounding, a few tenths of the epsilon.
ERRORS = {"fp32": 2.0e-7, "bf16": 2.9e-3}
SIZES = (256, 512, 1024, 2048)
WEIGHTS = {"fp32": 14e6, "bf16": 7e6}  # B


def product(dtype: str, n: int, rate: float) -> dict[str, Any]:
    role = "calibration" if n == SIZES[-1] else "product"
    seconds = 2 * n**3 / rate
    point = {"case": f"matmul-{dtype}-{n}", "role": role, "kernel": "matmul", "m": n, "n": n, "k": n, "dtype": dtype}
    return {
        "point": point, "metric": "time", "unit": "s", "status": "ok",
        "values": [seconds * f for f in (1.02, 1.0, 0.99, 1.01, 1.0)],
        "timing": {"clock": "perf_counter", "mode": "back-to-back", "loops": 10, "warmup": 4},
    }  # fmt: skip


def error(dtype: str, n: int, value: float) -> dict[str, Any]:
    point = {"case": f"error-{dtype}-{n}", "role": "error", "m": n, "n": n, "k": n, "dtype": dtype}
    return {"point": point, "metric": "error", "unit": "", "values": [value], "status": "ok"}


def memory(role: str, weights: str, value: float) -> dict[str, Any]:
    point = {
        "case": f"{role}-{weights}", "role": role, "weights": weights, "attention": "math", "dropout": False,
        "recomputation": "none",
    }  # fmt: skip
    return {"point": point, "metric": "memory", "unit": "B", "values": [value], "status": "ok"}


def document() -> dict[str, Any]:
    samples = [product(d, n, RATES[d] * (0.8 if n < 512 else 1)) for d in RATES for n in SIZES]
    samples += [error(d, n, ERRORS[d]) for d in ERRORS for n in SIZES[:2]]
    for d, w in WEIGHTS.items():
        samples += [memory("weights", d, w), memory("gradients", d, w), memory("optimizer", d, 2 * w)]
        samples += [memory("activations", d, 100e6), memory("step", d, 4 * w + 108e6)]
    samples += [memory("activations", "autocast", 60e6), memory("step", "autocast", 4 * 14e6 + 61e6)]
    return {
        "schema": "efflab-record/1", "id": "precision-mine", "topic": "precision", "created": "2026-11-21T08:00:00Z",
        "finished": "2026-11-21T08:02:00Z",
        "environment": dict(ENVIRONMENT),
        "spec": {"scale": "cpu"}, "samples": samples,
    }  # fmt: skip


verdict = judging.record("precision-own-1")


def find(data, case):
    return next(s for s in data["samples"] if s["point"]["case"] == case)


def test_a_plausible_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3, result.feedback
    assert "6 products in 2 dtypes, none wide or disturbed" in result.feedback
    assert "4 errors and the memory of 3 training steps" in result.feedback


def test_no_record_says_how_to_make_one(labbook):
    result = check("precision-own-1")
    assert result.outcome == "not counted" and "!{sys.executable} -m efflab.cli run precision" in result.feedback


def one_dtype(data):
    data["samples"] = [s for s in data["samples"] if s["point"].get("dtype") != "bf16"]


def no_largest(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["role"] != "calibration"]


def no_errors(data):
    data["samples"] = [s for s in data["samples"] if s["metric"] != "error"]


def no_memory(data):
    data["samples"] = [s for s in data["samples"] if s["metric"] != "memory"]


def too_fast(data):
    find(data, "matmul-bf16-512")["values"] = [v / 5 for v in find(data, "matmul-bf16-512")["values"]]


def no_warmup(data):
    find(data, "matmul-bf16-512")["timing"]["warmup"] = 0


def error_of_fp32(data):
    find(data, "error-bf16-256")["values"] = [2e-7]  # the product was made in FP32


def error_of_nothing(data):
    find(data, "error-fp32-256")["values"] = [0.0]


def garbage(data):
    find(data, "error-bf16-256")["values"] = [1.4]  # two unrelated matrices


def step_without_optimizer(data):
    find(data, "step-fp32")["values"] = [2 * 14e6 + 100e6]


def step_without_activations(data):
    find(data, "step-autocast")["values"] = [4 * 14e6]


def bf16_as_large_as_fp32(data):
    find(data, "weights-bf16")["values"] = [14e6]
    find(data, "step-bf16")["values"] = [200e6]


def nothing_allocated(data):
    find(data, "activations-bf16")["values"] = [0.0]


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (one_dtype, None, "3 timed products in 1 dtypes"),
        (no_largest, None, "no product of the largest size"),
        (no_errors, None, "holds no errors of products"),
        (no_memory, None, "holds no memory of a training step"),
        (no_warmup, "no warm-up", "matmul-bf16-512: no warm-up"),
        (too_fast, "efficiency above one", "500 GFLOP/s is 5.00 times what the largest bf16 product reached"),
        (error_of_fp32, "error out of bounds", "is smaller than rounding to bf16 explains"),
        (error_of_nothing, "error out of bounds", "is smaller than rounding to fp32 explains"),
        (garbage, "error out of bounds", "is larger than rounding to bf16 explains"),
        (step_without_optimizer, "less than its parts", "step-fp32: 128 MB"),
        (step_without_activations, "less than its parts", "step-autocast"),
        (bf16_as_large_as_fp32, "bytes per parameter", "half the bytes in BF16"),
        (nothing_allocated, "no memory", "activations-bf16: 0 B"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_wrong_is_named(data, change, name, said):
    change(data)
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == name and said in result.feedback, result.feedback


def test_no_product_beats_the_data_sheet(data):
    """Consistent in itself, and yet impossible: everything too fast by one factor."""
    data["environment"].update(kind="cuda", device="NVIDIA H200", memory=150_000_000_000)
    for s in data["samples"]:
        if s["metric"] == "time":
            s["timing"]["clock"] = "cuda-events"
            s["values"] = [v / 2000 for v in s["values"]]  # 100 TFLOP/s in FP32; an H200 has 66.9
    result = verdict(data)
    assert result.misconception == "faster than the device" and "what H200 SXM can do in fp32" in result.feedback


def test_the_bounds_of_errors_hold_for_real_products():
    """Products that this test makes itself, in torch, against the bounds of the check."""
    import torch

    for n in (96, 300):
        generator = torch.Generator().manual_seed(n)
        a, b = (torch.randn(n, n, dtype=torch.float64, generator=generator) for _ in range(2))
        for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
            product = (a.to(dtype) @ b.to(dtype)).double()
            off = float(torch.linalg.norm(product - a @ b) / torch.linalg.norm(a @ b))
            made = document()
            made["samples"].append(error(name, n, off))
            assert verdict(made).right, (name, n, off)


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    path = judging.smoke_run("precision", tmp_path)
    result = check("precision-own-1", path)
    assert result.misconception == "smoke scale", result.feedback


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "bf16", "fp32", "product", "step", "int8"])


@settings(max_examples=200, deadline=None)
@given(index=st.integers(0, 21), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index, value, draw, "n", "weights", "dtype")
    judging.in_words(data, "precision-own-1")


def test_a_near_copy_of_a_recorded_run_is_not_ones_own():
    shipped = recorded("precision")
    made = shipped[-1].model_dump(by_alias=True)
    made["id"] = "mine"
    judging.nearly_copied(made, 0.01)
    result = verdict(made)
    assert result.misconception == "not own", result.feedback


@pytest.mark.parametrize("seed", range(2))
def test_another_run_of_the_same_device_is_ones_own(seed):
    """The same device again: the same errors and bytes to the last digit, times that scatter anew."""
    shipped, draw = recorded("precision"), random.Random(seed)
    made = shipped[-1].model_dump(by_alias=True)
    made["id"] = "mine"
    for s in made["samples"]:
        if s["metric"] == "time":
            middle = sorted(s["values"])[len(s["values"]) // 2] * draw.gauss(1, 0.01)
            s["values"] = [middle * math.exp(draw.gauss(0, 0.01)) for _ in s["values"]]
    result = verdict(made)
    assert result.right, result.feedback


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("precision", monkeypatch):
        result = check("precision-own-1", record)
        assert result.right, f"{record.id}: {result.feedback}"
