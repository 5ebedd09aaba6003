"""Joules beside seconds: of a run, of a call, in every topic's table, and at every place where a run is shown."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from efflab import cli, labbook, reconcile, records
from efflab.lab import Lab
from efflab.measure import energy as meters
from efflab.records import Energy, LabBook, Record, Sample, Timing, Window
from efflab.units import JOULE, SECOND, parse

GPU = "NVML's energy counter of GPU 0"
TOPICS = [t for t in reconcile.topics() if records.recorded(t)]


def timed(values: list[float], window: Window | None = None, case: str = "a") -> Sample:
    timing = Timing(clock="cuda-events", mode="back-to-back", loops=1, warmup=1, energy=window)
    return Sample(point={"case": case}, metric="time", unit="s", values=values, status="ok", timing=timing)


def record(energy: Energy, *samples: Sample) -> Record:
    shipped = records.recorded("roofline")[-1]
    return shipped.model_copy(update={"energy": energy, "samples": list(samples)})


def counted(period: float | None = 0.1, window: float = 92.0, **more: Any) -> Energy:
    return Energy(source="nvml-counter", joules=1840.0, window_s=window, period_s=period, of=GPU, **more)


def modelled(**more: Any) -> Energy:
    said = {"of": "a processor; 2 cores", "why": "RAPL: only root may read the energy counters here"}
    given = {"source": "modelled", "band": [105.0, 2000.0], "rating": [3.5, 20.0], "window_s": 100.0, **said}
    return Energy.model_validate(given | more)


class Row:
    """A row of a topic's table."""

    case, metric, measured = "a", "time", 0.05


# The whole run


def test_a_counted_run_gives_joules_seconds_watts_and_what_was_counted() -> None:
    said = reconcile.energy_text(record(counted(shared="another process takes part"), timed([0.05])))
    assert f"1.84 kJ in 92 s, 20 W on average, measured by {GPU}." in said
    assert "changes every 100 ms, which leaves 0.1% open" in said  # 0.1 / 92
    assert "The host's processors and memory are not in it." in said
    assert "No call was counted alone." in said
    assert "Another process takes part." in said
    assert "odelled" not in said and "not measured" not in said


def test_every_session_of_a_run_leaves_a_period_open() -> None:
    said = reconcile.energy_text(record(counted(windows=23), timed([0.05])))
    assert "changes every 100 ms, which leaves 2.5% open" in said  # 23 × 0.1 / 92


def test_a_processors_counter_says_nothing_of_a_host() -> None:
    energy = Energy(source="rapl", joules=60.0, window_s=2.0, period_s=0.001, of="RAPL's counter of 1 package")
    said = reconcile.energy_text(record(energy, timed([0.05])))
    assert "60 J in 2 s, 30 W on average, measured by RAPL's counter of 1 package." in said
    assert "every 1 ms, which leaves under 0.1% open" in said
    assert "host" not in said


def test_a_modelled_run_gives_its_band_its_power_and_why() -> None:
    said = reconcile.energy_text(record(modelled(), timed([0.05])))
    assert said.startswith("Energy of the run: not measured (RAPL: only root may read the energy counters here). ")
    assert (
        "Modelled: between 105 J and 2 kJ in 100 s, 1.05 W to 20 W on average. " in said
    )  # 0.3 × 3.5 W and 1.0 × 20 W
    assert "That is 0.3 to 1 of the rated power, 3.5 W to 20 W: a processor; 2 cores." in said
    assert " measured by" not in said


def test_a_gpus_one_rating_is_one_number() -> None:
    said = reconcile.energy_text(record(modelled(rating=[700.0, 700.0]), timed([0.05])))
    assert "of the rated power, 700 W: " in said
    assert "210 W to 700 W on average" in said


def test_a_band_without_its_rating_says_no_more_than_the_band() -> None:
    said = reconcile.energy_text(record(modelled(rating=None), timed([0.05])))
    assert "between 105 J and 2 kJ in 100 s." in said
    assert "on average" not in said and "rated" not in said


def test_neither_measured_nor_modelled_says_why() -> None:
    assert reconcile.energy_text(record(Energy(why="no counter."))) == "Energy of the run: not measured (no counter)."


