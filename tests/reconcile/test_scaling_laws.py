"""Scaling laws reconciled: records with a planted law give it back; damaged ones are named.

The losses are made here from constants, without efflab's formulas.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from efflab.errors import EfflabError
from efflab.reconcile import scaling_laws as reconcile
from efflab.records import Environment, Prediction, Record, Sample

E, A, ALPHA, B, BETA = 1.2, 20.0, 0.4, 60.0, 0.35
SIZES = (3e3, 6e3, 12e3, 25e3, 50e3, 100e3)
TOKENS = (40e3, 80e3, 160e3, 320e3)


def planted(size: float, tokens: float) -> float:
    return E + A * size**-ALPHA + B * tokens**-BETA


def samples(
    size: float, tokens: float, role: str = "fit", loss: float | None = None, case: str = "", **more: Any
) -> list[Sample]:
    flops = 6.6 * size * tokens
    point = {
        "case": case or f"{role}-{size:g}-{tokens:g}", "role": role, "parameters": size, "tokens": tokens,
        "flops": flops,
    } | more  # fmt: skip
    value = planted(size, tokens) if loss is None else loss
    return [
        Sample(point=point, metric="loss", unit="nats", values=[value], status="ok"),
        Sample(point=point, metric="time", unit="s", values=[flops / 5e9], status="ok"),
    ]


def record(*more: list[Sample], noise: float = 0.0, seed: int = 0) -> Record:
    rng = random.Random(seed)
    small = [
        samples(n, d, loss=planted(n, d) * math.exp(rng.gauss(0, noise)) if noise else None)
        for n in SIZES
        for d in TOKENS
    ]
    return Record(
        id="scaling-laws-planted",
        topic="scaling_laws",
        created="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:02:00Z",
        environment=Environment(
            device="Planted CPU", kind="cpu", count=1, threads=2, torch="2.13", python="3.12", efflab="0.1"
        ),
        spec={"scale": "cpu"},
        samples=[s for group in (*small, *more) for s in group],
    )


HELD = (400e3, 640e3)


def test_the_planted_law_comes_back_and_predicts_a_run_that_it_never_saw():
    given = record(samples(*HELD, role="held-out", case="large"))
    found = reconcile.calibration(given)
    assert found["size-exponent"] == pytest.approx(ALPHA, rel=1e-3)
    assert found["data-exponent"] == pytest.approx(BETA, rel=1e-3)
    assert found["floor"] == pytest.approx(E, rel=1e-3)
    largest, most = SIZES[-1], TOKENS[-1]
    gain = 1 - planted(2 * largest, most) / planted(largest, most)
    assert found["doubling-size"] == pytest.approx(gain, rel=1e-3)
    (row,) = (r for r in reconcile.points(given) if r.role == "held-out")
    assert row.predicted == pytest.approx(planted(*HELD), rel=1e-4)
    assert abs(row.error) < 1e-4 and row.metric == "loss" and row.unit.symbol == "nats"


def test_the_held_out_run_is_not_in_the_fit():
    """Its loss may be anything: the prediction stays."""
    honest = record(samples(*HELD, role="held-out", case="large"))
    absurd = record(samples(*HELD, role="held-out", case="large", loss=9.0))
    (a,), (b,) = ([r for r in reconcile.points(x) if r.role == "held-out"] for x in (honest, absurd))
    assert a.predicted == b.predicted
    assert b.inside is False and "outside" in b.explanation
    repeat = record(samples(SIZES[0], TOKENS[0], role="repeat", case="again", loss=9.0))
    assert reconcile.calibration(repeat) == reconcile.calibration(honest)


def test_an_interval_says_whether_the_measured_loss_lies_inside():
    inside = 0
    for seed in range(10):
        noisy = math.exp(random.Random(100 + seed).gauss(0, 0.004))
        given = record(
            samples(*HELD, role="held-out", case="large", loss=planted(*HELD) * noisy), noise=0.004, seed=seed
        )
        (row,) = (r for r in reconcile.points(given) if r.role == "held-out")
        assert row.low < row.predicted < row.high
        assert (f"lies {'inside' if row.inside else 'outside'}") in row.explanation
        inside += row.inside
    assert inside >= 6  # a nominal 95%; few runs make a bootstrap too narrow, as the fit's documentation says


def test_scatter_is_that_of_the_seeds():
    first = planted(SIZES[0], TOKENS[0])
    again = [
        samples(SIZES[0], TOKENS[0], role="repeat", case=f"again-{i}", loss=first * f)
        for i, f in enumerate((1.01, 0.99))
    ]
    expected = math.sqrt(sum((math.log(f) - math.log(1.01 * 0.99) / 3) ** 2 for f in (1, 1.01, 0.99)) / 2)
    assert reconcile.scatter(record(*again)) == pytest.approx(expected, rel=1e-9)
    assert reconcile.scatter(record()) is None


def test_operations_and_time_are_compared_with_the_rule():
    given = record(samples(*HELD, role="held-out", case="large"))
    assert all(r.flops_over_6nd == pytest.approx(1.1) for r in reconcile.points(given))
    (run,) = reconcile.runs(given, ("held-out",))
    assert reconcile.predicted_time(given, run) == pytest.approx(6.6 * HELD[0] * HELD[1] / 5e9)
    said = reconcile.evidence(given, "large")
    assert "1.1 times 6ND" in said and "without the largest size" in said and "without a floor" in said


def test_a_straight_line_without_a_floor_is_too_hopeful():
    """Where there is a floor, the line falls below what is measured."""
    given = record(samples(4e6, 1e7, role="held-out", case="large"))
    (run,) = reconcile.runs(given, ("held-out",))
    line = reconcile.alternatives(given, run)["a straight line through the best runs, without a floor"]
    assert line < 0.9 * run.loss


def test_what_the_lab_prints():
    given = record(samples(*HELD, role="held-out", case="large"))
    said = reconcile.calibration_text(given)
    assert "held-out" not in said and f"{planted(*HELD):.3f}" not in said, "the calibration gives a result away"
    assert f"{planted(SIZES[0], TOKENS[0]):.3f}" in said
    assert reconcile.cases(s.point for s in given.samples).keys() == {"large"}
    assert "400k parameters" in reconcile.describe(reconcile.cases(s.point for s in given.samples))
    head, rows, _ = reconcile.table(given)
    assert len(rows) == len(SIZES) * len(TOKENS) + 1 and all(len(r) == len(head) for r in rows)
    assert reconcile.text(given) == reconcile.text(given)
    assert "Held out: large" in reconcile.summary(given)
    by_size = reconcile.sweep(given, "loss by size")
    assert by_size.count("fit-") == len(SIZES)
    with pytest.raises(EfflabError, match="loss by data"):
        reconcile.sweep(given, "loss by date")
    a, b = f"fit-{SIZES[0]:g}-{TOKENS[0]:g}", f"fit-{SIZES[-1]:g}-{TOKENS[0]:g}"
    assert "lower by" in reconcile.compare(given, a, b)
    with pytest.raises(EfflabError, match="not known"):
        reconcile.compare(given, a, "no-such-run")
    with pytest.raises(EfflabError, match="not known"):
        reconcile.evidence(given, "no-such-run")
    prediction = Prediction.new("scaling_laws", {"loss": (2.0, "nats")}, source="site")
    assert reconcile.asked(prediction) == {} and reconcile.answers(given, prediction) == {}


def test_failed_runs_are_named_and_left_out():
    broken = Sample(
        point={"case": "large", "role": "held-out", "parameters": 1e6, "tokens": 1e6, "flops": 6e12},
        metric="loss", unit="nats", values=[], status="oom", message="no room",
    )  # fmt: skip
    given = record([broken])
    assert reconcile.missing(given) == ["large: out of memory: no room"]
    assert all(r.case != "large" for r in reconcile.points(given))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": None}, "point.parameters must be a number greater than zero"),
        ({"tokens": -1}, "point.tokens must be a number greater than zero, got -1"),
        ({"flops": "many"}, "point.flops must be a number greater than zero, got 'many'"),
        ({"case": ""}, "point.case must be a text"),
    ],
)
def test_a_damaged_point_is_named(change, said):
    given = record(samples(*HELD, role="held-out", case="large"))
    given.samples[-2].point.update(change)
    for function in (reconcile.points, reconcile.missing, reconcile.summary, reconcile.text, reconcile.calibration):
        with pytest.raises(EfflabError, match="scaling-laws-planted") as caught:
            function(given)
        assert said in str(caught.value)


def test_another_topic_and_too_few_runs_are_refused():
    given = record()
    with pytest.raises(EfflabError, match="'scaling_laws' is needed"):
        reconcile.points(given.model_copy(update={"topic": "roofline"}))
    with pytest.raises(EfflabError, match="no law can be fitted"):
        reconcile.points(given.model_copy(update={"samples": given.samples[:6]}))


def test_the_picture_shows_every_run():
    pytest.importorskip("matplotlib").use("svg")
    from efflab import plots

    given = record(samples(*HELD, role="held-out", case="large"))
    figure = plots.draw(given)
    (axes,) = figure.axes
    drawn = sum(len(c.get_offsets()) for c in axes.collections if hasattr(c, "get_offsets") and len(c.get_offsets()))
    assert drawn >= len(SIZES) * len(TOKENS) + 1
    assert any("held out: large" in t.get_text() for t in axes.get_legend().get_texts())
    assert plots.draw(given, "errors") is not None
