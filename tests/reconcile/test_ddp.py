"""Reconciliation on records whose every number the test chose, so that each result is known by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efflab import records
from efflab.errors import EfflabError
from efflab.reconcile import CALIBRATED, ddp
from efflab.records import Environment, Prediction, Record, Sample

KIB, MIB = 2**10, 2**20
# Two ranks: 400 µs and 2 GB/s, so that a ring's step has 200 µs and one direction 2 GB/s. Four: 1.2 ms and 1 GB/s, so
# that one of 6 steps has 200 µs, and a rank that sends 1.5 times the message does so with 1.5 GB/s.
LATENCY = {2: 400e-6, 4: 1.2e-3}
BANDWIDTH = {2: 2e9, 4: 1e9}
SIZES = [KIB * 4**k for k in range(9)]
GRADIENT, TENSORS, PARAMETERS = 20_000_000, 30, 5_000_000
STEPS, EVERY, KILLED = 12, 5, 8
# Forward pass, backward pass and update, ms: a rank alone and all at once, of a batch of 8 and of its part.
ALONE, TOGETHER = (20, 40, 10), (22, 43, 12)
PART, PART_TOGETHER = (11, 21, 10), (12, 24, 12)


def sample(
    point: dict[str, Any], value: Any, metric: str = "time", unit: str = "s", spread: float = 0.0, **changes: Any
) -> Sample:
    values = value if isinstance(value, list) else [value * f for f in (1 - spread, 1.0, 1 + spread)]
    data = {"point": point, "metric": metric, "unit": unit, "values": values, "status": "ok"}
    return Sample(**data | changes)


def failed(point: dict[str, Any], metric: str = "time", unit: str = "s", **changes: Any) -> Sample:
    return sample(point, [], metric, unit, **{"status": "oom", "message": "no room"} | changes)


def message(size: int, ranks: int = 2, role: str = "all-reduce") -> dict[str, Any]:
    name = f"{size // MIB}MiB" if size >= MIB else f"{size // KIB}KiB"
    return {"case": f"all-reduce-{name}-{ranks}", "role": role, "ranks": ranks, "message_bytes": size}


def exact(size: float, ranks: int) -> float:
    """Seconds of a message on the planted line."""
    return LATENCY[ranks] + size / BANDWIDTH[ranks]


def fit(ranks: int = 2) -> list[Sample]:
    return [sample(message(s, ranks, "fit"), exact(s, ranks)) for s in SIZES]


def calibrating(case: str, times: tuple[float, float, float], ranks: int = 2, batch: int = 8) -> list[Sample]:
    """A step in which nobody communicates: its time is that of its parts, in ms."""
    point = {"case": f"{case}-{ranks}", "role": "calibration", "ranks": ranks, "microbatch": batch}
    names = ("forward_time", "backward_time", "update_time")
    parts = [sample(point, t / 1e3, m) for m, t in zip(names, times, strict=True)]
    return [sample(point, sum(times) / 1e3), *parts]


def computing(ranks: int = 2) -> list[Sample]:
    part = 8 // ranks
    reducer = {"case": f"reducer-{ranks}", "role": "calibration", "ranks": ranks, "microbatch": 8}
    return [
        *calibrating("alone", ALONE, ranks), *calibrating("together", TOGETHER, ranks),
        *calibrating("alone-part", PART, ranks, part), *calibrating("together-part", PART_TOGETHER, ranks, part),
        sample(reducer, 0.083),
    ]  # fmt: skip


def step(case: str, ranks: int = 2, **extra: Any) -> dict[str, Any]:
    return {"case": f"{case}-{ranks}", "role": "step", "ranks": ranks, "method": "ddp", "microbatch": 8,
            "microbatches": 1, "gradient_bytes": GRADIENT} | extra  # fmt: skip


def counted(point: dict[str, Any], seconds: float, buckets: float, spread: float = 0.0) -> list[Sample]:
    return [sample(point, seconds, spread=spread), sample(point, [buckets], "buckets", "")]


DDP = step("ddp")
STRONG = step("strong", microbatch=4)
FLAT = step("flat", method="flat")
EACH = step("per-tensor", method="per-tensor")
ACCUMULATED = step("accumulate", microbatches=4)
WEAK = {"case": "efficiency-weak-2", "role": "efficiency", "ranks": 2, "scaling": "weak"}
SPLIT = WEAK | {"case": "efficiency-strong-2", "scaling": "strong"}
STRAGGLER = {"case": "straggler-2", "role": "straggler", "ranks": 2}
SET = {"case": "set-epoch-2", "role": "sampler", "ranks": 2, "samples": 101, "epochs": 6, "set_epoch": True}
UNSET = SET | {"case": "no-set-epoch-2", "set_epoch": False}
EQUAL = {"case": "gradient-2", "role": "gradient", "ranks": 2}
RESUMED = {"case": "resumed", "role": "resume", "ranks": 2, "steps": STEPS, "checkpoint_steps": EVERY,
           "killed_at": KILLED}  # fmt: skip
CURVE = {"case": "curve", "role": "curve", "ranks": 2, "steps": STEPS, "checkpoint_steps": EVERY}
LOSSES = [4 - 0.1 * i for i in range(STEPS)]


def state(name: str, stage: int, ranks: int = 2) -> dict[str, Any]:
    return {"case": f"memory-{name}-{ranks}", "role": "memory", "ranks": ranks, "parameters": PARAMETERS,
            "zero_stage": stage}  # fmt: skip


def norm(times: int, role: str = "noise-fit") -> dict[str, Any]:
    return {"case": f"norm-{times}x", "role": role, "batch": 4 * times, "draws": 3}


def norms(truth: float = 2.0, noise: float = 24.0) -> list[Sample]:
    """|G|² + S/b at batches of 4 and 8: 8 and 5. The noise scale is 12 samples."""
    return [sample(norm(k), [truth + noise / (4 * k)] * 3, "norm_squared", "") for k in (1, 2)]


CALIBRATION = [*fit(), *computing()]


def record(*middle: Sample, kind: str = "cpu", **changes: Any) -> Record:
    environment = Environment(
        device=changes.pop("device", "Some CPU" if kind == "cpu" else "Some GPU"), kind=kind, count=2,
        memory=changes.pop("memory", 2**34), threads=1,
        cores=changes.pop("cores", 2), caches={"L2": 2**20, "L3": 2**24}, torch="2.13", python="3.11", efflab="0.1",
        platform="Linux x86_64", ranks=2, backend="gloo" if kind == "cpu" else "nccl",
        interconnect=changes.pop("interconnect", None),
    )  # fmt: skip
    spec: dict[str, Any] = {
        "scale": "cpu", "ranks_per_node": 2, "threads_per_rank": 1, "spare_cores": 0, "nodes": 1,
        "bucket_bytes": 25 * MIB, "first_bucket_bytes": MIB,
        "model": {"gradient_bytes": GRADIENT, "tensors": TENSORS, "parameters": PARAMETERS},
    }  # fmt: skip
    data: dict[str, Any] = {
        "id": "r", "topic": "ddp", "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:01:00Z",
        "environment": environment, "spec": spec | changes.pop("spec", {}), "samples": [*CALIBRATION, *middle],
    }  # fmt: skip
    return Record(**data | changes)


def full(**changes: Any) -> Record:
    return record(
        sample(message(32 * KIB), 0.0005), sample(message(8 * MIB), 0.0046),
        *counted(DDP, 0.100, 2), *counted(STRONG, 0.070, 2), *counted(FLAT, 0.095, 1),
        *counted(EACH, 0.110, TENSORS), *counted(ACCUMULATED, 0.300, 2),
        sample(WEAK, 0.7, "efficiency", ""), sample(SPLIT, 0.5, "efficiency", ""),
        sample(STRAGGLER, 0.145), sample(STRAGGLER, 0.050, "delay", "s"),
        *(s for point, orders in ((SET, 6.0), (UNSET, 1.0))
          for s in (sample(point, [orders], "orders", ""), sample(point, [1.0], "repeated", ""))),
        sample(EQUAL, [3e-7], "difference", ""), sample(EQUAL, [2e-7], "rounding", ""),
        *norms(), sample(norm(4, "noise"), [3.0, 3.6, 4.2], "norm_squared", ""),
        sample(state("ddp", 0), [16.0 * PARAMETERS + 4 * TENSORS], "state_bytes", "B"),
        sample(state("zero1", 1), [12.2 * PARAMETERS], "state_bytes", "B"),
        sample(state("fsdp", 3), [8.0 * PARAMETERS + 4 * TENSORS + 100], "state_bytes", "B"),
        sample(CURVE, LOSSES, "loss", "nats"), sample(CURVE, [0.02, 0.03], "checkpoint_time", "s"),
        sample(RESUMED, [3.0], "repeated", ""), sample(RESUMED, [0.0], "difference", "nats"),
        sample(RESUMED, [6.5], "restart_time", "s"), sample(RESUMED, LOSSES, "loss", "nats"),
        sample(RESUMED, [5.0], "resumed_at", ""),
        **changes,
    )  # fmt: skip


def row(found: Record, case: str) -> ddp.Row:
    return next(r for r in ddp.points(found) if r.case == case)


def without(*cases: str) -> list[Sample]:
    return [s for s in CALIBRATION if s.point["case"] not in cases]


# Messages


@pytest.mark.parametrize("ranks", [2, 4])
def test_latency_and_bandwidth_are_those_of_a_ring(ranks: int) -> None:
    found = record(samples=fit(ranks))
    assert ddp.ring(found, ranks) == pytest.approx((200e-6, {2: 2e9, 4: 1.5e9}[ranks]), rel=1e-9)
    line = ddp.line(found, ranks)
    assert line is not None
    assert (line.latency, line.bandwidth) == pytest.approx((LATENCY[ranks], BANDWIDTH[ranks]), rel=1e-9)
    assert ddp.fitted(found, ranks) == [(s, exact(s, ranks)) for s in SIZES]


@pytest.mark.parametrize(
    ("size", "ranks", "limit"),
    [(KIB, 2, "latency"), (32 * MIB, 2, "bandwidth"), (1024 * KIB, 4, "latency"), (4 * MIB, 4, "bandwidth")],
)
def test_a_message_is_predicted_by_its_own_ranks_line(size: int, ranks: int, limit: str) -> None:
    held_out = sample(message(size, ranks, "all-reduce"), 2 * exact(size, ranks))
    row_ = ddp.points(record(samples=[*fit(2), *fit(4), held_out]))[0]
    assert row_.predicted == pytest.approx(exact(size, ranks), rel=1e-9)
    assert (row_.ratio, row_.error) == pytest.approx((2, -0.5))
    assert (row_.regime, row_.metric, row_.unit.symbol, row_.ranks) == (limit, "time", "s", ranks)


def test_messages_off_the_line_are_explained_by_their_neighbours() -> None:
    """1 and 4 MiB take a third of what the others would have them take; so does 2 MiB."""
    fast = [sample(message(s, 2, "fit"), exact(s, 2) / (3 if s in (MIB, 4 * MIB) else 1)) for s in SIZES]
    found = record(samples=[*fast, sample(message(2 * MIB), exact(2 * MIB, 2) / 3)])
    said = ddp.points(found)[0].explanation
    at = {r[0] + r[1]: r[6] for line in ddp.calibration_text(found).splitlines() if len(r := line.split()) == 11}
    assert float(at["1MiB"].strip("+%")) > 50, "the line's time over the measured one, as in every other table"
    in_the_same_direction = f"1 MiB ({at['1MiB']}) and 4 MiB ({at['4MiB']})."
    assert f"At the fitted messages beside it the line errs in the same direction: {in_the_same_direction}" in said
    swept = [line.split() for line in ddp.sweep(found, "messages").splitlines()]
    assert {r[1] + r[2]: r[8] for r in swept if "fitted" in r} == at, "one sign in both tables"
    assert "The messages of 2 ranks, 4.19 MB, fit into L3 of 16.8 MB." in said
    assert "Consistent with copies that do not go through memory." in said
    gpu = record(samples=found.samples, kind="cuda")
    assert "fit into" not in ddp.points(gpu)[0].explanation
    slow = record(sample(message(2 * MIB), 3 * exact(2 * MIB, 2)))
    said = ddp.points(slow)[0].explanation
    assert said.startswith(f"{ddp.NOTHING} By the fit transfer is 72.4% of it."), "no neighbour, and no cache is slower"


def test_the_calibration_shows_fit_and_steps() -> None:
    said = ddp.calibration_text(full())
    assert "All-reduce of 2 ranks, fitted to 9 messages: 400 µs + bytes ÷ 2 GB/s." in said
    assert (
        "As a ring: 2 steps of 200 µs, and 2 GB/s in one direction. Latency and transfer are equal at 781 KiB." in said
    )
    assert "Without one of the messages, whichever: 400 µs to 400 µs, and 2 GB/s to 2 GB/s." in said
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert lines["64"] == ["64", "MiB", "34", "ms", "34", "ms", "0%", "1.98", "GB/s", "1.98", "GB/s"]
    assert lines["together-2"][1:] == ["8", "77", "ms", "22", "ms", "43", "ms", "12", "ms"]
    assert "no core is spare: the formula takes an overlap of 0, as if the backward pass hid no communication" in said
    for result in ("100 ms", "70.0%", "145 ms", "4.6 ms", "6.5 s"):
        assert result not in said, "it gives away no case's result"
    assert ddp.calibration_text(record(samples=[])) == (
        "Gradients: 20 MB in 30 tensors. DDP's first bucket holds 1 MiB, each other 25 MiB."
    )


def test_a_gpus_link_is_held_against_its_data_sheet() -> None:
    """An H200's NVLink 4 has 450 GB/s in one direction; between two GPUs 360 of them are 80%."""
    fast = [sample(message(s, 2, "fit"), 20e-6 + s / 360e9) for s in SIZES]
    changes: dict[str, Any] = {"kind": "cuda", "device": "NVIDIA H200", "memory": 150_000_000_000 * 94 // 100}
    said = ddp.calibration_text(record(samples=fast, **changes))
    assert "By the data sheet one direction of NVLink 4 has 450 GB/s; the fit reaches 80% of it." in said
    assert "data sheet" not in ddp.calibration_text(record(samples=fast, spec={"nodes": 2}, **changes))
    for link, held in (("NV18", True), ("PIX", False), ("SYS", False)):
        between = ddp.calibration_text(record(samples=fast, interconnect=link, **changes))
        assert ("data sheet" in between) is held, "over PCIe the fit says nothing of NVLink"
    assert "data sheet" not in ddp.calibration_text(full())


def test_what_a_learner_predicts_of_the_calibration() -> None:
    found = ddp.calibration(full())
    assert found == pytest.approx({"latency": 200e-6, "bandwidth": 2e9, "step": 0.070}, rel=1e-9)
    assert set(found) == set(ddp.CALIBRATION)
    four = record(*fit(4), *computing(4), cores=4, spec={"ranks_per_node": 4})
    assert ddp.calibration(four)["bandwidth"] == pytest.approx(1.5e9), "of the largest number of ranks"
    assert ddp.calibration(record(samples=[])) == {}
    no_latency = [sample(message(s, 2, "fit"), s / 2e9) for s in SIZES]
    assert set(ddp.calibration(record(samples=no_latency))) == {"bandwidth"}
    assert "there is no latency" in ddp.calibration_text(record(samples=no_latency))


# Steps


@pytest.mark.parametrize(
    ("point", "buckets", "milliseconds"),
    [
        (DDP, 2, 77 + 2 * 0.4 + 10), (STRONG, 2, 48 + 2 * 0.4 + 10), (FLAT, 1, 77 + 0.4 + 10),
        (EACH, TENSORS, 77 + TENSORS * 0.4 + 10), (ACCUMULATED, 2, 4 * (22 + 43) + 12 + 2 * 0.4 + 10),
    ],
    ids=lambda p: p["case"] if isinstance(p, dict) else "",
)  # fmt: skip
def test_where_no_core_is_spare_a_step_is_the_sum_of_its_parts(
    point: dict[str, Any], buckets: int, milliseconds: float
) -> None:
    row_ = row(record(*counted(point, 0.2, buckets)), point["case"])
    assert row_.predicted == pytest.approx(milliseconds / 1e3, rel=1e-9)
    assert row(record(*counted(point, 0.4, buckets)), point["case"]).predicted == row_.predicted
    assert row(record(sample(point | {"buckets": buckets}, 0.2)), point["case"]).predicted == row_.predicted


def test_what_a_gpus_backward_pass_hides() -> None:
    """10.8 ms in two buckets: the first is ready after half of 43 ms, the second, 5.4 ms, shows. By hand none hides."""
    found = record(*counted(DDP, 0.1, 2), *counted(FLAT, 0.1, 1), kind="cuda", spec={"spare_cores": None})
    assert row(found, "ddp-2").predicted == pytest.approx(0.077 + 0.0054, rel=1e-9)
    assert row(found, "flat-2").predicted == pytest.approx(0.077 + 0.0104, rel=1e-9)
    said = ddp.evidence(found, "ddp-2")
    assert "5.4 ms" in said
    assert "No core is spare" not in said


def test_spare_cores_hide_communication_on_a_cpu() -> None:
    def overlap(ranks: int = 2, **spec: Any) -> float:
        return ddp.overlap(record(spec=spec, cores=8), DDP | {"ranks": ranks})

    assert [overlap(spare_cores=n) for n in (0, 1, 2, 6)] == [0, 0.5, 1, 1]
    assert overlap(ranks_per_node=4) == 1, "while two of four ranks compute, two cores are spare"
    assert overlap(3, ranks_per_node=4) == pytest.approx(1 / 3)
    assert overlap(8, ranks_per_node=4, spare_cores=2) == 0.5, "two nodes of four ranks each"
    half = row(record(*counted(DDP, 0.1, 2), spec={"spare_cores": 1}, cores=3), "ddp-2")
    assert half.predicted == pytest.approx(0.077 + (0.0108 + 0.0054) / 2, rel=1e-9)
    said = ddp.evidence(record(*counted(DDP, 0.1, 2), spec={"spare_cores": 1}, cores=3), "ddp-2")
    assert "Cores are spare for 50% of the ranks" in said
    for cores, words in ((1, "1 core of a node is spare"), (2, "2 cores of a node are spare")):
        assert f"compute, {words}: " in ddp.calibration_text(record(spec={"spare_cores": cores}, cores=4))
    for bad in (None, -1, "two", True):
        with pytest.raises(EfflabError, match=r"record r: spec\.spare_cores must be a number of at least 0"):
            ddp.points(record(*counted(DDP, 0.1, 2), spec={"spare_cores": bad}))


def test_medians_of_parts_are_scaled_to_the_step() -> None:
    """The step took 90 ms where its parts have medians of 77 ms together."""
    slow = [s for s in CALIBRATION if (s.point["case"], s.metric) != ("together-2", "time")]
    point = next(s.point for s in CALIBRATION if s.point["case"] == "together-2")
    found = record(samples=[*slow, sample(point, 0.090), *counted(DDP, 0.1, 2)])
    assert row(found, "ddp-2").predicted == pytest.approx(0.090 + 0.0108, rel=1e-9)


def test_the_parts_of_a_measured_step_add_up_to_it() -> None:
    found = full()
    assert ddp.measured_parts(found, "ddp-2") == pytest.approx(
        {"alone": 0.070, "interference": 0.007, "reducer": 0.006, "communication": 0.017}
    )
    assert ddp.measured_parts(found, "flat-2") == pytest.approx(
        {"alone": 0.070, "interference": 0.007, "reducer": 0, "communication": 0.018}
    )
    assert ddp.measured_parts(found, "accumulate-2") == pytest.approx(
        {"alone": 0.250, "interference": 0.022, "reducer": 0.006, "communication": 0.022}
    )
    for r in ddp.points(found, ("step",)):
        parts = ddp.measured_parts(found, r.case)
        assert parts is not None
        assert sum(parts.values()) == pytest.approx(r.measured)
    with pytest.raises(EfflabError, match="case"):
        ddp.measured_parts(found, "ddp-3")


def test_explanations_of_steps_follow_the_records_own_numbers() -> None:
    rows = {r.case: r.explanation for r in ddp.points(full())}
    assert rows["ddp-2"] == (
        "As predicted, within 25%. DDP's reducer, which fills the buckets and empties them, takes 6 ms; the formula "
        "leaves it out. Beyond computing and reducer the step takes 17 ms; for 2 messages 10.8 ms were predicted. "
        "Consistent with ranks that wait for each other, and with communication on cores that compute."
    )
    assert "for 1 message 10.4 ms were predicted. The formula leaves out the copies" in rows["flat-2"]
    assert "for 30 messages 22 ms were predicted." in rows["per-tensor-2"]

    def said(seconds: float, *more: Sample, **changes: Any) -> str:
        return row(record(*counted(DDP, seconds, 2), *more, **changes), "ddp-2").explanation

    assert said(0.0938) == (
        "As predicted, within 10%. DDP's reducer, which fills the buckets and empties them, takes 6 ms; the formula "
        "leaves it out."
    ), "nothing remains"
    assert "by themselves take 3 ms longer than this step, so that nothing is left for its messages" in said(0.080)
    assert said(0.090) == (
        "As predicted, within 5%. DDP's reducer, which fills the buckets and empties them, takes 6 ms; the formula "
        "leaves it out. Beyond computing and reducer the step takes 7 ms; for 2 messages 10.8 ms were predicted. "
        "Consistent with more that is hidden, or with messages that are faster, than the formula assumes: its overlap "
        "of 0 is a simplification. Two errors cancel: the reducer adds 6 ms and the messages take 3.8 ms less than "
        "predicted. Of both, 2.2 ms are left."
    )
    assert "cancel" not in said(0.0915), "2.3 ms less do not make up for 6 ms more"
    assert "more communication that is hidden, or messages that are faster" in said(0.0846, kind="cuda")
    assert "Consistent with communication that is not hidden in full" in said(0.1, kind="cuda")
    assert "DDP's reducer" not in said(0.0878, samples=[*without("reducer-2"), *counted(DDP, 0.0878, 2)])
    warnings = ["together-2: wide: 40%", "all-reduce-1KiB-2: disturbed: x", "ddp-2: short: y"]
    warned = "It was disturbed while measured, as the record warns. The prediction rests on together-2"
    assert said(0.2, warnings=warnings).startswith(f"{warned}, which the record says was disturbed.")
    for quiet in ({"kind": "cuda"}, {"spec": {"spare_cores": 1}, "cores": 3}):
        both = said(0.2, warnings=warnings, **quiet)
        assert both.startswith(f"{warned}, all-reduce-1KiB-2, which the record says were disturbed."), quiet
    unsteady = row(record(*counted(DDP, 0.0878, 2, spread=0.4)), "ddp-2").explanation
    assert unsteady.endswith("Unsteady: the middle half of the repeats spans 40% of the median.")


def test_messages_scatter_only_where_the_ranks_take_turns_on_the_cores() -> None:
    warnings = ["all-reduce-1KiB-2: wide: 40%", "together-2: wide: 30%"]
    scatter = "Times that scatter, as those of messages do where no core is spare: all-reduce-1KiB-2."
    wide = sample(message(2 * MIB), exact(2 * MIB, 2), spread=0.4)

    def said(**changes: Any) -> tuple[str, str]:
        found = record(wide, warnings=warnings, **changes)
        return ddp.calibration_text(found), row(found, "all-reduce-2MiB-2").explanation

    text, why = said()
    assert scatter in text
    assert "Disturbed while measured, as the record warns: together-2." in text
    assert why.endswith("gloo's threads, which poll, and the ranks taking turns on the cores.")
    for quiet in ({"kind": "cuda"}, {"cores": 4, "spec": {"spare_cores": 2}}, {"spec": {"cores_per_rank": 2}}):
        text, why = said(**quiet)
        assert "scatter" not in text
        assert "Disturbed while measured, as the record warns: all-reduce-1KiB-2, together-2." in text
        assert why.endswith("Unsteady: the middle half of the repeats spans 40% of the median."), quiet


# Efficiency and stragglers


def test_efficiencies_follow_from_the_predicted_steps() -> None:
    found = full()
    weak, strong = row(found, "efficiency-weak-2"), row(found, "efficiency-strong-2")
    assert weak.predicted == pytest.approx(70 / 87.8, rel=1e-9)
    assert strong.predicted == pytest.approx(70 / (2 * 58.8), rel=1e-9)
    assert weak.explanation == (
        "9.7 points lower than predicted. To 70 ms of a rank alone ddp-2 adds 7 ms since all ranks compute at once, 6 "
        "ms in DDP's reducer and 17 ms for messages and the rest: 100 ms in all."
    )
    assert strong.explanation.endswith(
        "With 1/2 of the batch the update still takes 10 ms, and the two passes 32 ms where 1/2 of the whole batch's "
        "is 30 ms."
    )
    uneven = [
        *without("reducer-2"),
        sample(next(s.point for s in CALIBRATION if s.point["case"] == "reducer-2"), 0.076),
    ]
    negative = record(samples=[*uneven, *counted(DDP, 0.0772, 2), sample(WEAK, 0.9, "efficiency", "")])
    assert (
        "adds 7 ms since all ranks compute at once, −1 ms in DDP's reducer and 1.2 ms for messages and the rest: "
        in (row(negative, "efficiency-weak-2").explanation)
    ), "small parts and negative ones too, so that the sum comes out"
    table = ddp.sweep(found, "efficiency").splitlines()
    assert table[2].split() == ["2", "weak", "79.7%", "70.0%", "−9.7", "0.0"]
    exactly = record(*counted(DDP, 0.0878, 2), sample(WEAK, [70 / 87.8], "efficiency", ""))
    assert row(exactly, "efficiency-weak-2").explanation.startswith("As predicted, within 0.1 points.")
    with pytest.raises(EfflabError, match="it has no time of ddp-2, as efficiency-weak-2 needs"):
        ddp.points(record(sample(WEAK, [0.7], "efficiency", "")))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.150, "As predicted, within 1%."),
        (0.145, "As predicted, within 5%. A delay of 50 ms lengthens the step by 45 ms. All ranks computing at once "
                "takes 7 ms longer than one alone. Consistent with ranks that compute faster while another sleeps or "
                "waits."),
        (0.300, "A delay of 50 ms lengthens the step by 200 ms."),
        (0.095, "A delay of 50 ms does not lengthen the step."),
    ],
)  # fmt: skip
def test_a_straggler_adds_its_delay(seconds: float, said: str) -> None:
    late = [sample(STRAGGLER, seconds), sample(STRAGGLER, 0.050, "delay", "s")]
    row_ = row(record(*counted(DDP, 0.100, 2), *late), "straggler-2")
    assert row_.predicted == pytest.approx(0.150)
    assert row_.explanation == said
    with pytest.raises(EfflabError, match="it has no time of ddp-2"):
        ddp.points(record(*late))
    with pytest.raises(EfflabError, match="straggler-2 has no delay"):
        ddp.points(record(*counted(DDP, 0.1, 2), late[0]))


