"""Records: written whole or not at all, read back exactly, refused with the field's name when damaged."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efflab import records
from efflab.errors import EfflabError
from efflab.records import LabBook, Prediction, Record

DOCUMENT: dict[str, Any] = {
    "schema": "efflab-record/1",
    "id": "roofline-test-1",
    "topic": "roofline",
    "created": "2026-11-21T08:00:00Z",
    "finished": "2026-11-21T08:01:00Z",
    "environment": {
        "device": "a device", "kind": "cuda", "count": 1, "memory": 1000, "threads": 2, "cores": 2,
        "multiprocessors": 132, "caches": {"L2": 50}, "compute_capability": "9.0", "driver": "580.1", "cuda": "13.0",
        "torch": "2.11", "python": "3.12", "clocks": {"sm_max": 2e9}, "power_limit": 700.0, "load": 0.5,
        "platform": "Linux x86_64", "virtual": True, "slurm": {"job": "17", "nodes": 2}, "efflab": "0.1.0",
        "commit": "0123456789abcdef", "dirty": False, "ranks": 8, "backend": "nccl", "interconnect": "NV18",
    },
    "spec": {"scale": "gpu"},
    "samples": [
        {
            "point": {"case": "matmul", "m": 4, "causal": True}, "metric": "time", "unit": "s", "values": [0.25, 0.5],
            "status": "ok", "message": "",
            "timing": {
                "clock": "cuda-events", "mode": "waited", "loops": 3, "warmup": 2, "inputs": 4, "cold": True,
                "stop": "stable",
            },
        },
        {"point": {"case": "big"}, "metric": "time", "unit": "s", "values": [], "status": "oom", "message": "full"},
    ],
    "energy": {
        "source": "nvml-counter", "joules": 5.0, "window_s": 3.0, "period_s": 0.1, "of": "NVML's counter of GPU 0",
        "shared": "others",
    },
    "warnings": ["one"],
    "predictions": ["roofline-lab-1"],
}  # fmt: skip


def record(**changes: Any) -> Record:
    return Record.model_validate(copy.deepcopy(DOCUMENT) | changes)


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every field and element of a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += fields(inner, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


# Free-form contents: the experiment's own description and the point accept any JSON scalar.
FREE = {("spec",)}
FIELDS = [p for p in fields(DOCUMENT) if p not in FREE]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    original = record()
    assert records.load(records.save(original, tmp_path)) == original
    assert json.loads((tmp_path / "roofline-test-1.json").read_text())["samples"][0]["values"] == [0.25, 0.5]


@given(
    values=st.lists(st.floats(min_value=1e-12, max_value=1e6), min_size=1, max_size=9),
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_raw_values_survive_to_the_last_bit(values: list[float], message: str) -> None:
    document = put(DOCUMENT, ("samples", 0, "values"), values)
    document["samples"][1]["message"] = message or "none"
    written = records.dumps(Record.model_validate(document))
    data, _ = records.parse_json(written.encode(), "x")
    again = Record.model_validate(data)
    assert again.samples[0].values == values
    assert again.samples[1].message == (message or "none")


@pytest.mark.parametrize("path", FIELDS, ids=lambda p: ".".join(map(str, p)))
def test_a_damaged_field_is_named(path: tuple[Any, ...], tmp_path: Path) -> None:
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(put(DOCUMENT, path, {"un": ["expected"]})))
    with pytest.raises(EfflabError) as caught:
        records.load(file)
    said = str(caught.value)
    name = next(p for p in reversed(path) if isinstance(p, str))
    assert str(file) in said
    assert name in said, said
    assert len(said) < 800


@pytest.mark.parametrize("path", [p for p in FIELDS if isinstance(p[-1], str)], ids=lambda p: ".".join(map(str, p)))
def test_an_added_field_is_named_and_required_ones_are_missed(path: tuple[Any, ...], tmp_path: Path) -> None:
    inner: Any = DOCUMENT
    for key in path[:-1]:
        inner = inner[key]
    free = path[:-1] in {("spec",), ("environment", "caches"), ("environment", "clocks")} or "point" in path[:-1]
    if not free:
        file = tmp_path / "more.json"
        file.write_text(json.dumps(put(DOCUMENT, (*path[:-1], "surplus"), 1)))
        with pytest.raises(EfflabError, match="surplus"):
            records.load(file)
    required = {"id", "topic", "created", "environment", "spec", "samples", "device", "kind", "count", "threads",
                "torch", "python", "efflab", "point", "metric", "unit", "values", "status", "clock", "mode", "loops",
                "warmup", "job", "nodes", "schema"}  # fmt: skip
    if path[-1] in required:
        document = copy.deepcopy(DOCUMENT)
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        file = tmp_path / "less.json"
        file.write_text(json.dumps(document))
        with pytest.raises(EfflabError, match=str(path[-1])):
            records.load(file)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("samples", 0, "values", 0), 0.0, "values[0]"),
        (("samples", 0, "values", 1), -1.0, "values[1]"),
        (("samples", 0, "values", 1), "1", "values[1]"),
        (("samples", 0, "values", 1), True, "values[1]"),
        (("samples", 0, "values"), [], "values"),
        (("samples", 1, "values"), [1.0], "values"),
        (("samples", 1, "message"), "", "message"),
        (("samples", 0, "unit"), "parsec", "parsec"),
        (("samples", 0, "timing", "loops"), 0, "loops"),
        (("created",), "yesterday", "created"),
        (("created",), "2026-13-40T00:00:00Z", "created"),
        (("created",), "2026-11-21T08:00:00+02:00", "created"),
        (("id",), "../../etc/passwd", "id"),
        (("topic",), "Roofline!", "topic"),
        (("environment", "kind"), "tpu", "kind"),
        (("environment", "count"), 0, "count"),
        (("environment", "memory"), -5, "memory"),
        (("environment", "caches"), {"L2": 0}, "L2"),
        (("environment", "commit"), "a user name", "commit"),
        (("energy", "joules"), None, "joules"),
        (("energy", "joules"), 0.0, "joules"),
        (("energy", "band"), [1.0], "band"),
        (("energy", "band"), [1.0, 9.0], "band must not be given where the source is 'nvml-counter'"),
        (("energy", "source"), "none", "joules must not be given"),
        (("energy", "source"), "modelled", "joules must not be given"),
        (("energy", "window_s"), None, "window_s must be given"),
        (("energy", "rating"), [9.0, 1.0], "rating must be two numbers above zero, the smaller one first"),
        (("energy", "rating"), [0.0, 1.0], "rating must be two numbers above zero, the smaller one first"),
        (("spec",), {}, "scale"),
    ],
)
def test_impossible_values_are_refused(path: tuple[Any, ...], value: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(put(DOCUMENT, path, value)))
    with pytest.raises(EfflabError) as caught:
        records.load(file)
    assert said in str(caught.value)


@pytest.mark.parametrize("unit", ["s", "B", "J", "W", "FLOP/s", "B/s"])
def test_physical_amounts_are_not_negative(unit: str) -> None:
    sample = {"point": {"case": "a"}, "metric": "other", "unit": unit, "status": "ok"}
    assert record(samples=[sample | {"values": [0.0, 1.0]}]).samples[0].values == [0.0, 1.0]
    with pytest.raises(ValueError, match=rf"values\[1\] must not be negative in {unit}, got -1\.0"):
        record(samples=[sample | {"values": [1.0, -1.0]}])


def test_losses_and_signed_errors_may_be_negative() -> None:
    sample = {"point": {"case": "a"}, "metric": "loss", "unit": "", "values": [-0.5, 0.0], "status": "ok"}
    assert record(samples=[sample]).samples[0].values == [-0.5, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"deep": float("-inf")}], "\ud800"])
def test_a_description_that_no_file_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"spec\.x.*(finite|surrogate)"):
        record(spec={"scale": "cpu", "x": value})


def test_a_field_of_a_newer_efflab_is_named_with_the_mend(tmp_path: Path) -> None:
    file = tmp_path / "newer.json"
    file.write_text(json.dumps(put(DOCUMENT, ("environment", "topology"), "ring")))
    with pytest.raises(EfflabError, match=r"environment\.topology.*newer efflab may have written it: update efflab"):
        records.load(file)
    file.write_text(json.dumps(put(put(DOCUMENT, ("environment", "topology"), "ring"), ("topic",), 3)))
    with pytest.raises(EfflabError, match="does not follow its schema"):
        records.load(file)


def test_a_record_from_before_a_field_was_added_still_loads(tmp_path: Path) -> None:
    older = copy.deepcopy(DOCUMENT)
    for name in ("ranks", "backend", "interconnect"):
        del older["environment"][name]
    del older["predictions"]
    file = tmp_path / "older.json"
    file.write_text(json.dumps(older))
    found = records.load_record(file)
    assert found.environment.ranks is None
    assert found.predictions == []


def test_two_samples_of_one_point_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two samples"):
        record(samples=[DOCUMENT["samples"][0]] * 2)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"[1, 2]", "object"),
        (b"{}", "'schema' is missing"),
        (b'{"schema": "efflab-record/2"}', "update efflab"),
        (b'{"schema": "efflab-record/0"}', "does not exist"),
        (b'{"schema": "somebody-else/1"}', "not known"),
        (b'{"schema": 1}', "not known"),
        (b'{"schema": "efflab-record/1", "id": NaN}', "NaN"),
        (b'{"schema": "efflab-record/1", "spec": {"scale": "cpu", "x": [-Infinity]}}', "-Infinity"),
        (b'{"schema": "efflab-record/1", "spec": {"scale": "cpu", "x": 1e999}}', "1e999 is too large"),
        (b'{"schema": "efflab-record/1", "spec": {"scale": "\\ud800"}}', "spec.scale: a lone surrogate"),
        (b'{"schema": "efflab-record/1", "spec": {"\\udc00": 1}}', "spec: a lone surrogate"),
        (b'{"schema": "efflab-record/1", "id": 1, "id": 2}', "twice"),
        (b'{"schema": "efflab-record/1", nonsense}', "line 1"),
        (b"[" * 100_000, "efflab file"),
    ],
)
def test_no_file_of_ours_is_refused_in_words(raw: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_bytes(raw)
    with pytest.raises(EfflabError) as caught:
        records.load(file)
    assert said.lower() in str(caught.value).lower()
    assert str(file) in str(caught.value)


def test_every_truncation_is_refused() -> None:
    whole = records.dumps(record())
    for end in range(len(whole.rstrip())):
        with pytest.raises(EfflabError):
            data, _ = records.parse_json(whole[:end], "x")
            Record.model_validate(data)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EfflabError, match="no such file"):
        records.load(tmp_path / "none.json")
    with pytest.raises(EfflabError, match="cannot be read"):
        records.load(tmp_path)


def test_a_prediction_is_no_record(tmp_path: Path) -> None:
    file = records.save(Prediction.new("roofline", {"time": (1.0, "s")}), tmp_path)
    assert records.load_prediction(file).outputs["time"].value == 1.0
    with pytest.raises(EfflabError, match="a record is needed"):
        records.load_record(file)
    with pytest.raises(EfflabError, match="a prediction is needed"):
        records.load_prediction(records.save(record(), tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", None, True])
def test_a_prediction_needs_a_number(value: Any) -> None:
    with pytest.raises(EfflabError, match=r"outputs\.time"):
        Prediction.new("roofline", {"time": (value, "s")})


# Writing


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    first = records.save(record(), tmp_path)
    before = first.read_bytes()
    with pytest.raises(EfflabError, match="not overwritten"):
        records.save(record(warnings=["other"]), tmp_path)
    assert first.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [first.name], "a temporary file was left"


def test_nothing_is_overwritten_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    file = records.save(record(), tmp_path)
    assert records.load(file) == record()
    with pytest.raises(EfflabError, match="not overwritten"):
        records.save(record(warnings=["other"]), tmp_path)
    assert records.load(file) == record()


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_full_disk_keeps_the_data_elsewhere(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, spare = tmp_path / "full", tmp_path / "spare"
    target.mkdir()
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    real, real_open = getattr(os, call), os.open
    opened: dict[int, str] = {}

    def open_(path: Any, *rest: Any, **named: Any) -> int:
        if call == "open" and str(path).startswith(str(target)):
            raise OSError(errno.ENOSPC, "No space left on device")
        descriptor = real_open(path, *rest, **named)
        opened[descriptor] = str(path)
        return descriptor

    def fails(descriptor: int, *rest: Any) -> Any:
        if opened.get(descriptor, "").startswith(str(target)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, *rest)

    monkeypatch.setattr(os, "open", open_)
    if call != "open":
        monkeypatch.setattr(os, call, fails)
    with pytest.raises(records.NotSaved) as caught:
        records.save(record(), target)
    assert "disk is full" in str(caught.value)
    assert list(target.iterdir()) == [], "a partial file was left"
    assert caught.value.kept is not None
    assert str(caught.value.kept) in str(caught.value)
    assert records.load(caught.value.kept) == record()


def test_nowhere_to_write_still_holds_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "write", fails)
    with pytest.raises(records.NotSaved) as caught:
        records.save(record(), tmp_path)
    assert caught.value.kept is None
    data, _ = records.parse_json(caught.value.text, "kept")
    assert Record.model_validate(data) == record()


def test_a_folder_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    (tmp_path / "file").write_text("")
    with pytest.raises(records.NotSaved, match="part of the path is a file") as caught:
        records.save(record(), tmp_path / "file" / "records")
    assert records.load(caught.value.kept) == record()
    with pytest.raises(EfflabError, match="a file, not a folder"):
        LabBook(tmp_path / "file")


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    assert records.load(records.save(record(), tmp_path)) == record()


# The lab book


def test_lab_book_keeps_and_orders(tmp_path: Path) -> None:
    book = LabBook(tmp_path / "book")
    assert book.records() == []
    assert book.predictions() == []
    later, earlier = record(id="b", created="2026-11-22T00:00:00Z"), record(id="c", created="2026-11-20T00:00:00Z")
    book.save_record(later)
    book.save_record(earlier)
    assert [r.id for r in book.records()] == ["c", "b"]
    assert book.records("precision") == []
    prediction = Prediction.new("roofline", {"time": (2.0, "s")}, source="site")
    book.save_prediction(prediction)
    assert book.predictions() == [prediction]


def test_lab_book_adds_a_download_once(tmp_path: Path) -> None:
    book, download = LabBook(tmp_path / "book"), tmp_path / "download.json"
    download.write_text(records.dumps(record()))
    assert book.add(download) == book.add(download)
    assert len(book.records()) == 1
    download.write_text(records.dumps(record(warnings=["changed"])))
    with pytest.raises(EfflabError, match="another file with the id"):
        book.add(download)
    download.write_text("{")
    with pytest.raises(EfflabError, match="cut off"):
        book.add(download)


def test_one_damaged_file_does_not_hide_the_rest(tmp_path: Path) -> None:
    book = LabBook(tmp_path)
    book.save_record(record())
    (tmp_path / "records" / "torn.json").write_text('{"schema": "efflab-record/1", ')
    with pytest.raises(EfflabError, match=r"torn\.json"):
        book.records()
    _, found, problems = book.readable()
    assert [r.id for r in found] == ["roofline-test-1"]
    assert len(problems) == 1
    assert "torn.json" in problems[0]


def test_lab_book_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "mine"))
    assert LabBook().path == tmp_path / "mine"
    monkeypatch.delenv("EFFLAB_LABBOOK")
    monkeypatch.chdir(tmp_path)
    assert LabBook().path == Path("labbook")


@pytest.mark.parametrize("topic", ["../secrets", "Roofline", "", "a b"])
def test_recorded_refuses_what_is_no_topic(topic: str) -> None:
    with pytest.raises(EfflabError, match="topic"):
        records.recorded(topic)


def test_recorded_runs_that_come_with_the_course_are_whole_and_name_nobody(root: Path) -> None:
    files = sorted((root / "labs" / "results").glob("*/*.json"))
    for file in files:
        found = records.load_record(file)
        assert found.finished
        assert found.topic == file.parent.name
        text = file.read_text()
        assert not re.search(r"(/home/|/root/|/tmp/|/work/|\\Users\\)", text)
    assert records.recorded("nothing_here") == []


# Statistics


@given(st.lists(st.floats(min_value=-1e9, max_value=1e9), min_size=2, max_size=30))
def test_median_and_quartiles_agree_with_the_standard_library(values: list[float]) -> None:
    assert records.median(values) == pytest.approx(statistics.median(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    assert records.iqr(values) == pytest.approx(high - low, abs=1e-6)


def test_no_values_no_median() -> None:
    with pytest.raises(EfflabError, match="no values"):
        records.median([])


def test_labs_exercises_and_terminal_share_one_lab_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EFFLAB_LABBOOK", raising=False)
    course = tmp_path / "course"
    for folder in ("labs/source", "notebooks/source", "elsewhere"):
        (course / folder).mkdir(parents=True)
    found = set()
    for folder in ("labs", "notebooks", "elsewhere", "."):
        monkeypatch.chdir(course / folder)
        found.add(LabBook().path.resolve())
    assert found == {course.resolve() / "labbook"}
    monkeypatch.chdir(tmp_path)
    assert LabBook().path.resolve() == tmp_path.resolve() / "labbook"
