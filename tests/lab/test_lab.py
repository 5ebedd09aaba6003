"""The lab's steps: nothing is measured before a prediction, nothing predicted after it was seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from efflab import experiments, records
from efflab import lab as lab_module
from efflab.errors import EfflabError
from efflab.lab import Lab
from efflab.records import LabBook
from efflab.units import JOULE, Unit, show

CEILINGS = {"copy": "20 GB/s", "peak": "100 GFLOP/s", "overhead": "10 µs"}


@pytest.fixture(scope="module")
def recorded() -> Path:
    """The recorded run that ships with the course; a fresh one would differ from machine to machine."""
    return sorted((records.RESULTS / "roofline").glob("*.json"))[0]


@pytest.fixture
def lab(recorded: Path, tmp_path: Path) -> Lab:
    return Lab("roofline", "replay", record=recorded, labbook=tmp_path)


def test_a_replay_from_start_to_end(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.start()
    assert capsys.readouterr().out.startswith("Replay of a recorded run: ")
    with pytest.raises(EfflabError, match="commit to a prediction first"):
        lab.measure()
    lab.predict(calibration=CEILINGS, note="a guess")
    with pytest.raises(EfflabError, match="nothing is measured yet"):
        lab.calibration()
    lab.measure()
    lab.calibration()
    said = capsys.readouterr().out
    assert "20 GB/s" in said
    with pytest.raises(EfflabError, match="measured already: copy, peak, overhead"):
        lab.predict(calibration=CEILINGS)
    with pytest.raises(EfflabError, match="predicted no case"):
        lab.reconcile()
    lab.describe("relu-large", "matmul-large")
    lab.predict({"relu-large": "1 h", "matmul-large": "1 ms"}, {"relu-large": "memory", "relu-tiny": "compute"})
    lab.reconcile()
    said = capsys.readouterr().out
    assert "memory ✓" in said
    assert "compute (overhead)" in said
    assert "off by a factor of" in said
    with pytest.raises(EfflabError, match="shown already"):
        lab.predict({"relu-large": "2 ms"})
    lab.regimes("relu-large", "relu-tiny")
    lab.compare("chain-8-unfused", "relu-large")
    lab.sweep("matmul by size")
    said = capsys.readouterr().out
    assert said.index("matmul-tiny") < said.index("matmul-medium") < said.index("matmul-large", said.index("FLOP  "))
    lab.table()
    assert "by profiler" in capsys.readouterr().out
    assert lab.record().topic == "roofline"
    assert lab.show("roofline") is not None
    assert lab.show("errors") is not None

    kept = LabBook(tmp_path).predictions()
    assert [len(p.outputs) for p in sorted(kept, key=lambda p: len(p.outputs))] == [3, 4]
    assert all(p.inputs["record"] == lab.record().id for p in kept)
    values = {n: q for p in kept for n, q in p.outputs.items()}
    assert values["relu-large.time"].value == 3600
    assert values["relu-tiny.limiting_factor"].value == 2
    assert (values["calibration-copy.bandwidth"].value, values["calibration-copy.bandwidth"].unit) == (20e9, "B/s")


def test_a_replay_prints_the_same_every_time(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for k in range(2):
        lab = Lab("roofline", "replay", record=recorded, labbook=tmp_path / str(k))
        lab.start()
        lab.describe()
        lab.predict({"relu-large": "1 ms"}, {"relu-large": "memory"}, calibration=CEILINGS)
        lab.measure()
        lab.calibration()
        lab.reconcile()
        lab.table()
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    assert str(recorded.parent) not in texts[0]


def test_a_live_lab_measures_here_and_hides_times_until_they_are_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab("roofline", "live", scale="smoke", device="cpu", labbook=tmp_path)
    lab.start()
    assert capsys.readouterr().out.startswith("Live on ")
    lab.predict(calibration=CEILINGS)
    capsys.readouterr()
    lab.measure()
    said = capsys.readouterr().out
    assert "[4/" in said
    assert not re.search(r"\d (µs|ms|s)\b", said), "a kernel's time is shown before it is predicted"
    with pytest.raises(EfflabError, match="measured already"):
        lab.measure()
    (kept,) = LabBook(tmp_path).records()
    assert kept.id in said
    assert kept.predictions == [p.id for p in LabBook(tmp_path).predictions()]
    lab.predict({"relu-large": "1 ms"})
    lab.reconcile()
    prediction = next(p for p in LabBook(tmp_path).predictions() if "relu-large.time" in p.outputs)
    assert prediction.inputs["record"] == kept.id


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        ({}, {}, "at least one"),
        ({"values": {"relu-larg": "1 ms"}}, {}, "Did you mean 'relu-large'"),
        ({"values": {"relu-large": "fast"}}, {}, "no number"),
        ({"values": {"relu-large": "3"}}, {}, "no unit"),
        ({"values": {"relu-large": 3}}, {}, "unit"),
        ({"values": {"relu-large": "3 GB"}}, {}, "not a unit of time"),
        ({"values": {"relu-large": "0 s"}}, {}, "greater than zero"),
        ({"values": {"relu-large": "-1 s"}}, {}, "greater than zero"),
        ({"values": {"relu-large": "1e400 s"}}, {}, "greater than zero"),
        ({"limits": {"relu-large": "memry"}}, {}, "Did you mean 'memory'"),
        ({"limits": {"relu": "memory"}}, {}, "not known"),
        ({}, {"calibration": {"copy": "3 s"}}, "bandwidth"),
        ({}, {"calibration": {"speed": "3 s"}}, "not known"),
    ],
)
def test_predictions_that_cannot_be_are_refused_and_not_kept(
    arguments: dict[str, dict[str, str]], named: dict[str, dict[str, str]], said: str, lab: Lab, tmp_path: Path
) -> None:
    with pytest.raises(EfflabError, match=said):
        lab.predict(**arguments, **named)
    assert LabBook(tmp_path).predictions() == []
    with pytest.raises(EfflabError, match="commit to a prediction first"):
        lab.measure()


def test_a_prediction_that_cannot_be_written_does_not_count(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab("roofline", "replay", record=recorded, labbook=tmp_path / "book")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "predictions").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(records.NotSaved):
        lab.predict({"relu-large": "1 ms"})
    with pytest.raises(EfflabError, match="commit"):
        lab.measure()


def test_modes(tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EFFLAB_MODE", raising=False)
    assert Lab("roofline", labbook=tmp_path).mode == "live"
    monkeypatch.setenv("EFFLAB_MODE", "replay")
    assert Lab("roofline", labbook=tmp_path, record=recorded).mode == "replay"
    assert Lab("roofline", "live", labbook=tmp_path).mode == "live"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EfflabError, match=r"no sbatch.*mode 'live'.*mode 'replay'"):
        Lab("roofline", "submit", labbook=tmp_path)
    with pytest.raises(EfflabError, match="Did you mean 'replay'"):
        Lab("roofline", "reply", labbook=tmp_path)
    with pytest.raises(EfflabError, match="Did you mean 'roofline'"):
        Lab("roofine", "live", labbook=tmp_path)


def test_a_job_with_gpus_is_predicted_as_such_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efflab.submit.required", lambda: None)
    there = Lab("ddp", "submit", gpus=4, labbook=tmp_path).cases()
    here = Lab("ddp", "live", scale="cpu", labbook=tmp_path).cases()
    assert "ddp-4" in there and there["ddp-2"]["gradient_bytes"] > 10 * here["ddp-2"]["gradient_bytes"]


@pytest.mark.no_gpu
def test_every_lab_can_be_predicted_for_a_gpu_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a login node, say. The recorded runs are of a CPU: a GPU's cases differ in size or in number."""
    monkeypatch.setattr("efflab.submit.required", lambda: None)
    for topic in experiments.topics():
        there, here = (Lab(topic, "submit", gpus=n, labbook=tmp_path).cases() for n in (1, 0))
        assert there and there != here, topic