# Samplers, gradients, noise, memory


@pytest.mark.parametrize(("samples", "ranks"), [(101, 2), (101, 4), (96, 3), (7, 4)])
def test_torchs_own_sampler_reconciles(samples: int, ranks: int) -> None:
    from torch.utils.data.distributed import DistributedSampler

    found = []
    for point, set_epoch in ((SET, True), (UNSET, False)):
        orders, repeated = set(), []
        each = [DistributedSampler(range(samples), num_replicas=ranks, rank=r, seed=3) for r in range(ranks)]
        for epoch in range(5):
            for one in each:
                if set_epoch:
                    one.set_epoch(epoch)
            drawn = [tuple(one) for one in each]
            orders.add(tuple(drawn))
            flat = [i for part in drawn for i in part]
            repeated.append(float(len(flat) - len(set(flat))))
        at = point | {"ranks": ranks, "samples": samples, "epochs": 5}
        found += [sample(at, [float(len(orders))], "orders", ""), sample(at, repeated, "repeated", "")]
    for row_ in ddp.points(record(*found)):
        assert row_.ratio == 1
        assert row_.explanation.endswith("in an epoch, as predicted.")


def test_a_sampler_that_repeats_itself_is_named() -> None:
    wrong = record(sample(SET, [2.0], "orders", ""), sample(SET, [3.0], "repeated", ""))
    assert row(wrong, "set-epoch-2").explanation == (
        "2 orders in 6 epochs; 6 were to be expected. 2 ranks × 51 samples for 101: 3 come twice in an epoch, 1 "
        "predicted."
    )
    said = row(full(), "no-set-epoch-2").explanation
    assert said.startswith("One order in all of 6 epochs: without set_epoch the sampler shuffles with the same seed.")
    once = SET | {"epochs": 1}
    said = row(record(sample(once, [1.0], "orders", "")), "set-epoch-2").explanation
    assert said == "1 order, one for each epoch.", "set_epoch was called"
    named = SET | {"case": "other", "set_epoch": False}
    assert row(record(sample(named, [1.0], "orders", "")), "other").predicted == 1


