"""The profiling lab's measurements: which part time is charged to, what a run leaves, and its traces."""

from __future__ import annotations

import collections
import getpass
import gzip
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from efflab.errors import EfflabError
from efflab.experiments import faults, profiling, runner
from efflab.experiments.faults import ALL, FAULTS, NONE, Loop
from efflab.measure import monitor
from efflab.records import Record, load_record, median
from tests.experiments.machine import environment

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SMOKE = profiling.SCALES["smoke"]
LAYERS = SMOKE.size["layers"]


def plan(scale: str, device: torch.device = CPU, **changes: Any) -> runner.Plan:
    return profiling.EXPERIMENT.plan(scale, device, environment(kind=device.type, **changes), None)


def loop(of: Any) -> Loop:
    return Loop(SMOKE.text, SMOKE.size, CPU, of)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A smoke run on this CPU."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("run")
    found, path = runner.run(profiling.EXPERIMENT, scale="smoke", device="cpu", out=folder, report=lambda _: None)
    assert load_record(path) == found
    assert str(folder) not in path.read_text()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    return found


# The plan


@pytest.mark.parametrize(("scale", "device"), [("smoke", CPU), ("smoke", CUDA), ("cpu", CPU), ("gpu", CUDA)])
def test_every_case_has_a_name_of_its_own_and_says_what_it_runs(scale: str, device: torch.device) -> None:
    made, again = plan(scale, device), plan(scale, device)
    assert made.spec == again.spec and [c.point for c in made.cases] == [c.point for c in again.cases]
    assert made.spec["cases"] == [c.name for c in made.cases]
    assert len({c.name for c in made.cases}) == len(made.cases)
    for case in made.cases:
        expected = ("loss", "nats") if case.point["role"] == "seed" else ("time", "s")
        assert (case.metric, case.unit) == expected
        if case.name != "peak":
            assert case.point["tokens"] == case.point["batch"] * case.point["context"]
            assert case.point["flops"] > 6 * case.point["tokens"] * 12 * case.point["layers"]
            assert {*str(case.point["faults"]).split(",")} - {""} <= ALL


def test_the_roles_come_in_the_labs_order() -> None:
    roles = [c.point["role"] for c in plan("cpu").cases]
    assert [*dict.fromkeys(roles)] == ["calibration", "ablation", "ladder", "evidence", "loader", "seed", "monitor"]
    assert [c.name for c in plan("cpu").cases][:6] == [
        "all-faults", "profile", "peak", "batch-load", "hand-over", "compute"
    ]  # fmt: skip


def test_an_ablation_mends_one_and_a_step_of_the_ladder_one_more() -> None:
    points = {c.name: c.point for c in plan("cpu").cases}

    def has(case: str) -> set[str]:
        return {*points[case]["faults"].split(",")} - {""}

    assert has("all-faults") == has("profile") == ALL
    for name in FAULTS:
        assert has(f"without-{name}") == ALL - {name}
    ladder = [has("without-loader"), *(has(f"mended-{n}") for n in range(2, 6))]
    for before, after, name in zip(ladder, ladder[1:], FAULTS[1:], strict=False):
        assert before - after == {name}
    assert (
        ladder[-1] == has("seed-0-clean") == has("monitor-clean") == has("profile-clean") == has("hand-over") == set()
    )
    for case in ("batch-load", "compute", "workers-0", "workers-2"):
        assert has(case) == {"loader"}


@pytest.mark.parametrize(("cores", "expected"), [(1, [0, 1, 2]), (4, [0, 1, 2, 4]), (64, [0, 1, 2, 4, 8])])
def test_a_gpu_gets_as_many_workers_as_there_are_cores(cores: int, expected: list[int]) -> None:
    points = [c.point for c in plan("gpu", CUDA, cores=cores).cases if c.point["role"] == "loader"]
    assert [p["workers"] for p in points if not p["pinned"]] == expected
    assert [p["workers"] for p in points if p["pinned"]] == [2]


