"""The energy lab: a simulated device whose joules are known, torch's own counter of FLOP, and plain arithmetic."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from efflab.experiments import energy as lab
from efflab.experiments import runner
from efflab.measure import device as devices
from efflab.measure import energy, monitor, timer
from efflab.records import Record, load_record
from tests.experiments.machine import environment
from tests.measure import counters

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SMOKE = lab.SCALES["smoke"]
SAID = "RAPL: this system offers no energy counter of a processor package"


def session(counter: str = "none", scale: str = "smoke") -> lab.Session:
    return lab.Session(scale, CPU, environment(), counter, [])


def measured(out: Path) -> Record:
    record, path = runner.run(lab.EXPERIMENT, scale="smoke", device="cpu", out=out, report=lambda _: None)
    assert load_record(path) == record
    return record


def values(record: Record, case: str, metric: str) -> list[float]:
    (sample,) = record.find(metric, case=case)
    assert sample.status == "ok", sample.message
    return sample.values


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads wait for each other on a busy machine."""
    with devices.threads(1):
        yield


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an energy counter."""
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path / "none")


# The plan


def names(plan: runner.Plan) -> list[str]:
    return [c.name for c in plan.cases]


def test_without_a_counter_no_case_needs_one(without: None) -> None:
    plan = lab.EXPERIMENT.plan("cpu", CPU, environment(), None)
    assert names(plan) == plan.spec["cases"] == [
        "product-fp32", "product-bf16", "stream",
        *(f"infer-{d}-{b}" for d in ("fp32", "bf16") for b in (1, 2, 4, 8, 16, 32, 64, 128)),
        "train-fp32", "train-bf16",
    ]  # fmt: skip
    spec = plan.spec
    assert (spec["counter"], spec["period"], spec["why"]) == ("none", 0.0, SAID)
    assert (spec["threads"], spec["window"]) == (1, 0.3)
    assert {(c.metric, c.unit) for c in plan.cases} == {("time", "s")}


def test_with_a_counter_it_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    counters.play(monkeypatch, lambda: 0.0)
    plan = lab.EXPERIMENT.plan("cpu", CPU, environment(), None)
    assert names(plan)[0] == "idle"
    assert names(plan)[-7:] == [
        "counter", "window-0.33", "window-1.3", "window-3.3", "window-13.3", "window-33.3", "window-133.3",
    ]  # fmt: skip
    assert (plan.spec["counter"], plan.spec["period"], plan.spec["why"]) == ("rapl", 1e-3, "")
    assert plan.spec["threads"] == torch.get_num_threads(), "RAPL counts whole packages: all threads work"
    assert len({*names(plan)}) == len(plan.cases)
    again = lab.EXPERIMENT.plan("cpu", CPU, environment(), None)
    assert again.spec == plan.spec and [c.point for c in again.cases] == [c.point for c in plan.cases]


@pytest.mark.parametrize("counter", ["nvml-counter", "none"])
def test_on_a_gpu_every_dtype_and_the_power_limit_are_there(counter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[None] = []

    def of_gpu(_: Any, held: Any) -> energy.Counter:
        held.callback(lambda: closed.append(None))
        if counter == "none":
            raise energy.NoCounter("this GPU is cut into slices (MIG), and its counter is the whole board's")
        return energy.Counter("NVML's", lambda: 0.0)

    monkeypatch.setattr(energy, "_of_gpu", of_gpu)
    for _ in range(2):
        plan = lab.EXPERIMENT.plan("gpu", CUDA, environment(kind="cuda"), None)
    assert closed == [None, None], "what plan opens it closes"
    assert plan.spec["dtypes"] == ["fp32", "tf32", "bf16", "fp16"] and plan.spec["counter"] == counter
    found = names(plan)
    assert found[-1] == "limit" and {f"product-{d}" for d in plan.spec["dtypes"]} < set(found)
    assert ("idle" in found) == ("counter" in found) == ("window-3030" in found) == (counter == "nvml-counter")
    windows = sum(1 for c in plan.cases if c.point["role"] in ("calibration", "inference", "training"))
    seconds = windows * lab.SCALES["gpu"].repeats * plan.spec["window"]
    assert seconds < 250, "some 110 s are left of six minutes for the counter, short windows and warming up"


@pytest.mark.parametrize("scale", lab.SCALES)
def test_no_window_is_a_whole_number_of_the_counters_periods(scale: str) -> None:
    for counter, lengths in lab.SCALES[scale].lengths.items():
        assert all(0.1 < length / energy.PERIODS[counter] % 1 < 0.9 for length in lengths), counter


@pytest.mark.parametrize("scale", lab.SCALES)
def test_the_line_leaves_a_smaller_batch_and_a_step_has_its_forward_pass(scale: str) -> None:
    of = lab.SCALES[scale]
    assert min(of.batches) < of.line[0] < of.line[1] and {*of.line, of.training} <= {*of.batches}


# What is called


def test_the_model_is_products_with_relu_between() -> None:
    with torch.random.fork_rng():
        made = session()
        weights = made.weights("fp32")
        x = torch.randn(3, SMOKE.width)
        layers: list[torch.nn.Module] = []
        for weight in weights:
            layer = torch.nn.Linear(SMOKE.width, SMOKE.width, bias=False)
            layer.weight = torch.nn.Parameter(weight.detach().clone())
            layers += [layer, torch.nn.ReLU()]
    kept = x.clone()
    torch.testing.assert_close(made.forward(weights, x), torch.nn.Sequential(*layers[:-1])(x))
    assert torch.equal(x, kept), "the batch is not changed by a call"
    assert len(weights) == SMOKE.layers
    for weight in weights:
        assert float(weight.detach().std()) == pytest.approx(1 / math.sqrt(SMOKE.width), rel=0.05)
    assert all(torch.equal(a, b) for a, b in zip(weights, session().weights("fp32"), strict=True))


def flop(call: Any) -> int:
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def test_flop_are_those_that_torch_counts() -> None:
    made, n, depth = session(), SMOKE.width, SMOKE.layers
    assert flop(made.infer("fp32", 4)) == 2 * 4 * n * n * depth
    # Forward, gradients of the weights, and gradients of every layer's input but the first one's.
    assert flop(made.step("fp32")) == 2 * SMOKE.training * n * n * (3 * depth - 1)
    assert flop(made.product("bf16", 32)) == 2 * 32**3


def test_a_training_step_leaves_the_weights_as_they_are() -> None:
    made = session()
    before = [w.detach().clone() for w in made.weights("bf16")]
    touched = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.sub_.Tensor:
                touched.append((tuple(args[1].shape), bool(args[1].abs().max() > 0)))
            return function(*args, **(kwargs or {}))

    step = made.step("bf16")
    with Watch():
        step()
    assert touched == [((SMOKE.width, SMOKE.width), True)] * SMOKE.layers, "every weight's gradient is subtracted"
    assert all(torch.equal(a, b) for a, b in zip(before, made.weights("bf16"), strict=True))


def test_what_is_multiplied_and_copied_is_never_zero() -> None:
    made = session()
    assert float(made.product("fp32", 64)().abs().mean()) == pytest.approx(8 * math.sqrt(2 / math.pi), rel=0.2)
    copied = made.copy()()
    assert copied.numel() * 4 * 2 == made.copied and float(copied.std()) == pytest.approx(1, rel=0.05)
    assert not torch.equal(made.random("fp32", 8, 8), torch.zeros(8, 8))


def test_the_copy_exceeds_the_cache_and_fits_the_memory() -> None:
    assert session(scale="cpu").copied == 8 * 2**25
    small = lab.Session("cpu", CPU, environment(memory=2**30), "none", [])
    assert small.copied == 2**26
    unknown = lab.Session("cpu", CPU, environment(caches={}, memory=None), "none", [])
    assert unknown.copied == 8 * 2**25


# A run without a counter


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A smoke run of this CPU without a counter, and without a warning from torch or Python."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(monitor, "POWERCAP", tmp_path_factory.mktemp("none"))
        return measured(tmp_path_factory.mktemp("run"))


def test_without_a_counter_there_are_times_and_no_invented_watt(record: Record) -> None:
    assert [s.metric for s in record.samples] == ["time"] * len(record.spec["cases"])
    for sample in record.samples:
        assert sample.status == "ok", sample.message
        assert len(sample.values) == SMOKE.repeats and min(sample.values) > 0
        assert sample.timing is not None and sample.timing.energy is None
        assert sample.timing.mode == "back-to-back" and sample.timing.warmup >= 2
    assert record.energy.source in ("modelled", "none") and record.energy.joules is None
    assert SAID in record.energy.why
    assert not any(SAID in w for w in record.warnings), "it is said once"


def test_points_say_what_was_called(record: Record) -> None:
    for dtype in record.spec["dtypes"]:
        found = [s.point["batch"] for s in record.find(role="inference", dtype=dtype)]
        assert found == list(SMOKE.batches) == record.spec["batches"]
        calibrating = [s.point["batch"] for s in record.find(role="inference", dtype=dtype, calibrates=True)]
        assert calibrating == list(SMOKE.line) == record.spec["line"]
        (trained,) = record.find(role="training", dtype=dtype)
        assert trained.point["batch"] == record.spec["training_batch"] == SMOKE.training
        (product,) = record.find(role="calibration", case=f"product-{dtype}")
        assert product.point["m"] == SMOKE.product
    (stream,) = record.find(case="stream")
    assert stream.point["bytes"] == 2**20


# A run on a device whose joules are known


IDLE, BUSY, BUSY_COPY = 20.0, 120.0, 70.0  # W
FLOPS, BANDWIDTH = 1e7, 1e7  # FLOP/s and B/s: slow, so that a window has few calls


class Device(TorchDispatchMode):
    """A device that takes time for matrix products and copies and for nothing else, beside a clock of its own.

    It takes BUSY in products, BUSY_COPY in copies and IDLE while the host waits. Its counter changes every 0.1 s.
    """

    def __init__(self, clock: counters.Clock) -> None:
        super().__init__()
        self.clock, self.began = clock, clock.now
        self.history: list[tuple[float, float]] = []  # until when, W
        self.joules = 0.0
        self.shown = 0.0
        self.updates = 0
        clock.advance = self.wait  # type: ignore[method-assign]  # whoever sleeps leaves the device alone

    def take(self, seconds: float, watts: float) -> None:
        end = self.clock.now + seconds
        while (update := self.began + 0.1 * (self.updates + 1)) <= end:
            self.joules += (update - self.clock.now) * watts
            self.clock.now, self.shown = update, self.joules
            self.updates += 1
        self.joules += (end - self.clock.now) * watts
        self.clock.now = end
        self.history.append((self.clock.now, watts))

    def wait(self, seconds: float) -> None:
        self.take(seconds, IDLE)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        # In inference mode a product arrives as a whole, before torch takes it apart.
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.matmul):
            (m, k), (_, n) = args[0].shape, args[1].shape
            self.take(2 * m * n * k / FLOPS, BUSY)
        elif function.overloadpacket is torch.ops.aten.copy_:
            self.take(2 * args[0].numel() * args[0].element_size() / BANDWIDTH, BUSY_COPY)
        return out


class Seen:
    """The monitor of that device: its power every 0.05 s, as it was then."""

    device: Device

    def __init__(self, _: Any, interval: float) -> None:
        self.interval = interval
        self.sources, self.missing = {"power": "the simulated device"}, {}
        self.elapsed: list[float] = []
        self.series: dict[str, list[float]] = {"power": []}

    def __enter__(self) -> Seen:
        self.began = self.device.clock.now
        self.device.history.clear()
        return self

    def __exit__(self, *_: object) -> None:
        at = self.began
        for until, watts in self.device.history:
            while at < until:
                self.elapsed.append(at - self.began)
                self.series["power"].append(watts)
                at += self.interval


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    # It waits for git, in sleeps that would pass on this clock.
    monkeypatch.setattr(devices, "versions", lambda: {"efflab": "0", "commit": None, "dirty": None})
    clock = counters.Clock(monkeypatch)
    device = Device(clock)
    counters.play(monkeypatch, lambda: device.shown, period=0.1)
    monkeypatch.setattr(Seen, "device", device, raising=False)
    monkeypatch.setattr(monitor, "Monitor", Seen)
    windows = {"none": 1.0, "rapl": 4.0}
    changed = {"windows": windows, "settle": 1.0, "rest": 1.0, "long": {"rapl": 20.0}, "lengths": {"rapl": (0.03, 3.0)}}
    monkeypatch.setitem(lab.SCALES, "smoke", lab.Scale(**{**vars(SMOKE), **changed}))
    with device:
        yield device


def test_every_cases_joules_are_those_of_the_device(simulated: Device, tmp_path: Path) -> None:
    record = measured(tmp_path)
    bound = 0.1 / 4.0  # period over window
    n, depth, b = SMOKE.width, SMOKE.layers, SMOKE.training
    seconds = {
        **{f"infer-{d}-{k}": 2 * k * n * n * depth / FLOPS for d in ("fp32", "bf16") for k in SMOKE.batches},
        **{f"train-{d}": 2 * b * n * n * (3 * depth - 1) / FLOPS for d in ("fp32", "bf16")},
        **{f"product-{d}": 2 * SMOKE.product**3 / FLOPS for d in ("fp32", "bf16")},
        "stream": 2**20 / BANDWIDTH,
    }
    for case, expected in seconds.items():
        watts = BUSY_COPY if case == "stream" else BUSY
        assert values(record, case, "time") == pytest.approx([expected] * SMOKE.repeats, rel=1e-6)
        assert values(record, case, "energy") == pytest.approx([watts * expected] * SMOKE.repeats, rel=bound), case
        (sample,) = record.find("time", case=case)
        timing = sample.timing
        assert timing is not None and timing.energy is not None
        assert timing.loops == pytest.approx(4.0 / expected, abs=1), "a whole number of calls that fills the window"
        assert timing.energy.calls == SMOKE.repeats * timing.loops
        # The windows follow each other, so that they are one of the threefold length.
        assert timing.energy.joules / timing.energy.calls == pytest.approx(watts * expected, rel=bound / 3 + 1e-6)
        assert timing.energy.seconds == pytest.approx(timing.energy.calls * expected, rel=1e-6)
        assert timing.warmup * expected >= 1.0, "power has settled before the first window"
    assert {s.point["case"] for s in record.find("energy")} == {*seconds, "counter"}
    assert values(record, "idle", "power") == pytest.approx([IDLE] * SMOKE.repeats, rel=bound)
    for metric in ("energy", "integrated", "time"):
        found = values(record, "counter", metric)
        unit = 1.0 if metric == "time" else BUSY
        assert len(found) == SMOKE.repeats and found == pytest.approx([20 * unit] * SMOKE.repeats, rel=0.1 / 20 + 2e-3)
    long, short = record.find("gain", role="window"), {}
    for sample in long:
        short[sample.point["length"]] = sample.values, values(record, str(sample.point["case"]), "time")
    gains, times = short[0.03]
    assert len(gains) >= 40 and min(gains) == 0, "windows shorter than the period: the counter stands still in most"
    assert max(gains) == pytest.approx(0.1 * BUSY, rel=0.02), "and takes a whole period's step in the others"
    assert sum(gains) == pytest.approx(BUSY * sum(times), abs=0.1 * BUSY + 1e-6)
    assert min(times) >= 0.03
    gains, times = short[3.0]
    assert len(gains) == 3
    assert [g / t for g, t in zip(gains, times, strict=True)] == pytest.approx([BUSY] * 3, rel=0.1 / 3)
    assert record.energy.source == "rapl"
    assert record.energy.joules == pytest.approx(simulated.joules, abs=0.1 * BUSY + 1), "and so is the whole run's"


def test_a_counter_that_fails_on_the_way_costs_the_energy_and_not_the_time(
    simulated: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = simulated.clock.now

    def read() -> float:
        if simulated.clock.now > begun + 60:
            raise OSError("gone")
        return simulated.shown

    counters.play(monkeypatch, read, period=0.1)
    record = measured(tmp_path)
    assert {s.status for s in record.find("time") if s.point["role"] in ("inference", "training")} == {"ok"}
    states = {str(s.point["case"]): s for s in record.find("energy")}
    assert states["product-fp32"].status == "ok"
    for case in ("train-bf16", "infer-bf16-16", "counter"):
        assert (states[case].status, states[case].values) == ("failed", [])
        assert states[case].message == "the test's counter cannot be read: gone"
    assert record.find("integrated") == []
    assert {s.status for s in record.find("gain")} == {"failed"}
    assert record.energy.joules is None and "gone" in record.energy.why


def test_a_device_without_a_power_reading_says_so(
    simulated: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind(Seen):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.sources, self.missing = {}, {"power": "NVML, nvmlDeviceGetPowerUsage: Not Supported"}

    monkeypatch.setattr(monitor, "Monitor", Blind)
    record = measured(tmp_path)
    (sample,) = record.find("energy", case="counter")
    assert (sample.status, sample.message) == ("failed", "NVML, nvmlDeviceGetPowerUsage: Not Supported")
    assert record.find("integrated") == []


def test_the_meter_is_closed_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    before = energy.counter

    def counted(device: Any, stack: Any) -> energy.Counter:
        held.append(1)
        stack.callback(held.pop)
        return before(device, stack)

    counters.play(monkeypatch, lambda: 0.0)
    monkeypatch.setattr(energy, "counter", counted)
    # Windows of 200 calls, however slow the warm-up of a busy machine is: longer than the counter's period.
    monkeypatch.setattr(lab.Session, "warm_up", lambda *_: (1, SMOKE.windows["rapl"] / 200))
    record = measured(tmp_path)
    assert held == []
    assert {s.status for s in record.find("energy")} == {"failed"}
    (sample,) = record.find("energy", case="stream")
    assert sample.message.startswith("the test's counter did not move in ")


# Parts


def test_a_call_that_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = counters.Clock(monkeypatch)
    made = session()
    with pytest.raises(runner.Unavailable, match="a call takes 6 s, longer than the lab allows"):
        made.warm_up(lambda: clock.advance(6))
    times = iter([60.0])  # a first call that loads something
    calls, seconds = made.warm_up(lambda: clock.advance(next(times, 0.001)))
    assert seconds == pytest.approx(0.001) and calls >= 3


def test_a_dtype_that_a_gpu_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "missing_for", lambda dtype, _: f"{dtype} products need more")
    with pytest.raises(runner.Unavailable, match="tf32 products need more"), session().ready("tf32"):
        pass


@pytest.mark.parametrize(("counter", "inside"), [("none", 1), ("rapl", 2)])
def test_threads_are_one_where_nothing_is_counted(counter: str, inside: int) -> None:
    with devices.threads(2):
        with session(counter).ready("fp32"):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 2


def test_a_scattered_case_is_measured_again_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = counters.Clock(monkeypatch)
    made = lab.Session("cpu", CPU, environment(), "none", [])

    number = iter(range(10**6))

    def call() -> None:
        """The first 40 calls are slower and slower, all others take 20 ms."""
        k = next(number)
        clock.advance(0.02 * (1 + k / 10) if k < 40 else 0.02)

    (sample,) = made.windows({"case": "c", "dtype": "fp32"}, lambda: call)
    assert sample.values == pytest.approx([0.02] * 5)
    assert len(made.warnings) == 1 and made.warnings[0].startswith("c: measured again, since the middle half of the")


def test_the_integral_is_that_of_broken_lines() -> None:
    times, watts = [1.0, 2.0, 4.0], [100.0, 300.0, 100.0]
    assert lab.integral(times, watts, 1, 4) == pytest.approx(200 + 400)
    assert lab.integral(times, watts, 0, 5) == pytest.approx(100 + 200 + 400 + 100)
    assert lab.integral(times, watts, 1.5, 3) == pytest.approx((200 + 300) / 2 * 0.5 + (300 + 200) / 2)
    assert lab.integral([0.3], [50.0], 0, 2) == pytest.approx(100)


def test_on_a_gpu_the_load_never_runs_dry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that a test plays: the host is never waited for, and no more than a fifth of a second lies ahead."""
    clock = counters.Clock(monkeypatch)
    ends: deque[float] = deque()  # of the calls in the queue, s
    idle: list[float] = []

    def call() -> None:
        last = ends[-1] if ends else 0.0
        if ends and last < clock.now:
            idle.append(clock.now - last)
        ends.append(max(last, clock.now) + 0.013)
        clock.advance(1e-4)

    class Event:
        def record(self, _: Any) -> None:
            self.end = ends[-1]

        def query(self) -> bool:
            return clock.now >= self.end

    class GPUClock(timer.CPUClock):
        def elapsed(self, run: Any) -> float:
            run()
            clock.now = max(clock.now, ends[-1])
            return 0.013

    monkeypatch.setattr(timer, "clock_for", lambda _: GPUClock())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    load = lab.Load(call, CUDA)
    load.go_on(0.5)
    idle.clear()
    for seconds in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        before = clock.now
        for _ in range(5):
            load.go_on(seconds)
            assert ends[-1] > clock.now, "work lies ahead when a window ends"
            assert ends[-1] - clock.now < 0.25
        assert 5 * seconds <= clock.now - before < 5 * seconds + 0.05
    assert idle == []


def test_a_gpus_limits_become_samples_and_what_it_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "limits", lambda _: {"enforced": 450.0, "least": 200.0, "most": 700.0})
    point = {"case": "limit", "role": "limit"}
    found = [(s.metric, s.unit, s.values) for s in session().limits(point)]
    assert found == [("limit", "W", [450.0]), ("limit_least", "W", [200.0]), ("limit_most", "W", [700.0])]


@pytest.mark.gpu
def test_a_smoke_run_on_this_gpu(tmp_path: Path) -> None:
    record, _ = runner.run(lab.EXPERIMENT, scale="smoke", device="cuda", out=tmp_path, report=lambda _: None)
    assert {s.status for s in record.find("time", role="inference", dtype="fp32")} == {"ok"}
    if record.spec["counter"] != "none":
        limit = values(record, "limit", "limit")[0]
        for sample in record.find("energy", role="inference", dtype="fp32"):
            (timed,) = record.find("time", case=sample.point["case"])
            watts = [e / t for e, t in zip(sample.values, timed.values, strict=True)]
            assert sample.status == "ok" and 5 < min(watts) <= max(watts) < 1.5 * limit