@pytest.mark.parametrize(
    ("difference", "said"),
    [(2e-7, "Equal within rounding. The parts of the batch"), (7e-7, "Equal within rounding. Two orders"),
     (1e-3, "More than rounding: two orders of summation in one process differ by 2 × 10⁻⁷.")],
)  # fmt: skip
def test_a_gradient_is_judged_by_rounding(difference: float, said: str) -> None:
    found = record(sample(EQUAL, [difference], "difference", ""), sample(EQUAL, [2e-7], "rounding", ""))
    assert row(found, "gradient-2").explanation.startswith(said)
    assert row(found, "gradient-2").predicted == 2e-7


def test_equal_gradients_have_no_ratio_and_are_said() -> None:
    found = record(sample(EQUAL, [0.0], "difference", ""), sample(EQUAL, [0.0], "rounding", ""))
    assert ddp.points(found) == []
    assert ddp.evidence(found, "gradient-2") == (
        "gradient-2: the two gradients are the same to the last bit (rounding: 0)."
    )
    assert "Gradient of 2 ranks against one process: equal to the last bit." in ddp.summary(found)
    apart = record(sample(EQUAL, [2.18e-7], "difference", ""), sample(EQUAL, [0.0], "rounding", ""))
    assert ddp.evidence(apart, "gradient-2") == (
        "gradient-2: Gradient of 2 ranks against one process: relative difference 2.18 × 10⁻⁷, more than rounding (0)."
    )


