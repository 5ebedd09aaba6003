"""Reconciliation on records of simulated devices, so that each result is known by hand.

A device takes so many watts while it waits, copies or multiplies; its counter is read as its maker updates it. What a
record says of it is power times time, which no formula of the course had a part in.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from efflab import lab, labbook, plots, reconcile, records
from efflab.errors import EfflabError
from efflab.reconcile import energy
from efflab.records import Energy, Environment, Prediction, Record, Sample
from efflab.units import JOULE, JOULE_PER_FLOP, WATT, show

ROOT = Path(__file__).parents[2]
SIZE = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


@dataclass
class Device:
    """A simulated device: times and watts that the test chose.

    Attributes:
        idle: W in which nothing happens.
        moving: W above idle while it copies.
        computing: W above idle while it multiplies without pause.
        peak: FLOP/s by dtype.
        bandwidth: B/s.
        fixed, each: s of a batch whatever its size, and of each of its samples, by dtype.
    """

    idle: float = 100.0
    moving: float = 150.0
    computing: float = 400.0
    bandwidth: float = 2e12
    width: int = 1000
    layers: int = 3

    @property
    def peak(self) -> dict[str, float]:
        return {"fp32": 50e12, "bf16": 400e12}

    def product(self, dtype: str, n: int = 4000) -> list[Sample]:
        point = {"case": f"product-{dtype}", "role": "calibration", "dtype": dtype, "m": n}
        seconds = 2 * n**3 / self.peak[dtype]
        traffic = 3 * n * n * SIZE[dtype] / self.bandwidth
        watts_of_arithmetic = self.computing * seconds
        return self.both(point, seconds, self.idle * seconds + watts_of_arithmetic + self.moving * traffic)

    def stream(self) -> list[Sample]:
        point = {"case": "stream", "role": "calibration", "dtype": "fp32", "bytes": 2**30}
        seconds = 2**30 / self.bandwidth
        return self.both(point, seconds, (self.idle + self.moving) * seconds)

    def work(self, dtype: str, batch: int, training: bool = False) -> tuple[float, float]:
        """FLOP and B, operation by operation."""
        flops = moved = 0.0
        w, b, e = self.width, batch, SIZE[dtype]
        for layer in range(self.layers):
            flops += 2 * b * w * w
            moved += (b * w + w * w + b * w) * e  # input, weights, output
            if layer:
                moved += 2 * b * w * e  # the ReLU of its input
        if training:
            for layer in range(self.layers):
                flops += 2 * b * w * w
                moved += (b * w + b * w + w * w) * e  # gradient of the weights
                if layer:
                    flops += 2 * b * w * w
                    moved += (b * w + w * w + b * w) * e  # of the input
                    moved += 3 * b * w * e  # through the ReLU
                moved += 3 * w * w * e  # the update
        return flops, moved

    def joules(self, dtype: str, flops: float, moved: float, seconds: float) -> float:
        return self.idle * seconds + self.computing * flops / self.peak[dtype] + self.moving * moved / self.bandwidth

    def batch(self, dtype: str, batch: int, seconds: float, factor: float = 1.0) -> list[Sample]:
        point = {"case": f"infer-{dtype}-{batch}", "role": "inference", "dtype": dtype, "batch": batch}
        point["series"] = f"{dtype} by batch"
        return self.both(point, seconds, factor * self.joules(dtype, *self.work(dtype, batch), seconds))

    def train(self, dtype: str, batch: int, seconds: float, factor: float = 1.0) -> list[Sample]:
        point = {"case": f"train-{dtype}", "role": "training", "dtype": dtype, "batch": batch}
        return self.both(point, seconds, factor * self.joules(dtype, *self.work(dtype, batch, True), seconds))

    @staticmethod
    def both(point: dict[str, Any], seconds: float, joules: float) -> list[Sample]:
        return [sample(point, [seconds] * 3), sample(point, [joules] * 3, "energy", "J")]


def sample(point: dict[str, Any], values: list[float], metric: str = "time", unit: str = "s", **more: Any) -> Sample:
    return Sample(**{"point": point, "metric": metric, "unit": unit, "values": values, "status": "ok"} | more)


def read_in_windows(watts: float, period: float, length: float, repeats: int, seed: int = 1) -> Sample | Any:
    """What a counter that moves every `period` gains in windows that begin at any moment and end a little late."""
    draw = random.Random(seed)
    gains, seconds, at = [], [], draw.random()
    for _ in range(repeats):
        took = length + 0.3 * period * draw.random()
        gains.append((math.floor((at + took) / period) - math.floor(at / period)) * period * watts)
        seconds.append(took)
        at += took + period * draw.random()
    point = {"case": f"window-{length * 1e3:g}", "role": "window", "dtype": "fp32", "length": length}
    return [sample(point, gains, "gain", "J"), sample(point, seconds)]


def on(kind: str, name: str = "Some device") -> Environment:
    return Environment(
        device=name, kind=kind, count=1, memory=2**34, threads=2, cores=2, torch="2.13", python="3.11", efflab="0.1"
    )


def record(*samples: Sample | list[Sample], kind: str = "cuda", **changes: Any) -> Record:
    flat = [s for some in samples for s in (some if isinstance(some, list) else [some])]
    counter = changes.pop("counter", "nvml-counter" if kind == "cuda" else "none")
    period = {"nvml-counter": 0.1, "rapl": 1e-3}.get(counter, 0.0)
    line = changes.pop("line", LINE)
    sizes = {s.point["batch"] for s in flat if s.point.get("role") == "inference" and "batch" in s.point}
    for s in flat:
        if s.point.get("role") == "inference":
            s.point.setdefault("calibrates", s.point.get("batch") in line)
    spec = {
        "batches": sorted(sizes | {*line}), "line": list(line),
        "scale": "gpu" if kind == "cuda" else "cpu", "width": 1000, "layers": 3, "window": 2.0, "period": period,
        "counter": counter, "why": changes.pop("why", ""),
    }  # fmt: skip
    if counter != "none":
        changes.setdefault(
            "energy", Energy(source=counter, joules=9e3, window_s=60.0, period_s=period, of="the counter of a test")
        )
    data: dict[str, Any] = {
        "id": "r", "topic": "energy", "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:05:00Z",
        "environment": on(kind), "spec": spec, "samples": flat,
    }  # fmt: skip
    return Record(**data | changes)


BATCHES = (1, 4, 16, 64)
LINE = (4, 64)  # the batches that calibrate
FIXED, EACH = {"fp32": 4e-6, "bf16": 2e-6}, {"fp32": 3e-7, "bf16": 5e-8}  # s


def idle(watts: float = 100.0) -> Sample:
    return sample({"case": "idle", "role": "idle"}, [watts - 1, watts, watts + 1], "power", "W")


def gpu(
    device: Device | None = None,
    *more: Any,
    drop: tuple[str, ...] = (),
    batches: tuple[int, ...] = BATCHES,
    **changes: Any,
) -> Record:
    """A GPU with NVML's counter: every case of the lab."""
    of = device or Device()
    samples: list[Any] = [idle(of.idle), of.stream()]
    for dtype in ("fp32", "bf16"):
        samples.append(of.product(dtype))
        samples += [of.batch(dtype, b, FIXED[dtype] + EACH[dtype] * b) for b in batches]
        samples.append(of.train(dtype, 16, 3e-5))
    busy = of.idle + of.computing
    point = {"case": "counter", "role": "counter", "dtype": "fp32", "batch": 16}
    samples += [
        sample(point, [busy * 10] * 3, "energy", "J"), sample(point, [busy * 9.98] * 3, "integrated", "J"),
        sample(point, [10.0] * 3),
        *(read_in_windows(busy, 0.1, length, 12 if length < 1 else 4) for length in LENGTHS),
        *(sample({"case": "limit", "role": "limit"}, [w], m, "W") for m, w in
          (("limit", 700.0), ("limit_default", 700.0), ("limit_least", 200.0), ("limit_most", 700.0))),
        *more,
    ]  # fmt: skip
    flat = [s for some in samples for s in (some if isinstance(some, list) else [some])]
    return record([s for s in flat if str(s.point["case"]) not in drop], **changes)


