"""The check of a learner's own record: a plausible one passes, each lack and each impossibility is named.

The records are made up, so that each test changes one thing.
"""

from __future__ import annotations

import copy
import random
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.exercises import check
from efflab.records import LabBook, Record, recorded
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, unfinished

PEAK, BANDWIDTH = 100e9, 10e9  # of the made-up processor: FLOP/s, B/s


def sample(case: str, seconds: float, point: dict[str, Any], **more: Any) -> dict[str, Any]:
    values = [seconds * f for f in (1.03, 1.0, 0.99, 1.01, 1.0)]
    timing = {
        "clock": "perf_counter",
        "mode": "back-to-back",
        "loops": 10,
        "warmup": 4,
        "cold": more.pop("cold", False),
    }
    return {
        "point": {"case": case, "dtype": "fp32", **point}, "metric": "time", "unit": "s", "values": values,
        "status": "ok", "timing": timing, **more,
    }  # fmt: skip


def matmul(case: str, n: int, efficiency: float = 0.9, role: str = "kernel") -> dict[str, Any]:
    point = {"role": role, "kernel": "matmul", "m": n, "n": n, "k": n, "bytes_per_element": 4}
    return sample(case, 2 * n**3 / PEAK / efficiency, point)


def relu(n: int, efficiency: float = 0.8, cold: bool = True) -> dict[str, Any]:
    point = {"role": "kernel", "kernel": "fused_chain", "elements": n, "operations": 1, "bytes_per_element": 4}
    return sample(f"relu-{n}", 8 * n / BANDWIDTH / efficiency, point, cold=cold)


def document() -> dict[str, Any]:
    copied = {"role": "ceiling", "kernel": "copy", "elements": 2**24, "bytes_per_element": 4, "bytes_moved": 2**27}
    return {
        "schema": "efflab-record/1", "id": "roofline-mine", "topic": "roofline", "created": "2026-11-21T08:00:00Z",
        "finished": "2026-11-21T08:02:00Z",
        "environment": dict(ENVIRONMENT),
        "spec": {"scale": "cpu"},
        "samples": [
            sample("ceiling-copy", 2**27 / BANDWIDTH, copied),
            matmul("ceiling-matmul-fp32", 1024, 1.0, "ceiling"),
            *(matmul(f"matmul-{n}", n) for n in (32, 128, 512, 2048)),
            *(relu(n) for n in (2**20, 2**22, 2**24, 2**25)),
        ],
    }  # fmt: skip


verdict = judging.record("roofline-own-1")


def kernels(data):
    return [s for s in data["samples"] if s["point"]["role"] == "kernel"]


def test_a_plausible_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3
    assert "8 kernels, none wide or disturbed" in result.feedback and "smoke" not in result.feedback


def test_no_record_says_how_to_make_one(labbook):
    for result in (check("roofline-own-1"), check("roofline-own-1", "newest")):
        assert result.outcome == "not counted"
        assert str(labbook) in result.feedback
        assert "!{sys.executable} -m efflab.cli run roofline" in result.feedback


def test_the_newest_of_the_topic_is_taken_by_default(data, tmp_path):
    book = LabBook()
    book.save_record(Record.model_validate(data))
    assert check("roofline-own-1").right
    worse = copy.deepcopy(data) | {"id": "later", "created": "2026-11-22T08:00:00Z"}
    worse["samples"] = worse["samples"][:5]
    path = book.save_record(Record.model_validate(worse))
    assert check("roofline-own-1").outcome == check("roofline-own-1", str(path)).outcome == "wrong"
    assert check("roofline-own-1", path).outcome == check("roofline-own-1", "later").outcome == "wrong"
    assert check("roofline-own-1", "roofline-mine").right
    book.save_record(Record.model_validate(data | {"id": "other", "topic": "amp", "created": "2026-11-23T08:00:00Z"}))
    assert check("roofline-own-1", "other").outcome == "not counted"
    assert "is of amp" in check("roofline-own-1", book.path / "records" / "other.json").feedback
    assert "Did you mean 'roofline-mine'" in check("roofline-own-1", "roofline-min").feedback


@pytest.mark.parametrize("topic", ["roofline", "precision", "scaling_laws"])
def test_the_courses_own_run_is_called_that(topic):
    for shipped in recorded(topic):
        result = check(f"{topic}-own-1", shipped)
        assert result.misconception == "not own" and f"Record {shipped.id} is the recorded run" in result.feedback
        assert result.feedback.count(shipped.id) == 1 and "holds the repeats" not in result.feedback


