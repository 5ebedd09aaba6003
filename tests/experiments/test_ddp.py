"""The lab of distributed training: torch's own bookkeeping, another GPT, counts by hand, and runs that are stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from efflab import records
from efflab.errors import EfflabError
from efflab.experiments import ddp, ranks, runner
from efflab.experiments.decoder import Decoder, Variant
from efflab.measure import device as devices
from efflab.measure import distributed, energy
from efflab.measure.distributed import Layout, RankFailed
from efflab.records import Energy, Record, load_record
from tests.experiments.machine import environment

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SIZE = {
    "layers": 2, "hidden_size": 32, "intermediate_size": 64, "query_heads": 4, "head_dim": 8, "sequence_length": 16,
    "vocabulary": 50,
}  # fmt: skip


def plan(scale: str, device: torch.device = CPU, resumed: Record | None = None) -> runner.Plan:
    return ddp.EXPERIMENT.plan(scale, device, environment(), resumed)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A smoke run on this CPU: every case, one rank killed."""
    folder = tmp_path_factory.mktemp("run")
    made_up = energy.Counter("a made-up counter", lambda: 10 * time.perf_counter())  # 10 W
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(energy, "counter", lambda *_: made_up)
        found, path = runner.run(ddp.EXPERIMENT, scale="smoke", device="cpu", out=folder, report=lambda _: None)
    assert load_record(path) == found
    assert [p.name for p in folder.iterdir() if not p.name.startswith(".")] == [path.name], "no workspace is left"
    assert str(folder) not in path.read_text()
    return found


def values(record: Record, case: str, metric: str = "time") -> list[float]:
    (sample,) = record.find(metric, case=case)
    assert sample.status == "ok", sample.message
    return sample.values


# What a smoke run measured


def test_every_case_is_measured(record: Record) -> None:
    failed = [(s.point["case"], s.message) for s in record.samples if s.status != "ok"]
    assert not failed
    assert {s.point["case"] for s in record.samples} == {*record.spec["cases"]}
    assert (record.environment.ranks, record.environment.backend) == (2, "gloo")
    assert record.environment.interconnect is None
    assert all(s.timing for s in record.find("time"))
    # A disk or a rank that fails would say so; what only disturbs a time may.
    assert all(any(doubt in w for doubt in records.DOUBTS) for w in record.warnings), record.warnings


def test_the_energy_of_all_ranks_is_counted_once(record: Record) -> None:
    """By the parent, whose counter is the whole machine's; the ranks have another one, and say nothing of it."""
    assert (record.energy.source, record.energy.of) == ("rapl", "a made-up counter")
    assert record.energy.joules == pytest.approx(10 * (record.energy.window_s or 0), rel=1e-3)
    assert all(s.timing.energy is None for s in record.samples if s.timing)
    timed = sum(sum(s.values) * s.timing.loops for s in record.samples if s.timing and s.metric == "time")
    assert timed < (record.energy.window_s or 0), "all calls lie in the window"


def test_parts_of_a_step_make_the_step(record: Record) -> None:
    for case in ("alone-2", "together-2", "alone-part-2", "together-part-2"):
        parts = [values(record, case, name) for name in ranks.PARTS]
        for whole, *each in zip(values(record, case), *parts, strict=True):
            assert min(each) > 0
            assert sum(each) <= whole * (1 + 1e-9)
            assert sum(each) >= 0.5 * whole, "between the parts next to nothing happens"


def test_efficiencies_compare_steps_of_the_same_turn(record: Record) -> None:
    alone = values(record, "alone-2")
    weak, strong = values(record, "ddp-2"), values(record, "strong-2")
    assert values(record, "efficiency-weak-2", "efficiency") == [a / b for a, b in zip(alone, weak, strict=True)]
    assert values(record, "efficiency-strong-2", "efficiency") == [
        a / (2 * b) for a, b in zip(alone, strong, strict=True)
    ]


def test_messages_are_as_many_as_torch_plans(record: Record) -> None:
    """torch's own assignment of tensors to buckets, in the order in which gradients come."""
    model = ranks.GPT(record.spec["model"])
    tensors = [*model.parameters()][::-1]
    first, other = record.spec["first_bucket_bytes"], record.spec["bucket_bytes"]
    planned, _ = dist._compute_bucket_assignment_by_size(tensors, [first, other])
    for case in ("ddp-2", "strong-2", "reducer-2", "accumulate-2"):
        assert values(record, case, "buckets") == [len(planned)]
    assert values(record, "flat-2", "buckets") == [1]
    assert values(record, "per-tensor-2", "buckets") == [len(tensors)] == [record.spec["model"]["tensors"]]


def test_the_straggler_comes_late(record: Record) -> None:
    delays = values(record, "straggler-2", "delay")
    steps = values(record, "straggler-2")
    asked = record.find("time", case="straggler-2")[0].point["sleep"]
    assert len(delays) == len(steps)
    assert min(delays) >= asked, "time.sleep never returns early"
    assert all(step > delay for step, delay in zip(steps, delays, strict=True))


