"""Profiling reconciled: records whose every number the test chose, so that each share and time is known by hand.

The step with all faults takes 10 ms. The profiler writes down 4,000 events at 0.5 µs, so that it sees 12 ms.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from efflab.errors import EfflabError
from efflab.reconcile import profiling as reconcile
from efflab.records import Environment, Prediction, Record, Sample

MS = 1e-3
STEP, PROFILED, EVENT = 10 * MS, 12 * MS, 0.5e-6
# ms without the profiler and events, by part; 0.15 ms lie between the parts.
TRUE = {
    "loader": (1.5, 200), "copies": (1.0, 80), "sync": (0.4, 1000), "tiny": (3.0, 2000), "python": (0.3, 20),
    "forward": (1.2, 200), "backward": (2.4, 500), "optimizer": (0.05, 0),
}  # fmt: skip
LEFT = {
    "loader": (0.25, 100), "copies": (0.1, 0), "sync": (0.0, 0), "tiny": (0.9, 300), "python": (0.05, 0),
    "forward": (1.2, 200), "backward": (2.4, 500), "optimizer": (0.05, 0),
}  # fmt: skip
RANGES = {part: (ms + n * EVENT / MS) * MS for part, (ms, n) in TRUE.items()}
OPERATORS, MENDED = 650.0, 13.0
# By hand: 1.5, 1, 0.4, 3 and 0.3 ms of 10 ms without the profiler; of "tiny" 1 - 13/650 = 98%.
SHARES = {"loader": 0.15, "copies": 0.1, "sync": 0.04, "tiny": 0.294, "python": 0.03}
# With its cost ranges of 1.6, 1.04, 0.9, 4 and 0.31 ms of 12 ms.
PROFILED_SHARES = {"loader": 1.6 / 12, "copies": 1.04 / 12, "sync": 0.9 / 12, "tiny": 4 / 12, "python": 0.31 / 12}
PEAK = 50e9
LOOPS = ("all-faults", "clean")
FLOPS = 60e6


def point(case: str, role: str, faults: str = "copies,loader,python,sync,tiny", **more: Any) -> dict[str, Any]:
    return {
        "case": case, "role": role, "faults": faults, "batch": 32, "context": 32, "tokens": 1024, "layers": 2,
        "hidden_size": 24, "vocabulary": 90, "parameters": 20_000, "flops": FLOPS, "seed": 0, "workers": 0,
        "pinned": False, "threads": 1,
    } | more  # fmt: skip


def sample(
    where: dict[str, Any], value: float, metric: str = "time", unit: str = "s", spread: float = 0.0, **changes: Any
) -> Sample:
    values = [value * (1 + spread * x) for x in (-1, -0.5, 0, 0.5, 1)] if spread else [value]
    return Sample(**{"point": where, "metric": metric, "unit": unit, "values": values, "status": "ok"} | changes)


def profile(case: str = "profile", parts: dict[str, tuple[float, int]] = TRUE, step: float = PROFILED) -> list[Sample]:
    role, faults = ("calibration", "copies,loader,python,sync,tiny") if case == "profile" else ("evidence", "")
    at = point(case, role, faults)
    found = [sample(at, step)]
    found += [sample(at, (ms * MS + n * EVENT), f"range_{part}") for part, (ms, n) in parts.items()]
    found += [sample(at, float(n), f"events_{part}", "") for part, (_, n) in parts.items()]
    found += [sample(at, v, n, "") for n, v in (("operators_tiny", OPERATORS), ("operators_tiny_mended", MENDED))]
    return found


def calibration(step: float = STEP, load: float = 2 * MS, compute: float = 5 * MS) -> list[Sample]:
    square = {"case": "peak", "role": "calibration", "threads": 1, "m": 500, "n": 500, "k": 500, "dtype": "fp32"}
    return [
        sample(point("all-faults", "calibration"), step),
        *profile(),
        sample(square, 2 * 500**3 / PEAK),
        sample(point("batch-load", "calibration", "loader"), load),
        sample(point("compute", "calibration", "loader", ready=8), compute),
    ]


def moving(before: float, after: float) -> list[Sample]:
    """The bytes that the operators of "tiny" move, before and after its mend."""
    at = point("profile", "calibration")
    return [sample(at, b, name, "B") for name, b in (("bytes_tiny", before), ("bytes_tiny_mended", after))]


def handing(seconds: float) -> Sample:
    return sample(point("hand-over", "calibration", "", workers=1), seconds)


def mend(names: str, share: float, spread: float = 0.0, baseline: float | None = STEP) -> list[Sample]:
    """A case whose mends saved a share of the step with all faults."""
    mended = names.split(",")
    alone = len(mended) == 1
    left = sorted({*reconcile.FAULTS} - {*mended})
    at = point(
        f"without-{names}" if alone else f"mended-{len(mended)}", "ablation" if alone else "ladder", ",".join(left),
        mended=names,
    )  # fmt: skip
    whole = baseline or STEP
    found = [sample(at, whole * (1 - share), spread=spread)]
    return found + ([sample(at, baseline, "baseline", spread=spread)] if baseline else [])


def loading(workers: int, seconds: float, pinned: bool = False, **changes: Any) -> Sample:
    name = f"workers-{workers}" + ("-pinned" if pinned else "")
    return sample(point(name, "loader", "loader", workers=workers, pinned=pinned), seconds, **changes)


def record(*samples: Sample, warnings: list[str] | None = None, kind: str = "cpu", **changes: Any) -> Record:
    data: dict[str, Any] = {
        "id": "planted", "topic": "profiling", "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:01:00Z",
        "environment": Environment(
            device="Planted device", kind=kind, count=1, threads=1, cores=changes.pop("cores", 2), torch="2.13",
            python="3.12", efflab="0.1",
        ),
        "spec": {"scale": "cpu"}, "samples": [*calibration(), *samples], "warnings": warnings or [],
    }  # fmt: skip
    return Record(**data | changes)


def whole(**changes: Any) -> Record:
    """Every case, measured as the parts truly are: what a mend leaves is known from `LEFT`."""
    gains = {name: (TRUE[name][0] - LEFT[name][0]) * MS / STEP for name in reconcile.FAULTS}
    cases = [s for name in reconcile.FAULTS for s in mend(name, gains[name])]
    for count in range(2, 6):
        names = reconcile.FAULTS[:count]
        cases += mend(",".join(names), sum(gains[n] for n in names))
    clean = sum(ms + n * EVENT / MS for ms, n in LEFT.values()) * MS + 0.15 * MS
    losses = [[4.5, 4.0, 3.5], [4.5, 4.0, 3.5], [4.6, 4.1, 3.4], [4.5, 4.0, 3.500001], [4.5, 4.0, 3.500001]]
    runs = (
        ("seed-0", {}), ("seed-0-again", {}), ("seed-1", {"seed": 1}), ("seed-0-clean", {"faults": ""}),
        ("seed-0-threads", {"faults": "", "threads": 2}),
    )  # fmt: skip
    seeds = [
        sample(point(case, "seed", deterministic=False, **more), 0, "loss", "nats", values=values)
        for (case, more), values in zip(runs, losses, strict=True)
    ]
    return record(
        *cases, *profile("profile-clean", LEFT, clean), loading(0, 7 * MS), loading(1, 5 * MS), loading(2, 5 * MS),
        loading(2, 1, pinned=True, values=[], status="failed", message="no accelerator to copy to"), *seeds,
        *monitor("monitor-all-faults", STEP, 0.5), *monitor("monitor-clean", 4 * MS, 0.5), **changes,
    )  # fmt: skip


def monitor(case: str, step: float, busy: float, power: bool = False) -> list[Sample]:
    at = point(case, "monitor", interval=0.1)
    read = at | {"source": "a counter"}
    found = [
        sample(at, step),
        sample(at, 0, "elapsed", values=[0.1, 0.2, 0.3]),
        sample(read, 0, "utilization", "", values=[busy - 0.1, busy, busy + 0.1]),
        sample(read, 0, "memory", "B", values=[4e8, 4e8, 4e8]),
    ]
    if power:
        return [*found, sample(read, 0, "power", "W", values=[90.0, 100.0, 110.0])]
    return found


def only(found: Record) -> reconcile.Row:
    (row,) = reconcile.points(found)
    return row


# Shares and times


def test_a_faults_share_is_its_range_without_the_profilers_cost():
    found = reconcile.shares(record())
    assert found == {name: pytest.approx(share, rel=1e-9) for name, share in SHARES.items()}
    given = reconcile.calibration(record())
    assert given == {f"share-{name}": pytest.approx(share, rel=1e-9) for name, share in SHARES.items()}
    assert set(given) == set(reconcile.CALIBRATION)
    assert reconcile.calibration(record(samples=calibration()[:1])) == {}


@pytest.mark.parametrize(
    ("names", "milliseconds"),
    [
        ("loader", 8.5),
        ("sync", 9.6),
        ("tiny", 7.06),  # of its 3 ms a fiftieth is left
        ("loader,copies", 7.5),
        ("loader,copies,sync,tiny,python", 3.86),
    ],
)
def test_time_after_mends_is_amdahls_law(names, milliseconds):
    row = only(record(*mend(names, 0.2)))
    assert row.predicted == pytest.approx(milliseconds * MS, rel=1e-9)
    assert row.measured == pytest.approx(8 * MS)
    assert row.share_saved == pytest.approx(0.2)
    assert row.share_predicted == pytest.approx(sum(SHARES[n] for n in names.split(",")))
    assert row.ratio == pytest.approx(8 / milliseconds) and row.error == pytest.approx((milliseconds - 8) / 8)
    assert (row.metric, row.unit.symbol, row.regime) == ("time", "s", "")


def test_no_case_predicts_itself():
    fast, slow = (only(record(*mend("tiny", share))) for share in (0.05, 0.6))
    assert fast.predicted == slow.predicted
    assert reconcile.points(record()) == []


def test_what_a_mend_saves_is_measured_against_the_loop_that_took_turns_with_it():
    """The machine became 1.5 times slower for both: the share is what it was."""
    row = only(record(*mend("loader", 0.1, baseline=15 * MS)))
    assert row.share_saved == pytest.approx(0.1) and row.measured == pytest.approx(13.5 * MS)
    assert row.explanation.endswith(
        "Timed in turns with it, the loop with all faults took 15 ms, at the calibration 10 ms: the machine changed. "
        "With this time 12.8 ms are predicted."
    )
    steady = only(record(*mend("loader", 0.1, baseline=10.4 * MS)))
    assert "the machine changed" not in steady.explanation
    without = only(record(*mend("loader", 0.1, baseline=None)))
    assert without.share_saved == pytest.approx(0.1), "the calibration's loop takes its place"


def test_the_profilers_own_cost_is_taken_off():
    """4,000 events at 0.5 µs are the 2 ms that the profiled step takes longer."""
    assert reconcile.event_time(record()) == pytest.approx(EVENT)
    held = {part: pytest.approx(ms / 10) for part, (ms, _) in TRUE.items()}
    assert reconcile.held_shares(record()) == held
    both = reconcile.by_both(whole())
    assert both == {n: pytest.approx((TRUE[n][0] - LEFT[n][0]) / 10) for n in reconcile.FAULTS}
    assert reconcile.by_both(record()) is None and reconcile.remaining(record()) == {}
    assert reconcile.remaining(whole()) == {n: pytest.approx(LEFT[n][0] * MS) for n in reconcile.FAULTS}


@pytest.mark.parametrize(
    ("moved", "left"),
    [
        (None, 0.02),  # 13 of 650 operators
        ((50e6, 6e6), 0.12),  # more is left of the bytes
        ((50e6, 0.5e6), 0.02),  # more is left of the operators
        ((50e6, 50e6), 1.0),
    ],
)
def test_of_tiny_the_larger_ratio_is_left(moved, left):
    given = record(*(moving(*moved) if moved else ()), *mend("tiny", 0.2))
    assert reconcile.shares(given)["tiny"] == pytest.approx(0.3 * (1 - left))
    assert only(given).predicted == pytest.approx((7 + 3 * left) * MS)
    assert {n: s for n, s in reconcile.shares(given).items() if n != "tiny"} == {
        n: pytest.approx(s) for n, s in SHARES.items() if n != "tiny"
    }


@drawn(
    st.lists(st.tuples(st.floats(0.05, 5), st.integers(0, 2000)), min_size=8, max_size=8),
    st.floats(1e-8, 5e-6),
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_shares_come_back_whatever_the_profiler_costs(parts, event, left):
    """Planted: each part's ms and events, what an event costs, and the share of a part that its mend leaves."""
    before = {part: (ms * MS, n) for part, (ms, n) in zip(TRUE, parts, strict=True)}
    after = {part: (seconds * (dict(zip(reconcile.FAULTS, left, strict=True)).get(part, 1.0)), n // 3)
             for part, (seconds, n) in before.items()}  # fmt: skip
    step, events = sum(s for s, _ in before.values()), sum(n for _, n in before.values())
    samples = [sample(point("all-faults", "calibration"), step)]
    for case, found in (("profile", before), ("profile-clean", after)):
        at = point(case, "calibration" if case == "profile" else "evidence")
        samples.append(sample(at, sum(s + n * event for s, n in found.values())))
        samples += [sample(at, s + n * event, f"range_{part}") for part, (s, n) in found.items()]
        samples += [sample(at, float(n), f"events_{part}", "") for part, (_, n) in found.items()]
        samples += [sample(at, v, n, "") for n, v in (("operators_tiny", 100.0), ("operators_tiny_mended", 20.0))]
    planted = record(samples=samples)
    found, held = reconcile.shares(planted), reconcile.held_shares(planted)
    for k in range(5):
        assert reconcile.expected_time(planted, reconcile.FAULTS[: k + 1]) < reconcile.expected_time(
            planted, reconcile.FAULTS[:k]
        )
    if events * event < 1e-6 * step:
        return  # too little for an event's cost to be seen
    assert reconcile.event_time(planted) == pytest.approx(event, rel=1e-6)
    for name in reconcile.FAULTS:
        assert found[name] == pytest.approx(before[name][0] / step * (0.8 if name == "tiny" else 1), rel=1e-6)
        assert held[name] == pytest.approx(before[name][0] / step, rel=1e-6)
        both = (before[name][0] - after[name][0]) / step
        assert reconcile.by_both(planted)[name] == pytest.approx(both, rel=1e-6, abs=1e-9)


def test_the_step_around_the_profile_tells_what_an_event_costs():
    """Where the record has it; the calibration's was taken at another time."""
    around = sample(point("profile", "calibration"), 8 * MS, "baseline")
    # 1 µs an event would be more than sync's range of 0.9 ms: events do not all cost alike
    assert reconcile.event_time(record(around)) is None
    assert reconcile.shares(record(around))["loader"] == pytest.approx(PROFILED_SHARES["loader"])
    around = sample(point("profile", "calibration"), 10.4 * MS, "baseline")
    assert reconcile.event_time(record(around)) == pytest.approx(1.6 * MS / 4000)
    assert reconcile.shares(record(around))["loader"] == pytest.approx((1.6 - 200 * 0.4e-3) / 10.4)


def test_where_an_events_cost_is_not_known_shares_are_of_the_profiled_step():
    """The loop was slower without a profiler, 13 ms, than with one, 12 ms."""
    given = record(samples=[*calibration(step=13 * MS), *profile("profile-clean", LEFT, 5 * MS), *mend("sync", 0.1)])
    assert reconcile.event_time(given) is None
    assert reconcile.shares(given) == {
        n: pytest.approx(s * (0.98 if n == "tiny" else 1)) for n, s in PROFILED_SHARES.items()
    }
    assert reconcile.by_both(given)["tiny"] == pytest.approx((4 - 1.05) / 12)
    said = reconcile.calibration_text(given)
    assert "What an event costs cannot be told from this run: the predictions take shares of the profiled step." in said
    assert "without their cost" not in said
    assert "without the profiler's own cost" not in reconcile.evidence(given, "without-sync")
    silent = record()
    silent.samples = [s for s in silent.samples if s.metric != "events_forward"]
    assert reconcile.event_time(silent) is None
    assert reconcile.shares(silent)["sync"] == pytest.approx(PROFILED_SHARES["sync"])


def test_an_events_cost_never_exceeds_the_rest_of_the_step():
    """Else the faults alone would have more than the step: 8.5 of 10 ms here, 5 ms of which 4,000 events took."""
    rest = {part: (0.0, 900) for part in ("forward", "backward", "optimizer")}
    parts = {"loader": (2.0, 260)} | {name: (2.0, 260) for name in reconcile.FAULTS[1:]} | rest
    samples = [sample(point("all-faults", "calibration"), 9 * MS), *profile(parts=parts, step=11 * MS)]
    given = record(samples=samples)
    # 2 ms over 4,000 events: 0.13 ms of each fault's range of 2.13 ms; of the other 0.35 ms they would be 1.35 ms.
    assert reconcile.event_time(given) is None
    assert sum(reconcile.shares(given).values()) < 1


# The loader


@pytest.mark.parametrize(
    ("load", "compute", "workers", "milliseconds"),
    [(2, 5, 0, 7), (2, 5, 1, 5), (2, 5, 2, 5), (20, 5, 1, 20), (20, 5, 2, 10), (20, 5, 4, 5), (20, 5, 8, 5)],
)
def test_a_step_with_a_loader(load, compute, workers, milliseconds):
    given = record(samples=[*calibration(load=load * MS, compute=compute * MS), loading(workers, 6 * MS)])
    assert only(given).predicted == pytest.approx(milliseconds * MS)
    assert only(given).share_predicted is None and only(given).share_saved is None


@pytest.mark.parametrize(
    ("load", "compute", "workers", "milliseconds"),
    [(2, 5, 0, 7), (2, 5, 1, 5.5), (2, 5, 2, 5.5), (20, 5, 1, 20), (20, 5, 2, 10), (20, 5, 4, 5.5), (11, 5, 2, 5.5)],
)
def test_with_workers_computing_includes_being_handed_a_batch(load, compute, workers, milliseconds):
    calibrated = calibration(load=load * MS, compute=compute * MS)
    given = record(samples=[*calibrated, handing(0.5 * MS), loading(workers, 6 * MS)])
    assert only(given).predicted == pytest.approx(milliseconds * MS)
    assert not {"hand-over", "batch-load"} & set(reconcile.utilizations(given)), "nothing is computed in them"
    failed = sample(point("hand-over", "calibration", "", workers=1), 1, values=[], status="failed", message="hung")
    without = record(samples=[*calibrated, failed, loading(workers, 6 * MS)])
    assert only(without).predicted == only(record(samples=[*calibrated, loading(workers, 6 * MS)])).predicted
    assert reconcile.missing(without) == ["hand-over was not measured: hung"]


def test_what_handing_over_costs_is_said():
    given = record(handing(3 * MS), loading(0, 7 * MS), loading(1, 8 * MS))
    said = reconcile.calibration_text(given)
    assert "Being handed a batch of the mended data set by a worker takes 3 ms." in said
    table = reconcile.sweep(given, "workers")
    assert table.endswith("Being handed a batch takes longer than making it: by the formula workers lose.")
    assert re.search(r"^workers-1 +8 ms +8 ms +0% +37\.5% +37\.5%$", table, re.MULTILINE)
    assert re.search(r"^workers-0 +7 ms +7 ms +0% +28\.6% +28\.6%$", table, re.MULTILINE)
    cheap = record(handing(1 * MS), loading(1, 6 * MS))
    assert reconcile.sweep(cheap, "workers").endswith("By the formula 1 worker would hide the making.")
    assert "handed a batch: 3 ms, added to computing" in reconcile.evidence(given, "workers-1")
    assert "handed" not in reconcile.evidence(given, "workers-0")
    # One worker loads 5.8 ms: as long as it computes and takes over, not as long as it computes.
    needs = record(samples=[*calibration(load=5.8 * MS), handing(1 * MS), loading(1, 6 * MS)])
    assert "1 worker would hide" in reconcile.sweep(needs, "workers")


def test_pinned_memory_changes_nothing_in_the_prediction():
    plain, pinned = reconcile.points(record(loading(2, 5 * MS), loading(2, 5.1 * MS, pinned=True)))
    assert plain.predicted == pinned.predicted and pinned.case == "workers-2-pinned"


def test_explanations_of_the_loader():
    def why(found: Sample, **changes: Any) -> str:
        return only(record(found, **changes)).explanation

    assert why(loading(1, 5.08 * MS)) == "As predicted, within 2%."
    slow = why(loading(2, 8 * MS))
    assert slow.startswith("2 workers and the training process's thread share 2 cores, and the formula gives each")
    assert "takes 3 ms longer than computing, 5 ms. Consistent with what handing over" in slow
    assert "share" not in why(loading(2, 8 * MS), cores=16)
    assert "share" not in why(loading(1, 8 * MS)), "one worker and one thread have a core each"
    starved = record(samples=[*calibration(load=20 * MS), loading(2, 14 * MS)])
    assert "takes 4 ms longer than loading, 10 ms a batch" in only(starved).explanation
    assert "less than the step with batches ready, 5 ms" in why(loading(1, 3 * MS))
    assert why(loading(0, 9 * MS)) == reconcile.NOTHING
    assert why(loading(0, 5.5 * MS)) == reconcile.NOTHING
    faster = record(samples=[*calibration(load=20 * MS), loading(2, 8 * MS)])
    assert only(faster).explanation == reconcile.NOTHING
    assert "Unsteady: the middle half of the repeats spans 40%" in why(loading(1, 5 * MS, spread=0.4))

    def handed(seconds: float, load: float = 2 * MS, workers: int = 1, **changes: Any) -> str:
        samples = [*calibration(load=load), handing(1 * MS), loading(workers, seconds)]
        return only(record(samples=samples, **changes)).explanation

    assert handed(6.02 * MS) == "As predicted, within 1%."
    assert handed(8 * MS) == (
        "A step takes 2 ms longer than computing, 5 ms, and being handed a batch, 1 ms. Consistent with handing over "
        "that costs more between steps than in a loop that only asks for batches."
    )
    assert handed(5.2 * MS) == (
        "A step takes 800 µs less than computing, 5 ms, and being handed a batch, 1 ms. Consistent with waiting for "
        "the worker in a loop that only asks for batches."
    )
    assert "less than the step with batches ready, 5 ms" in handed(4 * MS)
    starving = handed(23 * MS, load=20 * MS)
    assert "longer than loading, 20 ms a batch. Consistent with what handing over a batch costs, which" in starving
    close = handed(8 * MS, load=11 * MS, workers=2, cores=16)
    assert "longer than computing, 5 ms, and being handed" in close, "5.5 ms of loading lie between 5 and 6"
    warned = {"warnings": ["hand-over: wide: x"]}
    assert handed(8 * MS, **warned).endswith("The record warns of hand-over.")
    assert "warns" not in handed(9 * MS, workers=0, **warned), "nothing is handed over"
    doubted = why(loading(0, 9 * MS), warnings=["batch-load: wide: x", "compute: slow", "workers-0: disturbed: y"])
    assert doubted == "The record warns of batch-load, workers-0."


# Explanations of mends


def why(names: str, share: float, *more: Sample, spread: float = 0.0, **changes: Any) -> str:
    rows = reconcile.points(record(*mend(names, share, spread), *more, **changes))
    return next(
        r.explanation for r in rows if r.share_predicted == pytest.approx(sum(SHARES[n] for n in names.split(",")))
    )


def test_a_share_that_comes_true_needs_no_reason():
    assert why("loader", SHARES["loader"]) == (
        "It saves 15.0% of the step, as predicted, 15.0%. The step's time is as predicted, within 1%."
    )
    assert why("loader", SHARES["loader"] + 0.015) == (
        "It saves 16.5% of the step, as predicted, 15.0%. The step's time is as predicted, within 2%."
    )
    assert why("python", 0.004) == (
        "It saves 0.4% of the step where 3.0% were predicted. The record does not explain it. The step's time is as "
        "predicted, within 5%."
    ), "a time as predicted hides a saving that is not"


def test_a_saving_within_the_spread_of_both_is_not_told_apart_from_the_predicted_one():
    # The middle halves are 9.25 to 9.55 ms with the mend and 9.8 to 10.2 ms without: 2.6 to 9.3% saved.
    case = mend("copies", 0.06)
    for found, values in zip(case, ([9.0, 9.25, 9.4, 9.55, 9.8], [9.5, 9.8, 10.0, 10.2, 10.5]), strict=True):
        found.values[:] = [v * MS for v in values]
    said = only(record(*case)).explanation
    assert "It saves 6.0% of the step where 10.0% were predicted." in said and said.count(reconcile.NOTHING) == 1
    least, most = reconcile.saved_between(record(*case), "without-copies")
    assert (least, most) == (pytest.approx(1 - 9.55 / 9.8), pytest.approx(1 - 9.25 / 10.2))
    assert reconcile.saved_between(record(*mend("copies", 0.06, baseline=None)), "without-copies") is None
    # The profiled range was 200 µs shorter and longer in other steps: 8.0 to 12.0% of 10 ms.
    wide = record(*case)
    held = next(s for s in wide.samples if s.metric == "range_copies")
    held.values[:] = [held.values[0] + x * MS for x in (-0.4, -0.2, 0, 0.2, 0.4)]
    assert (
        "2.6% to 9.3% are saved, by those of the profiled steps 8.0% to 12.0% predicted: the record does not tell"
    ) in only(wide).explanation


def test_a_gain_within_the_spread_is_none():
    said = why("python", 0.03, spread=0.1)
    assert said.startswith(
        "The saving is not resolved: the middle halves of the repeats with and without the mend over"
    )
    assert "The medians lie 3.0% apart, 3.0% were predicted." in said
    spread = record(*mend("python", 0.03, spread=0.1))
    assert "python 3.0% (3.0%, not resolved)" in reconcile.summary(spread)
    assert "It saves" not in said
    assert "overlap" not in why("tiny", 0.3, spread=0.1)
    # Repeats of 9 to 11 and 7.8 to 9.5 ms: the extremes overlap, the middle halves, 9.5 to 10.5 and 8.2 to 9.1, do not.
    assert "overlap" not in why("loader", 0.135, spread=0.1)


def test_what_the_mend_leaves_is_named():
    clean = profile("profile-clean", LEFT, 5 * MS)
    said = why("tiny", 0.18, *clean)
    assert "It saves 18.0% of the step where 29.4% were predicted." in said
    assert (
        "In the profile of the loop without faults 900 µs of its range, 3 ms, are left; the prediction leaves 60 µs. "
        "By both profiles the share is 21.0%."
    ) in said, "a fiftieth of 3 ms"
    assert "the profile of the loop without" not in why("tiny", 0.18), "the record has none"
    assert "the prediction leaves nothing. By both profiles the share is 12.5%." in why("loader", 0.05, *clean)
    assert "are left" not in why("tiny", 0.4, *clean), "it saved more"
    # By bytes as much is left as there is: it explains nothing.
    rows = reconcile.points(record(*mend("tiny", 0.1), *clean, *moving(10e6, 3e6)))
    assert "are left" not in rows[0].explanation and reconcile.NOTHING in rows[0].explanation


def test_the_profilers_cost_is_no_reason_any_more():
    """It is taken off before."""
    for name, share in (("sync", 0.1), ("loader", 0.08), ("tiny", 0.4)):
        assert "profiler" not in why(name, share, *profile("profile-clean", LEFT, 5 * MS))


def test_a_saving_beyond_the_range_is_consistent_with_a_cost_outside_of_it():
    said = why("python", 0.2)
    assert "It saves 2 ms where its range lasts 300 µs. Consistent with a cost outside of its range." in said


def test_what_nothing_explains_is_said():
    """Half of what was predicted, where nothing of the range is left and its events cost little."""
    nothing_left = LEFT | {"copies": (0.0, 0)}
    assert reconcile.NOTHING in why("copies", 0.02, *profile("profile-clean", nothing_left, 5 * MS))


def test_a_warning_is_repeated_where_a_time_is_off():
    doubt = ["all-faults: wide: x", "without-loader: disturbed: y", "copies: short: z"]
    assert why("loader", 0.5, warnings=doubt).endswith("The record warns of all-faults, without-loader.")
    assert "warns" not in why("loader", SHARES["loader"], warnings=doubt)


def test_several_mends_are_compared_with_each_alone():
    two = [*mend("loader", 0.06), *mend("copies", 0.04)]
    assert "One by one the same mends save 10.0%: what they save adds up." in why("loader,copies", 0.1, *two)
    apart = why("loader,copies", 0.02, *two)
    assert "One by one the same mends save 10.0%, together 2.0%: what they save does not add up." in apart
    assert "One by one" not in why("loader,copies", 0.1, *mend("loader", 0.06)), "one of them was not measured"
    loud = [*mend("loader", 0.06, spread=0.3), *mend("copies", 0.04)]
    unclear = why("loader,copies", 0.02, *loud)
    assert "not tell whether what they save adds up: without-loader is not resolved or disturbed." in unclear
    assert "does not add up" not in unclear
    assert "their ranges" in why("loader,copies,sync,tiny", 0.3, *profile("profile-clean", LEFT, 5 * MS))


def test_on_a_gpu_a_range_may_hold_waiting():
    at = point("profile", "calibration")
    kernels = [sample(at, 6 * MS, "kernel_time"), *(sample(at, 0.1 * MS, f"kernel_{p}") for p in reconcile.PARTS)]
    said = why("sync", 0.01, *kernels, sample(at, 1 * MS, "range_wait"), kind="cuda")
    assert "The host spends 400 µs in its range and starts 100 µs of kernels there. Consistent with waiting" in said
    busy = [sample(at, 6 * MS, "kernel_time"), *(sample(at, 0.8 * MS, f"kernel_{p}") for p in reconcile.PARTS)]
    assert "Consistent with waiting" not in why("sync", 0.01, *busy, kind="cuda")
    assert "kernels there" not in why("sync", 0.01), "a CPU has none"
    text = reconcile.calibration_text(record(*kernels, sample(at, 1 * MS, "range_wait"), kind="cuda"))
    assert "The device runs kernels in 6 ms of a profiled step, 50.0% of it." in text
    assert re.search(r"^wait +1 ms +8\.3%", text, re.MULTILINE)


# Utilisation, seeds, monitor


def test_the_mfu_is_counted_operations_over_the_measured_peak():
    used = reconcile.utilizations(whole())
    assert reconcile.peak(whole()) == pytest.approx(PEAK)
    assert used["all-faults"] == pytest.approx(60e6 / (10 * MS * PEAK))  # 12%
    assert used["monitor-clean"] == pytest.approx(0.3)
    assert not {"peak", "batch-load", "profile", "profile-clean"} & set(used), "no loop, or a profiled one"
    assert "With all faults the MFU is 12.0%." in reconcile.calibration_text(whole())
    silent = record(samples=[s for s in whole().samples if s.point["case"] != "peak"])
    assert reconcile.peak(silent) is None and reconcile.utilizations(silent) == {}
    assert "MFU goes" not in reconcile.summary(silent)
    assert reconcile.sweep(silent, "mfu") == "No peak was measured, so there is no MFU."


def test_more_than_the_peak_is_doubted():
    given = whole()
    for s in given.samples:
        if s.point["case"] == "peak":
            s.values = [10 * v for v in s.values]
    assert "More than the peak: the large product that stands for it was disturbed." in reconcile.summary(given)
    assert "More than the peak" not in reconcile.summary(whole())


def test_curves_are_compared_with_the_first_run_of_the_same_faults():
    found = {c.case: c for c in reconcile.curves(whole())}
    assert found["seed-0"].against == "" and found["seed-0"].what == "the first run"
    assert found["seed-0-again"].identical and found["seed-0-again"].what == "nothing"
    other = found["seed-1"]
    assert (other.against, other.what, other.differs) == ("seed-0", "seed 1", 1)
    assert other.largest == pytest.approx(0.1) and other.last == pytest.approx(-0.1)
    clean = found["seed-0-clean"]
    assert (clean.against, clean.what, clean.differs) == ("seed-0", "without faults", 3)
    assert clean.largest == pytest.approx(1e-6)
    threads = found["seed-0-threads"]
    assert (threads.against, threads.what, threads.identical) == ("seed-0-clean", "2 threads", True)
    said = reconcile.seeds_text(whole())
    assert "seed-0-again and seed-0 are identical: all 3 losses to the last bit." in said
    assert "seed-0-clean parts from seed-0 at step 3, by 1 × 10⁻⁶ nats at most." in said
    assert "seed-1 parts from seed-0 at step 1, by 0.1 nats at most." in said
    assert reconcile.seeds_text(record()) == "No loss curve was measured."
    other = [
        sample(point("seed-0", "seed", deterministic=False), 0, "loss", "nats", values=[4.0]),
        sample(point("seed-0-deterministic", "seed", deterministic=True), 0, "loss", "nats", values=[4.0]),
    ]
    assert reconcile.curves(record(*other))[1].what == "deterministic algorithms"
    again = sample(point("seed-0-deterministic-again", "seed", deterministic=True), 0, "loss", "nats", values=[4.0])
    third = reconcile.curves(record(*other, again))[2]
    assert (third.against, third.what, third.identical) == ("seed-0-deterministic", "nothing", True)


def test_the_monitor_stands_beside_the_mfu():
    said = reconcile.monitor_text(whole(warnings=[f"monitor-{n}: no power: no energy counter" for n in LOOPS]))
    assert re.search(r"^all-faults +10 ms +50\.0% +400 MB +12\.0%$", said, re.MULTILINE)
    assert re.search(r"^clean +4 ms +50\.0% +400 MB +30\.0%$", said, re.MULTILINE)
    assert "utilization: a counter; the median of the readings." in said
    assert said.endswith("No power: no energy counter.") and said.count("No power") == 1
    powered = record(*monitor("monitor-clean", 4 * MS, 0.9, power=True))
    assert re.search(r"^clean +4 ms +90\.0% +400 MB +100 W +30\.0%$", reconcile.monitor_text(powered), re.MULTILINE)
    assert reconcile.monitor_text(record()) == "No counter was read."
    assert reconcile.monitored(whole())["monitor-clean"]["elapsed"] == [0.1, 0.2, 0.3]


# What the lab prints


def test_the_calibration_gives_no_result_away():
    given = whole()
    said = reconcile.calibration_text(given)
    for part, (_, events) in TRUE.items():
        assert re.search(rf"^{part} .* {events:,}\b", said, re.MULTILINE), part
    # Time, share of the profiled step, events, share without their cost, and without what the mend leaves.
    assert re.search(r"^tiny +4 ms +33\.3% +2,000 +30\.0% +29\.4%$", said, re.MULTILINE)
    assert re.search(r"^backward +2\.65 ms +22\.1% +500 +24\.0%$", said, re.MULTILINE)
    assert "Of 650 operators in what 'tiny' writes out, torch's own functions leave 13, 2.0%. The mend" in said
    assert "predicted to take off 98.0% of this range" in said
    assert "500 ns for each of the 4,000 events" in said and "takes 12 ms, the same without a profiler 10 ms" in said
    bytes_too = reconcile.calibration_text(record(*moving(50e6, 6e6)))
    assert "read and write 50 MB, torch's own 6 MB, 12.0%: the larger one counts. The mend" in bytes_too
    assert "predicted to take off 88.0% of this range" in bytes_too
    assert "One batch of the faulty data set takes 2 ms to make" in said and "a step takes 5 ms" in said
    assert "a product of size 500 runs at 50 GFLOP/s" in said and "60 MFLOP, counted" in said
    assert re.search(r"^between them +150 µs +1\.[23]%$", said, re.MULTILINE)
    only_calibration = record()
    only_calibration.samples += [s for s in given.samples if s.point["role"] == "evidence"]
    assert reconcile.calibration_text(only_calibration) == said, "it depends on a result"
    assert reconcile.calibration_text(record(samples=[])) == "Nothing that predictions need was measured."


def test_cases_are_those_that_can_be_predicted():
    found = reconcile.cases(s.point for s in whole().samples)
    assert list(found) == [
        *(f"without-{n}" for n in reconcile.FAULTS), *(f"mended-{k}" for k in range(2, 6)),
        "workers-0", "workers-1", "workers-2", "workers-2-pinned",
    ]  # fmt: skip
    said = reconcile.describe(found)
    assert "mended: loader, copies; left: sync, tiny, python" in said and "left: none" in said
    assert "batches made by 1 worker\n" in said and "by 2 workers, in page-locked memory" in said
    assert "in the training process" in said
    assert reconcile.describe(found, ["workers-1"]).count("\n") == 2


def test_the_table_shows_both_shares_of_each_fault():
    head, rows, numeric = reconcile.table(whole())
    assert head[:3] == ["case", "share predicted", "share saved"] and all(len(r) == len(head) for r in rows)
    tiny = next(r for r in rows if r[0] == "without-tiny")
    assert tiny[1:5] == ["29.4%", "21.0%", "7.06 ms", "7.9 ms"]
    assert next(r for r in rows if r[0] == "workers-1")[1:3] == ["", ""]
    assert 0 not in numeric and len(head) - 1 not in numeric
    assert len(rows) == 12


def test_the_text_is_the_same_every_time_and_has_everything():
    a, b = reconcile.text(whole()), reconcile.text(whole())
    assert a == b
    for part in ("operators in what 'tiny'", "mended-5", "seed-0-again and seed-0", "utilization", "MFU predicted"):
        assert part in a, part
    doubted = reconcile.text(whole(warnings=["without-sync: wide: x", "all-faults: disturbed: y"]))
    assert "Disturbed while measured, as the record warns: all-faults, without-sync." in doubted


def test_the_summary_says_what_the_mends_bought():
    said = reconcile.summary(whole())
    assert said.startswith("One by one, the mends save of the step (predicted): loader")
    assert "\n9 steps after mends. Median error of the predicted time: " in said
    assert "\n3 steps with a data loader. Median error of the predicted time: 0.0%." in said
    listed = "loader 12.5% (15.0%), copies 9.0% (10.0%), sync 4.0% (4.0%), tiny 21.0% (29.4%), python 2.5% (3.0%)"
    assert listed in said
    # By hand: 1.25 + 0.9 + 0.4 + 2.1 + 0.25 ms of 10 ms saved, 5.1 ms left; predicted 10 (1 - 61.4%) = 3.86 ms.
    assert "make the step 1.96 times faster, 10 ms to 5.1 ms; predicted 2.59." in said
    assert "The MFU goes from 12.0% to 23.5%; predicted 31.1%." in said
    assert "Not in it: workers-2-pinned was not measured: no accelerator to copy to." in said
    assert not said.startswith("Smoke")
    assert "gives the same losses, to the last bit; without faults they are 1 × 10⁻⁶ nats apart at most." in said
    assert "50.0% without (one busy thread of 2 cores reads 50.0%), at an MFU of 12.0% and 30.0% of the peak" in said
    parted = whole()
    next(s for s in parted.samples if s.point["case"] == "seed-0-again").values[2] *= 1.01
    parted.samples = [s for s in parted.samples if s.point["case"] != "monitor-clean"]
    assert "The same seed again gives losses up to 0.035 nats apart; without faults" in reconcile.summary(parted)
    assert "utilisation" not in reconcile.summary(parted), "one of the two loops was not monitored"
    small = whole(spec={"scale": "smoke"})
    assert reconcile.summary(small).startswith("Smoke scale: its loops are too small")
    assert reconcile.summary(record()) == "No case of this record was measured."
    assert "All mends together" not in reconcile.summary(record(*mend("tiny", 0.2)))


def test_tables_of_the_lab():
    given = whole()
    shares = reconcile.sweep(given, "shares")
    # By the profile as it is, predicted, by both profiles, saved, gains 1/(1 - share).
    assert re.search(r"^tiny +33\.3% +29\.4% +21\.0% +21\.0% +1\.42× +1\.27×$", shares, re.MULTILINE)
    bare = reconcile.sweep(record(*mend("tiny", 0.2)), "shares")
    assert "by both profiles" not in bare and "by the profile" in bare
    assert re.search(r"^tiny +33\.3% +29\.4% +20\.0% +1\.42× +1\.25×$", bare, re.MULTILINE)
    ladder = reconcile.sweep(given, "ladder")
    assert ladder.splitlines()[2].split()[:2] == ["without-loader", "loader"]
    assert re.search(r"^mended-4 +tiny +29\.4% +21\.0% +21\.0% +41\.6% +53\.5% +5\.35 ms$", ladder, re.MULTILINE)
    workers = reconcile.sweep(given, "workers")
    assert re.search(r"^workers-0 +7 ms +7 ms +0% +28\.6% +28\.6%$", workers, re.MULTILINE)
    assert workers.endswith("By the formula 1 worker would hide the making.")
    mfu = reconcile.sweep(given, "mfu")
    assert re.search(r"^all-faults +10 ms +102,400 +12\.0%$", mfu, re.MULTILINE)
    assert re.search(r"^mended-5 +5\.1 ms +200,784 +31\.1% +23\.5%$", mfu, re.MULTILINE)
    assert reconcile.sweep(given, "seeds") == reconcile.seeds_text(given)
    assert reconcile.sweep(given, "monitor") == reconcile.monitor_text(given)
    with pytest.raises(EfflabError, match="Did you mean 'shares'"):
        reconcile.sweep(given, "share")


def test_the_waterfall_leaves_out_what_was_not_measured():
    found = reconcile.levels(whole())
    assert (found[0].mended, found[0].predicted, found[0].measured, found[0].row) == ((), 1.0, 1.0, None)
    assert [len(level.mended) for level in found] == [0, 1, 2, 3, 4, 5]
    assert found[-1].predicted == pytest.approx(1 - sum(SHARES.values())) and found[-1].measured == pytest.approx(0.51)
    given = whole()
    given.samples = [s for s in given.samples if s.point["case"] not in ("mended-3", "without-loader")]
    assert [len(level.mended) for level in reconcile.levels(given)] == [0, 2, 4, 5]
    assert re.search(
        r"^mended-2 +loader, copies +25\.0% +21\.5% +75\.0%", reconcile.sweep(given, "ladder"), re.MULTILINE
    )
    assert [level.mended for level in reconcile.levels(record())] == [()]


def test_evidence_lists_every_estimate():
    given = whole()
    said = reconcile.evidence(given, "without-tiny")
    for line in (
        "range in the profile: 4 ms of 12 ms, 33.3%",
        "without the profiler's own cost, 2,000 of 4,000 events: 3 ms of 10 ms, 30.0%",
        "predicted to be taken off: 29.4%",
        "by the profiles with and without faults: 21.0% (900 µs of the range are left)",
        "measured: 21.0% of 10 ms, timed in turns",
    ):
        assert line in said
    assert "measured one by one: 12.5% + 9.0% + 4.0% + 21.0% + 2.5% = 49.0%" in reconcile.evidence(given, "mended-5")
    loader = reconcile.evidence(given, "workers-2")
    assert "making a batch: 2 ms, ÷ 2 workers; computing: 5 ms" in loader
    assert "waiting for data: 0.0% predicted, 0.0% measured" in loader
    assert "in the same process" in reconcile.evidence(given, "workers-0")
    for unknown in ("without-tinny", "workers-2-pinned", "all-faults"):
        with pytest.raises(EfflabError, match="not known"):
            reconcile.evidence(given, unknown)


def test_compare():
    given = whole()
    said = reconcile.compare(given, "all-faults", "mended-5")
    assert "all-faults: calibrates, measured 10 ms" in said
    assert said.endswith("faster by: predicted 2.59×, measured 1.96×, against 10 ms, timed in turns with it")
    gone = reconcile.compare(given, "workers-2", "workers-2-pinned")
    assert gone == "workers-2-pinned was not measured: no accelerator to copy to. So there is nothing to compare."
    with pytest.raises(EfflabError, match="Did you mean 'mended-5'"):
        reconcile.compare(given, "all-faults", "mended5")


def test_missing_names_what_has_no_result():
    given = whole()
    assert reconcile.missing(given) == ["workers-2-pinned was not measured: no accelerator to copy to"]
    lost = sample(
        point("mended-2", "ladder", "python", mended="loader,copies"), 1, values=[], status="oom", message="x"
    )
    curve = sample(point("seed-0", "seed"), 1, "loss", "nats", values=[], status="failed", message="diverged")
    assert reconcile.missing(record(lost, curve)) == [
        "mended-2 ran out of memory: x",
        "seed-0 was not measured: diverged",
    ]
    assert reconcile.points(record(lost)) == []


# Damaged records


FUNCTIONS = (
    reconcile.points, reconcile.missing, reconcile.summary, reconcile.table, reconcile.text, reconcile.calibration,
    reconcile.calibration_text, reconcile.seeds_text, reconcile.monitor_text, reconcile.utilizations,
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("without-tiny", {"case": ""}, "point.case must be a text, got ''"),
        ("without-tiny", {"faults": "loader,speed"}, "point.faults must be some of loader, copies"),
        ("without-tiny", {"faults": None}, "point.faults must be some of"),
        ("without-tiny", {"mended": ""}, "point.mended must be one or more of loader"),
        ("mended-3", {"mended": "loader,loader"}, "point.mended must be one or more of"),
        ("mended-3", {"flops": 0}, "point.flops must be a number greater than zero, got 0"),
        ("all-faults", {"tokens": "many"}, "point.tokens must be a number greater than zero, got 'many'"),
        ("peak", {"k": True}, "point.k must be a number greater than zero, got True"),
        ("without-tiny", {"mended": "tiny,loader"}, "point.mended must be one of loader, copies"),
        ("workers-1", {"workers": -1}, "point.workers must be a whole number of at least zero, got -1"),
        ("workers-1", {"workers": 1.5}, "point.workers must be a whole number of at least zero, got 1.5"),
        ("workers-1", {"pinned": "no"}, "point.pinned must be true or false, got 'no'"),
        ("seed-1", {"seed": "one"}, "point.seed must be a number of at least zero, got 'one'"),
        ("seed-1", {"threads": None}, "point.threads must be a number of at least zero, got None"),
    ],
)
def test_a_damaged_point_is_named(case, change, said):
    given = whole()
    for s in given.samples:
        if s.point["case"] == case:
            s.point.update(change)
    for function in FUNCTIONS:
        with pytest.raises(EfflabError, match="planted: samples") as caught:
            function(given)
        assert said in str(caught.value) and "Measure it again" in str(caught.value)