@pytest.mark.parametrize(
    ("difference", "said"),
    [(3e-7, "equal within rounding (relative difference 3 × 10⁻⁷, of two orders of summation 2 × 10⁻⁷)."),
     (1e-3, "relative difference 0.001, more than rounding (2 × 10⁻⁷).")],
)  # fmt: skip
def test_the_summary_says_whether_gradients_are_equal(difference: float, said: str) -> None:
    found = record(sample(EQUAL, [difference], "difference", ""), sample(EQUAL, [2e-7], "rounding", ""))
    assert f"Gradient of 2 ranks against one process: {said}" in ddp.summary(found)


def test_the_text_says_what_its_cases_are() -> None:
    said = ddp.text(full())
    assert "with all gradients in one message after the backward pass on 2 ranks" in said
    assert "squared norm of the gradient of a batch of 16 sequences" in said
    assert "reducer: DDP without its messages" in said


def test_what_is_as_predicted_has_no_worst_case() -> None:
    sizes = [
        sample(state(n, k), [float(b * PARAMETERS)], "state_bytes", "B") for n, k, b in (("ddp", 0, 16), ("fsdp", 3, 8))
    ]
    assert "2 sizes in memory: as predicted." in ddp.summary(record(*sizes))
    assert "Worst: memory-zero1-2" in ddp.summary(full()), "1.7% more than predicted"


def test_the_lab_says_how_long_a_sequence_and_a_bucket_are() -> None:
    from efflab.experiments import ddp as experiment

    text = (Path(__file__).parents[2] / "labs/source/ddp.md").read_text()
    on_cpu, on_gpu = (s.model["sequence_length"] for s in (experiment.CPU, experiment.GPU))
    assert f"A sequence has {on_cpu} tokens on a CPU and {on_gpu} on GPUs." in text
    assert f"a bucket holds {(experiment.CPU.bucket_bytes or 0) // MIB} MiB here" in text