def test_samplers(record: Record) -> None:
    """101 samples on 2 ranks: each takes 51, so that one comes twice."""
    assert values(record, "set-epoch-2", "orders") == [4]
    assert values(record, "no-set-epoch-2", "orders") == [1]
    for case in ("set-epoch-2", "no-set-epoch-2"):
        assert values(record, case, "repeated") == [1, 1, 1, 1]


def test_the_gradient_is_that_of_all_samples(record: Record) -> None:
    (found,), (rounding,) = (values(record, "gradient-2", name) for name in ("difference", "rounding"))
    assert 0 < rounding < 1e-5
    assert found < 10 * rounding


def test_the_mean_gradient_is_never_longer_than_the_mean_length(record: Record) -> None:
    """Jensen's inequality, draw by draw; the same gradients make all batches."""
    one, two, four = (values(record, f"norm-{n}x", "norm_squared") for n in (1, 2, 4))
    draws = record.spec["noise"]["draws"]
    assert (len(one), len(two), len(four)) == (4 * draws, 2 * draws, draws)
    for i in range(draws):
        assert four[i] <= sum(two[2 * i : 2 * i + 2]) / 2 * (1 + 1e-9)
        assert sum(two[2 * i : 2 * i + 2]) / 2 <= sum(one[4 * i : 4 * i + 4]) / 4 * (1 + 1e-9)
    assert sum(four) < sum(one) / 4


def test_memory_by_counting_parameters(record: Record) -> None:
    """FP32: 4 bytes of weight, 4 of gradient and 8 of AdamW for each parameter, as far as a stage leaves them."""
    count = sum(p.numel() for p in ranks.GPT(record.spec["model"]).parameters())
    assert record.spec["model"]["parameters"] == count
    for case, each in (("ddp", 16), ("zero1", 4 + 4 + 8 / 2), ("fsdp", 16 / 2)):
        (found,) = values(record, f"memory-{case}-2", "state_bytes")
        # Whole tensors are dealt out, and each has a counter of steps.
        assert found == pytest.approx(each * count, rel=0.01)


def test_a_rank_is_killed_and_nothing_is_lost(record: Record) -> None:
    of, resume = record.spec["curve"], record.spec["resume"]
    losses = values(record, "curve", "loss")
    assert len(losses) == of["steps"]
    assert losses[0] == pytest.approx(math.log(record.spec["trained"]["vocabulary"]), abs=0.2)
    assert losses[-1] < losses[0] - 0.5
    assert len(values(record, "curve", "checkpoint_time")) == (of["steps"] - 1) // of["checkpoint_steps"]
    assert not record.find("resumed_at", case="curve")
    assert values(record, "resumed", "repeated") == [resume["killed_at"] - 20] == [7]
    assert values(record, "resumed", "difference") == [0]
    assert values(record, "resumed", "loss") == losses[: resume["steps"]]
    assert values(record, "resumed", "restart_time")[0] > 0


# Plans


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_a_plan_is_the_same_every_time_and_names_are_unique(scale: str) -> None:
    first, second = plan(scale), plan(scale)
    assert first.spec == second.spec
    assert [c.point for c in first.cases] == [c.point for c in second.cases]
    assert len({c.name for c in first.cases}) == len(first.cases)
    json.dumps(first.spec, allow_nan=False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, nodes: tuple[str, ...] = (), cores: int = 32) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(distributed, "job_nodes", lambda: nodes)
    monkeypatch.setattr(distributed, "interconnect", lambda layout: "NV18")


def test_where_ranks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    assert ddp.layout_of("gpu", torch.device("cuda", 2)) == Layout(1, (), 32, "cuda", 2)
    assert ddp.layout_of("multi", CUDA) == Layout(4, (), 8, "cuda")
    assert ddp.layout_of("smoke", CUDA) == Layout(2, (), 16, "cuda")
    # A GPU that was asked for by its number is the first one, or is refused: nobody else's is measured.
    assert ddp.layout_of("smoke", torch.device("cuda", 1)) == Layout(2, (), 16, "cuda", 1)
    assert ddp.layout_of("smoke", torch.device("cuda", 3)) == Layout(1, (), 32, "cuda", 3)
    with pytest.raises(EfflabError, match="'multi' uses every GPU, and cuda:2 was asked for"):
        ddp.layout_of("multi", torch.device("cuda", 2))
    assert ddp.layout_of("smoke", CPU) == Layout(2)
    assert ddp.layout_of("cpu", CPU) == Layout(8)
    gpus(monkeypatch, 4, ("a", "b"))
    assert ddp.layout_of("multi", CUDA) == Layout(4, ("a", "b"), 8, "cuda")
    assert ddp.layout_of("multi", CPU) == Layout(8, ("a", "b"))
    assert ddp.layout_of("smoke", CPU) == Layout(1, ("a", "b"))
    assert ddp.layout_of("cpu", CPU) == Layout(8), "one node: what 'multi' is for stays out"
    gpus(monkeypatch, 1, cores=1)
    assert ddp.layout_of("cpu", CPU) == Layout(2)
    with pytest.raises(EfflabError, match="needs several GPUs"):
        ddp.layout_of("multi", CUDA)