def test_a_missing_field_and_a_wrong_unit_are_named():
    given = whole()
    del next(s for s in given.samples if s.point["case"] == "workers-0").point["pinned"]
    with pytest.raises(EfflabError, match=r"'workers-0'.*point\.pinned must be true or false, it is missing"):
        reconcile.points(given)
    for case, metric, unit, expected in (
        ("profile", "range_tiny", "B", "'B', not in s"), ("profile", "events_tiny", "s", "a number without a unit"),
        ("seed-0", "loss", "", "not in nats"), ("monitor-clean", "memory", "s", "not in B"),
    ):  # fmt: skip
        given = whole()
        next(s for s in given.samples if s.point["case"] == case and s.metric == metric).unit = unit
        with pytest.raises(EfflabError, match=f"its {metric} is in") as caught:
            reconcile.points(given)
        assert expected in str(caught.value)


def test_another_topic_is_refused_by_every_function():
    given = whole().model_copy(update={"topic": "roofline"})
    for function in (*FUNCTIONS, reconcile.shares, reconcile.peak, reconcile.curves, reconcile.monitored):
        with pytest.raises(EfflabError, match="'profiling' is needed"):
            function(given)
    with pytest.raises(EfflabError, match="'profiling' is needed"):
        reconcile.sweep(given, "seeds")