def test_a_replay_needs_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path / "none")
    with pytest.raises(EfflabError, match="no recorded run"):
        Lab("roofline", "replay", labbook=tmp_path)
    with pytest.raises(EfflabError, match="no such file"):
        Lab("roofline", "replay", record=tmp_path / "missing.json", labbook=tmp_path)


def test_unknown_cases_and_pictures_are_named(lab: Lab) -> None:
    lab.predict({"relu-large": "1 ms"})
    lab.measure()
    for call in (lambda: lab.regimes("relu-larg"), lambda: lab.compare("relu-large", "relu-larg"),
                 lambda: lab.describe("relu-larg")):  # fmt: skip
        with pytest.raises(EfflabError, match="Did you mean 'relu-large'"):
            call()
    with pytest.raises(EfflabError, match="matmul by size"):
        lab.sweep("matmul")
    with pytest.raises(EfflabError, match="picture"):
        lab.show("pie")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "says"), [(0.0, ""), (0.1, "keeps their warnings"), (0.9, "Do not build on this run")]
)
def test_a_disturbed_run_is_said_at_once(share: float, says: str, recorded: Path) -> None:
    record = records.load_record(recorded)
    cases = sorted({str(s.point["case"]) for s in record.samples if s.point.get("role") != "ceiling"})
    record.warnings = [f"{c}: wide: its middle half spans 80%" for c in cases[: round(share * len(cases))]]
    said = lab_module.disturbed(record)
    assert says in said
    assert bool(said) == bool(share)