def test_several_gpus_are_planned_at_every_count(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8, ("a", "b"))
    made = plan("multi", CUDA)
    assert made.spec["rank_counts"] == [2, 4, 8, 16]
    assert (made.spec["nodes"], made.spec["ranks_per_node"], made.spec["backend"]) == (2, 8, "nccl")
    assert made.environment == {
        "ranks": 16, "backend": "nccl", "threads": 4, "count": 16, "interconnect": "NV18",
    }  # fmt: skip
    names = {c.name for c in made.cases}
    assert {f"{kind}-{n}" for kind in ("ddp", "strong", "straggler", "memory-fsdp") for n in (2, 4, 8, 16)} <= names
    assert (made.devices, made.nodes) == ([torch.device("cuda", i) for i in range(8)], 2)
    each = {c.point["ranks"]: c.point["microbatch"] for c in made.cases if c.point["role"] == "gradient"}
    assert each == {2: 8, 4: 8, 8: 8, 16: 4}, "one process holds the activations of all"
    assert made.spec["bucket_bytes"] == 25 * 2**20 and made.spec["first_bucket_bytes"] == 2**20


def test_one_gpu_says_what_it_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    cases = {c.name: c for c in plan("gpu", CUDA).cases}
    for name in ("ddp-2", "straggler-2", "memory-fsdp-2", "all-reduce-8MiB-2", "efficiency-weak-2", "gradient-2"):
        with pytest.raises(runner.Unavailable, match="needs two GPUs"):
            next(cases[name].samples())
    assert {"alone-1", "together-1", "reducer-1", "ddp-1", "memory-fsdp-1", "set-epoch-2", "curve"} <= {*cases}
    assert not any(c.point["role"] == "fit" for c in cases.values())


@given(count=st.integers(1, 5000))
def test_numbers_of_ranks_double_up_to_all(count: int) -> None:
    found = ddp.counts_of(count)
    assert found[-1] == count and found == sorted({*found})
    assert all(n & (n - 1) == 0 for n in found[:-1])
    assert len(found) == max(1, math.ceil(math.log2(count)))


@given(size=st.integers(1, 2**40))
def test_a_size_can_be_read_from_its_name(size: int) -> None:
    name = ddp.size_name(size)
    unit = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}.get(name[-3:], 1)
    assert int(name.rstrip("KMGiB")) * unit == size


def test_what_a_partial_run_has_is_not_launched_again() -> None:
    made = plan("smoke")
    done = [c for c in made.cases if c.point["role"] in ("fit", "all-reduce") or c.name == "curve"]
    samples = [
        records.Sample(
            point=c.point, metric=c.metric, unit=c.unit, values=[1.0, 2.0] if c.name == "curve" else [1.0], status="ok"
        )
        for c in done
    ]  # fmt: skip
    kept = Record(
        id="a", topic="ddp", created=records.now(), environment=environment(), spec=made.spec, samples=samples
    )  # fmt: skip
    session = _session(plan("smoke", resumed=kept))
    assert session.done == {c.name for c in done}
    assert session.curve == [1.0, 2.0]


def _session(made: runner.Plan) -> ddp.Session:
    return made.close.__self__  # type: ignore[attr-defined]


# How launches follow each other, with launches that are made up


class Script:
    """Plays launches: each yields what it is told to, or raises it."""

    def __init__(self, *launches: list[Any]) -> None:
        self.launches = list(launches)
        self.asked: list[dict[str, Any]] = []
        self.accounts: list[Path | None] = []
        self.closed = 0

    def __call__(
        self, target: str, arguments: dict[str, Any], *, layout: Layout, folder: Path, accounts: Path | None
    ) -> Any:
        self.asked.append(arguments)
        self.accounts.append(accounts)
        return Played(self, self.launches.pop(0), folder)


class Played:
    """A launch of a `Script`."""

    def __init__(self, script: Script, events: list[Any], folder: Path) -> None:
        self.script, self.events, self.folder = script, events, folder

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for one in self.events:
            if isinstance(one, BaseException):
                raise one
            if callable(one):
                one(self.folder)
            else:
                yield one

    def close(self) -> None:
        self.script.closed += 1


ANSWERED = {"answered": True}


