"""The check of the learner's own record of several ranks: a plausible one passes, each impossibility is named.

The records are made up, so that each test changes one thing.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.exercises import check
from efflab.records import Record
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, change, drop, find, smoke, times, unfinished

LATENCY, BANDWIDTH = 2e-4, 1.5e9  # of a step on two ranks, which then send as much as the message has
# Seconds of a step, by case.
STEPS = {
    "alone": 0.070, "together": 0.074, "alone-part": 0.040, "together-part": 0.042, "reducer": 0.076, "ddp": 0.088,
    "strong": 0.055, "flat": 0.086, "per-tensor": 0.095, "accumulate": 0.310,
}  # fmt: skip
ROLES = dict.fromkeys(("alone", "together", "alone-part", "together-part", "reducer"), "calibration")
DELAY, PARAMETERS = 0.1, 3_438_080
REPEATS = (1.02, 1.0, 0.99, 1.01, 1.0, 0.985, 1.005)
TIMING = {"clock": "perf_counter", "mode": "back-to-back", "loops": 1, "warmup": 2}
verdict = judging.record("ddp-own-1")


def sample(case: str, role: str, metric: str, values: float | list[float], unit: str = "", **more: Any) -> dict:
    scattered = [values * f for f in REPEATS] if isinstance(values, float) else values
    made = {
        "point": {"case": case, "role": role, "ranks": 2, **more}, "metric": metric, "unit": unit,
        "values": scattered, "status": "ok",
    }  # fmt: skip
    return made | ({"timing": dict(TIMING)} if metric == "time" else {})


def document() -> dict[str, Any]:
    samples = []
    for role, sizes in (("fit", [2**k for k in range(10, 28, 2)]), ("all-reduce", [2**15, 2**19, 2**23, 2**25])):
        for k, size in enumerate(sizes):
            seconds = (2 * LATENCY + size / BANDWIDTH) * (1 + 0.05 * (-1) ** k)
            samples.append(sample(f"all-reduce-{size}-2", role, "time", seconds, "s", message_bytes=size))
    for case, seconds in STEPS.items():
        more: dict[str, Any] = {"microbatch": 8, "microbatches": 4 if case == "accumulate" else 1}
        more |= {"gradient_bytes": 4 * PARAMETERS}
        if case not in ROLES:
            more |= {"method": case if case in ("flat", "per-tensor") else "ddp", "scaling": "weak"}
        samples.append(sample(f"{case}-2", ROLES.get(case, "step"), "time", seconds, "s", **more))
    samples.append(sample("straggler-2", "straggler", "time", STEPS["ddp"] + DELAY, "s"))
    samples.append(sample("straggler-2", "straggler", "delay", DELAY, "s"))
    for scaling, value in (("weak", 70 / 88), ("strong", 70 / 110)):
        samples.append(sample(f"efficiency-{scaling}-2", "efficiency", "efficiency", value, scaling=scaling))
    for case, orders in (("set-epoch-2", 4.0), ("no-set-epoch-2", 1.0)):
        how = {"samples": 101, "epochs": 4, "set_epoch": orders > 1}
        samples.append(sample(case, "sampler", "orders", [orders], **how))
        samples.append(sample(case, "sampler", "repeated", [1.0] * 4, **how))
    samples.append(sample("gradient-2", "gradient", "difference", [2e-7]))
    samples.append(sample("gradient-2", "gradient", "rounding", [2e-7]))
    for name, stage, parts in (("ddp", 0, 16.0), ("zero1", 1, 12.0), ("fsdp", 3, 8.0)):
        samples.append(
            sample(f"memory-{name}-2", "memory", "state_bytes", [parts * PARAMETERS], "B",
                   parameters=PARAMETERS, zero_stage=stage)
        )  # fmt: skip
    curve = [4.58 * math.exp(-k / 60) + 0.05 * math.sin(k) for k in range(100)]
    samples.append(sample("curve", "curve", "loss", curve, "nats"))
    samples.append(sample("curve", "curve", "checkpoint_time", [0.02] * 5, "s"))
    samples.append(sample("resumed", "resume", "repeated", [13.0]))
    samples.append(sample("resumed", "resume", "difference", [0.0], "nats"))
    samples.append(sample("resumed", "resume", "restart_time", [4.5], "s"))
    return {
        "schema": "efflab-record/1", "id": "ddp-mine", "topic": "ddp", "created": "2026-11-21T08:00:00Z",
        "finished": "2026-11-21T08:01:00Z", "environment": ENVIRONMENT | {"ranks": 2, "backend": "gloo"},
        "spec": {"scale": "cpu", "resume": {"steps": 100, "checkpoint_steps": 20, "killed_at": 53}},
        "samples": samples,
    }  # fmt: skip


def fit(sizes, times, ranks):
    """Latency and bandwidth by the normal equations of the relative errors."""
    x, y = [s / t for s, t in zip(sizes, times, strict=True)], [1 / t for t in times]
    xx, xy, yy = sum(a * a for a in x), sum(a * b for a, b in zip(x, y, strict=True)), sum(b * b for b in y)
    slope, start = np.linalg.solve([[xx, xy], [xy, yy]], [sum(x), sum(y)])
    return start / (2 * ranks - 2), (2 * ranks - 2) / ranks / slope


def test_a_plausible_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3, result.feedback
    said = " ".join(result.feedback.split())
    assert "11 kinds of steps, none wide or disturbed" in said
    assert "On 2 ranks a step of the ring has a latency of 2" in said and "GB/s" in said
    assert "Weak scaling efficiency 80%." in said


def test_the_learners_fit_is_tried_on_the_record(data):
    record = Record.model_validate(data)
    result = check("ddp-own-1", {"record": record, "fit": fit})
    assert result.right and "Your own fit agrees." in result.feedback, result.feedback

    def seconds(sizes, times, ranks):
        slope, start = np.polyfit(sizes, times, 1)
        return start / 2, 1 / slope

    result = check("ddp-own-1", {"record": record, "fit": seconds})
    assert result.misconception == "another fit" and "Does it pass ddp-code-3?" in result.feedback
    assert check("ddp-own-1", {"record": record, "fit": lambda sizes, times, ranks: (0, 0)}).outcome == "wrong"
    assert check("ddp-own-1", {"record": record, "fit": lambda sizes, times, ranks: "x"}).outcome == "wrong"
    for answer in ({}, {"fit": fit}, {"record": record, "fitt": fit}, {"record": 3}, 3):
        result = check("ddp-own-1", answer)
        assert result.outcome == "not counted" and result.feedback, answer
    assert check("ddp-own-1", {"record": record, "fit": None}).right


def test_no_record_says_how_to_make_one(labbook):
    for answer in ({"record": "newest", "fit": fit}, "newest", None):
        result = check("ddp-own-1", answer)
        assert result.outcome == "not counted" and "!{sys.executable} -m efflab.cli run ddp" in result.feedback


def put(case, metric, *values):
    def changed(data):
        find(data, case, metric)["values"] = list(values)

    changed.__name__ = f"{case}_{metric}_{values}"
    return changed


def no_warmup(data):
    find(data, "ddp-2")["timing"]["warmup"] = 0


def few_repeats(data):
    find(data, "strong-2")["values"] = [0.055, 0.056]


def disturbed(data):
    for case in ("alone-2", "flat-2", "strong-2"):
        for k in (0, 2, 4):
            find(data, case)["values"][k] *= 1.4


def one_rank(data):
    for s in data["samples"]:
        s["point"]["ranks"] = 1


def size_without_effect(data):
    for s in data["samples"]:
        if s["point"]["role"] == "fit":
            s["values"] = [1e-3 * f for f in REPEATS]


def two_sizes(data):
    fits = [s for s in data["samples"] if s["point"]["role"] == "fit"]
    data["samples"] = [s for s in data["samples"] if s not in fits[1:-1]]


def no_messages_held_out(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["role"] != "all-reduce"]


def held_out_elsewhere(data):
    for s in data["samples"]:
        if s["point"]["role"] == "all-reduce":
            s["values"] = [v / 8 for v in s["values"]]


def losses_that_rise(data):
    find(data, "curve", "loss")["values"].reverse()


def too_efficient(data):
    for case in ("ddp-2", "accumulate-2"):
        times(data, case, 0.75)
    times(data, "efficiency-weak-2", 1.5, "efficiency")


def message_without_a_size(data):
    find(data, "all-reduce-1024-2")["point"]["message_bytes"] = 0


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (no_warmup, "no warm-up", "ddp-2: no warm-up"),
        (few_repeats, "no repeats", "strong-2: 2 repeats"),
        (disturbed, "disturbed", "3 of 11 steps have repeats"),
        (one_rank, "one rank", "--device cpu"),
        (size_without_effect, "size without effect", "More bytes take more time"),
        (two_sizes, "incomplete", "all-reduces of 2 sizes"),
        (no_messages_held_out, "incomplete", "no all-reduce that was held out"),
        (held_out_elsewhere, "not explained", "miss those held out by"),
        (message_without_a_size, "damaged", "message_bytes"),
        (drop("alone-2"), "incomplete", "no time of alone-2"),
        (drop("ddp-2"), "incomplete", "no time of ddp-2"),
        (drop("strong-2"), "incomplete", "no time of strong-2"),
        (drop("straggler-2"), "incomplete", "no time of straggler-2"),
        (drop("straggler-2", "delay"), "incomplete", "no delay of straggler-2"),
        (drop("efficiency-weak-2", "efficiency"), "incomplete", "no efficiency of efficiency-weak-2"),
        (drop("set-epoch-2", "orders"), "incomplete", "no orders of set-epoch-2"),
        (drop("gradient-2", "difference"), "incomplete", "no difference of gradient-2"),
        (drop("memory-ddp-2", "state_bytes"), "incomplete", "no state bytes of memory-ddp-2"),
        (drop("curve", "loss"), "incomplete", "no loss of curve"),
        (drop("resumed", "difference"), "incomplete", "no difference of resumed"),
        (change("together-2", 0.7), "faster than alone", "together-2: a step of 51.8 ms"),
        (change("ddp-2", 0.6), "faster than alone", "ddp-2: a step of 52.8 ms"),
        (change("accumulate-2", 0.2), "faster than its part", "accumulate-2: 62 ms"),
        (change("straggler-2", 0.6), "nobody waits", "straggler-2: one rank comes 100 ms late"),
        (change("straggler-2", 3), "slower than explained", "straggler-2: 564 ms"),
        (too_efficient, "efficiency above one", "efficiency-weak-2: 119%"),
        (change("efficiency-strong-2", 2.5, "efficiency"), "efficiency above one", "efficiency-strong-2: 159%"),
        (change("efficiency-weak-2", 0.5, "efficiency"), "efficiency of other times", "give 80%"),
        (put("set-epoch-2", "orders", 1.0), "orders", "1 orders in 4 epochs; 4 is right"),
        (put("no-set-epoch-2", "orders", 4.0), "orders", "repeats the first one"),
        (put("set-epoch-2", "repeated", 0.0), "repeated samples", "101 on 2 ranks leave 1"),
        (put("gradient-2", "difference", 0.5), "another gradient", "0.5 of it"),
        (change("memory-zero1-2", 16 / 12, "state_bytes"), "memory out of bounds", "memory-zero1-2: 55 MB"),
        (change("memory-ddp-2", 0.5, "state_bytes"), "memory out of bounds", "memory-ddp-2: 27.5 MB"),
        (losses_that_rise, "no training", "do not fall"),
        (put("resumed", "difference", 1e-6), "not the same training", "on a CPU they are equal"),
        (put("resumed", "repeated", 3.0), "repeated steps", "it is 13"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_wrong_is_named(data, change, name, said):
    change(data)
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == name, result.feedback
    assert said in " ".join(result.feedback.split()), result.feedback


def test_noise_is_allowed_for(data):
    """Efficiencies a little above one, ranks that do not disturb each other, a sleeping rank that leaves its core."""
    for case, factor in (("together-2", 0.93), ("ddp-2", 0.8), ("accumulate-2", 0.8)):
        times(data, case, factor)
    times(data, "efficiency-weak-2", 1 / 0.8, "efficiency")
    times(data, "straggler-2", 0.9)
    for k in (0, 2, 4):
        find(data, "flat-2")["values"][k] *= 1.4
    assert verdict(data).right, verdict(data).feedback


def test_messages_through_caches_may_vary(data):
    for s in data["samples"]:
        if s["point"]["role"] in ("fit", "all-reduce"):
            s["values"] = [v * (2 if k % 3 else 1) for k, v in enumerate(s["values"])]
    assert verdict(data).right, verdict(data).feedback


def on_gpus(data):
    data["environment"].update(kind="cuda", device="NVIDIA H200", memory=150_000_000_000, backend="nccl")
    for s in data["samples"]:
        if s.get("timing"):
            s["timing"]["clock"] = "cuda-events"


def test_on_gpus_bits_may_differ_and_no_message_beats_the_link(data):
    on_gpus(data)
    find(data, "resumed", "difference")["values"] = [1e-5]
    for s in data["samples"]:
        if s["point"]["role"] in ("fit", "all-reduce"):
            s["values"] = [v / 400 for v in s["values"]]  # 600 GB/s: a switch that adds up
    assert verdict(data).right, verdict(data).feedback
    find(data, "resumed", "difference")["values"] = [0.1]
    assert verdict(data).misconception == "not the same training"
    for s in data["samples"]:
        if s["point"]["role"] in ("fit", "all-reduce"):
            s["values"] = [v / 2 for v in s["values"]]
    result = verdict(data)
    assert result.misconception == "faster than the link" and "Not even reduction in the switch" in result.feedback


def test_on_one_gpu_the_check_names_a_way_to_two_ranks(data):
    """What one GPU writes: cases of two ranks that could not be measured, and a sampler that could."""
    on_gpus(data)
    for s in data["samples"]:
        if s["point"]["role"] not in ("calibration", "sampler", "memory", "curve", "resume"):
            s.update(values=[], status="failed", message="one GPU")
            s.pop("timing", None)
    data["samples"] = [s for s in data["samples"] if s["point"]["role"] != "fit"]
    result = verdict(data)
    assert result.misconception == "one rank" and "--device cpu" in result.feedback, result.feedback


def test_fsdp_that_this_device_cannot_do_is_no_fault(data):
    found = find(data, "memory-fsdp-2", "state_bytes")
    found.update(values=[], status="failed", message="no fully_shard here")
    assert verdict(data).right, verdict(data).feedback


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    path = judging.smoke_run("ddp", tmp_path)
    result = check("ddp-own-1", path)
    assert result.misconception == "smoke scale", result.feedback
    result = verdict(judging.as_if_quiet(path, "delay"))
    busy = ("size without effect", "not explained", "faster than alone", "faster than its part", "nobody waits",
            "slower than explained", "efficiency above one", "efficiency of other times")  # fmt: skip
    assert result.right or result.misconception in busy, result


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "fit", "step", "curve", "ddp-2", 3])


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, len(document()["samples"]) - 1), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index, value, draw)
    judging.in_words(data, "ddp-own-1")


@settings(max_examples=150, deadline=None)
@given(
    index=st.integers(0, len(document()["samples"]) - 1),
    values=st.lists(st.floats(0, 1e300) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=5),
)
def test_whatever_was_measured_is_judged_in_words(index, values):
    data = document()
    data["samples"][index]["values"] = values
    judging.in_words(data, "ddp-own-1")


@pytest.mark.parametrize(
    "entry", [None, 3, {"killed_at": "x"}, {"killed_at": 5}, {"killed_at": 5, "checkpoint_steps": 0}]
)
def test_a_spec_that_does_not_say_when_it_was_killed(data, entry):
    data["spec"]["resume"] = entry
    result = verdict(data)
    assert result.outcome in ("right", "wrong") and result.feedback


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("ddp", monkeypatch):
        if (record.environment.ranks or 1) > 1:
            result = check("ddp-own-1", {"record": record, "fit": fit})
            assert result.right, f"{record.id}: {result.feedback}"


def test_a_near_copy_of_a_recorded_run_is_not_ones_own(data, monkeypatch):
    shipped = Record.model_validate(copy.deepcopy(data) | {"id": "ddp-shipped"})
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    judging.nearly_copied(data, 1e-4)
    assert verdict(data).misconception == "not own"