def test_a_gain_is_a_share_and_is_shown_in_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab("scaling_laws", "replay", labbook=tmp_path)
    for written in ("5", "150%", "1"):
        with pytest.raises(EfflabError, match="a share lies below 100%"):
            lab.predict(calibration={"doubling-size": written})
    assert not LabBook(tmp_path).predictions()
    lab.predict(calibration={"doubling-size": "0.05", "doubling-data": "5%"})
    lab.measure()
    capsys.readouterr()
    lab.calibration()
    assert capsys.readouterr().out.count("5.00%") == 2


def test_an_efficiency_is_reconciled_in_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab("ddp", "replay", labbook=tmp_path)
    lab.predict({"efficiency-weak-2": "100%", "resumed": "50"})
    lab.measure()
    capsys.readouterr()
    lab.reconcile()
    rows = {r[0]: r[1:] for line in capsys.readouterr().out.splitlines() if (r := line.split())}
    assert rows["efficiency-weak-2"][0] == "100.0%"
    assert all(0 < float(cell.removesuffix("%")) < 110 for cell in rows["efficiency-weak-2"][1:3])
    assert rows["resumed"][0] == "50", "a count stays one"


def _profiled() -> records.Record:
    """A record of the profiling lab with nothing in it."""
    environment = records.Environment(
        device="A CPU", kind="cpu", count=1, threads=1, torch="2.13", python="3.12", efflab="0.1"
    )
    return records.Record(
        id="profiled", topic="profiling", created="2026-11-21T08:00:00Z", finished="2026-11-21T08:00:01Z",
        environment=environment, spec={"scale": "smoke"}, samples=[],
    )  # fmt: skip


def test_a_trace_goes_into_the_lab_book_and_comes_after_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself is the experiment's; here it has a few bytes and takes no time."""
    from efflab.experiments import profiling, runner

    asked: list[tuple[Path, str | None, str | None]] = []

    def write(path: Path, scale: str | None, device: str | None) -> Path:
        asked.append((path, scale, device))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
        return path

    monkeypatch.setattr(profiling, "trace", write)
    monkeypatch.setattr(runner, "run", lambda *_, **__: (_profiled(), tmp_path / "p.json"))
    lab = Lab("profiling", "live", scale="smoke", device="cpu", labbook=tmp_path)
    lab.predict(calibration={"share-tiny": "30%"})
    with pytest.raises(EfflabError, match="nothing is measured yet"):
        lab.trace()
    assert not asked
    lab.measure()
    lab.trace()
    lab.trace()
    (first, scale, device), (second, *_) = asked
    assert (scale, device) == ("smoke", "cpu")
    assert first != second and first.parent == second.parent == tmp_path / "traces"
    said = capsys.readouterr().out
    assert f"Trace: {first} (4 B)" in said and "ui.perfetto.dev" in said and "chrome://tracing" in said
    with pytest.raises(EfflabError, match="shown already"):
        lab.predict({"without-tiny": "1 ms"})