@pytest.mark.parametrize(
    ("case", "metric", "said"),
    [
        ("all-faults", "time", "all-faults has no time, which predictions need"),
        ("profile", "time", "profile has no time"),
        ("profile", "range_copies", "profile has no range_copies"),
        ("profile", "operators_tiny", "profile has no operators_tiny"),
        ("batch-load", "time", "batch-load has no time"),
        ("compute", "time", "compute has no time"),
    ],
)
def test_what_calibrates_must_be_there(case, metric, said):
    given = whole()
    given.samples = [s for s in given.samples if (s.point["case"], s.metric) != (case, metric)]
    with pytest.raises(EfflabError, match=said):
        reconcile.points(given)


def test_ranges_beyond_the_step_and_numbers_that_cannot_be_are_refused():
    given = whole()
    next(s for s in given.samples if s.metric == "range_tiny").values = [20 * MS]
    with pytest.raises(
        EfflabError, match=r"ranges of the faults in profile add up to 23\.8 ms where the step takes 12 ms"
    ):
        reconcile.points(given)
    given = whole()
    next(s for s in given.samples if s.metric == "operators_tiny_mended").values = [0.0]
    with pytest.raises(EfflabError, match="operators_tiny_mended of profile is 0; above 0 is needed"):
        reconcile.points(given)


