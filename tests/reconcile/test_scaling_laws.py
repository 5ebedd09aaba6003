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
    said = reconcile.evidence(given, "large")
    assert "1.1 times 6ND" in said and "without the largest size" in said and "without a floor" in said


@pytest.mark.parametrize("overhead", [0.0, 2e-3])
def test_the_time_of_a_run_is_an_overhead_a_step_and_operations_at_a_rate(overhead):
    """Planted: so many seconds in each step, and 5 GFLOP/s."""
    tokens_a_step = 256
    held = samples(*HELD, role="held-out", case="large", steps=HELD[1] / tokens_a_step)
    given = record(held)
    for sample in given.samples:
        steps = sample.point["tokens"] / tokens_a_step
        sample.point["steps"] = steps
        if sample.metric == "time":
            sample.values[0] += steps * overhead
    found = reconcile.step_time(given)
    assert found.overhead == pytest.approx(overhead, abs=1e-9) and found.rate == pytest.approx(5e9)
    (run,) = reconcile.runs(given, ("held-out",))
    assert found.of(run) == pytest.approx(run.time)
    assert "whatever the size and 5 GFLOP/s" in reconcile.evidence(given, "large")


def test_steps_that_take_the_same_time_at_all_sizes_are_all_overhead():
    given = record(samples(*HELD, role="held-out", case="large", steps=1000))
    for sample in given.samples:
        sample.point["steps"] = 1000
        if sample.metric == "time":
            sample.values[0] = 3.0
    found = reconcile.step_time(given)
    assert found.overhead == pytest.approx(3e-3)
    (run,) = reconcile.runs(given, ("held-out",))
    assert found.of(run) == pytest.approx(3.0)
    assert "overhead takes 100% of this run" in reconcile.evidence(given, "large")
    assert reconcile.step_time(record()) is None


def test_sizes_that_only_the_largest_model_covers_leave_the_other_methods_out():
    """Without the largest size five constants have four runs: that law is not shown, the rest is."""
    given = record(samples(*HELD, role="held-out", case="large"))
    given.samples = [
        s for s in given.samples
        if s.point["role"] == "held-out" or s.point["parameters"] == SIZES[-1] or
        (s.point["tokens"] == TOKENS[0] and s.point["parameters"] in SIZES[1:4])
    ]  # fmt: skip
    said = reconcile.evidence(given, "large")
    assert "by the fitted law" in said and "without the largest size" not in said


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
    assert any("large" in t.get_text() for t in figure.legends[0].get_texts())
    assert plots.draw(given, "errors") is not None


def test_errors_of_a_percent_are_drawn_in_percent():
    pytest.importorskip("matplotlib").use("svg")
    from efflab import plots

    near = plots.draw(record(samples(*HELD, role="held-out", case="large", loss=planted(*HELD) * 1.02)), "errors")
    far = plots.draw(record(samples(*HELD, role="held-out", case="large", loss=planted(*HELD) * 3)), "errors")
    assert near.axes[0].get_xscale() == "linear" and far.axes[0].get_xscale() == "log"
    near.canvas.draw()
    assert {t.get_text()[-1] for t in near.axes[0].get_xticklabels()} == {"%"}
    (drawn,) = (line for line in near.axes[0].lines if line.get_marker() == "o")
    assert drawn.get_xdata()[0] == pytest.approx(100 * (1 / 1.02 - 1), abs=0.05)  # predicted too low: below zero


def test_the_best_split_of_a_budget_is_the_best_of_all_splits():
    budget = 6 * HELD[0] * HELD[1]
    sizes = [10 ** (3 + k / 5000) for k in range(20_000)]
    best = min(sizes, key=lambda n: planted(n, budget / 6 / n))
    found = reconcile.optimum(record(noise=0.001), budget)
    for name, value in (
        ("parameters", best), ("tokens", budget / 6 / best), ("loss", planted(best, budget / 6 / best))
    ):  # fmt: skip
        _, low, high = found[name]
        assert low < value < high, name
    exact = reconcile.optimum(record(), budget)
    assert exact["parameters"][0] == pytest.approx(best, rel=0.01)
    assert exact["loss"][0] == pytest.approx(planted(best, budget / 6 / best), rel=1e-4)


def counted_without(given: Record, share: float) -> Record:
    """The record with a count of parameters without the embedding, the share of all that is planted."""
    for sample in given.samples:
        sample.point["non_embedding_parameters"] = share * sample.point["parameters"]
    return given


def test_the_law_of_sizes_without_the_embedding():
    """If the embedding is the same share of all models, the exponent stays and A shrinks by the share's power."""
    fit = reconcile.without_embedding(counted_without(record(), 0.5))
    assert fit.alpha == pytest.approx(ALPHA, rel=1e-3) and pytest.approx(E, rel=1e-3) == fit.E
    assert pytest.approx(A * 0.5**ALPHA, rel=5e-3) == fit.A
    assert reconcile.without_embedding(record()) is None
    assert "without the embedding" in reconcile.calibration_text(counted_without(record(), 0.5))
    assert "without the embedding" not in reconcile.calibration_text(record())


def on_the_way(factor: float) -> list[list[Sample]]:
    """The longest runs, read before their end, with losses that many times those of runs that end there."""
    return [
        samples(n, d, role="checkpoint", loss=planted(n, d) * factor) for n in SIZES for d in TOKENS if d < max(TOKENS)
    ]


def test_runs_read_on_their_way_stand_beside_those_whose_schedule_ended_there():
    repeats = [samples(SIZES[0], TOKENS[0], role="repeat", case=f"again-{k}", loss=planted(SIZES[0], TOKENS[0]) * f)
               for k, f in enumerate((0.999, 1.001))]  # fmt: skip
    high = reconcile.sweep(record(*repeats, *on_the_way(1.03)), "loss by schedule")
    pairs = len(SIZES) * (len(TOKENS) - 1)
    assert high.count("+3.00%") == pairs
    assert f"{pairs} of {pairs}, of them {pairs} higher and 0 lower" in high
    low = reconcile.sweep(record(*repeats, *on_the_way(0.98)), "loss by schedule")
    assert f"{pairs} of {pairs}, of them 0 higher and {pairs} lower" in low
    within = reconcile.sweep(record(*repeats, *on_the_way(1.0005)), "loss by schedule")
    assert f"0 of {pairs}" in within
    with pytest.raises(EfflabError, match="loss by size"):
        reconcile.sweep(record(), "loss by schedule")


def test_the_law_of_runs_read_on_their_way_is_another_and_leaves_the_law_alone():
    plain = record(samples(*HELD, role="held-out", case="large"))
    assert reconcile.law_of_checkpoints(plain) is None
    given = record(samples(*HELD, role="held-out", case="large"), *on_the_way(1.03))
    other = reconcile.law_of_checkpoints(given)
    # Higher losses of the shorter runs look like data that matters more.
    assert float(other.loss(*HELD)) < planted(*HELD) * 0.999
    assert reconcile.calibration(given) == reconcile.calibration(plain)
    assert "read on their way" in reconcile.evidence(given, "large")
    assert "read on their way" not in reconcile.evidence(plain, "large")
    assert [r.case for r in reconcile.points(given)] == [r.case for r in reconcile.points(plain)]
