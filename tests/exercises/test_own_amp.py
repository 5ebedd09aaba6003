"""The checks of the learner's own records of mixed precision and of the sprint: plausible ones pass, each impossibility
is named.

The records are made up, so that each test changes one thing.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab import labbook, records
from efflab.exercises import check
from efflab.experiments import ablation, sprint
from efflab.records import LabBook, Record, recorded
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, find, smoke, times, unfinished

# The lab's record. Times in s of the made-up processor, which multiplies twice as fast in BF16.
TIMES = {
    "step-fp32": 0.200, "matmul-fp32": 0.130, "matmul-bf16": 0.065, "matmul-fp16": 0.520, "other-fp32": 0.060,
    "other-bf16": 0.050, "other-fp16": 0.062, "forward-fp32": 0.060, "forward-bf16": 0.040, "microbatch-fp32": 0.190,
    "update-fp32": 0.010, "step-bf16": 0.130, "step-fp16": 0.640, "recomputed-fp32": 0.258, "recomputed-bf16": 0.168,
    "accumulated-fp32-4": 0.770,
}  # fmt: skip
ROLES = {"step-bf16": "step", "step-fp16": "step", "recomputed-fp32": "recomputation",
         "recomputed-bf16": "recomputation", "accumulated-fp32-4": "accumulated"}  # fmt: skip
STEPS, INTERVAL, VOCABULARY = 80, 10, 97
TOKENS = [256, 128, 64, 32]


def measured(case: str, role: str, metric: str, unit: str, values: list[float], **more: Any) -> dict[str, Any]:
    return {"point": {"case": case, "role": role, **more}, "metric": metric, "unit": unit, "values": values,
            "status": "ok"}  # fmt: skip


def timed(case: str, seconds: float) -> dict[str, Any]:
    sample = measured(case, ROLES.get(case, "calibration"), "time", "s",
                      [seconds * f for f in (1.02, 1.0, 0.99, 1.01, 1.0)])  # fmt: skip
    return sample | {"timing": {"clock": "perf_counter", "mode": "back-to-back", "loops": 1, "warmup": 2}}


def scales(overflows: list[float]) -> list[float]:
    """By hand: halved at an overflow, doubled after so many steps without one."""
    found, good = [2.0**20], 0
    for overflow in overflows:
        good = 0 if overflow else good + 1
        found.append(found[-1] / 2 if overflow else found[-1] * (2 if good == INTERVAL else 1))
        good %= INTERVAL
    return found


def document() -> dict[str, Any]:
    samples = [timed(case, seconds) for case, seconds in TIMES.items()]
    samples += [
        measured("share-fp32", "calibration", m, "s", [v, v * 1.01])
        for m, v in (("matmul_time", 0.133), ("other_time", 0.061), ("step_time", 0.210))
    ]
    kept = {"fp32": 31e6, "bf16": 21e6, "fp16": 21e6, "fp32-recomputed": 1.6e6, "bf16-recomputed": 1.6e6}
    for name, size in kept.items():
        samples += [measured(f"memory-{name}", "memory", "memory", "B", [size]),
                    measured(f"memory-{name}", "memory", "weights", "B", [8.1e6])]  # fmt: skip
    samples += [
        measured(case, "equivalence", "error", "", [value], microbatches=4)
        for case, value in (("equal-fp32", 1.1e-7), ("equal-bf16", 2e-3), ("undivided", 3.0), ("uneven", 0.23))
    ]
    samples += [
        measured("uneven", "equivalence", "tokens", "tokens", [float(n) for n in TOKENS], microbatches=4),
        measured("uneven", "equivalence", "token_weight", "", [480 / 4 / n for n in TOKENS], microbatches=4),
    ]
    overflows = [1.0, 1.0, 1.0] + [0.0] * 24 + [1.0] + [0.0] * (STEPS - 28)
    options = {"vocabulary": VOCABULARY, "steps": STEPS}
    grown = {"growth_interval": INTERVAL, "growth_factor": 2.0, "backoff_factor": 0.5}
    for case, end in (("curve-fp32", 2.9), ("curve-bf16", 2.91), ("curve-fp16-scaled", 2.93)):
        losses = [end + (math.log(VOCABULARY) - end) * math.exp(-i / 10) for i in range(STEPS)]
        samples.append(
            measured(case, "curve", "loss", "nats", losses, **options, **(grown if "scaled" in case else {}))
        )
    samples += [
        measured("curve-fp16-scaled", "curve", "overflow", "", overflows, **options, **grown),
        measured("curve-fp16-scaled", "curve", "scale", "", scales(overflows), **options, **grown),
        measured("scale-fp16", "scale", "scale", "", [scales(overflows)[-1]], **grown),
    ]
    return {
        "schema": "efflab-record/1", "id": "amp-mine", "topic": "amp", "created": "2026-11-21T08:00:00Z",
        "finished": "2026-11-21T08:02:00Z", "environment": dict(ENVIRONMENT), "spec": {"scale": "cpu"},
        "samples": samples,
    }  # fmt: skip


verdict = judging.record("amp-own-1")


def without(data, *cases):
    data["samples"] = [s for s in data["samples"] if s["point"]["case"] not in cases]


def test_a_plausible_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3, result.feedback
    assert "16 timed cases, none wide or disturbed; 2 step times" in result.feedback
    assert "the memory of 5 kinds of steps; 4 overflows" in result.feedback


def test_no_record_says_how_to_make_one(labbook):
    result = check("amp-own-1")
    assert result.outcome == "not counted" and "!{sys.executable} -m efflab.cli run amp" in result.feedback


def test_a_device_without_fp16_is_no_fault(data):
    failed = {"values": [], "status": "failed", "message": "torch has no FP16 here"}
    for s in data["samples"]:
        if "fp16" in s["point"]["case"]:
            s.update(failed)
    assert verdict(data).right, verdict(data).feedback


def few(data):
    without(data, *[c for c in TIMES if "matmul" in c or "other" in c or "forward" in c or "16" in c])


def no_step(data):
    without(data, "step-fp32")


def no_warmup(data):
    find(data, "step-bf16")["timing"]["warmup"] = 0


def no_shares(data):
    without(data, "share-fp32")


def profile_of_another_step(data):
    times(data, "share-fp32", 3, "matmul_time")


def no_narrow_step(data):
    without(data, "step-bf16", "step-fp16")


def busy(data):
    for case in list(TIMES)[:6]:
        find(data, case)["values"] = [TIMES[case] * f for f in (1, 2, 1, 3, 1)]


def forward_too_long(data):
    times(data, "forward-fp32", 5)


def recomputation_for_nothing(data):
    times(data, "recomputed-fp32", 0.5)


def accumulated_too_fast(data):
    times(data, "accumulated-fp32-4", 0.1)


def too_fast_for_its_parts(data):
    times(data, "step-bf16", 0.2)
    times(data, "recomputed-bf16", 0.2)


def no_memory(data):
    without(data, "memory-fp32")


def nothing_kept(data):
    times(data, "memory-bf16", 0, "memory")


def quarter_kept(data):
    times(data, "memory-bf16", 0.4, "memory")


def more_kept(data):
    times(data, "memory-fp16", 2, "memory")


def narrow_weights(data):
    times(data, "memory-bf16", 0.5, "weights")


def recomputation_keeps_more(data):
    times(data, "memory-fp32-recomputed", 30, "memory")


def no_equivalence(data):
    without(data, "equal-fp32")


def unequal(data):
    find(data, "equal-fp32", "error")["values"] = [0.01]


def equal_to_itself(data):
    find(data, "equal-fp32", "error")["values"] = [0.0]


def undivided_wrong(data):
    find(data, "undivided", "error")["values"] = [4.0]


def weights_all_one(data):
    find(data, "uneven", "token_weight")["values"] = [1.0] * 4


def weights_missing(data):
    find(data, "uneven", "token_weight")["values"] = [1.0]


def not_learning(data):
    sample = find(data, "curve-fp32", "loss")
    sample["values"] = [math.log(VOCABULARY)] * STEPS


def from_another_vocabulary(data):
    sample = find(data, "curve-fp32", "loss")
    sample["values"] = [v / 2 for v in sample["values"]]


def bf16_apart(data):
    times(data, "curve-bf16", 1.3, "loss")


def short_curve(data):
    sample = find(data, "curve-bf16", "loss")
    sample["values"] = sample["values"][:-3]


def no_overflow_list(data):
    data["samples"] = [s for s in data["samples"] if s["metric"] != "overflow"]


def no_overflow(data):
    sample = find(data, "curve-fp16-scaled", "overflow")
    sample["values"] = [0.0] * STEPS
    find(data, "curve-fp16-scaled", "scale")["values"] = scales(sample["values"])
    find(data, "scale-fp16", "scale")["values"] = [scales(sample["values"])[-1]]


def half_an_overflow(data):
    find(data, "curve-fp16-scaled", "overflow")["values"][5] = 0.5


def scales_edited(data):
    find(data, "curve-fp16-scaled", "scale")["values"][40] *= 2


def scale_too_few(data):
    find(data, "curve-fp16-scaled", "scale")["values"].pop()


def last_scale(data):
    find(data, "scale-fp16", "scale")["values"] = [1.0]


def interval_lost(data):
    for metric in ("loss", "overflow", "scale"):
        del find(data, "curve-fp16-scaled", metric)["point"]["growth_interval"]


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (few, None, "has 5 timed cases; 8 with the step in FP32 among them"),
        (no_step, None, "with the step in FP32 among them"),
        (no_warmup, "no warm-up", "step-bf16: no warm-up"),
        (no_shares, "incomplete", "holds no matmul_time of share-fp32"),
        (profile_of_another_step, "part longer than the whole", "of products in a profiled step"),
        (no_narrow_step, "incomplete", "no step in another precision"),
        (busy, "disturbed", "6 of 16"),
        (forward_too_long, "part longer than the whole", "forward-fp32: 300 ms, and the whole step in FP32 takes"),
        (recomputation_for_nothing, "part longer than the whole", "recomputed-fp32"),
        (accumulated_too_fast, "part longer than the whole", "accumulated-fp32-4"),
        (too_fast_for_its_parts, "far from its parts", "step-bf16: 26 ms"),
        (no_memory, "incomplete", "holds no memory of a step in FP32"),
        (nothing_kept, "no memory", "memory-bf16: 0 B"),
        (quarter_kept, "activations out of bounds", "memory-bf16: 8.4 MB"),
        (more_kept, "activations out of bounds", "memory-fp16"),
        (narrow_weights, "weights not in FP32", "Under autocast the weights stay in FP32"),
        (recomputation_keeps_more, "recomputation keeps more", "memory-fp32-recomputed"),
        (no_equivalence, "incomplete", "holds no error of equal-fp32"),
        (unequal, "error out of bounds", "equal-fp32: a relative difference of 0.01"),
        (equal_to_itself, "error out of bounds", "compared with itself"),
        (undivided_wrong, "error out of bounds", "so it is 3"),
        (weights_all_one, "error out of bounds", "the microbatch with 256 counts 1 times"),
        (weights_missing, "incomplete", "4 numbers of tokens and 1 weights"),
        (not_learning, "loss out of bounds", "and falls"),
        (from_another_vocabulary, "loss out of bounds", "logarithm of the vocabulary, 4.57"),
        (bf16_apart, "loss out of bounds", "curve-bf16: the loss ends at"),
        (short_curve, "incomplete", "curve-bf16: 77 losses"),
        (no_overflow_list, "incomplete", "holds no overflows"),
        (no_overflow, "scales", "not one step overflows"),
        (half_an_overflow, "damaged", "overflows[5] must be true or false"),
        (scales_edited, "scales", "after step 40 it is"),
        (scale_too_few, "scales", "80 scales for 80 steps"),
        (last_scale, "scales", "scale-fp16: 1, and the run's last scale"),
        (interval_lost, "damaged", "cannot be followed"),
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
        if s["unit"] == "s":
            s["values"] = [v / 1000 for v in s["values"]]
        if s["metric"] == "time":
            s["timing"]["clock"] = "cuda-events"
    point = find(data, "matmul-fp32")["point"]
    data["samples"].append({"point": dict(point), "metric": "flops", "unit": "FLOP", "values": [2e10], "status": "ok"})
    result = verdict(data)  # 154 TFLOP/s in FP32; an H200 has 66.9
    assert result.misconception == "faster than the device" and "what H200 SXM can do in fp32" in result.feedback


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    path = judging.smoke_run("amp", tmp_path)
    result = check("amp-own-1", path)
    assert result.misconception == "smoke scale", result.feedback


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "fp16", "curve", "step-bf16", 1])


@settings(max_examples=200, deadline=None)
@given(index=st.integers(0, len(document()["samples"]) - 1), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index, value, draw, "growth_interval", "vocabulary", "microbatches")
    judging.in_words(data, "amp-own-1")


@settings(max_examples=200, deadline=None)
@given(
    index=st.integers(0, len(document()["samples"]) - 1),
    values=st.lists(st.floats(0, 1e300) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=5),
)
def test_whatever_was_measured_is_judged_in_words(index, values):
    data = document()
    data["samples"][index]["values"] = values
    judging.in_words(data, "amp-own-1")


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("amp", monkeypatch):
        result = check("amp-own-1", record)
        assert result.right, f"{record.id}: {result.feedback}"


def test_a_near_copy_of_a_recorded_run_is_not_ones_own():
    made = recorded("amp")[-1].model_dump(by_alias=True)
    made["id"] = "mine"
    judging.nearly_copied(made, 0.01)
    assert verdict(made).misconception == "not own"


@pytest.mark.parametrize("seed", range(2))
def test_another_run_of_the_same_device_is_ones_own(seed):
    """The same device again: the same bytes, losses and overflows, times that scatter anew."""
    draw = random.Random(seed)
    made = recorded("amp")[-1].model_dump(by_alias=True)
    made["id"] = "mine"
    for s in made["samples"]:
        if s["metric"] == "time" and s["status"] == "ok":
            middle = sorted(s["values"])[len(s["values"]) // 2] * draw.gauss(1, 0.01)
            s["values"] = [middle * math.exp(draw.gauss(0, 0.01)) for _ in s["values"]]
    result = verdict(made)
    assert result.right, result.feedback


# The sprint's record. Seconds per step of the made-up processor.
CASE_TIMES = {"baseline": 0.090, "data": 0.058, "compute": 0.059, "memory": 0.047, "all": 0.0127}
SIZE = sprint.SIZES["cpu"]


def sprinted(times: dict[str, float] | None = None, *, noise: float = 0.02, rounds: int = 9) -> dict[str, Any]:
    draw = random.Random(7)
    values: dict[str, list[float]] = {case: [] for case in CASE_TIMES}
    begun: dict[str, list[float]] = {case: [] for case in CASE_TIMES}
    now = 0.0
    for _ in range(rounds):
        for case, seconds in (times or CASE_TIMES).items():
            took = seconds * math.exp(draw.gauss(0, noise))
            begun[case].append(now)
            values[case].append(took)
            now += took * SIZE["steps"] + 0.002
    timing = {"clock": "perf_counter", "mode": "waited", "loops": 4, "warmup": 4, "stop": "repeat limit"}
    samples = []
    for case, parts in ablation.CASES.items():
        point = {"case": case, "role": "ablation", "mends": ",".join(parts), **SIZE}
        samples += [
            {"point": point, "metric": "time", "unit": "s", "values": values[case], "status": "ok",
             "timing": dict(timing)},
            {"point": point, "metric": "begun", "unit": "s", "values": begun[case], "status": "ok"},
            {"point": point, "metric": "loss", "unit": "nats", "values": [4.6, 4.58, 4.55, 4.52], "status": "ok"},
            {"point": point, "metric": "gradient_error", "unit": "", "values": [0.0 if not parts else 1e-7],
             "status": "ok"},
        ]  # fmt: skip
    return copy.deepcopy({
        "schema": "efflab-record/1", "id": "sprint-mine", "topic": "sprint", "created": "2026-11-21T09:00:00Z",
        "finished": "2026-11-21T09:01:00Z", "environment": ENVIRONMENT,
        "spec": {"scale": "cpu", "script": sprint.fingerprint(), "size": dict(SIZE)}, "samples": samples,
    })  # fmt: skip


def judged(data: dict[str, Any]):
    return check("amp-own-2", Record.model_validate(data))


def test_a_whole_ablation_earns_the_points():
    result = judged(sprinted())
    assert result.right and result.points == 4, result.feedback
    assert "all 7.0" in result.feedback and "the same loss after 4 steps" in result.feedback


@pytest.mark.parametrize("seed", range(5))
def test_a_busy_machine_is_no_fault(seed):
    """Runs that take up to half as long again, at random: the gains of the solution still show."""
    draw = random.Random(seed)
    data = sprinted()
    for s in data["samples"]:
        if s["metric"] == "time":
            s["values"] = [v * draw.uniform(1, 1.25) for v in s["values"]]
        if s["metric"] == "begun":
            s["values"] = [v * 1.4 for v in s["values"]]
    assert judged(data).right, judged(data).feedback


def of(data, case, metric="time"):
    return find(data, case, metric)["values"]


def lacks_memory(data):
    without(data, "memory")


def lacks_all(data):
    without(data, "all")


def one_repeat_less(data):
    of(data, "all").pop()
    of(data, "all", "begun").pop()


def three_rounds(data):
    for s in data["samples"]:
        if s["metric"] in ("time", "begun"):
            s["values"] = s["values"][:3]


def sprint_no_warmup(data):
    find(data, "data")["timing"]["warmup"] = 0


def copied_repeats(data):
    for s in data["samples"]:
        if s["metric"] == "time":
            s["values"] = [s["values"][0]] * 9


def another_script(data):
    data["spec"]["script"] = "0" * 64


def another_size(data):
    for metric in ("time", "begun", "loss", "gradient_error"):
        find(data, "all", metric)["point"]["batch"] = 4


def other_mends(data):
    find(data, "compute")["point"]["mends"] = "compute,memory"


def in_blocks(data):
    """One case after another, as a program without turns would do it."""
    now = 0.0
    for case in CASE_TIMES:
        times = of(data, case)
        find(data, case, "begun")["values"] = [
            now + sum(times[:i]) * SIZE["steps"] + 0.01 * i for i in range(len(times))
        ]
        now += sum(times) * SIZE["steps"] + 1


def slower_baseline(data):
    """The baseline's times written larger than they were."""
    find(data, "baseline")["values"] = [2 * v for v in of(data, "baseline")]