def test_curves_and_readings_that_do_not_fit_are_refused():
    given = whole()
    next(s for s in given.samples if s.point["case"] == "seed-1").values = [4.6, 4.1]
    with pytest.raises(EfflabError, match="seed-1 has 2 losses and seed-0 has 3"):
        reconcile.curves(given)
    given = whole()
    next(s for s in given.samples if s.point["case"] == "seed-1").values = [4.6, -4.1, 3.0]
    with pytest.raises(EfflabError, match="a loss of seed-1 is not greater than zero"):
        reconcile.curves(given)
    given = whole()
    next(s for s in given.samples if s.metric == "utilization").values = [0.5]
    with pytest.raises(EfflabError, match="monitor-all-faults has 1 values of utilization and 3 of elapsed"):
        reconcile.monitored(given)
    given.samples = [s for s in given.samples if s.metric != "elapsed"]
    with pytest.raises(EfflabError, match="and 0 of elapsed"):
        reconcile.monitored(given)


def test_an_empty_record_says_so():
    given = record(samples=[])
    assert reconcile.points(given) == [] and reconcile.missing(given) == [] and reconcile.saved(given) == {}
    assert "No case of this record was measured" in reconcile.text(given)
    assert reconcile.whole(given) is None


# Calculators


def calculated(name: str, **inputs: Any) -> Prediction:
    from efflab import calculators

    return calculators.get(name).evaluate(**inputs).prediction()