LENGTHS = (0.013, 0.033, 0.13, 0.33, 1.03, 3.03)  # s
WHY = "RAPL: only root may read the energy counters here"


def cpu(rating: list[float] | None = None, batches: tuple[int, ...] = BATCHES, line: tuple[int, int] = LINE) -> Record:
    """A CPU without a counter: times, and a modelled band where it has a rating."""
    of = Device()
    samples = [s for s in gpu(of, batches=batches, line=line).samples if s.metric == "time" and s.point["role"] in
               ("calibration", "inference", "training")]  # fmt: skip
    found = Energy(why=f"{WHY}; and the catalog has no rated power of this device")
    if rating:
        found = Energy(
            source="modelled", band=[0.3 * 60 * rating[0], 60 * rating[1]], rating=rating, window_s=60.0,
            of="a processor; 2 cores", why=WHY,
        )  # fmt: skip
    return record(*samples, kind="cpu", why=WHY, energy=found, line=line)


def rows(found: Record, metric: str) -> dict[str, energy.Row]:
    return {r.case: r for r in energy.points(found) if r.metric == metric}


# Time


def test_a_batch_lies_on_the_line_through_the_two_that_calibrate() -> None:
    found = rows(gpu(), "time")
    assert found["infer-fp32-16"].predicted == pytest.approx(4e-6 + 16 * 3e-7)
    assert found["infer-bf16-1"].predicted == pytest.approx(2e-6 + 5e-8), "the smallest batch is predicted too"
    assert found["infer-bf16-1"].explanation == "As predicted, within 1%."
    assert not {"infer-fp32-4", "infer-fp32-64", "infer-bf16-4", "infer-bf16-64"} & set(found), "these calibrate"
    assert found["infer-fp32-16"].batch == 16
    other = gpu(drop=("infer-fp32-1",))
    other.samples.append(Device().batch("fp32", 1, 1.0)[0].model_copy(deep=True))
    other.samples[-1].point["calibrates"] = False
    assert rows(other, "time")["infer-fp32-16"].predicted == found["infer-fp32-16"].predicted
    assert not [c for c in rows(gpu(drop=("infer-fp32-4",)), "time") if c.startswith("infer-fp32")], "no line"