def test_a_norm_follows_from_two_others() -> None:
    found = full()
    assert ddp.noise(found) == pytest.approx((2, 12))
    row_ = row(found, "norm-4x")
    assert (row_.predicted, row_.measured) == pytest.approx((3.5, 3.6))
    assert "Noise scale S/|G|²: 12 sequences" in ddp.sweep(found, "noise")
    hidden = record(*norms(truth=-1.0), sample(norm(4, "noise"), [0.5] * 3, "norm_squared", ""))
    assert ddp.points(hidden) == []
    assert ddp.missing(hidden) == ["norm-4x has no prediction: the noise of the gradients hides their mean."]
    assert ddp.sweep(hidden, "noise").endswith("the noise of the gradients hides their mean; more draws are needed.")
    larger = record(*norms(noise=-2.0), sample(norm(4, "noise"), [2.0] * 3, "norm_squared", ""))
    assert ddp.missing(larger) == ["norm-4x has no prediction: no noise shows between the two batches."]
    assert "no noise shows between the two batches; more draws" in ddp.sweep(larger, "noise")
    lost = [norms()[0], failed(norm(2), "norm_squared", "")]
    alone = record(*lost, sample(norm(4, "noise"), [3.0] * 3, "norm_squared", ""))
    assert ddp.missing(alone)[1] == "norm-4x has no prediction: its calibration could not be measured."
    assert ddp.sweep(alone, "noise").endswith("There is no noise scale: its calibration could not be measured.")
    none = record(*(failed(norm(k, r), "norm_squared", "") for k, r in ((1, "noise-fit"), (2, "noise-fit"))))
    assert ddp.sweep(none, "noise").splitlines() == [f"norm-{k}x ran out of memory: no room" for k in (1, 2)], (
        "no table without a row"
    )
    with pytest.raises(EfflabError, match="no squared norms of two batch sizes"):
        ddp.points(record(norms()[0], sample(norm(4, "noise"), [3.0], "norm_squared", "")))


def test_noise_of_gradients_whose_mean_and_covariance_are_known() -> None:
    """|G|² of 4 and a covariance with a trace of 48: of a batch of b the squared norm is 4 + 48/b on average."""
    rng = np.random.default_rng(5)
    mean, spread = np.full(16, 0.5), math.sqrt(3.0)

    def draws(batch: int) -> list[float]:
        gradients = mean + spread * rng.standard_normal((4000, batch, 16)).mean(axis=1)
        return (gradients**2).sum(axis=1).tolist()

    found = record(*(sample(norm(k, r), draws(4 * k), "norm_squared", "")
                     for k, r in ((1, "noise-fit"), (2, "noise-fit"), (4, "noise"))))  # fmt: skip
    squared, scale = ddp.noise(found) or (0.0, 0.0)
    assert (squared, scale) == pytest.approx((4, 12), rel=0.1)
    row_ = row(found, "norm-4x")
    assert (row_.predicted, row_.measured) == pytest.approx((7, 7), rel=0.05)
    # Standard errors by repeating the experiment, against those that the explanation prints.
    again = [[np.mean(draws(4 * k)[:100]) for k in (1, 2)] for _ in range(300)]
    scatter = np.std([1.5 * b - 0.5 * a for a, b in again])  # 1/16 lies half as far beyond 1/8 as 1/4 before it
    short = record(*(sample(norm(k), draws(4 * k)[:100], "norm_squared", "") for k in (1, 2)))
    assert ddp._extrapolated(short, 16.0) == pytest.approx(scatter, rel=0.25)


def test_bytes_by_hand_and_what_the_formula_lacks() -> None:
    found = {r.case: r for r in ddp.points(full(), ("memory",))}
    assert [r.predicted for r in found.values()] == [16 * PARAMETERS, 12 * PARAMETERS, 8 * PARAMETERS]
    assert found["memory-ddp-2"].explanation == (
        "As predicted, within 1%. Not in the formula: AdamW's counts of steps, 120 B for 30 tensors. Nothing is left "
        "over."
    )
    assert "split by whole tensors" in found["memory-zero1-2"].explanation
    assert "Left over: 100 B. Consistent with tensors whose first dimension" in found["memory-fsdp-2"].explanation
    same = record(sample(state("ddp", 0), [16.0 * PARAMETERS], "state_bytes", "B"))
    assert row(same, "memory-ddp-2").explanation == "As predicted, to the byte."
    four = record(sample(state("fsdp", 3, 4), [4.0 * PARAMETERS], "state_bytes", "B"))
    assert row(four, "memory-fsdp-4").ratio == 1
    peak = record(sample(state("ddp", 0), [8e7], "state_bytes", "B"), sample(state("ddp", 0), [2e8], "peak_bytes", "B"))
    assert "at the peak of the step 200 MB" in ddp.evidence(peak, "memory-ddp-2")
    assert ddp.sweep(peak, "memory").splitlines()[2].endswith("200 MB")


def test_a_real_models_state_is_accounted_for_to_the_byte() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(7, 11), torch.nn.Linear(11, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 7)).sum().backward()
    optimizer.step()
    states = [t for one in optimizer.state.values() for t in one.values()]
    held = sum(t.nbytes for p in model.parameters() for t in (p, p.grad)) + sum(t.nbytes for t in states)
    parameters = sum(p.numel() for p in model.parameters())
    point = state("ddp", 0) | {"parameters": parameters}
    found = record(sample(point, [float(held)], "state_bytes", "B"), spec={"model": {"tensors": 4}})
    assert "Nothing is left over." in row(found, "memory-ddp-2").explanation


# The restart


@pytest.mark.parametrize(("killed", "every"), [(8, 5), (9, 5), (27, 10), (3, 5), (53, 20)])
def test_the_steps_of_a_restart_are_counted(killed: int, every: int) -> None:
    """A loop that saves after every so many steps and dies after one of them; the next one goes on where it saved."""
    saved, done = 0, []
    for until in (killed, killed + 5):
        for at in range(saved + 1, until + 1):
            done.append(at)
            if at % every == 0:
                saved = at
    repeated = len(done) - len(set(done))
    point = RESUMED | {"killed_at": killed, "checkpoint_steps": every}
    row_ = row(record(sample(point, [float(repeated)], "repeated", "")), "resumed")
    assert (row_.predicted, row_.measured) == (repeated, repeated)


def test_the_restart_is_told() -> None:
    found = full()
    assert row(found, "resumed").explanation == (
        "Killed after step 8, with a checkpoint every 5 steps: it went on after step 5 and did 3 steps again. Every "
        "loss is that of the run without a stop, to the last bit. From the kill to the first new step 6.5 s passed."
    )
    assert ddp.stop(found) == (5, 8)
    assert [r.case for r in ddp.runs(found)] == ["curve", "resumed"]
    assert "25 ms" in ddp.sweep(found, "restart")
    other = record(sample(RESUMED, [3.0], "repeated", ""), sample(RESUMED, [0.01], "difference", "nats"))
    assert "differ from those of the run without a stop by up to 0.01 nats" in row(other, "resumed").explanation
    lost = record(sample(RESUMED, [8.0], "repeated", ""))
    assert "it went on after step 0 and did 8 steps again" in row(lost, "resumed").explanation, "as it was measured"
    assert ddp.stop(lost) == (0, 8)
    unsaid = {k: v for k, v in RESUMED.items() if k != "killed_at"}
    with pytest.raises(EfflabError, match="resumed has no killed_at"):
        ddp.points(record(sample(unsaid, [3.0], "repeated", ""), spec={"resume": {"killed_at": 8}}))
    none = record(sample(RESUMED | {"killed_at": 10}, [0.0], "repeated", ""))
    assert ddp.points(none) == []
    assert "did 0 steps again" in ddp.evidence(none, "resumed")


# What is missing


def test_a_missing_calibration_is_named() -> None:
    for gone, said in (("together-2", "no time of together-2 or together-part-2 with 8 sequences"),
                       ("all-reduce", "no fitted all-reduce of 2 ranks")):  # fmt: skip
        kept = [s for s in CALIBRATION if not s.point["case"].startswith(gone)]
        with pytest.raises(EfflabError, match=f"record r: it has {said}"):
            ddp.points(record(samples=[*kept, *counted(DDP, 0.1, 2)]))
    kept = [s for s in CALIBRATION if s.metric != "backward_time"]
    with pytest.raises(EfflabError, match="no backward_time of together-2"):
        ddp.points(record(samples=[*kept, *counted(DDP, 0.1, 2)]))
    with pytest.raises(EfflabError, match="ddp-2 has no buckets"):
        ddp.points(record(sample(DDP, 0.1)))