def test_a_gain_of_the_amdahl_calculator_is_answered_by_the_mend_of_that_share():
    asked = calculated("amdahl", time=0.010, share_a=0.294, speedup_a=50, share_b=0.5, share_c=0.01, part="A")
    assert set(reconcile.asked(asked)) == {"gain", "saved", "time_after", "gain_of_all", "time_left"}
    found = reconcile.answers(whole(), asked)
    assert set(found) == {"gain", "saved", "time_after"}, "no fault has the other two shares"
    assert found["time_after"].case == "without-tiny" and found["time_after"].measured == pytest.approx(7.9 * MS)
    assert found["saved"].measured == pytest.approx(2.1 * MS) and found["saved"].unit.symbol == "s"
    assert found["gain"].measured == pytest.approx(1 / 0.79) and found["gain"].unit.symbol == ""
    for name, row in found.items():
        assert asked.outputs[name].unit == row.unit.symbol
    whole_range = calculated("amdahl", time=0.010, share_a=0.302, part="A")
    assert set(reconcile.answers(whole(), whole_range)) == set(found), "as if nothing of it were left"
    for wrong in ({"time": 0.011}, {"share_a": 0.25}, {"share_a": 0.333}):  # the last with the profiler's cost
        other = calculated("amdahl", **{"time": 0.010, "share_a": 0.294, "part": "A"} | wrong)
        assert reconcile.answers(whole(), other) == {}


