"""The check of the learner's own record of profiling: a plausible one passes, each impossibility is named.

The records are made up, so that each test changes one thing.
"""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.exercises import check
from efflab.records import Record
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, drop, find, smoke, times, unfinished

STEP = 12e-3  # s, with all faults
# Of the profiled step, which is 15% slower: the share of each part, and what is left of it after its mend.
SHARES = {"loader": 0.14, "copies": 0.07, "sync": 0.07, "tiny": 0.33, "python": 0.035}
LEFT = {"loader": 0.02, "copies": 0.01, "sync": 0.002, "tiny": 0.08, "python": 0.006}
# Each of the 3,600 events costs 0.5 µs, 1.8 ms in all.
EVENTS = {
    "loader": 120.0, "copies": 60.0, "sync": 900.0, "tiny": 1720.0, "python": 30.0, "forward": 250.0,
    "backward": 500.0, "optimizer": 20.0,
}  # fmt: skip
REST = {"forward": 0.12, "backward": 0.21, "optimizer": 0.005}
# What each mend saves of the unprofiled step.
GAINS = {"loader": 0.13, "copies": 0.06, "sync": 0.04, "tiny": 0.23, "python": 0.03}
LADDER = {2: 0.19, 3: 0.23, 4: 0.46, 5: 0.49}
FLOPS = 118_112_256
FAULTS = tuple(SHARES)
REPEATS = (1.02, 1.0, 0.99, 1.01, 1.0, 0.985, 1.005)


def sample(case: str, role: str, metric: str, value: float | list[float], unit: str = "s", **more: Any) -> dict:
    point = {
        "case": case, "role": role, "faults": "", "batch": 32, "context": 32, "tokens": 1024, "flops": FLOPS,
        "seed": 0, "workers": 0, "pinned": False, "threads": 1, **more,
    }  # fmt: skip
    scatter = [value * f for f in REPEATS] if isinstance(value, float) else value
    made = {"point": point, "metric": metric, "unit": unit, "values": scatter, "status": "ok"}
    if unit == "s":
        made["timing"] = {"clock": "perf_counter", "mode": "back-to-back", "loops": 1, "warmup": 8}
    return made


def document() -> dict[str, Any]:
    profiled = [1.15 * STEP * f for f in REPEATS]
    samples = [sample("all-faults", "calibration", "time", STEP), sample("profile", "calibration", "time", profiled)]
    for part, share in (SHARES | REST).items():
        samples.append(sample("profile", "calibration", f"range_{part}", [share * s for s in profiled]))
        samples.append(sample("profile", "calibration", f"events_{part}", [EVENTS[part]] * 3, ""))
    samples.append(sample("profile", "calibration", "baseline", STEP))
    samples += [
        sample("peak", "calibration", "time", 2 * 1024**3 / 100e9, m=1024, n=1024, k=1024, dtype="fp32"),
        sample("batch-load", "calibration", "time", 1.8e-3),
        sample("compute", "calibration", "time", 5.5e-3),
    ]
    for fault, gain in GAINS.items():
        case = f"without-{fault}"
        samples.append(sample(case, "ablation", "time", STEP * (1 - gain), mended=fault))
        samples.append(sample(case, "ablation", "baseline", STEP, mended=fault))
    for count, gain in LADDER.items():
        mended = ",".join(FAULTS[:count])
        samples.append(sample(f"mended-{count}", "ladder", "time", STEP * (1 - gain), mended=mended))
        samples.append(sample(f"mended-{count}", "ladder", "baseline", STEP, mended=mended))
    clean = [STEP * (1 - LADDER[5]) * 1.1 * f for f in REPEATS]
    samples.append(sample("profile-clean", "evidence", "time", clean))
    for part in (*SHARES, *REST):
        left = LEFT.get(part, REST.get(part, 0.0)) * 1.15 * STEP
        samples.append(sample("profile-clean", "evidence", f"range_{part}", left))
        samples.append(sample("profile-clean", "evidence", f"events_{part}", [0.0] * 3, ""))
    for workers, seconds in enumerate((7.3e-3, 5.9e-3, 5.8e-3)):
        samples.append(sample(f"workers-{workers}", "loader", "time", seconds, workers=workers))
    pinned = sample("workers-2-pinned", "loader", "time", [], workers=2, pinned=True)
    pinned.pop("timing")
    samples.append(pinned | {"status": "failed", "message": "this device is a CPU"})
    curve = [4.55 * math.exp(-k / 40) + 0.1 * math.sin(k) for k in range(20)]
    for case, values in (
        ("seed-0", curve), ("seed-0-again", curve), ("seed-1", [v * 1.01 for v in curve]),
        ("seed-0-clean", [v * (1 + 1e-7) for v in curve]), ("seed-0-threads", curve),
    ):  # fmt: skip
        samples.append(sample(case, "seed", "loss", list(values), "nats"))
    return {
        "schema": "efflab-record/1", "id": "profiling-mine", "topic": "profiling", "created": "2026-11-21T08:00:00Z",
        "finished": "2026-11-21T08:01:00Z",
        "environment": dict(ENVIRONMENT),
        "spec": {"scale": "cpu"}, "samples": samples,
    }  # fmt: skip