def test_what_has_no_calibration_is_left_out_and_named() -> None:
    flat = [sample(message(s, 2, "fit"), 1e-3) for s in SIZES]
    found = record(samples=[*computing(), *flat, *counted(DDP, 0.1, 2), sample(message(2 * MIB), 0.002)])
    assert ddp.points(found) == []
    assert [m.split(":")[0] for m in ddp.missing(found)] == [
        "ddp-2 has no prediction",
        "all-reduce-2MiB-2 has no prediction",
    ]
    assert "times: they do not grow with the messages" in ddp.missing(found)[0]
    assert "no line fits" in ddp.calibration_text(found)
    together = {"case": "together-2", "role": "calibration", "ranks": 2, "microbatch": 8}
    found = record(samples=[*without("together-2"), failed(together), *counted(DDP, 0.1, 2), *counted(FLAT, 0.1, 1)])
    assert [r.case for r in ddp.points(found)] == []
    assert ddp.missing(found) == [
        "together-2 ran out of memory: no room", "ddp-2 has no prediction: its calibration could not be measured.",
        "flat-2 has no prediction: its calibration could not be measured.",
    ]  # fmt: skip


def alone_on_a_gpu() -> Record:
    """One GPU: a rank alone, and what two would be needed for."""

    def gone(point: dict[str, Any], metric: str = "time", unit: str = "s") -> Sample:
        return failed(point, metric, unit, status="failed", message="one GPU; two are needed")

    one = {"ranks": 1}
    reducer = {"case": "reducer-1", "role": "calibration", "microbatch": 8} | one
    return record(
        samples=[
            gone(message(8 * MIB)), *calibrating("alone", ALONE, 1), sample(reducer, 0.072),
            *counted(step("ddp", 1), 0.0725, 2), gone(DDP), gone(STRAGGLER), gone(WEAK, "efficiency", ""),
            gone(RESUMED, "repeated", ""), sample(state("ddp", 0, 1), [16.0 * PARAMETERS], "state_bytes", "B"),
        ],
        kind="cuda",
    )  # fmt: skip


def test_one_rank_alone_has_no_messages() -> None:
    found = alone_on_a_gpu()
    assert {r.case: r.predicted for r in ddp.points(found)} == pytest.approx({"ddp-1": 0.070, "memory-ddp-1": 8e7})
    assert ddp.measured_parts(found, "ddp-1") == pytest.approx(
        {"alone": 0.070, "interference": 0, "reducer": 0.002, "communication": 0.0005}
    )
    assert ddp.calibration(found) == pytest.approx({"step": 0.070})
    assert ddp.counts(found) == [1], "between two ranks nothing was measured"
    assert len(ddp.missing(found)) == 5
    assert ddp.evidence(found, "straggler-2") == "straggler-2 was not measured: one GPU; two are needed"
    assert ddp.sweep(found, "efficiency") == "efficiency-weak-2 was not measured: one GPU; two are needed"
    assert ddp.sweep(found, "messages").startswith("all-reduce-8MiB-2 was not measured")
    said = ddp.text(found)
    assert "reducer-1" in said
    assert "the backward pass can hide" not in said
    assert "Times rest on steps without communication, which are not predicted." in said
    assert "Times rest" not in ddp.text(record(samples=[]))
    assert "Times rest on the fitted messages and on steps" in ddp.text(full())
    parts = [line.split("  ")[1] for line in ddp.evidence(found, "ddp-1").splitlines()[3:8]]
    assert parts == ["computing, a rank alone", "computing, all ranks at once", "DDP's reducer", "the rest", "step"]
    assert ddp.sweep(found, "steps").splitlines()[2].split() == [
        "ddp-1", "70", "ms", "2", "ms", "500", "µs", "72.5", "ms", "70", "ms", "−3.4%",
    ], "no message is counted"  # fmt: skip
    slow, fast = (
        row(record(samples=[*found.samples, *counted(step("other", 1), seconds, 2)]), "other-1").explanation
        for seconds in (0.080, 0.065)
    )
    assert slow.endswith("Beyond computing and reducer 8 ms is left; one rank sends nothing.")
    assert fast.endswith(
        "Computing and reducer by themselves take 7 ms longer than this step; one rank sends nothing. Consistent with "
        "steps that were disturbed while they were timed."
    )
    said = ddp.describe(ddp.cases([s.point for s in found.samples]))
    assert "under DDP on 1 rank, each" in said
    assert "state on the only rank: 5,000,000" in said
    assert "Not in it: all-reduce-8MiB-2 was not measured: one GPU; two are needed; ddp-2" in ddp.summary(found)
    with pytest.raises(EfflabError, match="nothing of 'sampler'"):
        ddp.sweep(found, "sampler")


# The protocol


def test_the_text_names_every_case_and_is_the_same_every_time() -> None:
    found = full()
    said = ddp.text(found)
    assert said == ddp.text(Record.model_validate(found.model_dump(by_alias=True)))
    for row_ in ddp.points(found):
        assert row_.case in said
    summary = ddp.summary(found)
    assert summary in said
    assert (
        "Scaling efficiency: weak on 2 ranks 70.0% (predicted 79.7%), strong on 2 ranks 50.0% (predicted 59.5%)."
        in summary
    )
    assert "2 all-reduces of other sizes: median error" in summary
    assert "6 steps: median error" in summary
    assert "1 norm of gradients: median error" in summary
    assert len(summary.splitlines()) == 8, "a line for each thing"
    head, rows, numeric = ddp.table(found)
    assert all(len(r) == len(head) for r in rows)
    assert max(numeric) < len(head) - 1
    assert "Some CPU (2 cores, 1 thread), 2026-11-21" in ddp.banner(found)
    assert "2 ranks, gloo." in ddp.banner(found)
    two = record(spec={"nodes": 2})
    assert "2 ranks on 2 nodes, gloo." in ddp.banner(two)


def test_summaries_of_little() -> None:
    assert ddp.summary(record(samples=[])) == "No case of this record was measured."
    assert ddp.summary(record(*counted(DDP, 0.1, 2), spec={"scale": "smoke"})).startswith("Smoke scale")
    assert ddp.text(record(samples=[]))


def test_sweeps() -> None:
    found = full()
    for name in ddp.TABLES:
        assert len(ddp.sweep(found, name).splitlines()) > 2
    held_out = [line for line in ddp.sweep(found, "messages").splitlines() if "held out" in line]
    assert held_out[1].split()[:5] == ["2", "8", "MiB", "held", "out"]
    assert ddp.sweep(found, "steps").splitlines()[2].split()[:4] == ["ddp-2", "2", "70", "ms"]
    with pytest.raises(EfflabError, match="messages"):
        ddp.sweep(found, "nothing")


def test_comparisons() -> None:
    found = full()
    assert ddp.compare(found, "per-tensor-2", "ddp-2").splitlines() == [
        "per-tensor-2: predicted 99 ms, measured 110 ms", "ddp-2: predicted 87.8 ms, measured 100 ms",
        "faster by: predicted 1.13×, measured 1.1×",
    ]  # fmt: skip
    assert ddp.compare(found, "ddp-2", "alone-2").splitlines()[1] == "alone-2: measured 70 ms"
    assert ddp.compare(found, "efficiency-weak-2", "efficiency-strong-2").splitlines()[0] == (
        "efficiency-weak-2: predicted 79.7%, measured 70.0%"
    )
    equal = record(sample(EQUAL, [0.0], "difference", ""), sample(EQUAL, [0.0], "rounding", ""))
    assert ddp.compare(equal, "gradient-2", "alone-2") == (
        "gradient-2: the two gradients are the same to the last bit (rounding: 0). So there is nothing to compare."
    )
    assert "smaller by: predicted 2×" in ddp.compare(found, "memory-ddp-2", "memory-fsdp-2")
    with pytest.raises(EfflabError, match="Did you mean"):
        ddp.compare(found, "ddp-3", "alone-2")
    with pytest.raises(EfflabError, match="one kind"):
        ddp.compare(found, "ddp-2", "memory-ddp-2")
    assert ddp.compare(alone_on_a_gpu(), "ddp-2", "ddp-1").endswith("So there is nothing to compare.")