def test_what_answers_a_calculator_is_held_against_the_learners_number():
    inputs = {"time": 0.010, "share_a": 0.294, "part": "A"}
    outputs = {"gain": (1.5, ""), "saved": (3e-3, "s"), "time_after": (9e-3, "s")}
    asked = Prediction.new("profiling", outputs, source="site", calculator="amdahl", inputs=inputs | {
        "share_b": 0.0, "share_c": 0.0, "speedup_a": 2.0, "speedup_b": 2.0, "speedup_c": 2.0,
    })  # fmt: skip
    found = reconcile.answers(whole(), asked)
    for name, (value, _) in outputs.items():
        row = found[name]
        assert row.predicted == value and row.ratio == pytest.approx(row.measured / value)
        assert row.error == pytest.approx(value / row.measured - 1) and row.explanation == ""


def test_three_mends_of_the_calculator_are_answered_by_the_ladder():
    shares = {"share_a": 0.15, "share_b": 0.1, "share_c": 0.04}
    asked = calculated("amdahl", time=0.010, **shares, speedup_a=9, speedup_b=9, speedup_c=9, part="B")
    found = reconcile.answers(whole(), asked)
    assert found["time_left"].case == "mended-3" and found["time_left"].measured == pytest.approx(7.45 * MS)
    assert found["gain_of_all"].measured == pytest.approx(1 / 0.745)
    assert found["time_after"].case == "without-copies"
    twice = calculated("amdahl", time=0.010, **shares | {"share_c": 0.1}, part="B")
    assert set(reconcile.answers(whole(), twice)) == {"gain", "saved", "time_after"}