verdict = judging.record("profiling-own-1")


def test_a_plausible_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3, result.feedback
    said = " ".join(result.feedback.split())
    assert "10 kinds of steps, none wide or disturbed" in said
    # By hand: 1.93, 0.97, 0.97, 4.55 and 0.48 ms without 0.06, 0.03, 0.45, 0.86 and 0.02 ms, of 12 ms.
    assert "loader 16%, copies 8%, sync 4%, tiny 31%, python 4%" in said
    assert "save: loader 13%, copies 6%, sync 4%, tiny 23%, python 3%" in said
    assert "All mends together save 49% of the step" in said
    assert "from 9.8% to 19.3% of a large product's" in said


def test_no_record_says_how_to_make_one(labbook):
    result = check("profiling-own-1")
    assert result.outcome == "not counted" and "!{sys.executable} -m efflab.cli run profiling" in result.feedback


def no_warmup(data):
    find(data, "without-tiny")["timing"]["warmup"] = 0


def disturbed(data):
    for case in ("without-loader", "without-copies", "mended-2", "mended-3"):
        for k in (0, 2, 4):
            find(data, case)["values"][k] *= 1.4


def ranges_beyond_the_step(data):
    times(data, "profile", 2.0, "range_forward")
    times(data, "profile", 1.5, "range_tiny")


def no_fault_in_the_profile(data):
    times(data, "profile", 0.0, "range_sync")


def gain_without_a_share(data):
    times(data, "without-python", 0.8)


def mend_without_a_gain(data):
    times(data, "without-tiny", 1.29)


def slower_with_a_mend(data):
    times(data, "mended-4", 1.6)


def a_last_digit(data):
    find(data, "seed-0-again", "loss")["values"][7] *= 1 + 2**-52


def seed_ignored(data):
    find(data, "seed-1", "loss")["values"] = list(find(data, "seed-0", "loss")["values"])


def faults_change_the_training(data):
    times(data, "seed-0-clean", 1.2, "loss")


def no_training(data):
    for case in ("seed-0", "seed-0-again", "seed-0-clean"):
        find(data, case, "loss")["values"].reverse()


def curves_of_two_lengths(data):
    find(data, "seed-1", "loss")["values"].pop()


def faster_than_the_product(data):
    times(data, "peak", 20.0)


def more_flops(data):
    find(data, "mended-5")["point"]["flops"] *= 10


