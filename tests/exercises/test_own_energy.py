"""The checks of the learner's own record of energy: plausible ones pass, measured, modelled or absent; each
impossibility is named.

The records are made up, so that each test changes one thing: a GPU whose counter was read, and a CPU without one.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.exercises import check
from efflab.records import Record
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, change, drop, find, smoke, times, unfinished

IDLE, LIMIT, PERIOD, WINDOW = 75.0, 700.0, 0.1, 2.0
FIXED, EACH = 1.2e-3, 1.4e-5  # s of a batch and of each of its samples
WORK = 320.0  # W above idle at work
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
REPEATS = (1.02, 1.0, 0.99, 1.005)
RATING = [6.9, 40.0]
verdict = judging.record("energy-own-1")
samples_verdict = judging.record("energy-own-2")


def sample(case: str, role: str, metric: str, value: float, unit: str, **more: Any) -> dict:
    return {
        "point": {"case": case, "role": role, **more}, "metric": metric, "unit": unit,
        "values": [value * f for f in REPEATS], "status": "ok",
    }  # fmt: skip


def timed(case: str, role: str, seconds: float, *, counter: bool = True, **more: Any) -> list[dict]:
    """The time of a call and, with a counter, its energy: of windows of whole calls."""
    made = sample(case, role, "time", seconds, "s", dtype="fp32", **more)
    loops = math.ceil((WINDOW if counter else 0.3) / seconds)
    made["timing"] = {
        "clock": "perf_counter+synchronize" if counter else "perf_counter", "mode": "back-to-back", "loops": loops,
        "warmup": 3, "stop": "repeat limit",
    }  # fmt: skip
    if not counter:
        return [made]
    joules = (IDLE + WORK) * seconds
    calls = loops * len(REPEATS)
    made["timing"]["energy"] = {"joules": joules * calls, "seconds": seconds * calls, "calls": calls}
    return [made, sample(case, role, "energy", joules, "J", dtype="fp32", **more)]


def document(counter: bool = True) -> dict[str, Any]:
    scale = 1.0 if counter else 20.0  # the CPU is slower
    samples = [
        *timed("product-fp32", "calibration", 0.022 * scale, counter=counter, m=8192),
        *timed("stream", "calibration", 0.009, counter=counter, bytes=2**28),
        *timed("train-fp32", "training", 0.045 * scale, counter=counter, batch=1024),
    ]
    for b in BATCHES:
        seconds = (FIXED + EACH * b) * scale
        samples += timed(f"infer-fp32-{b}", "inference", seconds, counter=counter, batch=b)
    energy: dict[str, Any]
    if counter:
        samples.append(sample("idle", "idle", "power", IDLE, "W"))
        samples.append(sample("counter", "counter", "energy", 3950.0, "J"))
        samples.append(sample("counter", "counter", "integrated", 3820.0, "J"))
        samples.append(sample("counter", "counter", "time", 10.0, "s"))
        samples.append(sample("window-10", "window", "gain", 4.0, "J", length=0.01))
        samples.append(sample("window-10", "window", "time", 0.01, "s", length=0.01))
        samples.append(sample("limit", "limit", "limit", LIMIT, "W"))
        energy = {
            "source": "nvml-counter", "joules": 60e3, "window_s": 200.0, "period_s": PERIOD,
            "of": "NVML's counter of GPU 0",
        }  # fmt: skip
    else:
        energy = {
            "source": "modelled", "band": [0.3 * 6.9 * 60, 40.0 * 60], "rating": RATING, "window_s": 60.0,
            "of": "a family of processors; 2 cores", "why": "RAPL: root alone may read the counters",
        }  # fmt: skip
    environment = ENVIRONMENT | (
        {"device": "NVIDIA H200", "kind": "cuda", "memory": 150_000_000_000, "power_limit": LIMIT} if counter else {}
    )
    return {
        "schema": "efflab-record/1", "id": "energy-mine", "topic": "energy", "created": "2026-11-21T08:00:00Z",
        "finished": "2026-11-21T08:04:00Z", "environment": environment, "energy": energy, "samples": samples,
        "spec": {"scale": "gpu" if counter else "cpu", "width": 8192, "layers": 4, "batches": list(BATCHES)},
    }  # fmt: skip


@pytest.fixture
def unmeasured() -> dict[str, Any]:
    return document(counter=False)


def cost(windows, batch, idle_power):
    joules, seconds, calls = (sum(c) for c in zip(*windows, strict=True))
    return joules / calls / batch, max(0.0, joules - idle_power * seconds) / calls / batch


def said_by(result) -> str:
    return " ".join(result.feedback.split())


def test_a_measured_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3, result.feedback
    said = said_by(result)
    assert "10 cases, none wide or disturbed." in said
    # The window of the longest call is 2.03 s, all others are nearer to 2 s: 0.1 s of it are 5%.
    assert "Measured by NVML's counter of GPU 0, in windows of 2" in said and ": 0.05 of it uncertain at most" in said
    assert "75.2 W idle" in said and "60 kJ in all. Integrated power readings differ by -3%." in said
    result = samples_verdict(data)
    assert result.right and result.points == 3, result.feedback
    assert "Batches of 1 to 4096 in FP32" in said_by(result)
    # (1.2 ms + 4096 × 14 µs) / 4096 = 14.3 µs at 395 W, against 1.21 ms.
    assert "A sample of the largest takes 1.2% of the smallest's time." in said_by(result)
    assert "It takes 5.66 mJ, 1.2% of the smallest's." in said_by(result)


def test_a_modelled_record_earns_the_points(unmeasured):
    result = verdict(unmeasured)
    assert result.right and result.points == 3, result.feedback
    said = said_by(result)
    assert "Modelled: between 124 J and 2.4 kJ over 60 s, from a family of processors; 2 cores." in said
    assert "Not measured: RAPL: root alone may read the counters." in said
    result = samples_verdict(unmeasured)
    assert result.right, result.feedback
    # 286 µs for a sample, at 0.3 × 6.9 W and at 40 W.
    assert "Modelled from the rated power, it takes between 593 µJ and 11.5 mJ." in said_by(result)


def test_an_absent_energy_that_says_why_earns_the_points(unmeasured):
    unmeasured["energy"] = {"source": "none", "why": "no counter; and the catalog has no rated power of this device"}
    result = verdict(unmeasured)
    assert result.right and "No energy: no counter; and the catalog has no rated power" in said_by(result)
    result = samples_verdict(unmeasured)
    assert result.right and "Its joules are not known" in said_by(result)


def test_the_learners_function_is_tried_on_the_windows(data, unmeasured):
    record = Record.model_validate(data)
    result = check("energy-own-2", {"record": record, "cost": cost})
    assert result.right and "Your own function agrees." in said_by(result), result.feedback
    result = check("energy-own-2", {"record": record, "cost": lambda windows, batch, idle_power: (1.0, 0.5)})
    assert result.misconception == "another cost" and "Does it pass energy-code-4?" in result.feedback
    forgets = check(
        "energy-own-2", {"record": record, "cost": lambda windows, batch, idle_power: cost(windows, batch, 0)}
    )
    assert forgets.misconception == "another cost"
    assert check("energy-own-2", {"record": record, "cost": lambda windows, batch, idle_power: "x"}).outcome == "wrong"
    for answer in ({}, {"cost": cost}, {"record": record, "costs": cost}, {"record": 3}, 3):
        result = check("energy-own-2", answer)
        assert result.outcome == "not counted" and result.feedback, answer
    assert check("energy-own-2", {"record": record, "cost": None}).right
    result = check("energy-own-2", {"record": Record.model_validate(unmeasured), "cost": cost})
    assert result.right and "There are no windows to try your function on." in said_by(result)


def test_no_record_says_how_to_make_one(labbook):
    for question, answer in (("energy-own-1", "newest"), ("energy-own-1", None), ("energy-own-2", "newest"),
                             ("energy-own-2", {"record": "newest", "cost": cost})):  # fmt: skip
        result = check(question, answer)
        assert result.outcome == "not counted" and "!{sys.executable} -m efflab.cli run energy" in result.feedback


# What is wrong, one at a time


def energy(**entries):
    def changed(data):
        data["energy"].update(entries)

    changed.__name__ = f"energy_{'_'.join(entries)}"
    return changed


def spec(**entries):
    def changed(data):
        data["spec"].update(entries)

    changed.__name__ = f"spec_{'_'.join(entries)}"
    return changed


def no_warmup(data):
    find(data, "stream")["timing"]["warmup"] = 0


def few_repeats(data):
    find(data, "stream")["values"] = [0.009, 0.0091]


def without_synchronisation(data):
    find(data, "stream")["timing"]["clock"] = "perf_counter"


def disturbed(data):
    for b in BATCHES[:5]:
        find(data, f"infer-fp32-{b}")["values"][0] *= 1.5
        find(data, f"infer-fp32-{b}")["values"][1] *= 1.5


def short_windows(data):
    for s in data["samples"]:
        if s.get("timing"):
            s["timing"]["loops"] = max(1, s["timing"]["loops"] // 10)


def polled(data):
    """One call in each window, as somebody who reads the counter around a step gets it."""
    find(data, "infer-fp32-1")["timing"]["loops"] = 1


def nothing_timed(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["role"] in ("idle", "limit")]


def without_energies(data):
    for s in data["samples"]:
        if s["metric"] == "energy" and s["point"]["role"] == "inference":
            s.update(values=[], status="failed", message="the counter did not move in 2 s")


def of_the_whole_run(data):
    for s in data["samples"]:
        if s.get("timing"):
            s["timing"]["energy"]["joules"] *= 1.2


def other_windows(data):
    find(data, "train-fp32")["timing"]["energy"]["calls"] *= 2


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (no_warmup, "no warm-up", "stream: no warm-up"),
        (few_repeats, "no repeats", "stream: 2 repeats"),
        (without_synchronisation, "no synchronisation", "stream: timed with perf_counter on a GPU"),
        (disturbed, "disturbed", "5 of 10 cases have repeats"),
        (nothing_timed, "incomplete", "no timed cases"),
        (short_windows, "short window", "product-fp32: windows of 198 ms, and the counter changes every 100 ms"),
        (polled, "short window", "infer-fp32-1: windows of 1.22 ms, and the counter changes every 100 ms"),
        (without_energies, "incomplete", "7 of 10 cases have no energy, though a counter was read; at most a quarter"),
        (drop("idle", "power"), "incomplete", "no power of the idle device"),
        (energy(of=""), "no counter named", "does not say which counter"),
        (energy(period_s=None), "no counter named", "how often it changes"),
        (change("infer-fp32-16", 3.0, "energy"), "above the limit", "infer-fp32-16: 1.19 kW is 1.69 times"),
        (energy(joules=300e3), "above the limit", "the whole run: 1.5 kW"),
        (change("idle", 8.0, "power"), "idle above work", "the idle device took 602 W"),
        (change("stream", 0.1, "energy"), "idle above work", "stream: 39.5 W"),
        (other_windows, "two energies", "train-fp32: 17.8 J for a call, and its windows together give 8.89 J"),
        (energy(joules=20e3), "parts above the whole", "and the whole run 20 kJ"),
        (change("counter", 0.3, "integrated"), "counter against readings", "the power readings of the same window"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)  # fmt: skip
def test_what_is_wrong_of_a_measured_record_is_named(data, change, name, said):
    change(data)
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == name, result.feedback
    assert said in said_by(result), result.feedback


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (smoke, "smoke scale", "smoke scale"),
        (energy(why=""), "no reason", "does not say why"),
        (energy(rating=None), "no rating", "not the rated power that it comes from"),
        (energy(of=""), "no rating", "not the rated power"),
        (energy(band=[124.2, 9000.0]), "another band", "6.9 W to 40 W, it is 124 J to 2.4 kJ"),
        (energy(band=[1.0, 2.0]), "another band", "A band from 1 J to 2 J over 60 s"),
        (lambda data: data["energy"].update(source="none", band=None, why=""), "no reason", "does not say why"),
        (lambda data: data["samples"].append(sample("stream", "calibration", "energy", 0.3, "J")),
         "joules without a counter", "holds energy of this case"),
        (lambda data: data["samples"].append(sample("idle", "idle", "power", 30.0, "W")),
         "joules without a counter", "holds power of this case"),
        (lambda data: find(data, "stream")["timing"].update(energy={"joules": 1.0, "seconds": 2.0, "calls": 3}),
         "joules without a counter", "stream: the record says"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)  # fmt: skip
def test_what_is_wrong_of_an_unmeasured_record_is_named(unmeasured, change, name, said):
    change(unmeasured)
    result = verdict(unmeasured)
    assert result.outcome == "wrong" and result.misconception == name, result.feedback
    assert said in said_by(result), result.feedback


def no_saving(data):
    for b in BATCHES:
        for metric in ("time", "energy"):
            found = find(data, f"infer-fp32-{b}", metric)
            found["values"] = [3e-4 * b * f for f in REPEATS]


def joules_without_saving(data):
    for b in BATCHES:
        find(data, f"infer-fp32-{b}", "energy")["values"] = [0.005 * b * f for f in REPEATS]


def three_batches(data):
    data["samples"] = [
        s for s in data["samples"] if s["point"]["role"] != "inference" or s["point"]["batch"] in BATCHES[:3]
    ]


def another_dtype(data):
    for s in data["samples"]:
        if s["point"]["role"] == "inference":
            s["point"]["dtype"] = "bf16"


def in_tf32(data):
    for b in BATCHES:
        times(data, f"infer-fp32-{b}", 0.4)


def batch_in_words(data):
    find(data, "infer-fp32-4")["point"]["batch"] = "four"


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (three_batches, "incomplete", "in FP32 of 3 batches; 4 are needed"),
        (another_dtype, "incomplete", "in FP32 of 0 batches"),
        (batch_in_words, "damaged", "infer-fp32-4: 'batch' is 'four'"),
        (disturbed, "disturbed", "5 of 7 batches have repeats"),
        (no_saving, "no saving", "a sample of a large batch costs less"),
        (joules_without_saving, "no saving", "5.01 mJ in the smallest batch and 5.01 mJ in the largest"),
        (change("infer-fp32-256", 8.0), "bump", "in a batch of 256"),
        (change("infer-fp32-256", 8.0, "energy"), "bump", "mJ in a batch of 256"),
        (in_tf32, "faster than the device", "what H200 SXM can do in fp32"),
        (spec(width="wide"), "damaged", "spec: 'width' is 'wide'"),
        (spec(layers=0), "damaged", "spec: 'layers' is 0"),
        (without_energies, "incomplete", "joules of 0 batches"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_wrong_of_the_samples_is_named(data, change, name, said):
    change(data)
    result = samples_verdict(data)
    assert result.outcome == "wrong" and result.misconception == name, result.feedback
    assert said in said_by(result), result.feedback


def test_noise_is_allowed_for(data):
    """A window without energy, an idle device that still cools down, a batch that its kernel does not suit."""
    find(data, "stream", "energy").update(values=[], status="failed", message="the counter was set to zero")
    times(data, "idle", 1.2, "power")
    for metric in ("time", "energy"):
        times(data, "infer-fp32-64", 1.3, metric)
    find(data, "infer-fp32-64")["timing"]["energy"]["joules"] *= 1.3
    times(data, "counter", 1.3, "integrated")
    data["energy"]["shared"] = "other processes are on this GPU"
    result = verdict(data)
    assert result.right and "Others may be in it: other processes are on this GPU." in said_by(result), result.feedback
    assert samples_verdict(data).right, samples_verdict(data).feedback


def test_a_counter_of_a_processor_has_shorter_windows(data):
    """RAPL changes every millisecond, and no power limit is known."""
    data["environment"] = dict(ENVIRONMENT)
    data["energy"].update(source="rapl", period_s=1e-3, of="RAPL's counters of package 0")
    data["samples"].remove(find(data, "limit", "limit"))
    for s in data["samples"]:
        if s.get("timing"):
            s["timing"]["loops"] = max(1, s["timing"]["loops"] // 20)
    result = verdict(data)
    assert result.right and "Measured by RAPL's counters of package 0" in said_by(result), result.feedback
    assert samples_verdict(data).right, samples_verdict(data).feedback


def test_a_band_over_two_sessions_with_a_counter_in_one_of_them_is_accepted(unmeasured):
    unmeasured["energy"].update(band=[900.0, 1500.0], rating=None, of="", windows=2)
    result = verdict(unmeasured)
    assert result.right and "over 2 sessions: between 900 J and 1.5 kJ" in said_by(result), result.feedback


def test_a_near_copy_of_a_recorded_run_is_not_ones_own(data, monkeypatch):
    shipped = Record.model_validate(copy.deepcopy(data) | {"id": "energy-shipped"})
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    judging.nearly_copied(data, 1e-4)
    assert verdict(data).misconception == "not own" and samples_verdict(data).misconception == "not own"


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    path = judging.smoke_run("energy", tmp_path)
    for question in ("energy-own-1", "energy-own-2"):
        assert check(question, path).misconception == "smoke scale"
    result = verdict(judging.as_if_quiet(path))
    assert result.right or result.misconception in ("short window", "idle above work"), result.feedback


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("energy", monkeypatch):
        assert check("energy-own-1", record).right, check("energy-own-1", record).feedback
        result = check("energy-own-2", {"record": record, "cost": cost})
        assert result.right, f"{record.id}: {result.feedback}"


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "idle", "inference", "counter", "stream", 3])


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, len(document()["samples"]) - 1), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index, value, draw)
    answered(data)


@settings(max_examples=150, deadline=None)
@given(
    index=st.integers(0, len(document()["samples"]) - 1),
    values=st.lists(st.floats(0, 1e300) | st.sampled_from([0.0, 1.0, 5e-324]), min_size=1, max_size=5),
)
def test_whatever_was_measured_is_judged_in_words(index, values):
    data = document()
    data["samples"][index]["values"] = values
    answered(data)


@settings(max_examples=150, deadline=None)
@given(
    counter=st.booleans(), value=st.none() | st.floats(1e-300, 1e300) | st.just([1e-300, 1e300]),
    name=st.sampled_from(["joules", "band", "window_s", "period_s", "rating"]),
)  # fmt: skip
def test_whatever_the_energy_says_is_judged_in_words(counter, name, value):
    data = document(counter)
    data["energy"][name] = value
    answered(data)


def answered(data):
    try:
        record = Record.model_validate(data)
    except ValueError:
        return  # no record at all
    for question, answer in (("energy-own-1", record), ("energy-own-2", {"record": record, "cost": cost})):
        result = check(question, answer)
        assert result.outcome in ("right", "wrong") and result.feedback