def test_a_record_from_before_energy_was_kept_loads_and_reads_well(tmp_path: Path) -> None:
    data = json.loads(records.dumps(records.recorded("roofline")[-1]))
    data.pop("energy", None)
    for sample in data["samples"]:
        (sample.get("timing") or {}).pop("energy", None)
    file = tmp_path / "old.json"
    file.write_text(json.dumps(data))
    old = records.load_record(file)
    assert reconcile.energy_text(old) == "Energy was not recorded."
    module = reconcile.topic("roofline")
    assert "energy" not in module.table(old)[0]
    row = module.points(old)[0]
    assert reconcile.energy_cell(old, row) == reconcile.energy_evidence(old, row) == ""


# One call


@pytest.mark.parametrize(
    ("period", "window", "cell"),
    [
        (0.1, Window(joules=36.8, seconds=2.0, calls=20), "1.84 J ±5.0%"),
        (0.1, Window(joules=36.8, seconds=0.5, calls=20), "1.84 J ±20%"),
        (0.1, Window(joules=36.8, seconds=0.2, calls=20), "1.84 J ±50%"),
        (0.1, Window(joules=36.8, seconds=0.19, calls=20), ""),
        (0.001, Window(joules=5e-4, seconds=4.0, calls=1000), "500 nJ ±0.1%"),
        (0.1, Window(joules=36.8, seconds=2.0, calls=20, windows=4), "1.84 J ±20%"),
        (0.1, Window(joules=36.8, seconds=2.0, calls=20, windows=11), ""),
        (None, Window(joules=36.8, seconds=2.0, calls=20), ""),
        (0.1, None, ""),
    ],
)
def test_the_energy_of_a_call_with_what_the_period_leaves_open(
    period: float | None, window: Window | None, cell: str
) -> None:
    found = record(counted(period), timed([0.04, 0.05, 0.06], window))
    assert reconcile.energy_cell(found, Row()) == cell
    assert (reconcile.call_energy(found, found.samples[0]) is not None) == bool(cell)
    assert reconcile.energy_evidence(found, Row()) == (f"  energy of a call: {cell}, measured" if cell else "")


def test_how_many_calls_are_known_is_said() -> None:
    long, short = (Window(joules=36.8, seconds=s, calls=20) for s in (2.0, 0.1))
    samples = [timed([0.05], w, case) for case, w in (("a", long), ("b", short), ("c", None))]
    said = reconcile.energy_text(record(counted(), *samples))
    assert "leaves at most 50% of it open: in 1 of 3 timed samples." in said


def test_a_rating_gives_a_call_a_band_that_says_what_it_is() -> None:
    found = record(modelled(), timed([0.05]))
    assert (
        reconcile.energy_evidence(found, Row()) == "  energy of a call: 52.5 mJ to 1 J, modelled from the rated power"
    )
    assert reconcile.energy_cell(found, Row()) == ""


def test_a_number_that_is_not_the_samples_time_gets_no_energy_of_it() -> None:
    window = Window(joules=36.8, seconds=2.0, calls=20)

    class Loss(Row):
        metric = "loss"

    class Derived(Row):
        measured = 0.025  # such as half a step

    found = record(counted(), timed([0.05], window))
    for row in (Loss(), Derived()):
        assert reconcile.energy_cell(found, row) == ""
    twice = record(counted(), timed([0.05], window), timed([0.05], window))
    assert reconcile.energy_cell(twice, Row()) == "", "which of the two is not known"


# Every topic