def no_begun(data):
    data["samples"] = [s for s in data["samples"] if s["metric"] != "begun" or s["point"]["case"] != "data"]


def other_loss(data):
    of(data, "compute", "loss")[2] = 4.2


def short_loss(data):
    of(data, "compute", "loss").pop()


def no_loss(data):
    data["samples"] = [s for s in data["samples"] if s["metric"] != "loss" or s["point"]["case"] != "all"]


def other_gradient(data):
    find(data, "memory", "gradient_error")["values"] = [0.4]


def faster_than_its_parts(data):
    times(data, "all", 0.2)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (lacks_memory, "incomplete", "no whole ablation: memory is missing"),
        (lacks_all, "incomplete", "no whole ablation: all is missing"),
        (one_repeat_less, "incomplete", "different numbers of repeats"),
        (three_rounds, "no repeats", "3 repeats. From fewer than 6"),
        (sprint_no_warmup, "no warm-up", "data: no warm-up"),
        (copied_repeats, "copied", "equal to the last digit"),
        (another_script, "another script", "another script"),
        (another_size, "another size", "all: its sizes"),
        (other_mends, "damaged", "one change at a time"),
        (in_blocks, "not in turns", "not measured in turns"),
        (slower_baseline, "times overlap", "not measured in one run"),
        (no_begun, "damaged", "does not say when its runs began"),
        (other_loss, "another loss", "compute: after step 3 the loss is 4.2, the script's 4.55"),
        (short_loss, "incomplete", "compute: 3 losses for 4 steps"),
        (no_loss, "incomplete", "all: the record holds no loss"),
        (other_gradient, "another gradient", "memory: the first gradient differs"),
        (faster_than_its_parts, "more than the parts allow", "From what each of them saves alone"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_doctored_or_incomplete_sprint_is_refused_with_the_reason(change, name, said):
    data = sprinted()
    change(data)
    result = judged(data)
    assert result.outcome == "wrong" and result.misconception == name and said in result.feedback, result.feedback


@pytest.mark.parametrize(
    ("times", "name", "said"),
    [
        ({"compute": 0.090}, "no gain alone", "compute: alone it makes a step"),
        ({"data": 0.120}, "no gain alone", "data: alone it makes a step 0.75 times faster"),
        ({"all": 0.0475}, "no gain together", "memory alone"),
        (
            {"data": 0.082, "compute": 0.081, "memory": 0.080, "all": 0.066},
            "too little together",
            "1.35 times faster; 1.5 is asked for",
        ),
    ],
)
def test_mends_that_gain_nothing_are_named(times, name, said):
    result = judged(sprinted(CASE_TIMES | times))
    assert result.outcome == "wrong" and result.misconception == name and said in result.feedback, result.feedback


def test_independent_parts_may_gain_more_than_the_product():
    """Three parts of a third each, mended one by one: 1.5 times alone, far more than 1.5³ together."""
    times = {"baseline": 0.09, "data": 0.061, "compute": 0.061, "memory": 0.061, "all": 0.015}
    result = judged(sprinted(times))
    assert 0.09 / 0.015 > (0.09 / 0.061) ** 3 and result.right, result.feedback


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 19), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_sprint_lacks_is_said_in_words(index, value, draw):
    data = sprinted()
    judging.alter(data, index, value, draw)
    judging.in_words(data, "amp-own-2")
    assert labbook.page(LabBook())