def faster_than_computing(data):
    times(data, "workers-2", 0.5)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (no_warmup, "no warm-up", "without-tiny: no warm-up"),
        (disturbed, "disturbed", "4 of 10 steps have repeats"),
        (drop("all-faults"), "incomplete", "no time of all-faults"),
        (drop("without-sync"), "incomplete", "no time of without-sync"),
        (drop("without-sync", "baseline"), "incomplete", "no baseline of without-sync"),
        (drop("profile", "range_tiny"), "incomplete", "no range tiny of profile"),
        (drop("profile-clean", "range_copies"), "incomplete", "no range copies of profile-clean"),
        (drop("seed-0-again", "loss"), "incomplete", "no loss of seed-0-again"),
        (drop("peak"), "incomplete", "no time of peak"),
        (drop("mended-5"), "incomplete", "no time of mended-5"),
        (drop("compute"), "incomplete", "no time of compute"),
        (ranges_beyond_the_step, "shares above one", "Shares of a step add up to at most 1"),
        (no_fault_in_the_profile, "no share", "the fault 'sync' takes no time"),
        (gain_without_a_share, "gain above the share", "the mend saves 22.4% of the step"),
        (mend_without_a_gain, "gain below the share", "without-tiny: the mend saves 0.7%"),
        (slower_with_a_mend, "slower with a mend", "mended-4: with 4 mends"),
        (a_last_digit, "not reproducible", "seed-0-again: in step 7"),
        (seed_ignored, "seed without effect", "Another seed must give another one"),
        (faults_change_the_training, "another training", "is 20.0% away from that of seed-0"),
        (no_training, "no training", "does not fall"),
        (curves_of_two_lengths, "damaged", "differ in length"),
        (faster_than_the_product, "efficiency above one", "times the rate of a large product"),
        (more_flops, "efficiency above one", "mended-5: 193 GFLOP/s is 1.93 times"),
        (faster_than_computing, "faster than the computation", "workers-2: a step takes 2.9 ms"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_wrong_is_named(data, change, name, said):
    change(data)
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == name, result.feedback
    assert said in " ".join(result.feedback.split()), result.feedback


def test_a_loop_that_no_mend_makes_faster(data):
    """Shares of a per cent, gains of nothing, and all mends together gain nothing either."""
    for fault in FAULTS:
        times(data, "profile", 0.05, f"range_{fault}")
        times(data, f"without-{fault}", 1 / (1 - GAINS[fault]))
    for count, gain in LADDER.items():
        times(data, f"mended-{count}", 1.001 / (1 - gain))
    result = verdict(data)
    assert result.misconception == "slower with a mend" and "mended-5: the loop without faults is no faster" in str(
        result
    )


def without_events(data):
    data["samples"] = [s for s in data["samples"] if not s["metric"].startswith("events_")]


def more_events_than_sync_lasts(data):
    find(data, "profile", "events_sync")["values"] = [9000.0] * 3


def no_event_at_all(data):
    for s in data["samples"]:
        if s["metric"].startswith("events_"):
            s["values"] = [0.0] * 3


def less_than_no_event(data):
    find(data, "profile", "events_sync")["values"] = [-900.0] * 3


def test_a_gain_is_held_against_the_share_without_the_profilers_cost(data):
    """19% are too much for a share of 14% of the profiled step, and not for the 15.6% without its cost."""
    times(data, "without-loader", (1 - 0.19) / (1 - GAINS["loader"]))
    assert verdict(data).right, verdict(data).feedback
    without_events(data)
    result = verdict(data)
    assert result.misconception == "gain above the share", result.feedback
    assert "a share of 14.0% by the profile" in " ".join(result.feedback.split())


@pytest.mark.parametrize("change", [without_events, more_events_than_sync_lasts, no_event_at_all, less_than_no_event])
def test_where_an_events_cost_is_not_known_shares_are_of_the_profiled_step(data, change):
    change(data)
    result = verdict(data)
    assert result.right, result.feedback
    assert "loader 14%, copies 7%, sync 7%, tiny 33%, python 4%" in " ".join(result.feedback.split())


def test_the_faults_never_have_more_than_the_step(data):
    """Faults in 90% of the profiled step, and most of the 1.8 ms that events cost in the 1.3 ms of the others."""
    for part in REST:
        times(data, "profile", 0.2, f"range_{part}")
    for fault in FAULTS:
        times(data, "profile", 1.4, f"range_{fault}")
    find(data, "profile", "events_backward")["values"] = [1e5] * 3
    result = verdict(data)
    assert result.right, result.feedback
    assert "loader 20%, copies 10%, sync 10%, tiny 46%, python 5%" in " ".join(result.feedback.split())


def test_noise_is_allowed_for(data):
    """A gain a little above the share, and one below nothing, of steps that scatter."""
    times(data, "without-python", (1 - SHARES["python"] - 0.03) / (1 - GAINS["python"]))
    times(data, "without-copies", 1.012 / (1 - GAINS["copies"]))
    times(data, "without-sync", 1.002 / (1 - GAINS["sync"]))
    result = verdict(data)
    assert result.right and "copies −1%, sync 0%" in " ".join(result.feedback.split()), result.feedback


def test_steps_that_wait_for_workers_may_vary(data):
    for workers in range(3):
        find(data, f"workers-{workers}")["values"][::2] = [9e-3] * 4
    assert verdict(data).right, verdict(data).feedback


def on_a_gpu(data):
    data["environment"].update(kind="cuda", device="NVIDIA H200", memory=150_000_000_000)
    for s in data["samples"]:
        if s.get("timing"):
            s["timing"]["clock"] = "cuda-events"


def test_on_a_gpu_kernels_count_and_bits_may_differ(data):
    """Kernels of a part run while the host is elsewhere, and atomic additions come in any order."""
    on_a_gpu(data)
    find(data, "seed-0-again", "loss")["values"][7] *= 1 + 1e-6
    times(data, "without-python", (1 - 0.12) / (1 - GAINS["python"]))
    assert verdict(data).misconception == "gain above the share"
    profiled = find(data, "profile")["values"]
    data["samples"].append(sample("profile", "calibration", "kernel_python", [0.1 * s for s in profiled]))
    data["samples"][-1]["timing"]["clock"] = "torch.profiler+synchronize"
    assert verdict(data).right, verdict(data).feedback
    times(data, "without-tiny", 1.29)  # its waiting may turn up elsewhere
    assert verdict(data).right, verdict(data).feedback
    times(data, "seed-0-again", 1.1, "loss")
    assert verdict(data).misconception == "not reproducible"


def test_no_product_beats_the_data_sheet(data):
    on_a_gpu(data)
    times(data, "peak", 1 / 800)  # 80 TFLOP/s in FP32; an H200 has 66.9
    result = verdict(data)
    assert result.misconception == "faster than the device" and "what H200 SXM can do in fp32" in result.feedback


def test_a_gpu_that_was_not_waited_for(data):
    on_a_gpu(data)
    find(data, "mended-3")["timing"]["clock"] = "perf_counter"
    assert verdict(data).misconception == "no synchronisation"


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    path = judging.smoke_run("profiling", tmp_path)
    result = check("profiling-own-1", path)
    assert result.misconception == "smoke scale", result.feedback
    result = verdict(judging.as_if_quiet(path, "baseline"))
    assert result.misconception not in ("incomplete", "damaged", "not reproducible", "another training"), result


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "loader", "ablation", "seed-0", "peak"])


