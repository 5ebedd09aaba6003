"""The check of the learner's own record of scaling laws: a plausible one passes, each impossibility is named.

The records are made up from a planted law, so that each test changes one thing.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.exercises import check
from efflab.records import Record
from tests.exercises import judging
from tests.exercises.judging import ENVIRONMENT, smoke, unfinished

SIZES, DATA = (10_000, 20_000, 40_000, 80_000), (40_000, 80_000, 160_000)
RATE = 2e9  # FLOP/s of the made-up processor


def loss(n: float, d: float) -> float:
    return 1.2 + 60 / n**0.5 + 90 / d**0.45


def run(case: str, role: str, n: int, d: int, noise: float) -> list[dict[str, Any]]:
    flops = 6.6 * n * d
    point = {"case": case, "role": role, "parameters": n, "tokens": d, "flops": flops, "seed": 0}
    same = {"point": point, "status": "ok"}
    return [
        {**same, "metric": "loss", "unit": "nats", "values": [loss(n, d) * math.exp(noise)]},
        {**same, "metric": "time", "unit": "s", "values": [flops / RATE]},
    ]


def document() -> dict[str, Any]:
    draw = random.Random(31)
    samples = [s for n in SIZES for d in DATA for s in run(f"N{n}-D{d}", "fit", n, d, draw.gauss(0, 0.002))]
    samples += run("N20000-D40000-seed-1", "repeat", 20_000, 40_000, 0.003)
    samples += run("held-out-near", "held-out", 160_000, 320_000, 0.0)
    return {
        "schema": "efflab-record/1", "id": "scaling_laws-mine", "topic": "scaling_laws",
        "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:02:00Z",
        "environment": ENVIRONMENT | {"cores": 2},
        "spec": {"scale": "cpu", "vocabulary": 90}, "samples": samples,
    }  # fmt: skip


verdict = judging.record("scaling_laws-own-1")


def find(data, case, metric="loss"):
    return next(s for s in data["samples"] if s["point"]["case"] == case and s["metric"] == metric)


def test_a_plausible_record_earns_the_points(data):
    result = verdict(data)
    assert result.right and result.points == 3, result.feedback
    assert "12 runs of 4 sizes on 3 amounts of data" in result.feedback
    # The planted law is known, so what the feedback reports of the held-out run can be checked.
    assert "For held-out-near it predicts" in result.feedback
    said = result.feedback.split("measured: ")[1]
    assert float(said.split()[0]) == pytest.approx(loss(160_000, 320_000), rel=1e-3)
    predicted = float(result.feedback.split("it predicts ")[1].split()[0])
    assert predicted == pytest.approx(loss(160_000, 320_000), rel=0.01)


def test_no_record_says_how_to_make_one(labbook):
    result = check("scaling_laws-own-1")
    assert result.outcome == "not counted" and "!{sys.executable} -m efflab.cli run scaling_laws" in result.feedback


def two_sizes(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["parameters"] in (10_000, 20_000, 160_000)]


def one_data_size(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["tokens"] in (40_000, 320_000)]


def nothing_held_out(data):
    data["samples"] = [s for s in data["samples"] if s["point"]["role"] != "held-out"]


def held_out_inside(data):
    for s in data["samples"]:
        if s["point"]["role"] == "held-out":
            s["point"].update(parameters=40_000, tokens=80_000, flops=6.6 * 40_000 * 80_000)


def guessing(data):
    find(data, "N10000-D40000")["values"] = [4.51]


def in_bits(data):
    for s in data["samples"]:
        if s["metric"] == "loss":
            s["values"] = [3 * v / math.log(2) for v in s["values"]]


def leaked(data):
    find(data, "held-out-near")["values"] = [0.05]


def too_fast(data):
    find(data, "N80000-D160000", "time")["values"] = [1e-3]


def operations_of_one_step(data):
    for s in data["samples"]:
        s["point"]["flops"] /= 1000


def no_vocabulary(data):
    del data["spec"]["vocabulary"]


def larger_is_worse(data):
    for s in data["samples"]:
        if s["metric"] == "loss" and s["point"]["parameters"] == 80_000:
            s["values"] = [4.2]


def more_data_is_worse(data):
    for s in data["samples"]:
        if s["metric"] == "loss" and s["point"]["tokens"] == 160_000:
            s["values"] = [4.3]


def no_law(data):
    draw = random.Random(3)
    for s in data["samples"]:
        if s["metric"] == "loss" and s["point"]["role"] == "fit":
            n, d = SIZES.index(s["point"]["parameters"]), DATA.index(s["point"]["tokens"])
            # Ever lower, but in steps that no power law has.
            s["values"] = [4.2 - 2.6 * (n + d > 3) - 0.05 * (n + d) + 0.001 * draw.random()]


def without_size(data):
    del find(data, "N10000-D40000")["point"]["parameters"]


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (unfinished, None, "partial"),
        (smoke, "smoke scale", "smoke scale"),
        (two_sizes, None, "6 runs of 2 sizes on 3 amounts of data"),
        (one_data_size, None, "4 runs of 4 sizes on 1 amounts of data"),
        (nothing_held_out, "nothing held out", "untested"),
        (held_out_inside, "held out inside", "held-out-near: held out, but no larger"),
        (guessing, "worse than guessing", "has ln 90 = 4.5 nats"),
        (in_bits, "worse than guessing", "is the loss in nats"),
        (leaked, "too good", "held-out-near: a loss of 0.05 nats per character"),
        (too_fast, "faster than the device", "N80000-D160000"),
        (operations_of_one_step, "operations", "times 6ND"),
        (no_vocabulary, "damaged", "spec.vocabulary is None"),
        (larger_is_worse, "larger is worse", "has more parameters than"),
        (more_data_is_worse, "larger is worse", "has more tokens than"),
        (no_law, "no law", "misses them by"),
        (without_size, "damaged", "point.parameters must be a number"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_wrong_is_named(data, change, name, said):
    change(data)
    result = verdict(data)
    assert result.outcome == "wrong" and result.misconception == name and said in result.feedback, result.feedback


def test_no_run_beats_the_data_sheet(data):
    data["environment"].update(kind="cuda", device="NVIDIA H200", memory=150_000_000_000)
    assert verdict(data).right
    find(data, "N80000-D160000", "time")["values"] = [1e-5]  # 8 PFLOP/s
    result = verdict(data)
    assert result.misconception == "faster than the device" and "H200 SXM" in result.feedback


def test_a_little_noise_is_no_wrong_order(data):
    """1% up where the law says 1% down happens to small runs."""
    find(data, "N80000-D160000")["values"] = [find(data, "N40000-D160000")["values"][0] * 1.01]
    assert verdict(data).right


def single_times(factor):
    made = document()
    for i, s in enumerate(made["samples"]):
        if s["metric"] == "time":
            s["values"] = [v * factor(i) for v in s["values"]]
    return made


def test_a_copy_of_a_recorded_run_is_not_ones_own(monkeypatch):
    """A run has one time each, so that a copy is known by all of them keeping one ratio."""
    draw = random.Random(5)
    shipped = Record.model_validate(single_times(lambda i: math.exp(draw.gauss(0, 0.05))) | {"id": "shipped"})
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    for change in (lambda v: v, lambda v: v * 1.37, lambda v: float(f"{v:.5g}")):
        made = shipped.model_dump(by_alias=True) | {"id": "mine"}
        for s in made["samples"]:
            if s["metric"] == "time":
                s["values"] = [change(v) for v in s["values"]]
        result = verdict(made)
        assert result.misconception == "not own" and "shipped" in result.feedback, result.feedback


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_another_run_with_the_same_losses_is_ones_own(monkeypatch, noise, seed):
    """The same seeds give the same losses to the last digit; the times scatter anew."""
    shipped = Record.model_validate(document() | {"id": "shipped"})
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [shipped])
    draw = random.Random(seed)
    result = verdict(single_times(lambda i: math.exp(draw.gauss(0, noise))))
    assert result.right, result.feedback


def test_what_the_lab_writes_is_read(tmp_path):
    """A run at smoke scale has everything that the check asks for, but the scale."""
    path = judging.smoke_run("scaling_laws", tmp_path)
    result = check("scaling_laws-own-1", path)
    assert result.misconception == "smoke scale", result.feedback


VALUES = st.sampled_from(["", "x", 0, -1, 10**400, 1e308, True, 0.5, "fit", "held-out", "repeat", 3])


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 25), value=st.none() | VALUES, draw=st.data())
def test_whatever_a_point_lacks_is_said_in_words(index, value, draw):
    """Any entry of any point left out, or replaced by another: a sentence, never a raw error."""
    data = document()
    judging.alter(data, index, value, draw)
    judging.in_words(data, "scaling_laws-own-1")


@pytest.mark.parametrize("value", [None, 0, 1, -5, True, "90", 1.5, 10**9], ids=str)
def test_a_strange_vocabulary_is_said(data, value):
    data["spec"]["vocabulary"] = value
    assert verdict(data).outcome == "wrong"


def test_the_recorded_runs_would_pass(monkeypatch):
    """The check must not refuse what real devices do."""
    for record in judging.shipped("scaling_laws", monkeypatch):
        result = check("scaling_laws-own-1", record)
        assert result.right, f"{record.id}: {result.feedback}"