def at_fifty_watts(found: Record, seconds: float) -> Record:
    """The record as a counter would have it on a device that takes 50 W, its windows so long."""
    samples = []
    for sample in found.samples:
        if sample.metric == "time" and sample.status == "ok":
            window = Window(joules=50.0 * records.median(sample.values) * 1000, seconds=seconds, calls=1000)
            sample = timed(sample.values, window).model_copy(update={"point": sample.point})
        samples.append(sample)
    energy = Energy(source="nvml-counter", joules=5000.0, window_s=100.0, period_s=0.1, of=GPU)
    return found.model_copy(update={"samples": samples, "energy": energy})


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topics_table_shows_it_beside_the_times(topic: str) -> None:
    module, found = reconcile.topic(topic), records.recorded(topic)[-1]
    counted = at_fifty_watts(found, 2.0)
    head, rows, numeric = module.table(counted)
    its = {r.case: r.measured for r in module.points(counted) if r.metric == "time"}
    shown = [row for row in rows if row[0].partition(" ")[0] in its]
    if not shown:
        assert "energy" not in head
        return
    at = head.index("energy")
    assert at == len(head) - 2 and at in numeric
    assert all(len(row) == len(head) for row in rows)
    for row in shown:
        value, _, error = row[at].partition(" ±")
        assert error == "5.0%"  # 0.1 s of 2 s
        assert parse(value, JOULE) == pytest.approx(50.0 * its[row[0].partition(" ")[0]], rel=0.01)
    assert {row[at] for row in rows if row not in shown} <= {""}
    assert "energy" in module.text(counted), "the plain text has the column too"
    # What the counter's period leaves open for the most part is not shown, and no other text changes.
    plain = module.table(found)
    assert module.table(at_fifty_watts(found, 0.15)) == plain
    assert [[*row[:at], *row[at + 1 :]] for row in rows] == plain[1]


@pytest.mark.parametrize("topic", TOPICS)
def test_every_lab_and_replay_ends_with_it(topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = at_fifty_watts(records.recorded(topic)[-1], 2.0)
    path = records.save(found, tmp_path)
    said = reconcile.energy_text(found)
    assert "5 kJ in 100 s, 50 W on average" in said
    assert cli.main(["replay", topic, "--record", str(path)]) == 0
    assert said in capsys.readouterr().out
    lab = Lab(topic, "replay", record=path, labbook=tmp_path / "book")
    measured = {r.case: r for r in reconcile.topic(topic).points(found)}
    case = next(c for c in lab.cases() if c in measured)
    lab.predict({case: f"2 {measured[case].unit.symbol}"})
    lab.measure()
    assert said not in capsys.readouterr().out, "nothing is shown before it is reconciled"
    lab.reconcile()
    out = capsys.readouterr().out
    assert said in out
    cell = reconcile.energy_cell(found, measured[case])
    assert (cell in out) and ("energy" in out.splitlines()[0]) == bool(cell)
    lab.table()
    assert said in capsys.readouterr().out


# From the counter to the pages


def test_a_real_run_carries_its_joules_to_every_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device takes 50 W, always; the true clock turns the windows into joules."""
    pages = pytest.importorskip("efflab.site.pages")
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path))
    steady = meters.Counter("a counter that a test plays", lambda: 50.0 * time.perf_counter(), None, "")
    monkeypatch.setattr(meters, "counter", lambda device, held: steady)
    assert cli.main(["run", "roofline", "--scale", "smoke", "--device", "cpu"]) == 0
    whole = r"Energy of the run: (\S+ \S+) in (\S+ \S+), 50 W on average, measured by a counter that a test plays\."
    run = re.search(whole, capsys.readouterr().out)
    assert run
    assert parse(run[1], JOULE) == pytest.approx(50.0 * parse(run[2], SECOND), rel=0.02)
    book = LabBook()
    (found,) = book.records()
    module = reconcile.topic("roofline")
    head, rows, _ = module.table(found)
    means = {s.point["case"]: sum(s.values) / len(s.values) for s in found.find("time") if s.status == "ok"}
    cells = [(row[0].partition(" ")[0], row[head.index("energy")]) for row in rows]
    ratios = sorted(parse(c.partition(" ±")[0], JOULE) / (50.0 * means[case]) for case, c in cells if c)
    assert len(ratios) > len(rows) / 2
    # A window holds all timed calls and what lies between them.
    assert ratios[0] > 0.98 and ratios[len(ratios) // 2] < 1.5
    said = reconcile.energy_text(found)
    some = next(cell for _, cell in cells if cell)
    text, problems = labbook.page(book)
    assert not problems
    run_of_page = pages.RecordedRuns._run(None, module, found)
    for page in (text, run_of_page):
        assert html.escape(said) in page
        assert html.escape(some) in page and ">energy<" in page