def test_no_part_of_the_line_is_negative() -> None:
    of = Device()
    level = [of.batch("fp32", b, t) for b, t in ((1, 5e-6), (4, 2e-6), (64, 1e-6))]
    assert energy.line(record(*level), "fp32") == (2e-6, 0.0)
    steep = [of.batch("fp32", b, t) for b, t in ((4, 1e-6), (16, 6e-6), (64, 1e-4))]
    assert energy.line(record(*steep), "fp32") == (0.0, pytest.approx(1e-4 / 64))
    assert energy.line(record(level[0], level[2]), "fp32") is None
    assert energy.points(record(level[0])) == []


def test_a_step_takes_three_forward_passes_of_its_batch_and_dtype() -> None:
    found = rows(gpu(), "time")
    assert found["train-fp32"].predicted == pytest.approx(3 * (4e-6 + 16 * 3e-7))
    assert found["train-bf16"].predicted == pytest.approx(3 * (2e-6 + 16 * 5e-8))
    assert found["train-fp32"].measured == 3e-5
    left = rows(gpu(drop=("infer-fp32-16",)), "time")
    assert "train-fp32" not in left and "train-bf16" in left


def test_explanations_of_steps_follow_the_records_own_numbers() -> None:
    def step(seconds: float, *more: Any, **changes: Any) -> str:
        of = Device()
        found = record(of.stream(), *more, of.batch("fp32", 16, 1e-5), of.train("fp32", 16, seconds), **changes)
        return rows(found, "time")["train-fp32"].explanation

    assert step(3e-5) == "As predicted, within 1%."
    # Three layers of a million weights, each read with its gradient and written: 36 MB in 18 µs.
    assert step(4.8e-5) == (
        "Backward pass and update take 3.8 times as long as the forward pass, not twice. The update moves 36 MB, 18 µs "
        "at the stream's rate. With it the prediction is 48 µs."
    )
    assert step(2e-4).endswith("at the stream's rate. The record does not explain it.")
    assert step(1.5e-5) == (
        "Backward pass and update take 0.5 times as long as the forward pass, not twice. "
        "The record does not explain it."
    )
    warned = step(2e-4, warnings=["infer-fp32-16: disturbed: something"])
    assert warned.startswith("The prediction rests on infer-fp32-16, which the record says was disturbed.")


def test_work_is_counted_as_operation_by_operation() -> None:
    of, found = Device(), gpu()
    for s in found.samples:
        if s.metric == "time" and s.point["role"] in ("inference", "training"):
            dtype, batch = str(s.point["dtype"]), int(s.point["batch"])  # type: ignore[arg-type]
            expected = of.work(dtype, batch, s.point["role"] == "training")
            assert energy.work(found, s.point) == pytest.approx(expected)


def test_explanations_of_batches_follow_the_records_own_numbers() -> None:
    of = Device()

    def batch(size: int, seconds: float, *others: tuple[int, float], **changes: Any) -> str:
        timed = [of.batch("fp32", b, t) for b, t in (*others, (size, seconds))]
        found = record(of.product("fp32"), of.stream(), *timed, **changes)
        return rows(found, "time")[f"infer-fp32-{size}"].explanation

    line = ((4, 1e-5), (64, 7e-5))  # 6 µs, and 1 µs for each sample
    assert batch(16, 2.2e-5, *line) == "As predicted, within 1%."
    # A small batch that parts from the line, as the record shows it.
    assert batch(2, 1.3e-5, *line) == "A batch of 4 takes less, 10 µs. Consistent with another kernel."
    assert batch(1, 4e-6, *line) == (
        "It takes less than the 6 µs that the fitted line gives to every batch. Consistent with another kernel."
    )
    assert batch(2, 5.5e-6, (1, 8e-6), *line) == "A batch of 1 takes longer, 8 µs. Consistent with another kernel."
    # Weights of 4 MB a layer take 2 µs whatever the batch, so that the roofline is flat: 6.1 µs.
    flat = batch(16, 6.3e-6, (4, 6.2e-6), (64, 2e-5))
    assert flat.startswith("The roofline, with the rates of the product and of the stream, gives 6.")
    assert "overlap, where the line adds them" in flat
    nothing = batch(16, 5e-5, *line)
    assert nothing.startswith("It reaches 1.92 TFLOP/s and ") and nothing.endswith("The record does not explain it.")
    warned = batch(16, 5e-5, *line, warnings=["infer-fp32-64: disturbed: something"])
    assert warned.startswith("The prediction rests on infer-fp32-64, which the record says was disturbed.")


# Energy


def test_the_constants_are_the_devices_own() -> None:
    known = energy.constants(gpu())
    assert known is not None
    assert known.idle == 100
    assert known.per_byte == pytest.approx(150 / 2e12)
    assert known.per_flop == pytest.approx({"fp32": 400 / 50e12, "bf16": 400 / 400e12})