@settings(max_examples=200, deadline=None)
@given(index=st.integers(0, 50), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index % len(data["samples"]), value, draw, "flops", "case", "role", "m")
    judging.in_words(data, "profiling-own-1")


@settings(max_examples=200, deadline=None)
@given(index=st.integers(0, 50), factor=st.sampled_from([0.0, 1e-300, 1e-3, 0.5, 2.0, 1e3, 1e300]))
def test_whatever_a_value_is_is_answered_in_words(index, factor):
    """All values of a sample times a factor: a sentence, never a raw error."""
    data = document()
    found = data["samples"][index % len(data["samples"])]
    found["values"] = [v * factor for v in found["values"]]
    judging.in_words(data, "profiling-own-1")


def test_a_near_copy_of_a_recorded_run_is_not_ones_own(data, monkeypatch):
    shipped = Record.model_validate(document() | {"id": "profiling-shipped"})
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    judging.nearly_copied(data, 1e-4)
    assert verdict(data).misconception == "not own"


@pytest.mark.parametrize("seed", range(2))
def test_another_run_of_the_same_device_is_ones_own(seed, data, monkeypatch):
    """The same device again: the same losses to the last digit, times that scatter anew."""
    shipped, draw = Record.model_validate(document() | {"id": "profiling-shipped"}), random.Random(seed)
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    for s in data["samples"]:
        if s["metric"] == "time" and s["values"]:
            middle = statistics.median(s["values"]) * draw.gauss(1, 0.01)
            s["values"] = [middle * math.exp(draw.gauss(0, 0.01)) for _ in s["values"]]
    # The profile's ranges are those of its own steps.
    for part, share in (SHARES | REST).items():
        find(data, "profile", f"range_{part}")["values"] = [share * v for v in find(data, "profile")["values"]]
    assert verdict(data).right, verdict(data).feedback


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("profiling", monkeypatch):
        result = check("profiling-own-1", record)
        assert result.right, f"{record.id}: {result.feedback}"