def test_evidence_shows_the_parts() -> None:
    found = full()
    said = ddp.evidence(found, "all-reduce-8MiB-2")
    assert "2 steps of 200 µs are 400 µs of latency; 8.39 MB sent per rank at 2 GB/s are 4.19 ms of transfer" in said
    assert "so bandwidth limits it" in said
    assert "1.82 GB/s algorithm bandwidth, 1.82 GB/s bus bandwidth" in said
    lines = [line.split() for line in ddp.evidence(found, "ddp-2").splitlines()]
    assert ["transfer", "of", "20", "MB", "10", "ms"] in lines
    assert ["messages", "that", "show,", "and", "the", "rest", "10.8", "ms", "17", "ms"] in lines
    assert "100 ms of ddp-2 as measured, and a delay of 50 ms." in ddp.evidence(found, "straggler-2")
    assert "70 ms alone over 58.8 ms × 2" in ddp.evidence(found, "efficiency-strong-2")
    assert "weights 10 MB, gradients 10 MB, AdamW 20 MB" in ddp.evidence(found, "memory-fsdp-2")
    with pytest.raises(EfflabError, match="case"):
        ddp.evidence(found, "nothing")


def test_bus_bandwidth_stands_beside_algorithm_bandwidth() -> None:
    """16 MiB between 4 ranks in 18 ms: 932 MB/s for the caller, 1.5 times that on each link."""
    assert ddp.bandwidths(16 * MIB, 0.018, 4) == pytest.approx((16 * MIB / 0.018, 1.5 * 16 * MIB / 0.018))
    assert ddp.bandwidths(16 * MIB, 0.018, 2)[0] == ddp.bandwidths(16 * MIB, 0.018, 2)[1]


def test_cases_are_what_can_be_predicted_and_describe_says_what_they_are() -> None:
    found = full()
    cases = ddp.cases([s.point for s in found.samples])
    assert set(cases) == {r.case for r in ddp.points(found)}
    said = " ".join(ddp.describe(cases).split())
    for words in (
        "all-reduce-32KiB-2 time of an all-reduce of 32 KiB between 2 ranks",
        "strong-2 time of a step under DDP on 2 ranks, each with 4 sequences",
        "on 2 ranks, each with 4 × 8 sequences, reduced once",
        "efficiency of strong scaling on 2 ranks",
        "different orders of 101 samples in 6 epochs, without set_epoch",
        "5,000,000 parameters, FSDP, ZeRO stage 3",
        "steps that are done again after a kill after step 8, with a checkpoint every 5",
    ):
        assert words in said
    late = {"s": STRAGGLER | {"sleep": 0.05}}
    assert "of which the last begins late, by 50 ms" in ddp.describe(late)
    assert "memory" not in ddp.describe(cases, ["ddp-2"])


# Predictions of the calculators


OWN = {
    "model": "custom", "own_parameters": PARAMETERS, "gradients": "fp32", "forward_time": 0.020,
    "backward_time": 0.041, "update_time": 0.010, "ranks": 2, "scaling": "weak", "link": "custom",
    "own_link": 2e9, "own_ranks_per_node": 8, "network": "custom", "own_network": 1e9, "latency": 200e-6,
    "bucket_bytes": 2**24, "overlap": 0,
}  # fmt: skip  # 20 MB in buckets of 16 MiB are 2, as `full` has them


def predicted(**inputs: Any) -> Prediction:
    outputs = {"share": (0.9, ""), "speedup": (1.8, ""), "step_time": (0.08, "s"), "buckets": (3.0, "")}
    return Prediction.new("ddp", outputs, inputs=OWN | inputs, source="calculator", calculator="ddp-scaling")


def test_scaling_is_answered_where_the_inputs_are_the_runs_own() -> None:
    found = full()
    assert set(ddp.asked(predicted())) == {"share", "speedup", "step_time"}
    rows = ddp.answers(found, predicted())
    assert {n: r.predicted for n, r in rows.items()} == {"share": 0.9, "speedup": 1.8, "step_time": 0.08}
    assert {n: r.measured for n, r in rows.items()} == pytest.approx({"share": 0.7, "speedup": 1.4, "step_time": 0.1})
    assert rows["step_time"].error == pytest.approx(-0.2)
    strong = ddp.answers(found, predicted(scaling="strong"))
    assert {n: r.measured for n, r in strong.items()} == pytest.approx(
        {"share": 0.5, "speedup": 1.0, "step_time": 0.07}
    )
    together = {"forward_time": 0.022, "backward_time": 0.043, "update_time": 0.012}
    assert set(ddp.answers(found, predicted(**together))) == {"step_time"}
    for other in ({"ranks": 4}, {"gradients": "bf16"}, {"own_link": 1e9}, {"latency": 1e-5}, {"overlap": 1},
                  {"forward_time": 0.5}, {"own_parameters": 8e9}, {"own_link": "fast"}, {"own_ranks_per_node": 1},
                  {"own_ranks_per_node": "all"}, {"bucket_bytes": 2**23}, {"bucket_bytes": 25 * MIB},
                  {"bucket_bytes": "large"}, {"bucket_bytes": 0}, {"bucket_bytes": 1e-320},
                  {"own_ranks_per_node": 1, "network": "400 Gbit/s"}):  # fmt: skip
        assert ddp.answers(found, predicted(**other)) == {}, other
    across = {"own_ranks_per_node": 1, "own_link": 9e9, "own_network": 2e9}  # one rank in each of two nodes
    assert set(ddp.answers(found, predicted(**across))) == {"share", "speedup", "step_time"}
    for other in ({"model": "Llama 3.1 8B"}, {"link": "400 Gbit/s"}):
        assert ddp.asked(predicted(**other)) == {}
    assert ddp.answers(record(samples=[]), predicted()) == {}
    assert ddp.asked(Prediction.new("ddp", {f"{CALIBRATED}latency.latency": (1e-4, "s")})) == {}


def test_what_the_calculator_offers_is_what_is_asked() -> None:
    """The names of outputs and inputs are those of the calculator itself."""
    calculators = pytest.importorskip("efflab.calculators.ddp")
    own = calculators.scaling.evaluate(**OWN)
    prediction = own.prediction()
    assert {n: prediction.outputs[n].unit for n in ddp.ANSWERED["ddp-scaling"]} == ddp.ANSWERED["ddp-scaling"]
    assert set(OWN) <= set(prediction.inputs)
    assert set(ddp.answers(full(), prediction)) == {"share", "speedup", "step_time"}
    assert ddp.answers(full(), calculators.scaling.evaluate().prediction()) == {}, "the defaults are not this run's"


# Damage