def test_energies_of_batches_and_steps_are_predicted_from_them() -> None:
    found = rows(gpu(), "energy")
    for name in ("infer-fp32-1", "infer-fp32-16", "infer-bf16-64", "train-fp32", "train-bf16"):
        assert found[name].ratio == pytest.approx(1), name
        assert found[name].explanation == "As predicted, within 1%."
    parts = energy.expected_energy(gpu(), gpu().find("time", case="train-fp32")[0].point, 3e-5)
    assert parts is not None
    assert parts[2] == pytest.approx(100 * 3e-5)


def test_a_dtype_without_a_product_is_charged_as_fp32_and_says_so() -> None:
    row = rows(gpu(drop=("product-bf16",)), "energy")["infer-bf16-64"]
    flops, moved = Device().work("bf16", 64)
    assert row.predicted == pytest.approx(100 * row_time(64) + 150 * moved / 2e12 + 400 * flops / 50e12)
    assert "charged as in fp32: bf16 has no product of its own" in row.explanation
    assert "No energy per operation in bf16: that of fp32 takes" in energy.calibration_text(gpu(drop=("product-bf16",)))


def row_time(batch: int) -> float:
    return FIXED["bf16"] + EACH["bf16"] * batch


@pytest.mark.parametrize("gone", ["idle", "stream"])
def test_without_what_calibrates_no_energy_is_predicted(gone: str) -> None:
    found = gpu(drop=(gone,))
    assert {r.role for r in energy.points(found) if r.metric == "energy"} == {"counter"}
    assert "No energy is predicted" in energy.calibration_text(found)
    assert "energy-per-byte" not in energy.calibration(found)


def test_a_stream_that_takes_no_more_than_idle_predicts_nothing() -> None:
    assert energy.constants(gpu(Device(moving=0.0))) is None
    assert "No energy is predicted" in energy.calibration_text(gpu(Device(moving=0.0)))


def test_explanations_of_energies_follow_the_records_own_numbers() -> None:
    of = Device()

    def one(factor: float, **changes: Any) -> str:
        found = gpu(of, of.batch("fp32", 32, 1.4e-5, factor), **changes)
        return rows(found, "energy")["infer-fp32-32"].explanation

    assert one(1.0) == "As predicted, within 1%."
    above = one(1.6)
    assert above.startswith("Predicted: operations ")
    assert "100 W of them idle. Consistent with power that a busy device takes beside" in above
    below = one(0.6)
    assert below.startswith("Predicted: operations "), below
    assert "Consistent with power" not in below
    # Half a period more or less in so short a window explains it.
    short = gpu(of, of.batch("fp32", 32, 1.4e-5, 1.6))
    short.spec["window"] = 0.15
    assert rows(short, "energy")["infer-fp32-32"].explanation == "Within the 67% that the counter's period allows."


def test_calibration_answers_what_the_record_holds() -> None:
    of, found = Device(), energy.calibration(gpu())
    assert set(found) == set(energy.CALIBRATION)
    seconds = 2 * 4000**3 / 50e12
    assert found["idle-power"] == 100
    # The product's traffic overlaps with its arithmetic.
    assert found["busy-power"] == pytest.approx(500 + 150 * (3 * 4000**2 * 4 / 2e12) / seconds)
    assert found["energy-per-flop"] == pytest.approx(8e-12)
    assert found["energy-per-sample-smallest"] == pytest.approx(of.joules("fp32", *of.work("fp32", 1), 4.3e-6))
    assert found["energy-per-sample-largest"] == pytest.approx(of.joules("fp32", *of.work("fp32", 64), 23.2e-6) / 64)
    assert found["saving-largest-batch"] == pytest.approx(4.3e-6 / (23.2e-6 / 64))
    assert found["saving-bf16"] == pytest.approx(23.2e-6 / 5.2e-6)
    assert energy.calibration(record()) == {}
    text = energy.calibration_text(gpu())
    for said in ("Idle power: 100 W", show(8e-12, JOULE_PER_FLOP), "in windows of 2 s an energy is right within 5.0%"):
        assert said in text
    shared = Energy(source="nvml-counter", joules=1.0, window_s=1.0, period_s=0.1, shared="2 others compute there")
    assert "Shared: 2 others compute there." in energy.calibration_text(gpu(energy=shared))


# The counter and its windows


def test_the_counter_is_set_against_power_readings() -> None:
    row = rows(gpu(), "energy")["counter"]
    assert (row.predicted, row.measured) == (pytest.approx(4990), 5000)
    assert row.explanation == (
        "The readings give what the counter gained, within 1%. In a window of 10 s the counter's period allows 1.0%, "
        "and the two are 0.2% apart."
    )
    apart = [s if s.metric != "integrated" else s.model_copy(update={"values": [4000.0]}) for s in gpu().samples]
    said = rows(record(*apart), "energy")["counter"].explanation
    assert said.startswith("In a window of 10 s the counter's period allows 1.0%; the two are 25% apart. Consistent")
    alone = [s for s in gpu().samples if s.metric != "integrated"]
    assert "counter" not in rows(record(*alone), "energy")