def test_a_replay_has_no_trace_and_neither_has_another_lab(
    tmp_path: Path, lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EfflabError, match="the lab on roofline has none"):
        lab.trace()
    from efflab.experiments import profiling

    def never(*_: object) -> None:
        raise AssertionError("a replay runs nothing")

    monkeypatch.setattr(profiling, "trace", never)
    file = tmp_path / "p.json"
    file.write_text(records.dumps(_profiled()))
    replayed = Lab("profiling", "replay", record=file, labbook=tmp_path)
    replayed.predict(calibration={"share-tiny": "30%"})
    replayed.measure()
    capsys.readouterr()
    replayed.trace()
    assert capsys.readouterr().out.startswith("A recorded run has no trace.")
    assert not (tmp_path / "traces").exists()


def test_a_notebook_shows_the_message_alone(lab: Lab) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    with pytest.raises(EfflabError) as raised:
        lab.predict({"matmul-large": "5"})
    shell = InteractiveShell.instance()
    shown: list[str] = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)  # type: ignore[method-assign]
    shell.showtraceback((raised.type, raised.value, raised.tb))
    InteractiveShell.clear_instance()
    assert shown == [f"EfflabError: {raised.value}"]


def test_shares_of_one_step_add_up_to_one_at_most(tmp_path: Path) -> None:
    lab = Lab("profiling", "replay", labbook=tmp_path)
    lab.predict(calibration={"share-loader": "40%", "share-tiny": "50%"})
    with pytest.raises(EfflabError, match="the shares add up to 110%"):
        lab.predict(calibration={"share-sync": "20%"})
    lab.predict(calibration={"share-sync": "10%"})


def test_a_run_whose_base_was_disturbed_is_not_to_be_built_on() -> None:
    """Every prediction of the profiling lab divides by the step with all faults."""
    record = records.recorded("profiling")[-1].model_copy(deep=True)
    for sample in record.samples:
        if sample.point["case"] == "all-faults" and sample.metric == "time":
            sample.values = [v * (1 + i % 3) for i, v in enumerate(sample.values)]
    assert lab_module.disturbed(record).endswith(lab_module.AGAIN)
    assert "all-faults" in lab_module.disturbed(record)


def test_of_several_numbers_of_a_case_the_predicted_one_is_reconciled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lab on energy has a case's time and its joules, each with its own row."""
    points = lab._topic.points

    def both(record: records.Record) -> list[object]:
        return [row for r in points(record) for row in (_Joules(r.case), r, _Joules(r.case))]

    monkeypatch.setattr(lab._topic, "points", both)
    lab.predict({"relu-large": "3 ms"})
    lab.measure()
    capsys.readouterr()
    lab.reconcile()
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("relu-large "))
    assert " 3 ms " in line and " J" not in line


@dataclass
class _Joules:
    case: str
    metric: str = "energy"
    unit: Unit = JOULE
    predicted: float = 1.0
    measured: float = 2.0
    error: float = -0.5
    regime: str = ""
    explanation: str = ""


def test_evidence_says_what_a_call_takes_and_how_that_is_known(
    lab: Lab, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.predict({"relu-large": "1 ms"})
    lab.measure()
    lab.record().energy = records.Energy(source="none", why="no counter")
    capsys.readouterr()
    lab.evidence("relu-large")
    assert "energy of a call" not in capsys.readouterr().out
    band = {"band": [1.0, 9.0], "rating": [10.0, 20.0], "window_s": 1.0}
    lab.record().energy = records.Energy(source="modelled", **band)
    time = next(r for r in lab._topic.points(lab.record()) if r.case == "relu-large").measured
    lab.evidence("relu-large", "relu-tiny")
    said = capsys.readouterr().out.splitlines()
    lines = [x for x in said if x.startswith("  energy of a call: ")]
    assert (
        lines[0]
        == f"  energy of a call: {show(3 * time, JOULE)} to {show(20 * time, JOULE)}, modelled from the rated power"
    )
    assert len(lines) == 2 and said.index(lines[0]) < said.index("relu-tiny")