def test_what_may_change_a_curve_is_the_threads_of_a_cpu_and_the_algorithms_of_a_gpu() -> None:
    (threads,) = [c.point for c in plan("cpu").cases if c.name == "seed-0-threads"]
    assert (threads["threads"], threads["deterministic"], threads["faults"]) == (2, False, "")
    strict = [c.point for c in plan("gpu", CUDA).cases if c.name.startswith("seed-0-deterministic")]
    assert [(p["threads"], p["deterministic"], p["faults"]) for p in strict] == [(0, True, "")] * 2


# Which part time is charged to


def slow(seconds: float, does: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return does(*arguments, **options)

    return slowly


class Slow(torch.autograd.Function):
    """The identity; sleeps in both directions."""

    FORWARD, BACKWARD = 0.01, 0.03

    @staticmethod
    def forward(_: Any, x: Any) -> Any:
        time.sleep(Slow.FORWARD)
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Any) -> Any:
        time.sleep(Slow.BACKWARD)
        return gradient


@pytest.mark.parametrize("of", [ALL, NONE], ids=["faulty", "clean"])
def test_each_parts_time_is_charged_to_it(of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part sleeps in its own place, in "tiny" and in the backward pass of what it touches too."""
    with loop(of) as found:
        sleeps = {"loader": 0.05, "python": 0.06, "copies": 0.07, "sync": 0.08, "optimizer": 0.09, "tiny": 0.1}
        monkeypatch.setattr(found, "batches", map(slow(sleeps["loader"], lambda x: x), found.batches))
        monkeypatch.setattr(found, "_count", slow(sleeps["python"], found._count))
        monkeypatch.setattr(found, "_to_device", slow(sleeps["copies"] / 2, found._to_device))
        monkeypatch.setattr(found, "_accuracy", slow(sleeps["copies"] / 2, found._accuracy))
        monkeypatch.setattr(found, "_read", slow(sleeps["sync"], found._read))
        monkeypatch.setattr(found.optimizer, "zero_grad", slow(sleeps["optimizer"], found.optimizer.zero_grad))
        monkeypatch.setattr(found.optimizer, "step", slow(sleeps["tiny"], found.optimizer.step))
        # A layer norm inside the range of "tiny", and the embedding's sum outside.
        norm = found.model.layer_norm
        found.model.layer_norm = lambda *a: norm(found._marked(Slow.apply)(a[0]), *a[1:])
        embed = found.model.embed
        found.model.embed = lambda: Slow.apply(embed())
        made = profiling.profile(found, 3)
    norms = 2 * LAYERS + 1
    sleeps["tiny"] += norms * (Slow.FORWARD + Slow.BACKWARD)
    sleeps |= {"forward": Slow.FORWARD, "backward": Slow.BACKWARD}
    assert {*sleeps} == {*made.ranges} == {*profiling.PARTS}
    assert len(made.step) == 3
    # Each has its own sleep, and together they are no longer than the step: none has another's as well.
    for part, seconds in sleeps.items():
        assert min(made.ranges[part]) >= seconds, part
    for k, step in enumerate(made.step):
        assert sum(values[k] for values in made.ranges.values()) <= step


@pytest.mark.parametrize("of", [ALL, {"tiny"}, NONE], ids=["all", "tiny", "clean"])
def test_the_small_operations_of_the_backward_pass_are_found_in_the_profile(of: Any) -> None:
    """By the names of autograd's nodes: those that the graphs of the functions themselves have, no more and no less."""
    hidden, wide = SMOKE.size["hidden_size"], SMOKE.size["intermediate_size"]
    with loop(of) as found:
        events = profiling.profiled({"loop": found}, 2).events()
        acts = nodes(found.model.gelu(torch.randn(2, wide, requires_grad=True)))
        x, scale, shift = (torch.randn(s, requires_grad=True) for s in ((2, hidden), (hidden,), (hidden,)))
        norms = nodes(found.model.layer_norm(x, (hidden,), scale, shift))
    expected = collections.Counter(2 * (LAYERS * acts + (2 * LAYERS + 1) * norms))
    part_of = profiling._parts_of(sorted(events, key=lambda e: e.time_range.start))
    tiny = [e.name for e in events if e.name.startswith(profiling.NODE) and part_of[id(e)] == "tiny"]
    assert collections.Counter(name.removeprefix(profiling.NODE) for name in tiny) == expected


def nodes(tensor: Any) -> list[str]:
    """Names of the autograd nodes behind a tensor, but for those that collect gradients."""
    found: dict[Any, str] = {}
    left = [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found and node.name() != "torch::autograd::AccumulateGrad":
            found[node] = node.name()
            left += [after for after, _ in node.next_functions]
    return [*found.values()]


def event(name: str, start: float, end: float, **more: Any) -> SimpleNamespace:
    """An event as torch's profiler gives it; times in µs, a range around it named by `inside`."""
    base = {
        "name": name, "time_range": SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        "device_type": torch.autograd.DeviceType.CPU, "cpu_parent": None, "sequence_nr": -1, "thread": 1,
        "fwd_thread": 0, "kernels": [], "is_user_annotation": name.startswith("efflab:"),
    }  # fmt: skip
    return SimpleNamespace(**base | more)


def test_on_a_gpu_kernels_count_where_they_were_started_and_autograd_has_a_thread_of_its_own() -> None:
    def kernels(*durations: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(duration=d) for d in durations]

    step = event("efflab:step", 0, 1000)
    forward = event("efflab:forward", 100, 400, cpu_parent=step, kernels=kernels(90))
    linear = event("aten::linear", 110, 150, cpu_parent=forward, sequence_nr=7)
    addmm = event("aten::addmm", 120, 140, cpu_parent=linear, sequence_nr=7, kernels=kernels(40))
    # Nothing is differentiated here, so it carries the number of what follows the range.
    tiny = event("efflab:tiny", 200, 300, cpu_parent=forward)
    small = event("aten::mul", 210, 220, cpu_parent=tiny, sequence_nr=8, kernels=kernels(5, 6))
    free = event("aten::empty", 230, 240, cpu_parent=tiny, sequence_nr=9)
    after = event("aten::sum", 350, 390, cpu_parent=forward, sequence_nr=9, kernels=kernels(7))
    backward = event("efflab:backward", 400, 800, cpu_parent=step)
    other = {"thread": 2, "fwd_thread": 1}
    node9 = event(profiling.NODE + "SumBackward0", 420, 440, sequence_nr=9, **other)
    node8 = event(profiling.NODE + "MulBackward0", 450, 500, sequence_nr=8, **other)
    mul = event("aten::mul", 460, 470, cpu_parent=node8, thread=2, kernels=kernels(3))
    node7 = event(profiling.NODE + "AddmmBackward0", 510, 700, sequence_nr=7, **other)
    mm = event("aten::mm", 520, 600, cpu_parent=node7, thread=2, kernels=kernels(80, 80))
    wait = event("efflab:wait", 900, 990, cpu_parent=step)
    on_device = event("kernel", 500, 600, device_type=torch.autograd.DeviceType.CUDA)
    outside = event("aten::mm", 1500, 1600, kernels=kernels(1000))
    events = [
        step, forward, linear, addmm, tiny, small, free, after, backward, node9, node8, mul, node7, mm, wait,
        on_device, outside,
    ]  # fmt: skip
    found = profiling.read_profile(reversed(events), on_gpu=True)
    microseconds = {part: round(values[0] * 1e6) for part, values in found.ranges.items()}
    # From the end of the node before it to its own end a node is the engine's work for it.
    assert microseconds == {
        "loader": 0, "copies": 0, "sync": 0, "tiny": 100 + 60, "python": 0, "forward": 300 - 100,
        "backward": 400 - 60, "optimizer": 0, "wait": 90,
    }  # fmt: skip
    assert found.step == [pytest.approx(1e-3)]
    assert {p: v[0] for p, v in found.kernels.items() if v[0]} == {"forward": 2, "tiny": 3, "backward": 2}
    on = {p: round(v[0] * 1e6) for p, v in found.kernel_time.items() if v[0]}
    assert on == {"forward": 47, "tiny": 14, "backward": 160}
    assert found.operators == [6.0], "addmm was called by linear"
    assert sum(v[0] for v in found.events.values()) == len(events) - 3, "not the step itself, nor what lies outside"


# A run


def test_a_run_measures_every_case(record: Record) -> None:
    assert all(s.status == "ok" for s in record.samples)
    assert {s.point["case"] for s in record.samples} == {*record.spec["cases"]}
    assert record.spec["sha256"] == faults.text_of("topics").sha256
    raw = record.model_dump_json()
    assert platform.node() not in raw or len(platform.node()) < 3
    assert f"/{getpass.getuser()}/" not in raw


def test_every_time_was_warmed_up_and_repeated(record: Record) -> None:
    for sample in [*record.find("time"), *record.find("baseline")]:
        if sample.status == "ok":
            assert sample.timing is not None and sample.timing.warmup >= 1 and len(sample.values) >= 3


@pytest.mark.parametrize("case", ["profile", "profile-clean"])
def test_the_ranges_lie_in_the_step(record: Record, case: str) -> None:
    steps = record.find("time", case=case)[0].values
    ranges = {part: record.find(f"range_{part}", case=case)[0].values for part in profiling.PARTS}
    assert len(steps) == SMOKE.profiled
    for k, step in enumerate(steps):
        whole = sum(values[k] for values in ranges.values())
        assert 0.5 * step < whole <= step * (1 + 1e-9)
    assert all(min(values) > 0 for values in ranges.values())
    events = {part: record.find(f"events_{part}", case=case)[0].values for part in profiling.PARTS}
    assert all(min(values) >= 1 for values in events.values())
    assert record.find("operators", case=case)[0].values[0] > 100
    assert not record.find("kernels"), "there is no GPU"


def test_the_counts_of_the_profile_are_those_of_the_loop(record: Record) -> None:
    def value(metric: str, case: str = "profile") -> float:
        return median(record.find(metric, case=case)[0].values)

    assert value("operators_tiny") > 10 * value("operators_tiny_mended")
    assert value("bytes_tiny") > 2 * value("bytes_tiny_mended")
    # Reading a number is at least an operator and what it calls.
    with loop(NONE) as found:
        parameters = len(found.parameters)
    assert value("events_sync") >= 2 * (6 * parameters + 1) + 1
    assert value("events_sync", "profile-clean") < 0.02 * value("events_sync") + 2
    assert value("events_tiny") > value("operators_tiny")
    assert value("operators") > value("operators", "profile-clean") + 0.9 * value("operators_tiny")


def test_a_mended_step_has_the_faulty_one_beside_it(record: Record) -> None:
    for role in ("ablation", "ladder"):
        cases = {s.point["case"] for s in record.find("time", role=role)}
        assert cases == {s.point["case"] for s in record.find("baseline", role=role)}
        assert len(cases) == {"ablation": 5, "ladder": 4}[role]


def test_the_curves_of_a_run(record: Record) -> None:
    curves = {s.point["case"]: s.values for s in record.find("loss")}
    assert curves["seed-0"] == curves["seed-0-again"]
    assert all(len(values) == SMOKE.curve for values in curves.values())
    assert curves["seed-0-clean"] == pytest.approx(curves["seed-0"], rel=1e-5)
    assert curves["seed-0-threads"] == pytest.approx(curves["seed-0-clean"], rel=1e-5)
    assert curves["seed-1"] != pytest.approx(curves["seed-0"], rel=1e-4)


def test_what_the_monitor_read_is_in_order(record: Record) -> None:
    for name in profiling.BOTH:
        (elapsed,) = record.find("elapsed", case=f"monitor-{name}")
        assert elapsed.values == sorted(elapsed.values)
        (memory,) = record.find("memory", case=f"monitor-{name}")
        (busy,) = record.find("utilization", case=f"monitor-{name}")
        assert len(memory.values) == len(busy.values) == len(elapsed.values)
        assert min(memory.values) > 2**24 and all(0 <= share <= 1.05 for share in busy.values)
        assert "psutil" in str(memory.point["source"])


def test_a_counter_that_is_missing_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def counters(_: Any) -> Any:
        found = {"memory": monitor.Counter("a fake", lambda: 5.0)}
        return found, {"utilization": "NVML: Not Supported", "power": "no counter"}, lambda: None

    monkeypatch.setattr(monitor, "counters", counters)
    made = plan("smoke")
    samples, problems = runner._attempt(next(c for c in made.cases if c.name == "monitor-clean"), CPU)
    found = {s.metric: s for s in samples}
    assert problems == [] and {*found} == {"time", "elapsed", "memory"}
    assert {found["memory"].point["source"], *found["memory"].values} == {"a fake", 5.0}
    said = [w for w in made.warnings if " no " in w]
    assert said == ["monitor-clean: no utilization: NVML: Not Supported", "monitor-clean: no power: no counter"]


def test_page_locked_memory_is_for_a_gpu() -> None:
    """A CPU's plan leaves the case out. Asked for one all the same, it says why there is none."""
    assert "workers-2-pinned" not in plan("cpu").spec["cases"]
    assert "workers-2-pinned" in plan("gpu", CUDA).spec["cases"]
    session = profiling.Session(SMOKE, CPU, [])
    with pytest.raises(runner.Unavailable, match="this device is a CPU"):
        next(session.step(session.point("workers-2-pinned", "loader", {"loader"}, workers=2, pinned=True)))


def test_a_batch_is_handed_over_by_a_worker_that_has_only_to_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is started that slices, and has ended; making a batch needs none and asks the slow data set."""
    made: list[tuple[str, int, Any]] = []

    class Listening(faults.Batches):
        def __init__(self, items: Any, batch: int, workers: int = 0) -> None:
            super().__init__(items, batch, workers=workers)
            made.append((type(items).__name__, workers, getattr(self._iterator, "_workers", [])))
            assert all(worker.is_alive() for worker in made[-1][2])

    monkeypatch.setattr(profiling, "Batches", Listening)
    cases = {c.name: c for c in plan("smoke").cases}
    for name in ("batch-load", "hand-over"):
        (sample,), problems = runner._attempt(cases[name], CPU)
        assert (sample.status, sample.metric, problems) == ("ok", "time", [])
        assert sample.timing is not None and sample.timing.clock == "perf_counter" and min(sample.values) > 0
        assert sample.point["workers"] == made[-1][1]
    assert [(name, workers, len(found)) for name, workers, found in made] == [("Characters", 0, 0), ("Tokens", 1, 1)]
    assert not any(worker.is_alive() for worker in made[1][2])


def test_an_interrupted_run_ends_its_workers_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ("peak", "workers-1", "seed-0")
    plans = profiling.Profiling.plan

    def short(*arguments: Any) -> runner.Plan:
        found = plans(*arguments)
        found.cases = [c for c in found.cases if c.name in only]
        return found

    monkeypatch.setattr(profiling.Profiling, "plan", short)
    stops = Loop.step

    def stop(self: Loop) -> None:
        stops(self)
        if isinstance(self.batches, faults.Batches) and hasattr(self.batches._iterator, "_workers"):
            raise KeyboardInterrupt

    def run() -> Record:
        return runner.run(profiling.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)[0]

    before = {p.pid for p in psutil.Process().children(recursive=True)}  # a browser of other tests, say
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", stop)
        with pytest.raises(runner.Interrupted, match="stopped after 1"):
            run()
    started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    running = [p.cmdline() for p in started if p.status() != psutil.STATUS_ZOMBIE]
    assert not any("resource_tracker" not in " ".join(command) for command in running)
    found = run()
    assert {s.point["case"] for s in found.samples if s.status == "ok"} == {*only}
    assert any("resumed" in w for w in found.warnings)


def test_training_that_diverges_is_a_failed_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RATE", 1e30)
    case = next(c for c in plan("smoke").cases if c.name == "seed-0")
    (sample,), _ = runner._attempt(case, CPU)
    assert sample.status == "failed" and "diverged" in sample.message


# A trace


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("traces")
    yield profiling.trace(folder / "new" / "trace.json.gz", scale="smoke", device="cpu", steps=2)
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["trace.json.gz"]


def test_a_trace_is_chromes_trace_event_format_and_has_the_parts(traced: Path) -> None:
    """The format: an object with "traceEvents"; a complete event ("X") has ts and dur in µs, pid and tid."""
    data = json.loads(gzip.decompress(traced.read_bytes()))
    complete = [e for e in data["traceEvents"] if e["ph"] == "X"]
    assert {e["ph"] for e in data["traceEvents"]} <= set("BEXiIsftbneMCNOD")
    for e in complete:
        assert e["dur"] >= 0 and e["ts"] > 0 and "pid" in e and "tid" in e and e["name"]

    def within(outer: dict[str, Any]) -> list[str]:
        begin, end = outer["ts"], outer["ts"] + outer["dur"]
        return [e["name"] for e in complete if begin <= e["ts"] and e["ts"] + e["dur"] <= end and e is not outer]

    (faulty,) = [e for e in complete if e["name"] == "efflab:all-faults"]
    (clean,) = [e for e in complete if e["name"] == "efflab:clean"]
    assert faulty["ts"] + faulty["dur"] <= clean["ts"]
    for one in (faulty, clean):
        names = within(one)
        assert names.count("efflab:step") == 2
        assert all(names.count(f"efflab:{part}") >= 2 for part in profiling.PARTS)
    assert within(faulty).count("aten::erf") == 2 * LAYERS > within(clean).count("aten::erf") == 0
    assert within(clean).count("aten::gelu") == 2 * LAYERS > within(faulty).count("aten::gelu") == 0


def test_a_trace_names_no_file_and_no_machine(traced: Path) -> None:
    raw = gzip.decompress(traced.read_bytes()).decode()
    assert "/tmp" not in raw and str(traced.parent) not in raw
    assert len(platform.node()) < 3 or platform.node() not in raw


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("trace.json", {}, "json.gz"),
        ("trace.json.gz", {"steps": 0}, "steps must lie between 1 and"),
        ("trace.json.gz", {"scale": "gpu"}, "needs a GPU"),
        ("trace.json.gz", {"scale": "large"}, "scale 'large' is not known"),
        ("trace.json.gz", {"device": "tpu"}, "device 'tpu' is not known"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_before_anything_runs(
    name: str, options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "profiled", lambda *_: pytest.fail("it ran"))
    with pytest.raises(EfflabError, match=said):
        profiling.trace(tmp_path / name, **{"device": "cpu", "scale": "smoke"} | options)
    assert [*tmp_path.iterdir()] == []


def test_a_trace_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json.gz"
    path.write_text("mine")
    monkeypatch.setattr(profiling, "profiled", lambda *_: pytest.fail("it ran"))
    with pytest.raises(EfflabError, match="exists and is not overwritten"):
        profiling.trace(path, scale="smoke", device="cpu")
    assert path.read_text() == "mine"


@pytest.mark.gpu
def test_a_smoke_run_on_a_gpu(tmp_path: Path) -> None:
    found, _ = runner.run(profiling.EXPERIMENT, scale="smoke", device="cuda", out=tmp_path, report=lambda _: None)
    failed = [s for s in found.samples if s.status != "ok"]
    assert not failed, [s.message for s in failed]
    first, again = (found.find("loss", case=f"seed-0-deterministic{n}")[0].values for n in ("", "-again"))
    assert first == again
    for case in ("profile", "profile-clean"):
        assert median(found.find("kernels", case=case)[0].values) > 50
        (steps,), (on,) = found.find("time", case=case), found.find("kernel_time", case=case)
        assert 0 < median(on.values) < median(steps.values)
        (tiny,) = found.find("kernel_tiny", case=case)
        assert 0 < median(tiny.values) < median(on.values)