def test_windows_stay_within_the_bound_of_their_period() -> None:
    found = energy.windows(gpu())
    assert [w.length for w in found] == list(LENGTHS)
    assert [w.bound * w.seconds for w in found] == pytest.approx([0.1] * 6)
    assert all(w.length <= w.seconds <= w.length + 0.03 for w in found)
    for w in found:
        assert 0 < w.deviation <= w.bound
    assert found[0].still > 0
    assert energy.period_seen(gpu()) == pytest.approx(0.1, rel=0.05)
    least = energy.trusted(gpu())
    assert least is not None and 0.33 < least <= 1.03
    by_name = {r.case: r for r in energy.points(gpu()) if r.role == "window"}
    assert "one window of 343 ms may be off by 29%" in by_name["window-330"].explanation
    text = energy.sweep(gpu(), "windows")
    assert "For 10% it asks for 1 s" in text and "changed every 100 ms, by its own steps" in text


def test_a_good_length_below_a_bad_one_is_not_trusted() -> None:
    """By chance the shortest windows gained what they should."""
    gains = {0.1: 50.0, 0.3: 200.0, 1.0: 500.0, 3.0: 1500.0}  # J; 500 W but in the second
    made: list[Sample] = []
    for length, gain in gains.items():
        point = {"case": f"window-{1000 * length:.0f}", "role": "window", "length": length}
        made += [sample(point, [gain, gain], "gain", "J"), sample(point, [length, length])]
    assert [w.deviation <= energy.TOLERANCE for w in energy.windows(record(*made))] == [True, False, True, True]
    assert energy.trusted(record(*made)) == 1.0


def test_a_slower_counter_is_seen() -> None:
    """The counter changes every 0.4 s, and 0.1 s is assumed."""
    slow = [s for length in (0.1, 0.3, 1.0, 3.0) for s in read_in_windows(500, 0.4, length, 30 if length < 1 else 20)]
    found = record(idle(), *slow)
    assert energy.period_seen(found) == pytest.approx(0.4, rel=0.1)
    row = next(r for r in energy.points(found) if r.case == "window-100")
    assert row.measured > 1.5 * row.predicted
    assert "Beyond the bound: a period of " in row.explanation
    assert "changes less often" in row.explanation


def test_a_steady_counter_needs_no_row_and_a_still_one_is_refused() -> None:
    point = {"case": "window-100", "role": "window", "length": 0.1}
    steady = [sample(point, [50.0, 50.0], "gain", "J"), sample(point, [0.1, 0.1])]
    assert energy.points(record(*steady)) == []
    assert energy.windows(record(*steady))[0].deviation == 0
    assert energy.period_seen(record(*steady)) is None
    still = [sample(point, [0.0, 0.0], "gain", "J"), sample(point, [0.1, 0.1])]
    with pytest.raises(EfflabError, match="record r: the counter did not move in window-100"):
        energy.points(record(*still))
    with pytest.raises(EfflabError, match="window-100 needs a time for each gain"):
        energy.points(record(steady[0], sample(point, [0.1])))


def test_windows_may_scatter_and_batches_may_not() -> None:
    found = gpu()
    assert energy.scatters(found, "window-13")
    assert not energy.scatters(found, "infer-fp32-1")
    assert lab.disturbed(found) == ""


@pytest.mark.parametrize("counter", [True, False])
def test_what_disturbed_predictions_is_named_where_they_are_built_from_it(counter: bool) -> None:
    """Energies are built from product and stream, times from the two batches of the line."""
    made = gpu() if counter else cpu()
    cases = ("product-fp32", "stream", f"infer-fp32-{LINE[0]}", "train-fp32")
    made.warnings = [f"{case}: disturbed: something ran" for case in cases]
    said = lab.disturbed(made)
    assert all(case in said for case in cases)
    rested = said.partition(" Predictions rest on ")[2].partition(". ")[0].split(", ")
    assert rested == ([cases[2], *cases[:2]] if counter else [cases[2]])


# A CPU with RAPL


def test_a_cpu_with_rapl_is_measured_as_a_gpu_is() -> None:
    of = Device(idle=20.0, moving=15.0, computing=60.0)
    samples = [s for s in gpu(of).samples if s.point["role"] not in ("window", "limit", "counter")]
    spans = [s for length in (3.3e-4, 1.3e-3, 0.0133, 0.1333) for s in read_in_windows(80, 1e-3, length, 12)]
    found = record(*samples, *spans, kind="cpu", counter="rapl")
    assert rows(found, "energy")["train-fp32"].ratio == pytest.approx(1)
    assert "measured by RAPL's counter" in energy.calibration_text(found)
    assert energy.without(found) == ""
    assert "For 10% it asks for 10 ms" in energy.sweep(found, "windows")
    assert energy.evidence(found, "idle").startswith("idle: 20 W over 3 windows, 72 kJ in an hour")
    assert energy.evidence(found, "limit") == "limit: it was not measured."


# Without a counter