def test_a_sprint_is_never_taken_for_the_lab(labbook):
    """Each check finds its own record, whichever is newer, and says what to run where there is none."""
    book = LabBook()
    book.save_record(Record.model_validate(sprinted()))
    said = check("amp-own-1")
    assert said.outcome == "not counted" and "run amp" in said.feedback
    book.save_record(Record.model_validate(document()))
    assert check("amp-own-1").right and check("amp-own-2").right
    crossed = check("amp-own-1", "sprint-mine")
    assert crossed.outcome == "not counted" and "amp-mine" in crossed.feedback
    crossed = check("amp-own-2", Record.model_validate(document()))
    assert crossed.outcome == "wrong" and "is of amp, not of sprint" in crossed.feedback
    assert "record = sprint.measure(mends)" in crossed.feedback and "efflab.cli" not in crossed.feedback


def test_without_a_sprint_the_check_says_how_to_measure_one(labbook):
    result = check("amp-own-2")
    assert result.outcome == "not counted" and "sprint.measure(mends)" in result.feedback
    assert "import sys" not in result.feedback


def test_the_lab_book_shows_the_ablation():
    book = LabBook()
    book.save_record(Record.model_validate(sprinted()))
    page, problems = labbook.page(book)
    assert not problems and "<h2>sprint</h2>" in page and "Made-up CPU" in page
    for cell in ("<td>baseline</td>", "<td>all</td>", "95% interval", "times faster; the product"):
        assert cell in page
    assert "times faster" in page and "samples.</p>" not in page