READERS = (
    ddp.points, ddp.table, ddp.summary, ddp.text, ddp.missing, ddp.calibration_text, ddp.calibration, ddp.counts,
    ddp.runs, ddp.stop,
)  # fmt: skip


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (sample({k: v for k, v in DDP.items() if k != "case"}, 0.1), "point.case must be a text, it is missing"),
        (sample(DDP | {"ranks": 0}, 0.1), "point.ranks must be a whole number"),
        (sample(DDP | {"ranks": 2.5}, 0.1), "point.ranks must be a whole number"),
        (sample(DDP | {"method": "guess"}, 0.1), "one of ddp, flat, per-tensor"),
        (sample(DDP | {"gradient_bytes": -1}, 0.1), "point.gradient_bytes must be a number greater than zero"),
        (sample(DDP | {"microbatch": "8"}, 0.1), "point.microbatch"),
        (sample(DDP | {"microbatches": True}, 0.1), "point.microbatches"),
        (sample(DDP | {"buckets": 0}, 0.1), "point.buckets"),
        (sample(message(MIB) | {"message_bytes": 10**400}, 0.1), "point.message_bytes"),
        (sample(WEAK | {"scaling": "none"}, [0.5], "efficiency", ""), "one of weak, strong"),
        (sample(SET | {"epochs": 0}, [1.0], "orders", ""), "point.epochs"),
        (sample(SET | {"set_epoch": "no"}, [1.0], "orders", ""), "point.set_epoch must be true or false, got 'no'"),
        (sample({k: v for k, v in UNSET.items() if k != "set_epoch"}, [1.0], "orders", ""), "point.set_epoch must be"),
        (sample(norm(4, "noise") | {"ranks": "two"}, [1.0], "norm_squared", ""), "point.ranks must be a whole number"),
        (sample(state("x", 4), [1.0], "state_bytes", "B"), "one of 0, 1, 2, 3"),
        (sample(state("x", True), [1.0], "state_bytes", "B"), "point.zero_stage"),  # type: ignore[arg-type]
        (sample(norm(1) | {"batch": None or 0}, [1.0], "norm_squared", ""), "point.batch"),
        (sample(RESUMED | {"killed_at": -3}, [1.0], "repeated", ""), "point.killed_at"),
        (sample(DDP, [5.0], "time", "B"), "its time is in 'B'"),
        (sample(WEAK, [0.0], "efficiency", ""), "efficiency cannot be 0.0"),
        (sample(WEAK, [0.5], "efficiency", "s"), "its efficiency is in 's'"),
        (sample(DDP, [0.0], "buckets", ""), "buckets cannot be 0.0"),
        (sample(EQUAL, [-1e-7], "difference", ""), "difference cannot be -1e-07"),
        (sample(RESUMED, [1.0], "difference", "B"), "its difference is in 'B'"),
        (sample(CURVE, [-1.0], "loss", "nats"), "loss cannot be -1.0"),
        (sample(norm(1), [0.0], "norm_squared", ""), "norm_squared cannot be 0.0"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_damage_is_named_by_every_reader(damaged: Sample, said: str) -> None:
    found = Record.model_validate(record(damaged).model_dump(by_alias=True))
    for read in READERS:
        with pytest.raises(EfflabError, match="record r: samples") as caught:
            read(found)
        assert said in str(caught.value)


def test_other_topics_and_absurd_numbers_are_refused() -> None:
    with pytest.raises(EfflabError, match="'roofline'; 'ddp' is needed"):
        ddp.points(record(topic="roofline"))
    huge = sample(state("ddp", 0) | {"parameters": 2**62, "ranks": 2**60}, [1.0], "state_bytes", "B")
    assert isinstance(ddp.points(record(huge)), list)


# Pictures


@pytest.fixture
def plots() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    return pytest.importorskip("efflab.plots.ddp")


def test_pictures_are_drawn_of_what_there_is(plots: Any) -> None:
    import matplotlib.pyplot as plt

    from efflab.plots import draw

    four = [*fit(4), *computing(4), sample(message(8 * MIB, 4), 0.01), *counted(step("ddp", 4), 0.12, 2),
            sample(WEAK | {"case": "efficiency-weak-4", "ranks": 4}, 0.6, "efficiency", "")]  # fmt: skip
    for found in (full(), record(samples=[*full().samples, *four], spec={"ranks_per_node": 4}, cores=4)):
        for kind in ddp.PICTURES:
            plt.close(draw(found, kind))
    for name in ddp.PICTURES[:-1]:
        with pytest.raises(EfflabError, match="to draw"):
            getattr(plots, name)(record(samples=[]))
    for name in ("messages", "bandwidth", "efficiency", "restart"):
        figure = getattr(plots, name)(alone_on_a_gpu())
        assert "was not measured: one GPU" in figure.axes[0].texts[0].get_text()
        assert figure.axes[0].get_title().endswith(" to draw"), "what says why need not be that nothing was measured"
        plt.close(figure)


def test_the_picture_of_steps_stacks_what_was_measured(plots: Any) -> None:
    axes = plots.ddp(full()).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "ddp-2",
        "strong-2",
        "flat-2",
        "per-tensor-2",
        "accumulate-2",
    ]
    first = axes.patches[:4]
    assert [b.get_width() for b in first] == pytest.approx([70, 7, 6, 17])
    assert [b.get_x() for b in first] == pytest.approx([0, 70, 77, 83])
    assert axes.lines[0].get_xdata()[0] == pytest.approx(87.8)
    assert axes.texts[0].get_text() == "100 ms (−12%)"


def test_a_step_whose_parts_are_not_known_is_shown_whole(plots: Any) -> None:
    """alone-2 failed, together-2 did not: the step has a prediction, its parts have no first one."""
    alone = {"case": "alone-2", "role": "calibration", "ranks": 2, "microbatch": 8}
    kept = [*without("alone-2"), failed(alone), *counted(DDP, 0.1, 2), *counted(STRONG, 0.07, 2)]
    found = record(samples=kept)
    assert ddp.sweep(found, "steps").splitlines()[2].split() == [
        "ddp-2", "2", "100", "ms", "87.8", "ms", "−12%",
    ]  # fmt: skip
    axes = plots.ddp(found).axes[0]
    assert [b.get_width() for b in axes.patches] == pytest.approx([100, 21 + 10 + 11, 6, 6, 16])
    legend = axes.get_legend_handles_labels()[1]
    assert sorted(legend) == sorted(["predicted", plots.WHOLE[1], *(words for _, words in plots.PARTS.values())])


def test_the_picture_of_messages_shows_line_and_points(plots: Any) -> None:
    line, points, held_out = plots.messages(full()).axes[0].lines
    assert [exact(s, 2) for s in line.get_xdata()] == pytest.approx(list(line.get_ydata()))
    assert list(points.get_xdata()) == SIZES
    assert list(held_out.get_ydata()) == [0.0005, 0.0046]
    drawn = plots.bandwidth(full()).axes[0].lines
    assert pytest.approx(drawn[1].get_ydata()[0]) == 2e9, "what it approaches"
    measured = dict(zip(drawn[2].get_xdata(), drawn[2].get_ydata(), strict=True))
    assert measured[8 * MIB] == pytest.approx(8 * MIB / 0.0046)


def test_messages_without_a_fit_are_drawn_too(plots: Any) -> None:
    for fitted in ([], [failed(message(s, 2, "fit")) for s in SIZES]):
        found = record(samples=[*fitted, *(sample(message(s), exact(s, 2)) for s in (32 * KIB, 8 * MIB))])
        (points,) = plots.messages(found).axes[0].lines
        assert list(points.get_xdata()) == [32 * KIB, 8 * MIB]
        (bus,) = plots.bandwidth(found).axes[0].lines
        assert bus.get_ydata()[1] == pytest.approx(8 * MIB / exact(8 * MIB, 2))
    assert plots.messages(record(samples=[sample(message(MIB), 0.003)])).axes[0].lines


def test_the_pictures_of_efficiency_and_restart(plots: Any) -> None:
    turns = sample(WEAK, [0.60, 0.69, 0.70, 0.75, 0.90], "efficiency", "")
    (bars,) = (c for c in plots.efficiency(record(*counted(DDP, 0.1, 2), turns)).axes[0].containers)
    (low, high) = bars.lines[2][0].get_segments()[1]
    assert (low[1], high[1]) == pytest.approx((69, 75)), "the quarters, which do not lie as far from the median"
    weak = plots.efficiency(full()).axes[0].lines[1]
    assert list(weak.get_ydata()) == pytest.approx([100, 100 * 70 / 87.8])
    figure = plots.restart(full())
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["without a stop", "killed and resumed", "killed after step 8", "went on after step 5",
                      "done again: 3 steps"]  # fmt: skip


# The real experiment


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    experiment = pytest.importorskip("efflab.experiments.ddp")
    from efflab.experiments import runner

    out = tmp_path_factory.mktemp("ddp")
    for attempt in range(3):  # messages this small take times that do not grow with their size while others compute
        folder = out / str(attempt)
        found = runner.run(experiment.EXPERIMENT, scale="smoke", device="cpu", out=folder, report=lambda _: None)
        if ddp.line(found[0], 2) is not None:
            break
    return found


def test_a_run_that_was_recorded_reconciles(measured: tuple[Record, Path]) -> None:
    found, path = measured
    assert ddp.text(records.load_record(path)) == ddp.text(found)
    rows = {r.case: r for r in ddp.points(found)}
    assert {"ddp-2", "strong-2", "flat-2", "per-tensor-2", "accumulate-2", "straggler-2", "efficiency-weak-2"} <= set(
        rows
    )
    for name in ddp.TABLES:
        assert ddp.sweep(found, name)
    for case in rows:
        assert ddp.evidence(found, case)


def test_a_real_run_counts_as_predicted(measured: tuple[Record, Path]) -> None:
    rows = {r.case: r for r in ddp.points(measured[0])}
    for case in ("set-epoch-2", "no-set-epoch-2", "resumed"):
        assert rows[case].ratio == 1, rows[case]
    assert "to the last bit" in rows["resumed"].explanation
    assert rows["gradient-2"].explanation.startswith("Equal within rounding.")
    assert "Nothing is left over." in rows["memory-ddp-2"].explanation
    assert rows["memory-zero1-2"].ratio == pytest.approx(1, rel=0.05)