def test_a_share_that_two_faults_have_is_not_answered():
    """Loader and copies have the same range; the record even has a case with both of them mended."""
    given = whole()
    for s in given.samples:
        if s.point["case"] == "profile" and s.metric == "range_copies":
            s.values = [1.52 * MS]
    asked = calculated("amdahl", time=0.010, share_a=0.149, part="A")
    assert reconcile.answers(given, asked) == {} and reconcile.answers(whole(), asked)


def test_the_loader_calculator_is_answered_by_the_case_with_as_many_workers():
    numbers = {"sample_time": 2 * MS / 32, "batch": 32, "compute_time": 5 * MS, "cores": 2}
    found = reconcile.answers(whole(), calculated("loader", **numbers, workers=0))
    assert found["step_time"].case == "workers-0" and found["step_time"].measured == pytest.approx(7 * MS)
    assert found["waiting_share"].measured == pytest.approx(2 / 7)
    hidden = reconcile.answers(whole(), calculated("loader", **numbers, workers=1))
    assert hidden["step_time"].case == "workers-1" and "waiting_share" not in hidden, "nothing was waited for"
    pinned = record(loading(2, 5 * MS, pinned=True))
    assert reconcile.answers(pinned, calculated("loader", **numbers, workers=2)) == {}, "another way to load"
    for wrong in ({"workers": 3}, {"batch": 64}, {"compute_time": 6 * MS}, {"sample_time": 1 * MS}):
        assert reconcile.answers(whole(), calculated("loader", **numbers | {"workers": 1} | wrong)) == {}