def test_a_damaged_file_is_no_answer(tmp_path, labbook):
    (labbook / "records").mkdir(parents=True)
    path = labbook / "records" / "a.json"
    path.write_text('{"schema": "efflab-record/1", ', encoding="utf-8")
    for result in (check("roofline-own-1"), check("roofline-own-1", str(path))):
        assert result.outcome == "not counted" and "a.json" in result.feedback and "cut off" in result.feedback


def test_a_lab_book_that_is_a_file_is_said(labbook):
    labbook.write_text("", encoding="utf-8")
    assert "this is a file, not a folder" in check("roofline-own-1").feedback


def test_a_recorded_run_of_the_course_is_not_ones_own(data, monkeypatch):
    shipped = Record.model_validate(data)
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    assert verdict(data).misconception == "not own"
    assert verdict(data | {"id": "renamed"}).misconception == "not own"


def change_all(**timing):
    def change(data):
        for s in data["samples"]:
            s["timing"].update(timing)

    return change


def gpu(clock, device="NVIDIA H200", memory=150_000_000_000):
    def change(data):
        data["environment"].update(kind="cuda", device=device, memory=memory)
        change_all(clock=clock)(data)

    return change


def few_kernels(data):
    data["samples"] = data["samples"][:-1]


def failed_kernel(data):
    kernels(data)[0].update(status="oom", values=[], message="out of memory", timing=None)


def no_timing(data):
    kernels(data)[3]["timing"] = None


def two_repeats(data):
    kernels(data)[0]["values"] = kernels(data)[0]["values"][:2]


def copied_repeats(data):
    for s in kernels(data):
        s["values"] = [s["values"][0]] * 5


def no_ceilings(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["role"] == "kernel"]


def no_warmup_of_the_ceiling(data):
    data["samples"][1]["timing"]["warmup"] = 0


def impossible_matmul(data):
    data["samples"][3] = matmul("matmul-128", 128, 1.5)


def impossible_relu(data):
    data["samples"][-1] = relu(2**25, 2.5)


def relu_in_tens_of_nanoseconds(data):
    kernels(data)[-1]["values"] = [3e-8, 3.1e-8, 3.2e-8]