def test_without_a_counter_energies_are_modelled_as_a_band_and_say_so() -> None:
    found = cpu([7.0, 40.0])
    assert rows(found, "energy") == {}
    text = energy.calibration_text(found)
    assert f"Energy was not measured: {WHY}." in text
    assert "Modelled: 2.1 W to 40 W while it works, 0.3 to 1 times the rated power of a processor; 2 cores." in text
    assert "The band is the same multiple of every time" in text
    assert "open energy_uj in /sys/class/powercap" in text and "ConsumedEnergyRaw" in text
    assert (
        "Not answered by this run: idle-power, busy-power, energy-per-flop, energy-per-byte, "
        "energy-per-sample-smallest, energy-per-sample-largest." in text
    )
    assert set(energy.calibration(found)) == {"saving-largest-batch", "saving-bf16"}
    # 23.2 µs for 64 samples; 0.3 × 7 W and 40 W.
    low, high = (show(23.2e-6 / 64 * w, JOULE) for w in (2.1, 40))
    assert f"a sample: {low} to {high}, modelled, not measured" in energy.evidence(found, "infer-fp32-64")
    assert f"{low} to {high}" in energy.sweep(found, "fp32 by batch")
    assert "measured" not in energy.sweep(found, "fp32 by batch").splitlines()[0].split("modelled")[1]
    assert "a sample takes" not in energy.table(found)[0]


def test_without_a_rating_too_there_is_neither() -> None:
    found = cpu()
    assert "No energy is modelled either: the rated power of this device is not known." in energy.calibration_text(
        found
    )
    assert "energy: neither measured nor modelled" in energy.evidence(found, "infer-fp32-64")
    assert "modelled" not in energy.sweep(found, "fp32 by batch")
    assert "W" not in energy.sweep(found, "fp32 by batch")
    (axes,) = plots.draw(found, "power").axes
    assert [t.get_text() for t in axes.texts] == ["Power was neither measured nor is it rated."] and not axes.patches


def test_no_joule_is_invented_without_a_counter() -> None:
    """Of what it prints no line has joules or watts but one that says modelled, and without a rating none has."""
    unit = re.compile(r"\d [kmµn]?[JW]\b")
    rated, neither = cpu([7.0, 40.0]), cpu()
    assert [t for t in energy.text(rated).splitlines() if unit.search(t)], "the band itself"
    assert not [t for t in energy.text(rated).splitlines() if unit.search(t) and "modelled" not in t.lower()]
    for text in (energy.text(neither), energy.summary(neither), energy.sweep(neither, "by dtype")):
        assert not unit.search(text)
    assert unit.search(energy.sweep(gpu(), "by dtype")), "the pattern finds what was measured"


@pytest.mark.parametrize("rating", [None, [7.0, 40.0]])
def test_what_needs_a_counter_says_what_holds_without_one(rating: list[float] | None) -> None:
    found = cpu(rating)
    assert energy.sweep(found, "windows").startswith(f"No window was measured. Energy was not measured: {WHY}.")
    assert energy.sweep(found, "power").startswith(f"Energy was not measured: {WHY}.")
    for case in ("idle", "counter", "limit"):
        assert energy.evidence(found, case) == f"{case}: Energy was not measured: {WHY}."
    said = energy.compare(found, "infer-fp32-1", "infer-fp32-64")
    assert "time of a sample: measured 11.9×" in said
    assert "energy of a sample: not measured; 11.9× if the power is the same in both" in said


def test_a_gpu_without_a_counter_is_told_something_else() -> None:
    found = record(kind="cuda", counter="none", why="this GPU is cut into slices (MIG)")
    assert "Energy was not measured: this GPU is cut into slices (MIG)." in energy.without(found)
    assert "ask for a whole GPU" in energy.without(found)
    assert "powercap" not in energy.without(found)


# In words, tables and pictures


def test_every_text_of_every_machine() -> None:
    for found in (gpu(), cpu([7.0, 40.0]), cpu(), record()):
        head, body, numeric = energy.table(found)
        assert all(len(row) == len(head) for row in body)
        assert head[0] == "case" and head[-1] == "why" and 0 not in numeric
        assert energy.summary(found) and energy.text(found) == energy.text(found)
        for case in {str(s.point["case"]) for s in found.samples}:
            assert energy.evidence(found, case).startswith(case)
    assert energy.summary(record(kind="cuda")).startswith("No case of this record could be predicted.")


def test_the_summary_names_the_worst_and_what_is_missing() -> None:
    of = Device()
    failed = sample({"case": "infer-bf16-2", "role": "inference", "dtype": "bf16", "batch": 2}, [], status="failed",
                    message="it takes too long")  # fmt: skip
    lost = sample({"case": "infer-fp32-16", "role": "inference", "dtype": "fp32", "batch": 16}, [], "energy", "J",
                  status="failed", message="the counter went back")  # fmt: skip
    found = gpu(of, of.batch("fp32", 32, 1.4e-5, 3.0), failed, lost)
    assert energy.missing(found) == [
        "infer-bf16-2 was not measured: it takes too long", "infer-fp32-16 has no energy: the counter went back",
    ]  # fmt: skip
    text = energy.summary(found)
    assert "Worst: infer-fp32-32, predicted " in text
    assert "Not in it: infer-bf16-2 was not measured" in text
    assert energy.compare(found, "infer-bf16-2", "infer-bf16-4").endswith("So there is nothing to compare.")


def test_a_table_shows_the_energy_of_a_sample_as_counted() -> None:
    head, body, _ = energy.table(gpu())
    at = head.index("a sample takes")
    taken = {(row[0], row[at]) for row in body if row[at]}
    assert ("infer-fp32-64", show(Device().joules("fp32", *Device().work("fp32", 64), 23.2e-6) / 64, JOULE)) in taken
    bounds = [row for row in body if row[0] == "window-330"]
    assert bounds[0][1] == "at most 29%" and bounds[0][head.index("error")] == ""