def test_the_mfu_calculator_is_answered_for_a_model_and_a_device_of_ones_own():
    given = whole()
    for s in given.samples:
        s.point |= {"parameters": 25_000_000, "context": 256}
    inputs: dict[str, Any] = {
        "model": "custom", "accelerator": "custom", "own_parameters": 25e6, "own_peak_performance": PEAK,
        "sequence_length": 256, "devices": 1, "tokens_per_second": 102_400, "recomputation": "none",
    }  # fmt: skip
    asked = calculated("mfu", **inputs)
    assert set(reconcile.asked(asked)) == {"mfu"}
    assert reconcile.answers(given, asked)["mfu"].measured == pytest.approx(0.12)
    assert reconcile.answers(given, asked)["mfu"].case == "all-faults"
    for wrong in ({"devices": 8}, {"tokens_per_second": 500_000}, {"own_peak_performance": 1e14}):
        assert reconcile.answers(given, calculated("mfu", **inputs | wrong)) == {}
    assert reconcile.asked(calculated("mfu")) == {}, "a published model, which the lab does not train"


def test_the_lab_book_shows_what_a_record_answers(tmp_path, monkeypatch):
    from efflab import labbook, records

    monkeypatch.setattr(records, "RESULTS", tmp_path / "none")
    asked = calculated("loader", sample_time=2 * MS / 32, batch=32, compute_time=5 * MS, workers=0)
    given = whole(created="2999-01-01T00:00:00Z", finished="2999-01-01T00:01:00Z")
    pairs, problems = labbook.pairs([asked], [given])
    assert not problems
    assert {(p.output, p.case) for p in pairs} == {("step_time", "workers-0"), ("waiting_share", "workers-0")}
    lab = Prediction.new("profiling", {"calibration-share-tiny.share": (0.3, ""), "without-tiny.time": (7e-3, "s")},
                         inputs={"record": "planted"})  # fmt: skip
    pairs, _ = labbook.pairs([lab], [given])
    assert {p.output: p.measured for p in pairs} == {
        "calibration-share-tiny.share": pytest.approx(SHARES["tiny"]), "without-tiny.time": pytest.approx(7.9 * MS)
    }  # fmt: skip


def test_other_predictions_ask_nothing():
    for other in (
        Prediction.new("profiling", {"gain": (2.0, "")}),
        Prediction.new("profiling", {"gain": (2.0, "")}, source="site", calculator="amdahl"),
        Prediction.new("profiling", {"gain": (2.0, "")}, source="site", calculator="amdahl",
                       inputs={"time": "long", "part": "A", "share_a": 0.3}),
        Prediction.new("profiling", {"gain": (2.0, "")}, source="site", calculator="roofline-explorer"),
    ):  # fmt: skip
        assert reconcile.asked(other) == {} and reconcile.answers(whole(), other) == {}


# Pictures


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    from efflab import plots

    yield plots
    pyplot.close("all")


def widths(axes: Any) -> list[float]:
    return [round(bar.get_width(), 1) for bar in axes.patches]


def texts(figure: Any) -> set[str]:
    return {t.get_text() for axes in figure.axes for t in axes.texts}


def test_the_picture_shows_both_shares(plots):
    figure = plots.draw(whole())
    (axes,) = figure.axes
    pairs = [w for name, gain in zip(reconcile.FAULTS, (12.5, 9, 4, 21, 2.5), strict=True)
             for w in (round(100 * SHARES[name], 1), gain)]  # fmt: skip
    assert widths(axes) == pytest.approx(pairs, abs=0.05)
    assert {"29.4%", "21.0%"} <= texts(figure)
    assert [t.get_text() for t in axes.get_yticklabels()] == list(reconcile.FAULTS)
    slower = plots.draw(record(*mend("python", -0.04)))
    assert "−4.0%" in texts(slower) and slower.axes[0].get_xlim()[0] < -4
    with pytest.raises(EfflabError, match="no mend was measured alone"):
        plots.draw(record())


def test_the_waterfall_ends_at_what_is_left(plots):
    figure = plots.draw(whole(), "waterfall")
    (axes,) = figure.axes
    assert widths(axes) == pytest.approx([100, 12.5, 9, 4, 21, 2.5, 51])
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches[1:-1]]
    assert [low for low, _ in edges] == pytest.approx([87.5, 78.5, 74.5, 53.5, 51])
    assert all(a[0] == pytest.approx(b[1]) for a, b in itertools.pairwise(edges)), "each begins below the last"
    assert {"10 ms", "−21.0%", "51.0%, 5.1 ms"} <= texts(figure)
    assert [t.get_text() for t in axes.get_yticklabels()][-1] == "no fault"
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 2.5]
    left = [100 * (1 - sum(list(SHARES.values())[:k])) for k in range(1, 6)]
    assert marks == pytest.approx(left)
    given = whole()
    given.samples = [s for s in given.samples if s.point["case"] not in ("mended-3", "mended-5")]
    labels = [t.get_text() for t in plots.draw(given, "waterfall").axes[0].get_yticklabels()]
    assert labels == ["all faults", "− loader", "− copies", "− sync, tiny", "left"]
    with pytest.raises(EfflabError, match="no mend of the ladder was measured"):
        plots.draw(record(), "waterfall")


def test_the_monitors_picture_has_a_panel_for_each_counter(plots):
    figure = plots.draw(whole(), "monitor")
    assert [axes.get_ylabel() for axes in figure.axes] == ["utilization", "memory (MB)"]
    dashed = sorted(line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--")
    assert dashed == pytest.approx([0.12, 0.3])
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[400.0] * 3] * 2
    powered = plots.draw(record(*monitor("monitor-clean", 4 * MS, 0.9, power=True)), "monitor")
    assert [axes.get_ylabel() for axes in powered.axes][-1] == "power (W)"
    with pytest.raises(EfflabError, match="no counter was read"):
        plots.draw(record(), "monitor")


def test_the_errors_and_every_picture_that_is_named(plots):
    for kind in reconcile.PICTURES:
        assert plots.draw(whole(), kind) is not None
    assert len(plots.draw(whole(), "errors").axes[0].get_yticklabels()) == 12


# The experiment itself


def test_the_real_experiment_can_be_reconciled(tmp_path):
    """Its smoke run has every name that is read here; the numbers are of a machine that may be busy."""
    from efflab.experiments import profiling as experiment
    from efflab.experiments import runner

    found, _ = runner.run(experiment.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)
    rows = {r.case: r for r in reconcile.points(found)}
    assert {f"without-{n}" for n in reconcile.FAULTS} | {f"mended-{k}" for k in range(2, 6)} <= set(rows)
    assert {"workers-0", "workers-1", "workers-2"} <= set(rows)
    assert reconcile.missing(found) == [] and "Being handed a batch" in reconcile.sweep(found, "workers")
    assert len(reconcile.levels(found)) == 6 and reconcile.remaining(found) and reconcile.utilizations(found)
    curves = {c.case: c for c in reconcile.curves(found)}
    assert curves["seed-0-again"].identical and not curves["seed-1"].identical
    assert curves["seed-0-clean"].largest < 1e-4, "the faults change what is learned"
    assert set(reconcile.monitored(found)) == {"monitor-all-faults", "monitor-clean"}
    assert 0 < sum(reconcile.shares(found).values()) < 1
    assert reconcile.text(found) == reconcile.text(found)
