"""The lab book's page: which prediction counts, in what mode and on what it was measured, and how it is folded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efflab import labbook, reconcile, records
from efflab.records import LabBook, Prediction, Record


@pytest.fixture
def book(tmp_path: Path) -> LabBook:
    return LabBook(tmp_path / "book")


@pytest.fixture
def shipped() -> Record:
    return records.recorded("roofline")[-1]


def measured(record: Record, case: str) -> float:
    return next(r.measured for r in reconcile.topic(record.topic).points(record) if r.case == case)


def predicted(year: int, topic: str, outputs: dict[str, tuple[float, str]], **inputs: str) -> Prediction:
    made = Prediction.new(topic, outputs, inputs=dict(inputs))
    return made.model_copy(update={"created": f"{year}-01-01T00:00:00Z", "id": f"{topic}-{year}"})


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of a page's table of predictions."""
    table = text[text.index("<h3>Predictions") :]
    table = table[: table.index("</table>")]
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:]]


def test_the_first_prediction_of_a_case_counts_and_a_later_one_is_marked(book: LabBook, shipped: Record) -> None:
    time = measured(shipped, "relu-large")
    for year, factor in ((2001, 4.0), (2002, 1.0), (2003, 2.0)):
        outputs = {"relu-large.time": (time * factor, "s")}
        book.save_prediction(predicted(year, "roofline", outputs, mode="replay", record=shipped.id))
    other = shipped.model_copy(update={"id": "mine"})
    book.save_record(other)
    book.save_prediction(predicted(2004, "roofline", {"relu-large.time": (time * 3, "s")}, record="mine", mode="live"))
    pairs, problems = labbook.pairs(book.predictions(), book.records())
    assert not problems
    assert [(p.factor, p.later) for p in pairs] == [
        (pytest.approx(4), False), (pytest.approx(1), True), (pytest.approx(2), True), (pytest.approx(3), False),
    ]  # fmt: skip
    text, _ = labbook.page(book)
    assert "of the first run were off by a factor of 4 (median of 1), of the last by 3 (median of 1)" in text
    assert "Predictions of what was predicted before are left out: 2." in text
    assert text.count("<circle") == 2
    assert [row[6] for row in rows(text)] == ["", "later: predicted before", "later: predicted before", ""]


def test_a_calculators_prediction_and_a_labs_of_one_case_are_two_of_one(book: LabBook, shipped: Record) -> None:
    own = shipped.model_copy(update={"id": "mine", "created": "2026-01-01T00:00:00Z"})
    sample = next(s for s in own.samples if s.point["case"] == "matmul-medium" and s.metric == "time")
    sizes = {n: sample.point[n] for n in ("kernel", "m", "n", "k", "dtype")}
    explored = Prediction.new("roofline", {"time": (1.0, "s")}, source="site", calculator="explorer", inputs=sizes)
    explored = explored.model_copy(update={"created": "2000-01-01T00:00:00Z"})
    guessed = predicted(2001, "roofline", {"matmul-medium.time": (2.0, "s")})
    pairs, _ = labbook.pairs([explored, guessed], [own])
    assert [(p.case, p.metric, p.predicted, p.later) for p in pairs] == [
        ("matmul-medium", "time", 1.0, False), ("matmul-medium", "time", 2.0, True),
    ]  # fmt: skip


def test_rows_say_in_which_mode_and_on_what(book: LabBook, shipped: Record) -> None:
    device = shipped.environment.device
    own = shipped.model_copy(deep=True, update={"id": "mine", "created": "2026-01-01T00:00:00Z"})
    own.environment.device = "My <own> CPU"
    book.save_record(own)
    outputs = {"relu-large.time": (1.0, "s")}
    book.save_prediction(predicted(2001, "roofline", outputs, mode="replay", record=shipped.id))
    book.save_prediction(predicted(2002, "roofline", outputs, mode="live"))
    book.save_prediction(predicted(2003, "roofline", {"relu-tiny.time": (1.0, "s")}))  # before modes were kept
    book.save_prediction(predicted(2004, "roofline", {"nowhere.time": (1.0, "s")}, mode="live"))
    found = [row[-2:] for row in rows(labbook.page(book)[0])]
    here = "My &lt;own&gt; CPU"
    assert found == [["replay", device], ["live", here], ["live", here], ["live", ""]]


def test_shares_are_percentages(book: LabBook) -> None:
    run = records.recorded("profiling")[-1]
    share = reconcile.topic("profiling").calibration(run)["share-tiny"]
    outputs = {"calibration-share-tiny.share": (0.123, ""), "without-tiny.time": (0.123, "s")}
    book.save_prediction(predicted(2001, "profiling", outputs, mode="replay", record=run.id))
    tiny, time = rows(labbook.page(book)[0])
    assert tiny[3:5] == ["12.3%", f"{share:.1%}"]
    assert time[3] == "123 ms"


def test_what_calculators_write_in_percent_the_lab_book_does_too() -> None:
    """The page is made without them, since they need more packages."""
    calculators = pytest.importorskip("efflab.calculators")
    for calculator in calculators.every().values():
        for output in calculator.outputs:
            percent = getattr(output, "percent", False)
            if output.shown or percent:
                assert labbook.in_percent(output.name) == percent, f"{calculator.name}: {output.name}"
    assert labbook.in_percent("calibration-share-tiny.share") and not labbook.in_percent("share.time")


def test_topics_are_told_apart_and_folded(book: LabBook, shipped: Record) -> None:
    amp = records.recorded("amp")[-1]
    for record, case, factor in ((shipped, "relu-large", 4.0), (amp, "step-bf16", 2.0)):
        outputs = {f"{case}.time": (measured(record, case) * factor, "s")}
        book.save_prediction(predicted(2001, record.topic, outputs, mode="replay", record=record.id))
    text, _ = labbook.page(book)
    assert text.count("<details>") == 2 and "<details open>" not in text
    first, second = text.split("<details>")[1:]
    for part, topic, off in ((first, "amp", 2), (second, "roofline", 4)):
        assert f"<h2>{topic}</h2> <span>1 prediction</span>" in part
        assert f"Your first prediction was off by a factor of {off}." in part
        assert part.count("<circle") == 1 and part.count("</details>") == 1


def test_the_only_topic_is_open_and_several_records_are_folded(book: LabBook, shipped: Record) -> None:
    book.save_record(shipped.model_copy(update={"id": "one"}))
    assert labbook.page(book)[0].count("<details open>") == 2
    book.save_record(shipped.model_copy(update={"id": "two", "finished": None}))
    text, _ = labbook.page(book)
    assert text.count("<details open>") == 1 and text.count("<details>") == 2
    assert "<h2>roofline</h2> <span>2 records</span>" in text
    assert text.count("This run did not finish.") == 1
    assert "Error over time" not in text, "nothing was predicted"


def test_every_record_says_what_energy_it_took(book: LabBook, shipped: Record) -> None:
    counted = records.Energy(source="rapl", joules=60.0, window_s=2.0, period_s=0.001, of="RAPL's counter of 1 package")
    for name, topic, energy in (
        ("counted", "roofline", counted),
        ("old", "roofline", records.Energy()),
        ("other", "of_no_lab", records.Energy(why="<no> counter")),
    ):
        book.save_record(shipped.model_copy(update={"id": name, "topic": topic, "energy": energy}))
    text, _ = labbook.page(book)
    for said in (
        "60 J in 2 s, 30 W on average, measured by RAPL&#x27;s counter of 1 package.",
        "<p>Energy was not recorded.</p>",
        "<p>Energy of the run: not measured (&lt;no&gt; counter).</p>",
    ):
        assert text.count(said) == 1