def test_power_by_case_and_the_limit() -> None:
    found = gpu()
    assert energy.powers(found)["stream"] == pytest.approx(250)
    assert energy.powers(found)["idle"] == 100
    text = energy.sweep(found, "power")
    (row,) = (t.split() for t in text.splitlines() if t.startswith("stream"))
    assert row == ["stream", "250", "W", "150", "W", "36%"], "250 W of 700 W, of them 100 W idle"
    assert "Power limit: 700 W in force, 700 W by default, 200 W the least, 700 W the most." in text
    said = "limit: 700 W in force, 700 W by default, 200 W the least, 700 W the most."
    assert energy.evidence(found, "limit") == said
    assert "limit" not in energy.sweep(gpu(drop=("limit",)), "power")


def test_compare_sets_joules_beside_times() -> None:
    said = energy.compare(gpu(), "infer-fp32-64", "infer-bf16-64")
    of = Device()
    wide, narrow = (of.joules(d, *of.work(d, 64), t) for d, t in (("fp32", 23.2e-6), ("bf16", 5.2e-6)))
    assert "time of a sample: measured 4.46×" in said
    assert f"energy of a sample: measured {wide / narrow:.3g}×" in said
    with pytest.raises(EfflabError, match="infer-fp32-5"):
        energy.compare(gpu(), "infer-fp32-5", "infer-fp32-4")


def test_what_a_learner_can_predict_is_there_on_every_machine() -> None:
    for found in (gpu(), cpu()):
        cases = energy.cases([s.point for s in found.samples])
        assert set(cases) == {
            "infer-fp32-1", "infer-fp32-16", "infer-bf16-1", "infer-bf16-16", "train-fp32", "train-bf16"
        }  # fmt: skip
        assert set(cases) <= set(rows(found, "time")), "each is answered"
        assert "a forward pass, a batch of 16 in bf16" in energy.describe(cases, ["infer-bf16-16"])
        assert "train-fp32" in energy.describe(cases)


@pytest.mark.parametrize("kind", energy.PICTURES)
def test_pictures_of_every_machine(kind: str) -> None:
    for found in (gpu(), cpu([7.0, 40.0])):
        figure = plots.draw(found, kind)
        figure.draw_without_rendering()
        assert figure.axes[0].get_xlabel() or figure.axes[-1].get_xlabel()


def test_of_many_batches_the_ends_are_drawn_and_tabled() -> None:
    every = {(r.case, r.metric) for r in energy.points(gpu(), energy.DRAWN)}
    assert ("infer-fp32-1", "time") in every and ("infer-fp32-64", "energy") in every
    assert ("infer-fp32-16", "energy") not in every, "neither the smallest nor the largest"
    assert {r[0] for r in energy.table(gpu())[1]} >= {"train-fp32", "counter", "window-13", "infer-fp32-16"}
    bars = [t.get_text() for t in plots.draw(gpu(), "power").axes[0].get_yticklabels()]
    assert "infer-fp32-1" in bars and "infer-fp32-64" in bars and "infer-fp32-16" not in bars


def test_pictures_say_whether_energy_was_measured() -> None:
    counted, modelled, neither = (plots.draw(f, "energy").axes for f in (gpu(), cpu([7.0, 40.0]), cpu()))
    assert counted[1].get_ylabel() == "energy of a sample: counted"
    assert modelled[1].get_ylabel() == "energy of a sample: modelled"
    assert len(neither) == 1
    drawn = [line for line in counted[1].get_lines() if len(line.get_xdata()) == len(BATCHES)]
    last = Device().joules("fp32", *Device().work("fp32", 64), 23.2e-6) / 64
    assert drawn[0].get_ydata()[-1] == pytest.approx(last)
    labels = [line.get_label() for line in plots.draw(gpu(), "windows").axes[0].get_lines()]
    assert "bound: a period of 100 ms" in labels
    labels = [line.get_label() for line in plots.draw(cpu(), "windows").axes[0].get_lines()]
    assert [x for x in labels if x.startswith("bound")] == [
        "bound: a period of NVML of 100 ms", "bound: a period of RAPL of 1 ms",
    ]  # fmt: skip
    assert "power limit: 700 W" in [x.get_label() for x in plots.draw(gpu(), "power").axes[0].get_lines()]


# The lab