def said(case: str, **more: Any) -> dict[str, Any]:
    return {"case": case, "samples": [{"metric": "time", "unit": "s", "values": [1.0]}], "warnings": []} | more


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ddp.Session:
    """A session of two groups in a workspace: a and b, then c."""
    place = runner._Workspace(tmp_path / "workspace")
    monkeypatch.setattr(runner, "_present", place)
    groups = [{"kind": "x", "names": {"1": "a", "2": "b"}}, {"kind": "y", "name": "c"}]
    arguments = {"resume": {"steps": 4, "checkpoint_steps": 2, "killed_at": 3}}
    return ddp.Session(ddp.SMOKE, Layout(2), arguments, groups, [])


def test_one_launch_measures_all_cases(session: ddp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([said("a"), {"warning": "no checkpoint"}, said("b", warnings=["wide"]), said("c")])
    monkeypatch.setattr(distributed, "Launch", script)
    for case in "abc":
        (sample,) = session.shared({"case": case})
        assert (sample.point, sample.values) == ({"case": case}, [1.0])
    assert [a["cases"] for a in script.asked] == [["a", "b", "c"]]
    assert session.warnings == ["no checkpoint", "b: wide"]
    assert not runner._present.kept  # type: ignore[union-attr]


def test_the_last_case_of_a_launch_waits_for_its_end(session: ddp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every node has read its counters, and the energy that is kept with the case holds all of it."""
    script = Script([said("a"), said("b"), said("c")])
    monkeypatch.setattr(distributed, "Launch", script)
    closed = []
    for case in "abc":
        next(session.shared({"case": case}))
        closed.append(script.closed)
    assert closed == [0, 0, 1]


def test_all_launches_of_a_session_on_several_nodes_have_one_account(
    session: ddp.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script([], [])
    monkeypatch.setattr(distributed, "Launch", script)
    session.layout = Layout(1, ("n1", "n2"))
    assert session.energy() == Energy(why="no rank has run yet")
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(distributed, "energy_of", lambda *given: asked.append(given))
    first, second = session.launch("measure", {}), session.launch("train", {})
    assert script.accounts[0] == script.accounts[1] and script.accounts[0] is not None
    assert first is not second
    session.energy()
    assert asked == [(script.accounts[0], 2, second)]


def test_a_rank_that_fails_costs_its_group_and_no_more(session: ddp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([RankFailed("rank 1 (node 0) failed: x", rank=1)], [ANSWERED], [said("c")])
    monkeypatch.setattr(distributed, "Launch", script)
    with pytest.raises(RankFailed, match="rank 1"):
        list(session.shared({"case": "a"}))
    with pytest.raises(runner.Unavailable, match="see a"):
        list(session.shared({"case": "b"}))
    assert [s.values for s in session.shared({"case": "c"})] == [[1.0]]
    assert [a.get("cases") for a in script.asked] == [["a", "b", "c"], None, ["c"]]
    assert [g["kind"] for g in script.asked[2]["groups"]] == ["y"]
    assert script.closed == 3, "the failed one, the one that only answers, and the last one at its end"
    assert runner._present.kept, "the traceback that the message names stays"  # type: ignore[union-attr]


def test_a_group_that_failed_is_not_launched_again(session: ddp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases' order need not be the groups': with three ranks, messages of two and of all alternate."""
    script = Script([RankFailed("rank 1 (node 0) failed: x", rank=1)], [ANSWERED], [said("c")])
    monkeypatch.setattr(distributed, "Launch", script)
    with pytest.raises(RankFailed, match="rank 1"):
        list(session.shared({"case": "a"}))
    assert [s.values for s in session.shared({"case": "c"})] == [[1.0]]
    assert script.asked[2]["cases"] == ["c"] and [g["kind"] for g in script.asked[2]["groups"]] == ["y"]
    with pytest.raises(runner.Unavailable, match="see a"):
        list(session.shared({"case": "b"}))


def test_ranks_that_no_longer_work_end_the_run(session: ddp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is lost, or a network that carries nothing: the other cases stay open."""
    lost = RankFailed("rank 1 (node 0) failed: unhandled cuda error", rank=1)
    script = Script([said("a"), lost], [lost])
    monkeypatch.setattr(distributed, "Launch", script)
    assert len([*session.shared({"case": "a"})]) == 1
    with pytest.raises(runner.RunFailed, match=r"(?s)unhandled cuda error.*started once more: rank 1 \(node 0\)"):
        list(session.shared({"case": "b"}))
    assert len(script.asked) == script.closed == 2
    script.launches = [[said("b"), said("c")]]
    assert [s.values for case in "bc" for s in session.shared({"case": case})] == [[1.0], [1.0]]


@pytest.mark.parametrize("event", [{"stopped": True}, RankFailed("ended from outside", outside=True)])
def test_asked_to_stop_while_it_looks_whether_ranks_work(
    event: Any, session: ddp.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "Launch", Script([RankFailed("rank 1", rank=1)], [event]))
    with pytest.raises(KeyboardInterrupt):
        list(session.shared({"case": "a"}))


def test_what_the_ranks_cannot_do_and_what_they_leave_out(
    session: ddp.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "Launch", Script([{"case": "a", "unavailable": "no"}, said("b")]))
    with pytest.raises(runner.Unavailable, match="no"):
        list(session.shared({"case": "a"}))
    assert len(list(session.shared({"case": "b"}))) == 1
    with pytest.raises(EfflabError, match="without a result"):
        list(session.shared({"case": "c"}))


@pytest.mark.parametrize("event", [{"stopped": True}, RankFailed("ended from outside", outside=True)])
def test_a_run_that_is_stopped_has_no_failed_case(
    event: Any, session: ddp.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "Launch", Script([said("a"), event], [event]))
    list(session.shared({"case": "a"}))
    with pytest.raises(KeyboardInterrupt):
        list(session.shared({"case": "b"}))
    with pytest.raises(KeyboardInterrupt):
        list(session.killed({"case": "resumed"}))


def _step(step: int, loss: float, when: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "time": when}


KILLED = RankFailed("rank 1 (node 0) was ended by SIGKILL", rank=1, node=0, signal=9)


def _kill_note(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ddp.KILLED).write_text("100.5")


def test_the_killed_run_is_compared_with_the_other(session: ddp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.curve = [4.0, 3.0, 2.0, 1.0, 0.5]
    first = [{"resumed_at": 0}, _step(1, 4.0, 1), _step(2, 3.0, 2), _step(3, 2.5, 3), _kill_note, KILLED]
    second = [{"resumed_at": 2}, _step(3, 2.0, 107), _step(4, 1.25, 108), {"losses": [4.0, 3.0, 2.0, 1.25]}]
    script = Script(first, second)
    monkeypatch.setattr(distributed, "Launch", script)
    found = {s.metric: s.values for s in session.killed({"case": "resumed"})}
    assert found == {
        "repeated": [1], "difference": [0.5], "restart_time": [6.5], "loss": [4.0, 3.0, 2.0, 1.25],
    }  # fmt: skip
    assert [a["kill_at"] for a in script.asked] == [3, None]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([{"resumed_at": 0}, {"losses": []}], "was to be killed after step 3 and was not"),
        ([_kill_note, RankFailed("rank 0 (node 0) failed: disk", rank=0)], "rank 0"),
        ([RankFailed("rank 1 (node 0) was ended by SIGKILL", rank=1, signal=9)], "rank 1"),  # not by itself
    ],
)
@pytest.mark.parametrize("answers", [True, False])
def test_a_kill_that_goes_otherwise_is_no_result(
    script: list[Any], expected: str, answers: bool, session: ddp.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Script(script, [ANSWERED] if answers else [RankFailed("rank 0 again", rank=0)])
    monkeypatch.setattr(distributed, "Launch", played)
    with pytest.raises(EfflabError, match=expected) as caught:
        list(session.killed({"case": "resumed"}))
    failed = any(isinstance(one, RankFailed) for one in script)
    assert len(played.asked) == 1 + failed
    assert isinstance(caught.value, runner.RunFailed) == (failed and not answers)


# What ranks do, with one of them in this process


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[distributed.World]:
    """A real world of one rank."""
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(distributed.free_port()), "GLOO_SOCKET_IFNAME": "lo",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    made = plan("smoke")
    trained = {k: v for k, v in made.spec["trained"].items() if k not in ("parameters", "tensors", "gradient_bytes")}
    curve = made.spec["curve"] | {"checkpoint_steps": 2}
    settings = {
        "arguments": {"curve": curve, "trained": trained}, "device": "cpu", "first_device": 0, "threads": 1,
        "timeout": 60.0, "waiting": 60.0, "accounts": None,
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    threads = torch.get_num_threads()
    world = distributed.World(tmp_path)
    yield world
    world.close()
    torch.set_num_threads(threads)


def test_the_model_is_the_decoder_of_the_other_labs() -> None:
    """Another implementation with the same weights: the same loss and the same gradients."""
    torch.manual_seed(1)
    model = ranks.GPT(SIZE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)  # biases and norms too
    other = Decoder(SIZE | {"microbatch": 3}, Variant("fp32", "math"), CPU)
    layers = [
        [m.norm1.weight, m.norm1.bias, m.qkv.weight, m.qkv.bias, m.out.weight, m.out.bias,
         m.norm2.weight, m.norm2.bias, m.up.weight, m.up.bias, m.down.weight, m.down.bias]
        for m in model.layers
    ]  # fmt: skip
    own = [
        model.embedding.weight, model.positions.weight, *(p for layer in layers for p in layer), model.norm.weight,
        model.norm.bias,
    ]  # fmt: skip
    assert len(own) == len([*model.parameters()]) == len(other.parameters)
    with torch.no_grad():
        for theirs, mine in zip(other.parameters, own, strict=True):
            theirs.copy_(mine)
    loss, reference = model(other.tokens, other.targets), other.loss(other.run_layers(other.embed()))
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    loss.backward()
    reference.backward()
    for theirs, mine in zip(other.parameters, own, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    shape = ranks.shape(SIZE)
    count = sum(p.numel() for p in other.parameters)
    assert shape == {"parameters": count, "tensors": len(own), "gradient_bytes": 4 * count}


def test_a_checkpoint_goes_on_where_it_was(world: distributed.World, tmp_path: Path) -> None:
    """Dropout's random numbers, the sampler's place and AdamW's moments included: to the last bit."""
    whole = ranks.Training(world, tmp_path / "whole", 7)
    whole.run()
    part = ranks.Training(world, tmp_path / "part", 5)
    part.run()
    assert (tmp_path / "part" / ranks.CHECKPOINT).exists()
    torch.manual_seed(99)
    again = ranks.Training(world, tmp_path / "part", 7)
    assert again.step == 4 and again.losses == whole.losses[:4]
    again.run()
    assert again.losses == whole.losses and again.resumed == [4]
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == [ranks.CHECKPOINT], "no temporary file is left"


def test_epochs_follow_each_other(world: distributed.World, tmp_path: Path) -> None:
    training = ranks.Training(world, tmp_path / "x", 10**6)
    training.per_epoch = 3
    orders = []
    for step in range(6):
        training.losses = [0.0] * step
        orders.append(training.batch()[0])
    assert not torch.equal(torch.cat(orders[:3]), torch.cat(orders[3:]))
    sampler = dist_sampler(training)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected = training.text.inputs[[*sampler][: 3 * training.microbatch]]
        assert torch.equal(torch.cat(orders[3 * epoch : 3 * epoch + 3]), expected)


def dist_sampler(training: ranks.Training) -> Any:
    from torch.utils.data.distributed import DistributedSampler

    return DistributedSampler(training.text.inputs, 1, 0, seed=ranks.SEED, drop_last=True)


def test_a_checkpoint_of_another_run_is_refused(world: distributed.World, tmp_path: Path) -> None:
    ranks.Training(world, tmp_path / "x", 3).run()
    world.arguments["curve"]["learning_rate"] = 1.0
    with pytest.raises(EfflabError, match=r"checkpoint.pt: .* of another run: learning_rate"):
        ranks.Training(world, tmp_path / "x", 3)
    (tmp_path / "x" / ranks.CHECKPOINT).write_bytes(b"half of a file")
    with pytest.raises(EfflabError, match=r"checkpoint.pt: .*cannot be read"):
        ranks.Training(world, tmp_path / "x", 3)


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_run(
    world: distributed.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        kept = tmp_path / "kept" / "checkpoint.pt"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(b"x")
        raise records.NotSaved("checkpoint.pt: cannot be written: No space left on device.", kept, "")

    monkeypatch.setattr(records, "write", full)
    training = ranks.Training(world, tmp_path / "x", 3)
    training.run()
    assert len(training.losses) == 3
    lines = [json.loads(line) for line in (tmp_path / distributed.STREAM).read_text().splitlines()]
    assert "No space left" in lines[-1]["warning"] and "step 2" in lines[-1]["warning"]
    assert not (tmp_path / "kept").exists(), "no copy fills another disk"


@pytest.mark.parametrize("kind", [ranks.flattened, ranks.one_by_one])
def test_gradients_averaged_by_hand_stay_on_one_rank(kind: Any, world: distributed.World) -> None:
    model = ranks.GPT(SIZE)
    model(*ranks.random_batch(SIZE, 2, CPU, 0)).backward()
    before = [p.grad.clone() for p in model.parameters()]
    sent: dict[str, int] = {}
    kind(model, world.group(), 1, "kind", sent)()
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    assert sent == {"kind": 1 if kind is ranks.flattened else len(before)}


@pytest.mark.parametrize("held", [4096, 1000])
def test_a_message_that_does_not_fit_is_named(
    held: int, world: distributed.World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A device without room for two messages of more than so many bytes; the smaller ones are timed."""
    asked: list[int] = []
    empty = torch.empty_like

    def like(tensor: Any, **options: Any) -> Any:
        asked.append(4 * tensor.numel())
        if asked[-1] > held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(tensor, **options)

    monkeypatch.setattr(torch, "empty_like", like)
    sizes = {"small": 256, "middle": 1024, "large": 16384}
    monkeypatch.setattr(ranks, "MOST_DOUBLINGS", 2)
    monkeypatch.setattr(math, "log2", lambda n: 1.0)  # of the one rank that there is
    options = {"time_limit": 1.0, "shortest": 1e-4, "fewest": 1, "most": 2}
    world.arguments |= {"cases": [*sizes], "model": {}, "timer": {}, "message_timer": options}
    bench = ranks.Bench(world)
    start, room = bench.pair(16384, 1)
    fits = max(n for n in (16384 >> i for i in range(15)) if n <= held)  # halved until it fits
    assert 4 * len(start) == 4 * len(room) == fits
    assert 0 < float(start.abs().max()) * 2.0**ranks.MOST_DOUBLINGS < 3.4e38
    bench.messages(1, sizes)
    lines = [json.loads(line) for line in (tmp_path / distributed.STREAM).read_text().splitlines()]
    found = {line["case"]: line for line in lines}
    assert {*found} == {*sizes}
    for name, nbytes in sizes.items():
        if nbytes <= held:
            assert len(found[name]["samples"][0]["values"]) == 2
        else:
            assert f"two messages of {nbytes} bytes" in found[name]["unavailable"]


def test_another_error_than_memory_is_not_taken_for_it(
    world: distributed.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch, "empty_like", broken)
    world.arguments |= {"model": {}, "timer": {}}
    with pytest.raises(RuntimeError, match="illegal"):
        ranks.Bench(world).pair(1024, 1)


def test_the_ranks_answer(world: distributed.World, tmp_path: Path) -> None:
    world.arguments["counts"] = [1]
    ranks.answer(world)
    assert json.loads((tmp_path / distributed.STREAM).read_text()) == ANSWERED


class Others:
    """A world of four ranks seen from one of them, in which a group of two is asked to stop."""

    ranks = 4

    def __init__(self, rank: int) -> None:
        self.rank, self.said, self.asked = rank, list[str](), False
        self.arguments: dict[str, Any] = {
            "counts": [2, 4], "model": {}, "timer": {},
            "groups": [{"kind": "one", "ranks": 2}, {"kind": "two", "ranks": 4}],
        }  # fmt: skip

    def make_groups(self, counts: list[int]) -> None:
        self.said.append("groups")

    def barrier(self) -> None:
        self.said.append("barrier")
        self.asked = True

    def count(self) -> None:
        self.said.append("count")

    def stopping(self) -> bool:
        self.said.append("look")
        return self.asked


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("last", [False, True])
def test_ranks_that_wait_stop_with_those_that_measure(rank: int, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it measured or waited, a rank takes part in the same waits and looks, and then stops."""

    def one(self: ranks.Bench, count: int) -> None:
        raise distributed.Stopping

    monkeypatch.setattr(ranks.Bench, "one", one, raising=False)
    world = Others(rank)
    if last:
        world.arguments["groups"].pop()
    with pytest.raises(distributed.Stopping):
        ranks.measure(world)  # type: ignore[arg-type]
    assert world.said == ["groups", "look", "barrier", "count", "look"]


def test_the_peak_is_of_the_case_alone(
    world: distributed.World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A GPU that is pretended: what earlier cases left there is none of this one's."""
    calls: list[str] = []
    world.arguments |= {
        "model": SIZE, "timer": {}, "microbatch": 2, "bucket_bytes": None, "cases": ["memory-ddp-1"],
    }  # fmt: skip
    monkeypatch.setattr(world, "device", _Pretended())
    monkeypatch.setattr(world, "clock", distributed.timer.CPUClock())
    monkeypatch.setattr(ranks, "random_batch", lambda *_: _random_batch(SIZE, 2, CPU, 0))
    monkeypatch.setattr(ranks, "made", lambda *_: ranks.GPT(SIZE))
    monkeypatch.setattr(ranks, "wrapped", lambda world, model, *_: model)
    for name, value in {
        "empty_cache": None, "memory_allocated": 5_000, "reset_peak_memory_stats": None, "max_memory_allocated": 12_000,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, n=name, v=value: calls.append(n) or v)
    ranks.Bench(world).memory(1, "memory-ddp-1", 0)
    samples = json.loads((tmp_path / distributed.STREAM).read_text())["samples"]
    assert [s["values"] for s in samples if s["metric"] == "peak_bytes"] == [[7_000]]
    assert calls[:2] == ["empty_cache", "memory_allocated"]


_random_batch = ranks.random_batch


class _Pretended:
    type, index = "cuda", 0


# Stopping a run and going on


ONLY_CURVE = """
import dataclasses, sys
from efflab import cli, experiments
from efflab.experiments import ddp

ddp.SMOKE = dataclasses.replace(ddp.SMOKE, curve=ddp.SMOKE.curve | {"steps": 60})

class Only:
    topic, scales = "ddp", ("smoke",)
    def plan(self, *given):
        plan = ddp.EXPERIMENT.plan(*given)
        plan.cases = [c for c in plan.cases if c.name == "curve"]
        plan.close.__self__.groups[:] = [g for g in plan.close.__self__.groups if g["kind"] == "curve"]
        return plan

experiments.get = lambda topic: Only()
sys.exit(cli.main(["run", "ddp", "--scale", "smoke", "--device", "cpu", "--out", sys.argv[1]]))
"""


@pytest.mark.parametrize("sent", [[signal.SIGUSR1, signal.SIGUSR1], [signal.SIGKILL]])
def test_a_run_that_is_stopped_goes_on_at_its_checkpoint(
    sent: list[int], record: Record, tmp_path: Path, root: Path
) -> None:
    """SIGUSR1 as Slurm sends it before it takes a job's nodes, or no warning at all."""
    command = [sys.executable, "-c", ONLY_CURVE, str(tmp_path)]
    named = {k: v for k, v in os.environ.items() if k != "SLURM_JOB_ID"} | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=named)
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"*.workspace/curve/{ranks.CHECKPOINT}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for number in sent:
        process.send_signal(number)
    rest = process.stderr.read()
    process.wait()
    process.stderr.close()
    if sent[0] == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, rest
        assert "stopped after 0 of 1" in rest and "Traceback" not in rest
    after = subprocess.run(command, capture_output=True, text=True, env=named)
    assert after.returncode == 0, after.stderr
    (path,) = tmp_path.glob("ddp-*.json")
    found = load_record(path)
    (went_on,) = values(found, "curve", "resumed_at")
    assert 10 <= went_on < 60
    if sent[0] == signal.SIGKILL:
        assert went_on % record.spec["curve"]["checkpoint_steps"] == 0
    assert values(found, "curve", "loss") == values(record, "curve", "loss")[:60], "as if it had not been stopped"
    assert not list(tmp_path.glob("*.workspace"))


def test_nodes_that_are_not_seen_are_asked_or_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of two GPUs at 400 W; what the nodes say counts, else 30% to 100% of 1600 W."""
    clock = [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])
    there = environment().model_copy(update={"device": "NVIDIA X", "kind": "cuda", "power_limit": 400.0})
    kept = Record(id="a", topic="ddp", created=records.now(), environment=there, spec={"scale": "multi"}, samples=[])
    said = Energy(source="nvml-counter", joules=70.0, window_s=9.0)
    here = [torch.device("cuda", i) for i in (0, 1)]
    account = runner.Account(here, kept, 2, lambda: said)
    clock[0] = 10.0
    assert account.so_far() == said
    said = Energy(why="1 of 2 nodes handed over no reading")
    found = account.so_far()
    assert (found.source, found.rating, found.window_s) == ("modelled", [1600.0, 1600.0], 10.0)
    assert found.band == pytest.approx([4800.0, 16000.0])
    assert found.why == said.why and found.of.endswith("400 W, 2 of them on each of 2 nodes")


def test_what_a_stopped_case_took_is_in_the_runs_energy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also in the first case, and until the processes have ended: 3 J and 5 J, and 30 J when it is measured again."""
    joules, clock, stops = [0.0], [0.0], [True]
    monkeypatch.setattr(energy, "counter", lambda *_: energy.Counter("a made-up counter", lambda: joules[0]))

    def take(amount: float) -> None:
        joules[0] += amount
        clock[0] += 1.0

    monkeypatch.setattr(energy, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: clock[0])}))

    def case() -> Iterator[records.Sample]:
        runner.workspace()
        take(3.0 if stops[0] else 30.0)
        if stops[0]:
            raise KeyboardInterrupt
        yield records.Sample(point={"case": "x"}, metric="time", unit="s", values=[1.0], status="ok")

    def close() -> None:
        if stops[0]:
            stops[0] = False
            take(5.0)

    class Stopped:
        topic, scales = "ddp", ("smoke",)

        def plan(self, *_: Any) -> runner.Plan:
            return runner.Plan({"scale": "smoke"}, [runner.Case({"case": "x"}, case)], close=close)

    with pytest.raises(runner.Interrupted):
        runner.run(Stopped(), scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)
    found, _ = runner.run(Stopped(), scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)
    assert (found.energy.joules, found.energy.window_s) == (38.0, 3.0)


def test_what_is_predicted_for_a_job_is_what_the_job_measures() -> None:
    """The cases of nodes that are not here are those of this one, where they are alike."""
    cores = devices.cores()
    for scale in ("smoke", "cpu", "multi"):
        there = ddp.EXPERIMENT.elsewhere(scale, nodes=1, gpus=0, cores=cores)
        here = plan(scale).cases
        assert [(c.point, c.metric, c.unit) for c in there] == [(c.point, c.metric, c.unit) for c in here]


def test_a_job_with_gpus_is_predicted_with_the_gpus_plan() -> None:
    found = {c.name: c.point for c in ddp.EXPERIMENT.elsewhere("multi", nodes=2, gpus=4, cores=16)}
    assert {"ddp-2", "ddp-4", "ddp-8"} <= found.keys() and "ddp-16" not in found
    assert found["resumed"]["killed_at"] == ddp.GPU.resume["killed_at"] and found["resumed"]["ranks"] == 8
    small = {c.name: c.point for c in ddp.EXPERIMENT.elsewhere("multi", nodes=2, gpus=0, cores=1)}
    assert small["ddp-2"]["gradient_bytes"] < found["ddp-2"]["gradient_bytes"] and "ddp-4" not in small