def point_without_size(data):
    del kernels(data)[0]["point"]["m"]


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (few_kernels, None, "7 timed kernels; 8 are needed"),
        (failed_kernel, None, "7 timed kernels; 8 are needed"),
        (no_timing, "no timing", "does not say how it was timed"),
        (change_all(warmup=0), "no warm-up", "no warm-up"),
        (no_warmup_of_the_ceiling, "no warm-up", "ceiling-matmul-fp32: no warm-up"),
        (two_repeats, "no repeats", "matmul-32: 2 repeats"),
        (copied_repeats, "copied", "Real repeats differ"),
        (no_ceilings, None, "no measured ceilings"),
        (gpu("perf_counter"), "no synchronisation", "the launch's time"),
        (
            impossible_matmul,
            "efficiency above one",
            "matmul-128: 150 GFLOP/s is 1.50 times the measured ceiling, 100 GFLOP/s",
        ),
        (impossible_relu, "efficiency above one", "did not come from memory"),
        (relu_in_tens_of_nanoseconds, "efficiency above one", "relu-33554432"),
        (point_without_size, "damaged", "lacks 'm'"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_wrong_is_named(data, change, name, said):
    change(data)
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == name and said in result.feedback, result.feedback


@pytest.mark.parametrize("change", [gpu("cuda-events"), gpu("perf_counter+synchronize")])
def test_a_synchronised_gpu_passes(data, change):
    change(data)
    assert verdict(data).right


def test_no_kernel_beats_the_data_sheet(data):
    """Consistent with its own ceilings, and yet impossible: everything too fast by the same factor."""
    gpu("cuda-events")(data)
    for s in data["samples"]:
        s["values"] = [v / 800 for v in s["values"]]  # 90 TFLOP/s in FP32; an H200 has 66.9
    result = verdict(data)
    assert result.misconception == "faster than the device" and "what H200 SXM can do in fp32" in result.feedback


def test_a_dtype_without_its_own_ceiling_may_be_faster(data):
    fast = matmul("matmul-bf16", 2048, 3.0)
    fast["point"].update(dtype="bf16", bytes_per_element=2)
    data["samples"].append(fast)
    assert verdict(data).right


def test_bytes_from_a_cache_may_be_fast(data):
    data["samples"][-1] = relu(2**10, 5.0, cold=False)
    assert verdict(data).right


def test_a_smoke_record_earns_nothing_and_says_why(data):
    data["spec"]["scale"] = "smoke"
    for s in kernels(data):
        s["values"] = [v * f for v, f in zip(s["values"], (1, 9, 20, 1, 30), strict=True)]  # as a test's times are
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == "smoke scale" and result.points == 0
    assert "say nothing about a device" in result.feedback and "trust" not in str(result)


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    from efflab.experiments import roofline, runner

    path = runner.run(roofline.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path / "out", report=lambda line: None)[
        1
    ]
    result = check("roofline-own-1", path)
    assert result.misconception == "smoke scale", result.feedback


def test_a_disturbed_record_is_not_yet_one(data):
    """By its spread, or by what its warnings say; up to a quarter of the kernels may be."""

    def widened(number):
        changed = copy.deepcopy(data)
        for s in kernels(changed)[:number]:
            s["values"] = [v * f for v, f in zip(s["values"], (1, 1.3, 1, 1.4, 0.9), strict=True)]
        return changed

    assert verdict(widened(2)).right and "2 of 8 wide or disturbed" in verdict(widened(2)).feedback
    result = verdict(widened(3))
    assert result.outcome == "wrong" and result.misconception == "disturbed" and "3 of 8 kernels" in result.feedback
    cases = [s["point"]["case"] for s in kernels(data)]
    said = [
        "measured again, since around it the time of copy changed by +80%",
        "wide: the middle half of 5 values spans 30% of the median; something else ran, or the clock speed changed",
        "measured again, since around it matmul-fp32 took 400% longer than its best",
    ]
    data["warnings"] = [f"{case}: {w}" for case, w in zip(cases, said, strict=False)]
    assert verdict(data).misconception == "disturbed"
    data["warnings"] = [f"{case}: not profiled: RuntimeError" for case in cases] + ["resumed at 2026-11-21T08:01:00Z"]
    assert verdict(data).right  # these are not about the times


def test_a_near_copy_of_a_recorded_run_is_not_ones_own():
    shipped = recorded("roofline")[-1]
    for change in (lambda v, i: v * 1.0001, lambda v, i: v * (1 + i / 100), lambda v, i: float(f"{v:.5g}")):
        document = shipped.model_dump(by_alias=True)
        document["id"] = "mine"
        for i, s in enumerate(document["samples"]):
            if s["metric"] == "time":
                s["values"] = [change(v, i) for v in s["values"]]
        result = verdict(document)
        assert result.misconception == "not own" and shipped.id in result.feedback, result.feedback


@pytest.mark.parametrize("seed", range(3))
def test_another_run_of_the_same_device_is_ones_own(seed):
    """The same device measured again: the same medians within 1%, and repeats that scatter anew."""
    shipped, draw = recorded("roofline")[-1], random.Random(seed)
    document = shipped.model_dump(by_alias=True)
    document["id"] = "mine"
    for s in document["samples"]:
        if s["metric"] == "time":
            middle = statistics.median(s["values"]) * draw.gauss(1, 0.01)
            s["values"] = [middle * draw.gauss(1, 0.01) for _ in s["values"]]
    result = verdict(document)
    assert result.right, result.feedback


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "matmul", "fp32", "kernel", "ceiling", "lesson"])


@settings(max_examples=300)
@given(index=st.integers(0, 9), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index, value, draw, "n", "elements", "operations", "causal")
    judging.in_words(data, "roofline-own-1")


@pytest.mark.parametrize("name", ["kernel", "dtype", "role", "case", "m"])
def test_a_point_that_lacks_a_field_names_it(data, name):
    del data["samples"][3]["point"][name]
    result = verdict(data)
    assert result.outcome == "wrong" and repr(name) in result.feedback and "efflab.cli run" in result.feedback


def test_sizes_that_are_no_numbers_are_said(data):
    kernels(data)[0]["point"]["m"] = "large"
    result = verdict(data)
    assert result.misconception == "damaged" and "matmul-32" in result.feedback


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("roofline", monkeypatch):
        result = check("roofline-own-1", record)
        assert result.right, f"{record.id}: {result.feedback}"