def cells() -> list[str]:
    """The code of the lab's notebook."""
    text = (ROOT / "labs/source/energy.md").read_text()
    return re.findall(r"```\{code-cell\} ipython3\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("machine", ["gpu", "rapl", "rated", "neither"])
def test_every_cell_of_the_lab_runs_on_every_machine(
    machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches, line = (1, 4, 16, 64, 256), (16, 256)
    counted = gpu(batches=batches, line=line)
    without_limit = [s for s in counted.samples if s.point["role"] not in ("limit", "window")]
    found = {
        "gpu": counted,
        "rapl": record(*without_limit, *read_in_windows(500, 1e-3, 0.1333, 12), kind="cpu", counter="rapl", line=line),
        "rated": cpu([7.0, 40.0], batches, line),
        "neither": cpu(None, batches, line),
    }[machine]
    monkeypatch.setenv("EFFLAB_MODE", "replay")
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path))
    monkeypatch.setattr(records, "recorded", lambda topic: [found] if topic == "energy" else [])
    session: dict[str, Any] = {}
    for cell in cells():
        exec(cell, session)
    said = capsys.readouterr().out
    measured = machine in ("gpu", "rapl")
    assert ("Not answered by this run" in said) == (not measured)
    assert ("if the power is the same in both" in said) == (not measured)
    assert {"gpu": "measured:", "rapl": "measured:", "rated": "modelled, between"}.get(
        machine, "neither measured nor modelled"
    ) in said
    # Every prediction of a time is answered; those of joules where there is a counter.
    made, answered = labbook.pairs(records.LabBook(tmp_path).readable()[0], [])
    assert not answered, "no record was unusable"
    names = {p.case for p in made}
    assert {"infer-fp32-4", "infer-fp32-64", "train-bf16", "calibration-saving-bf16"} <= names
    assert ("calibration-idle-power" in names) == measured


# Damaged records


@pytest.mark.parametrize(
    ("point", "metric", "unit", "values", "said"),
    [
        ({"case": "x", "role": "inference", "dtype": "fp8", "batch": 1}, "time", "s", [1.0], "point.dtype must be one"),
        ({"case": "x", "role": "inference", "dtype": "fp32", "batch": 0}, "time", "s", [1.0], "point.batch must be a"),
        ({"case": "x", "role": "training", "dtype": "fp32"}, "time", "s", [1.0], "point.batch .* it is missing"),
        ({"case": "", "role": "idle"}, "power", "W", [1.0], "point.case must be a text"),
        ({"case": "x", "role": "calibration", "dtype": "fp32"}, "time", "s", [1.0], "point.bytes must be"),
        ({"case": "x", "role": "calibration", "m": 4}, "time", "s", [1.0], "point.dtype must be"),
        ({"case": "x", "role": "window"}, "gain", "J", [1.0], "point.length must be"),
        ({"case": "x", "role": "idle"}, "power", "s", [1.0], "a power in 's'"),
        ({"case": "x", "role": "idle"}, "power", "W", [0.0], "power cannot be 0"),
    ],
)
def test_a_damaged_sample_is_named(
    point: dict[str, Any], metric: str, unit: str, values: list[float], said: str
) -> None:
    with pytest.raises(EfflabError, match=rf"record r: samples\[0\].*{said}.*Measure it again"):
        energy.points(record(sample(point, values, metric, unit)))


@pytest.mark.parametrize("name", ["width", "layers", "period"])
def test_a_damaged_description_is_named(name: str) -> None:
    found = gpu()
    found.spec[name] = 0
    with pytest.raises(EfflabError, match=f"record r: spec.{name} must be a number greater than zero"):
        energy.points(found)
    found.spec["counter"] = "none"
    with pytest.raises(EfflabError, match=f"spec.{name}"):
        energy.sweep(found, "windows")  # it has windows all the same


@pytest.mark.parametrize("line", [None, 4, [4], [64, 4], [4, 4], [4, 65], [1, 4, 64], ["4", "64"], [0, 64]])
def test_a_line_that_is_not_two_batches_is_named(line: Any) -> None:
    found = gpu()
    found.spec["line"] = line
    with pytest.raises(EfflabError, match=r"record r: spec\.line must be two of spec\.batches, the smaller one first"):
        energy.points(found)
    del found.spec["line"]
    with pytest.raises(EfflabError, match=r"record r: spec\.line must be"):
        energy.calibration_text(found)


@pytest.mark.parametrize(("case", "said"), [("infer-fp32-4", False), ("infer-fp32-16", True), ("infer-fp32-1", None)])
def test_a_batch_says_as_the_run_whether_it_calibrates(case: str, said: Any) -> None:
    found = gpu()
    next(s for s in found.samples if s.point["case"] == case).point["calibrates"] = said
    with pytest.raises(EfflabError, match=r"point\.calibrates must be true for the two batches of spec\.line"):
        energy.points(found)


def test_other_topics_and_names_are_refused() -> None:
    with pytest.raises(EfflabError, match="'amp'; 'energy' is needed"):
        energy.points(gpu(topic="amp"))
    with pytest.raises(EfflabError, match="fp32 by batch"):
        energy.sweep(gpu(), "fp32 by batches")
    with pytest.raises(EfflabError, match="train-fp32"):
        energy.evidence(gpu(), "train-fp23")


def test_a_calculators_prediction_is_about_something_else() -> None:
    made = Prediction.new("energy", {"energy": (1.0, "J")}, source="calculator", calculator="training-footprint")
    assert energy.asked(made) == {} and energy.answers(gpu(), made) == {}


def test_the_topic_offers_what_every_topic_does() -> None:
    assert reconcile.topic("energy") is energy
    assert set(energy.CALIBRATION) >= {"idle-power", "busy-power", "energy-per-flop", "energy-per-byte"}
    assert energy.CALIBRATION["idle-power"] == ("power", WATT)