def test_a_sprint_answers_no_prediction(labbook):
    """A prediction of the lab waits for a record of the lab."""
    from efflab.labbook import pairs

    prediction = records.Prediction.new("sprint", {"all.time": (0.01, "s")})
    assert pairs([prediction], [Record.model_validate(sprinted())]) == ([], [])


def test_the_interval_is_that_of_the_binomial():
    """The rank from the binomial distribution itself."""
    from scipy.stats import binom

    for n in range(1, 60):
        rank = ablation.interval_rank(n)
        assert 1 <= rank <= (n + 1) // 2
        if n >= ablation.FEWEST_ROUNDS:
            assert 2 * binom.cdf(rank - 1, n, 0.5) <= 0.05
            assert rank == (n + 1) // 2 or 2 * binom.cdf(rank, n, 0.5) > 0.05


def test_gains_are_taken_round_by_round():
    """A machine that slows down in one round slows all cases of it: the speedups stay."""
    data = sprinted(noise=1e-9)
    for s in data["samples"]:
        if s["metric"] == "time":
            s["values"] = [v * (3 if i in (2, 5, 6, 7) else 1) for i, v in enumerate(s["values"])]
    found = ablation.ablation(Record.model_validate(data))
    for case, seconds in CASE_TIMES.items():
        gain = found[case]
        assert gain.speedup == pytest.approx(0.090 / seconds, rel=1e-6)
        assert gain.low == pytest.approx(gain.high, rel=1e-6)
    for a, b in itertools.pairwise(found.values()):
        assert a.time != b.time
