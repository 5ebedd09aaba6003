"""The runner keeps what was measured: out of memory, failures, Ctrl-C, kill -9, a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from efflab import records
from efflab.errors import EfflabError
from efflab.experiments import get, runner, topics
from efflab.measure import monitor
from efflab.records import Energy, Environment, Record, Sample
from tests.measure import counters


class Fake:
    """An experiment of cases that each run a function."""

    topic = "fake"
    scales = ("smoke", "cpu", "gpu")

    def __init__(self, **cases: Callable[[], float]) -> None:
        self.functions = cases
        self.ran: list[str] = []

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> runner.Plan:
        def case(name: str, function: Callable[[], float]) -> runner.Case:
            point: dict[str, Any] = {"case": name}

            def samples() -> Iterator[Sample]:
                self.ran.append(name)
                value = function()
                yield Sample(point=point, metric="time", unit="s", values=[value], status="ok")

            return runner.Case(point, samples)

        spec = {"scale": scale, "cases": list(self.functions)}
        return runner.Plan(spec, [case(n, f) for n, f in self.functions.items()])


def run(experiment: Fake, out: Path, **options: Any) -> tuple[Record, Path]:
    return runner.run(experiment, scale="smoke", device="cpu", out=out, report=lambda _: None, **options)


def raises(error: BaseException) -> Callable[[], float]:
    def function() -> float:
        raise error

    return function


def test_a_whole_run_is_saved_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    record, path = run(Fake(a=lambda: 1.0, b=lambda: 2.0), tmp_path)
    assert [s.values for s in record.samples] == [[1.0], [2.0]]
    assert record.finished
    assert records.load(path) == record
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == [path]
    _again, other = run(Fake(a=lambda: 1.0, b=lambda: 2.0), tmp_path)
    assert other != path
    assert records.load(path) == record


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 B"), "oom"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "failed"),
        (runner.Unavailable("no compiler"), "failed"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_a_failing_case_is_a_result(error: Exception, status: str, tmp_path: Path) -> None:
    record, _ = run(Fake(a=lambda: 1.0, b=raises(error), c=lambda: 3.0), tmp_path)
    assert [s.status for s in record.samples] == ["ok", status, "ok"]
    assert record.samples[1].message
    assert record.finished


def test_real_allocation_failure_is_out_of_memory(tmp_path: Path) -> None:
    record, _ = run(Fake(a=lambda: float(torch.empty(2**60).numel())), tmp_path)
    assert record.samples[0].status == "oom"


def test_samples_before_a_failure_are_kept(tmp_path: Path) -> None:
    class Half(Fake):
        def plan(self, *arguments: Any) -> runner.Plan:
            point: dict[str, Any] = {"case": "half"}

            def samples() -> Iterator[Sample]:
                yield Sample(point=point, metric="time", unit="s", values=[1.0], status="ok")
                raise RuntimeError("the profiler is broken")

            return runner.Plan({"scale": "smoke"}, [runner.Case(point, samples)])

    record, _ = run(Half(), tmp_path)
    assert record.samples[0].values == [1.0]
    assert any("the profiler is broken" in w for w in record.warnings)


def test_messages_hold_no_path_host_or_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "node-17")
    monkeypatch.setattr("getpass.getuser", lambda: "jane")
    said = runner.plain(
        "node-17: /scratch/jane/.cache/x/lib.so: failed for jane\n in C:\\Users\\jane\\a.cpp " + "y" * 400
    )
    assert "jane" not in said
    assert "node-17" not in said
    assert "/scratch" not in said
    assert "lib.so" in said
    assert len(said) <= 300
    assert "\n" not in said


def test_stopped_by_hand_then_continued(tmp_path: Path) -> None:
    first = Fake(a=lambda: 1.0, b=raises(KeyboardInterrupt()), c=lambda: 3.0)
    with pytest.raises(runner.Interrupted, match="stopped after 1 of 3") as caught:
        run(first, tmp_path)
    (partial,) = tmp_path.glob("*.partial.json")
    assert str(partial) in str(caught.value)
    kept = records.load_record(partial)
    assert kept.finished is None
    second = Fake(a=lambda: 99.0, b=lambda: 2.0, c=lambda: 3.0)
    record, path = run(second, tmp_path)
    assert second.ran == ["b", "c"]
    assert [s.values[0] for s in record.samples] == [1.0, 2.0, 3.0]
    assert record.id == kept.id
    assert any("resumed" in w for w in record.warnings)
    assert not list(tmp_path.glob("*.partial.json"))
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == [path]


def test_stopped_before_anything(tmp_path: Path) -> None:
    with pytest.raises(runner.Interrupted, match="Nothing was measured"):
        run(Fake(a=raises(KeyboardInterrupt())), tmp_path)


def test_another_sweep_does_not_continue_a_partial_run(tmp_path: Path) -> None:
    with pytest.raises(runner.Interrupted):
        run(Fake(a=lambda: 1.0, b=raises(KeyboardInterrupt())), tmp_path)
    other = Fake(a=lambda: 5.0, b=lambda: 6.0, c=lambda: 7.0)
    _record, _ = run(other, tmp_path)
    assert other.ran == ["a", "b", "c"]
    assert len(list(tmp_path.glob("*.partial.json"))) == 1


def test_points_that_differ_under_the_same_names_are_another_run(tmp_path: Path) -> None:
    """What a case measures may stand in its point alone, such as its batch."""

    class Sized(Fake):
        def __init__(self, batch: int, **cases: Callable[[], float]) -> None:
            super().__init__(**cases)
            self.batch = batch

        def plan(self, *arguments: Any) -> runner.Plan:
            plan = super().plan(*arguments)
            for case in plan.cases:
                case.point["batch"] = self.batch
            return plan

    with pytest.raises(runner.Interrupted):
        run(Sized(4, a=lambda: 1.0, b=raises(KeyboardInterrupt())), tmp_path)
    other, same = (Sized(batch, a=lambda: 5.0, b=lambda: 6.0) for batch in (8, 4))
    record, _ = run(other, tmp_path)
    assert other.ran == ["a", "b"]
    assert [(s.point["batch"], s.values) for s in record.samples] == [(8, [5.0]), (8, [6.0])]
    record, _ = run(same, tmp_path)
    assert same.ran == ["b"]
    assert [(s.point["batch"], s.values) for s in record.samples] == [(4, [1.0]), (4, [6.0])]


def test_restart_sets_the_partial_run_aside(tmp_path: Path) -> None:
    with pytest.raises(runner.Interrupted):
        run(Fake(a=lambda: 1.0, b=raises(KeyboardInterrupt())), tmp_path)
    fresh = Fake(a=lambda: 8.0, b=lambda: 9.0)
    record, _ = run(fresh, tmp_path, restart=True)
    assert [s.values[0] for s in record.samples] == [8.0, 9.0]
    (aside,) = tmp_path.glob("*.old")
    assert records.load_record(aside).samples[0].values == [1.0]


def test_a_torn_partial_file_is_named_and_restart_helps(tmp_path: Path) -> None:
    with pytest.raises(runner.Interrupted):
        run(Fake(a=lambda: 1.0, b=raises(KeyboardInterrupt())), tmp_path)
    (partial,) = tmp_path.glob("*.partial.json")
    partial.write_text(partial.read_text()[:100])
    with pytest.raises(EfflabError, match="--restart"):
        run(Fake(a=lambda: 1.0, b=lambda: 2.0), tmp_path)
    record, _ = run(Fake(a=lambda: 1.0, b=lambda: 2.0), tmp_path, restart=True)
    assert record.finished


def test_killed_between_saving_and_tidying_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    record, _path = run(Fake(a=lambda: 1.0), tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.glob("*.partial.json"))
    after = Fake(a=lambda: 2.0)
    again, _same = run(after, tmp_path)
    assert after.ran == []
    assert again.samples == record.samples
    assert not list(tmp_path.glob("*.partial.json"))


def test_two_runs_of_the_same_do_not_share_a_file(tmp_path: Path) -> None:
    inner: list[str] = []

    def nested() -> float:
        with pytest.raises(EfflabError, match="another process"):
            run(Fake(a=nested), tmp_path)
        inner.append("refused")
        return 1.0

    run(Fake(a=nested), tmp_path)
    assert inner == ["refused"]


def test_the_lock_holds_for_one_who_opened_it_while_it_was_held(tmp_path: Path) -> None:
    """A removed lock file would let a third process in beside a second one that had opened the old file."""
    fcntl = pytest.importorskip("fcntl")
    held: list[int] = []

    def opens() -> float:
        (lock,) = tmp_path.glob(".*.lock")
        held.append(os.open(lock, os.O_RDWR))
        return 1.0

    try:
        run(Fake(a=opens), tmp_path)
        fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)  # the second process gets its turn
        with pytest.raises(EfflabError, match="another process"):
            run(Fake(a=lambda: 1.0), tmp_path)
    finally:
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_threads_are_put_back_however_a_run_ends(
    error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, inside = torch.get_num_threads(), []
    monkeypatch.setattr("efflab.measure.device.cores", lambda: 1)
    torch.set_num_threads(3)

    def look() -> float:
        inside.append(torch.get_num_threads())
        if error:
            raise error
        return 1.0

    try:
        if error:
            with pytest.raises(runner.Interrupted):
                run(Fake(a=look), tmp_path)
        else:
            run(Fake(a=look), tmp_path)
        assert inside == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_record_names_the_predictions_that_were_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(runner.Interrupted):
        run(Fake(a=lambda: 1.0, b=raises(KeyboardInterrupt())), tmp_path, predictions=["first"])
    record, path = run(Fake(a=lambda: 1.0, b=lambda: 2.0), tmp_path, predictions=["second"])
    assert records.load_record(path).predictions == record.predictions == ["first", "second"]


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_measuring(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    experiment = Fake(a=lambda: 1.0)
    with pytest.raises(EfflabError, match="Nothing was measured"):
        run(experiment, tmp_path / where)
    assert experiment.ran == []


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, spare = tmp_path / "out", tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    real = os.open

    def full(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith(".tmp") and str(path).startswith(str(out)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", full)
    lines: list[str] = []
    experiment = Fake(a=lambda: 1.0, b=lambda: 2.0)
    with pytest.raises(records.NotSaved) as caught:
        runner.run(experiment, scale="smoke", device="cpu", out=out, report=lines.append)
    assert experiment.ran == ["a", "b"], "the run must go on"
    assert sum("disk is full" in line for line in lines) == 1
    kept = records.load_record(caught.value.kept)
    assert [s.values[0] for s in kept.samples] == [1.0, 2.0]
    assert len(list(spare.iterdir())) == 1


@pytest.mark.parametrize(
    ("scale", "said"),
    [("gpu", "needs a GPU"), ("multi", "no such scale"), ("huge", "not known"), ("", None)],
)
def test_scales_that_do_not_fit(scale: str, said: str | None, tmp_path: Path) -> None:
    if said is None:
        record, _ = runner.run(Fake(a=lambda: 1.0), scale=None, device="cpu", out=tmp_path, report=lambda _: None)
        assert record.scale == "cpu"
        return
    with pytest.raises(EfflabError, match=said):
        runner.run(Fake(a=lambda: 1.0), scale=scale, device="cpu", out=tmp_path, report=lambda _: None)


def test_every_topic_has_an_experiment_and_unknown_ones_are_named() -> None:
    for topic in topics():
        assert get(topic).topic == topic
    with pytest.raises(EfflabError, match="roofline"):
        get("rooflin")


def test_killed_in_the_middle_of_a_real_run(tmp_path: Path, root: Path) -> None:
    """SIGKILL, as the kernel's out-of-memory killer or a scheduler sends it: finished points survive."""
    command = [sys.executable, "-m", "efflab.cli", "run", "roofline", "--scale", "smoke", "--device", "cpu", "--out"]
    environment = os.environ | {"PYTHONPATH": str(root), "EFFLAB_LABBOOK": str(tmp_path / "book")}
    process = subprocess.Popen(
        [*command, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:  # each line comes after the case before it was written
        if line.startswith("[6/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    (partial,) = tmp_path.glob("*.partial.json")
    before = records.load_record(partial)
    done = {s.point["case"] for s in before.samples}
    assert len(done) >= 5

    after = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert after.returncode == 0, after.stderr
    assert after.stderr.count("kept from the earlier run") >= 5
    (final,) = tmp_path.glob("roofline-*.json")
    record = records.load_record(final)
    assert record.finished
    assert record.samples[: len(before.samples)] == before.samples
    assert {s.point["case"] for s in record.samples} >= set(record.spec["cases"])
    assert not list(tmp_path.glob("*.partial.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signals_say_how_to_continue(number: int, tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-m", "efflab.cli", "run", "roofline", "--scale", "smoke", "--device", "cpu", "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[4/"):
            break
    for _ in range(3):  # what comes after the first is ignored
        process.send_signal(number)
    rest = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert process.returncode == 130
    assert "Run the same command again to continue" in rest
    assert "Traceback" not in rest


def test_a_workspace_stays_until_the_record_is_finished(tmp_path: Path) -> None:
    """A case's own files: checkpoints, what its processes say."""
    with pytest.raises(EfflabError, match="no experiment runs"):
        runner.workspace()
    seen: list[str] = []

    def half() -> float:
        (runner.workspace() / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    def rest() -> float:
        seen.append((runner.workspace() / "checkpoint").read_text())
        return 1.0

    with pytest.raises(runner.Interrupted, match=r"stopped after 0 of 1 cases\. They are kept"):
        run(Fake(a=half), tmp_path)
    run(Fake(a=rest), tmp_path)
    assert seen == ["step 7"]
    assert not list(tmp_path.glob("*.workspace"))
    with pytest.raises(runner.Interrupted):
        run(Fake(a=half), tmp_path)
    record, _ = run(Fake(a=lambda: 1.0 + (runner.workspace() / "checkpoint").exists()), tmp_path, restart=True)
    assert record.samples[0].values == [1.0], "of the run that was set aside nothing is taken up"


def test_what_a_message_names_is_kept_and_no_later_run_takes_it_for_its_own(tmp_path: Path) -> None:
    def fails() -> float:
        (runner.workspace(keep=True) / "traceback").write_text("line 7")
        return 1.0

    lines: list[str] = []
    record, _ = runner.run(Fake(a=fails), scale="smoke", device="cpu", out=tmp_path, report=lines.append)
    (kept,) = tmp_path.glob("*.workspace")
    assert kept.name == f"{record.id}.workspace" and (kept / "traceback").read_text() == "line 7"
    assert any(str(kept) in line for line in lines)
    run(Fake(a=lambda: float(len(list(runner.workspace().iterdir())))), tmp_path)
    assert (kept / "traceback").exists()


def test_what_is_to_be_kept_is_kept_after_an_interruption_too(tmp_path: Path) -> None:
    """The record names the file, and the process that was told so is gone."""

    def fails() -> float:
        (runner.workspace(keep=True) / "traceback").write_text("line 7")
        raise EfflabError("see traceback")

    with pytest.raises(runner.Interrupted):
        run(Fake(a=fails, b=raises(KeyboardInterrupt())), tmp_path)
    record, _ = run(Fake(a=fails, b=lambda: 1.0), tmp_path)
    assert [s.status for s in record.samples] == ["failed", "ok"]
    assert (tmp_path / f"{record.id}.workspace" / "traceback").exists()


def test_a_workspace_without_its_partial_file_is_nobodys(tmp_path: Path) -> None:
    """Somebody removed the partial file, or the run was killed between removing that and the workspace."""

    def half() -> float:
        (runner.workspace() / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    with pytest.raises(runner.Interrupted):
        run(Fake(a=half), tmp_path)
    (partial,) = tmp_path.glob("*.partial.json")
    partial.unlink()
    record, _ = run(Fake(a=lambda: 1.0 + (runner.workspace() / "checkpoint").exists()), tmp_path)
    assert record.samples[0].values == [1.0]


def test_a_workspace_has_a_partial_file_from_the_beginning(tmp_path: Path) -> None:
    """A run that is killed in its first case goes on with what that case left."""

    def first() -> float:
        assert not list(tmp_path.glob("*.partial.json"))
        runner.workspace()
        (partial,) = tmp_path.glob("*.partial.json")
        assert records.load_record(partial).samples == []
        return 1.0

    record, _ = run(Fake(a=first), tmp_path)
    assert record.samples[0].status == "ok", record.samples[0].message


@pytest.mark.parametrize("measured", [0, 1])
def test_when_no_case_can_be_measured_any_more_the_rest_stays_open(measured: int, tmp_path: Path) -> None:
    def stuck() -> float:
        raise runner.RunFailed("rank 3 does not answer")

    names = ["a", "b", "c"]
    functions = {name: stuck if i >= measured else lambda: 1.0 for i, name in enumerate(names)}
    experiment = Fake(**functions)
    with pytest.raises(EfflabError, match=f"from {names[measured]} on: rank 3 does not answer") as caught:
        run(experiment, tmp_path)
    assert experiment.ran == names[: measured + 1]
    assert ("What was measured before is kept in" in str(caught.value)) == bool(measured)
    again = Fake(**{name: lambda: 2.0 for name in names})
    record, _ = run(again, tmp_path)
    assert again.ran == names[measured:]
    assert [s.values for s in record.samples] == [[1.0]] * measured + [[2.0]] * (3 - measured)


@pytest.mark.parametrize("wrong", [{"rank": 4}, {"ranks": "4"}])
def test_what_a_plan_says_of_the_environment_is_checked(wrong: dict[str, Any], tmp_path: Path) -> None:
    """Before anything is measured: such a record could not be read."""

    class Wrong(Fake):
        def plan(self, *arguments: Any) -> runner.Plan:
            plan = super().plan(*arguments)
            plan.environment = wrong
            return plan

    experiment = Wrong(a=lambda: 1.0)
    with pytest.raises(ValidationError, match="rank"):
        run(experiment, tmp_path)
    assert not experiment.ran


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ZeroDivisionError()])
def test_a_plan_is_closed_however_a_run_ends(error: BaseException | None, tmp_path: Path) -> None:
    closed: list[int] = []

    class Closing(Fake):
        def plan(self, *arguments: Any) -> runner.Plan:
            plan = super().plan(*arguments)
            plan.environment, plan.close = {"ranks": 4, "backend": "gloo"}, lambda: closed.append(1)
            return plan

    experiment = Closing(a=raises(error) if error else lambda: 1.0)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(runner.Interrupted):
            run(experiment, tmp_path)
    else:
        record, _ = run(experiment, tmp_path)
        assert (record.environment.ranks, record.environment.backend) == (4, "gloo")
    assert closed == [1]


def test_a_run_says_what_would_disturb_it_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load is the whole machine's, so it is held against all of its cores."""
    for name in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def said(load: float) -> list[str]:
        monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
        lines: list[str] = []
        runner.run(Fake(one=lambda: 1.0), scale="smoke", device="cpu", out=tmp_path, report=lines.append)
        assert lines[0].startswith("fake: smoke scale on ") and lines[0].endswith("cases: 1")
        return [line for line in lines if line.startswith("warning: ")]

    assert said(1.0) == []
    (busy,) = said(7.3)
    assert "the load is 7.3 on 8 cores" in busy
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    (unused,) = said(1.0)
    assert "a GPU was granted and is not used" in unused


# The energy of a run


class Spends:
    """A case's function that takes so many joules of the counter `play` shows, and some time of its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock, self.joules = counters.Clock(monkeypatch), 0.0
        counters.play(monkeypatch, lambda: self.joules, **options)

    def __call__(self, joules: float, then: BaseException | None = None) -> Callable[[], float]:
        def function() -> float:
            self.joules += joules
            self.clock.advance(2.0)
            if then:
                raise then
            return 1.0

        return function


def test_the_energy_of_a_run_is_what_the_counter_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spend = Spends(monkeypatch, shared="others may be there")
    spend.joules = 5000.0
    record, path = run(Fake(a=spend(30), b=spend(12), c=spend(400)), tmp_path)
    assert record.energy.joules == 442 and record.energy.window_s == pytest.approx(6)
    assert (record.energy.source, record.energy.of, record.energy.shared, record.energy.period_s) == (
        "rapl", "the test's counter", "others may be there", 1e-3,
    )  # fmt: skip
    assert record.energy.band is None and record.energy.why == ""
    assert records.load(path) == record


def test_the_energy_of_a_run_that_was_continued_is_that_of_both_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = Spends(monkeypatch)
    with pytest.raises(runner.Interrupted):
        run(Fake(a=spend(30), b=raises(KeyboardInterrupt()), c=spend(400)), tmp_path)
    spend.joules += 7000  # what the machine took while nothing ran
    spend.clock.advance(3600)
    (partial,) = tmp_path.glob("*.partial.json")
    assert records.load_record(partial).energy.joules == 30
    record, _ = run(Fake(a=spend(30), b=spend(12), c=spend(400)), tmp_path)
    assert record.energy.joules == pytest.approx(30 + 12 + 400)
    assert record.energy.window_s == pytest.approx(6)


def test_a_run_that_is_stopped_keeps_what_the_stopped_case_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = Spends(monkeypatch)
    with pytest.raises(runner.Interrupted):
        run(Fake(a=spend(30), b=spend(7, then=KeyboardInterrupt())), tmp_path)
    (partial,) = tmp_path.glob("*.partial.json")
    kept = records.load_record(partial).energy
    assert kept.joules == 37 and kept.window_s == pytest.approx(4)
    record, _ = run(Fake(a=spend(30), b=spend(12)), tmp_path)
    assert record.energy.joules == pytest.approx(37 + 12)
    assert record.energy.windows == 2


def test_a_run_that_is_stopped_in_its_first_case_has_energy_without_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = Spends(monkeypatch, shared="others were there")

    def first() -> float:
        runner.workspace()  # with it comes the partial file
        return spend(5, then=KeyboardInterrupt())()

    with pytest.raises(runner.Interrupted):
        run(Fake(a=first), tmp_path)
    (partial,) = tmp_path.glob("*.partial.json")
    assert records.load_record(partial).samples == []
    counters.play(monkeypatch, lambda: spend.joules)  # nobody else is there now
    record, _ = run(Fake(a=spend(12)), tmp_path)
    assert record.energy.joules == pytest.approx(5 + 12)
    assert record.energy.window_s == pytest.approx(4) and record.energy.windows == 2
    assert record.energy.shared == "others were there"


@pytest.fixture
def rated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a counter, whose cores are rated at 3 W to 5 W."""
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path_factory.mktemp("none"))
    monkeypatch.setattr(runner.ratings, "rated_per_core", lambda *_: (3.0, 5.0, "a processor"))
    monkeypatch.setattr(runner.devices, "threads_per_core", lambda: 1.0)
    here = runner.devices.environment
    monkeypatch.setattr(runner.devices, "environment", lambda d: here(d).model_copy(update={"virtual": False}))


def test_without_a_counter_the_energy_is_a_band_from_the_rating(
    rated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = counters.Clock(monkeypatch)
    record, _ = run(Fake(a=lambda: clock.advance(10) or 1.0), tmp_path)
    cores = record.environment.cores or 1
    found = record.energy
    assert (found.source, found.joules) == ("modelled", None)
    assert found.rating == [3.0 * cores, 5.0 * cores]
    assert found.band == pytest.approx([0.3 * 10 * 3 * cores, 10 * 5 * cores])
    assert found.of == f"{cores} core{'s' * (cores > 1)} of a processor"
    assert found.why == "RAPL: this system offers no energy counter of a processor package"
    four = record.environment.model_copy(update={"cores": 4})
    of = [torch.device("cpu")]
    assert runner.rating(of, four, 2, threads=1) == (6, 40, "1 to 4 cores on each of 2 nodes of a processor")
    assert runner.rating(of, four, threads=8) == (12, 20, "4 cores of a processor")


@pytest.mark.parametrize(
    ("cores", "threads", "ranks", "nodes", "low", "high"),
    [
        (8, None, None, 1, 24, 40),
        (8, 1, None, 1, 3, 40),
        (8, 1, 2, 1, 6, 40),
        (8, 16, None, 1, 24, 40),
        (4, 1, 4, 2, 12, 40),
    ],
)
def test_a_rating_begins_with_the_cores_that_work(
    cores: int, threads: int | None, ranks: int | None, nodes: int, low: float, high: float, rated: None
) -> None:
    """At least 3 W for each core that works, at most 5 W for each core there is."""
    here = runner.devices.environment(runner.devices.choose("cpu")).model_copy(
        update={"cores": cores, "threads": cores, "ranks": ranks}
    )
    record = Record(
        id="r", topic="fake", created="2026-11-22T08:00:00Z", environment=here, spec={"scale": "cpu"}, samples=[]
    )
    if threads:
        record.spec["threads"] = threads
    found = runner.Account([runner.devices.choose("cpu")], record, nodes).so_far()
    assert found.rating == [low, high]


@pytest.mark.parametrize(("siblings", "virtual", "low", "high"), [(2.0, False, 12, 20), (1.0, True, 12, 40)])
def test_a_hardware_thread_is_no_core(
    siblings: float, virtual: bool, low: float, high: float, rated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 logical CPUs of 3 W to 5 W a core: 4 cores, or 4 to 8 where a virtual machine does not say."""
    monkeypatch.setattr(runner.devices, "threads_per_core", lambda: siblings)
    cpu = runner.devices.choose("cpu")
    here = runner.devices.environment(cpu).model_copy(update={"cores": 8, "threads": 8, "virtual": virtual})
    assert runner.rating([cpu], here, threads=8)[:2] == (low, high)  # type: ignore[index]


def test_a_session_that_was_modelled_makes_the_sum_a_band(
    rated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spend = Spends(patch)
        with pytest.raises(runner.Interrupted):
            run(Fake(a=spend(30), b=raises(KeyboardInterrupt())), tmp_path)
    clock = counters.Clock(monkeypatch)
    record, _ = run(Fake(a=lambda: 1.0, b=lambda: clock.advance(10) or 1.0), tmp_path)
    cores = record.environment.cores or 1
    assert (record.energy.source, record.energy.joules) == ("modelled", None)
    assert record.energy.band == pytest.approx([30 + 9 * cores, 30 + 50 * cores])
    assert "RAPL" in record.energy.why


def test_without_a_counter_and_a_rating_there_is_a_sentence_and_no_number(
    rated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.ratings, "rated_per_core", lambda *_: None)
    record, _ = run(Fake(a=lambda: 1.0), tmp_path)
    assert record.energy == Energy(
        why="RAPL: this system offers no energy counter of a processor package; and the catalog has no rated power of "
        "this device"
    )
    # A session without a number leaves the whole run without one.
    with pytest.raises(runner.Interrupted):
        run(Fake(a=lambda: 1.0, b=raises(KeyboardInterrupt())), tmp_path)
    spend = Spends(monkeypatch)
    record, _ = run(Fake(a=lambda: 1.0, b=spend(12)), tmp_path)
    assert record.energy.source == "none" and "no rated power" in record.energy.why


def test_a_counter_that_is_lost_leaves_a_band(rated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spend = Spends(monkeypatch)

    def lost() -> float:
        def gone() -> float:
            raise OSError("/data/somebody/counters/energy_uj gone")

        spend.clock.advance(2)
        meters = runner.meters._present
        assert meters is not None
        (one,) = meters._counters
        monkeypatch.setattr(meters, "_counters", [type(one)(one.of, gone)])
        return 1.0

    record, _ = run(Fake(a=spend(30), b=lost), tmp_path)
    assert record.energy.source == "modelled" and record.energy.band is not None
    assert record.energy.window_s == pytest.approx(4)
    assert record.energy.why == "the test's counter cannot be read: energy_uj gone", "no path reaches the record"
