"""Progress: kept, merged, exported; nothing is lost when it cannot be saved."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efflab import records
from efflab.errors import EfflabError
from efflab.exercises import check, progress, questions
from efflab.exercises.progress_file import Entry, Progress, dumps, merged, read

RIGHT, WRONG = "295 FLOP/B", "591 FLOP/B"


def saved(labbook):
    return json.loads((labbook / "progress.json").read_text(encoding="utf-8"))["questions"]


def test_an_empty_lab_book_is_fine(labbook):
    total = sum(q.points for q in questions.bank("roofline").values())
    assert progress.points("roofline") == (0, total)
    assert repr(progress("roofline")).startswith(f"roofline: 0 of {total} points, 0 of ")
    heads = [line for line in repr(progress).splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in heads] == list(questions.topics())
    assert not labbook.exists()


def test_attempts_points_and_answers_are_kept(labbook):
    check("roofline-1", WRONG)
    assert saved(labbook)["roofline-1"] == {"solved": False, "attempts": 1, "points": 0, "answer": WRONG}
    check("roofline-1", RIGHT)
    assert saved(labbook)["roofline-1"] == {"solved": True, "attempts": 2, "points": 1, "answer": RIGHT}
    check("roofline-1", WRONG)  # what is solved stays solved
    assert saved(labbook)["roofline-1"] == {"solved": True, "attempts": 3, "points": 1, "answer": RIGHT}
    assert Progress().points("roofline")[0] == 1  # read back by another process
    assert "roofline-1" in repr(progress("roofline")) and "3 attempts" in repr(progress("roofline"))


def test_two_notebooks_do_not_undo_each_other(labbook):
    check("roofline-1", RIGHT)
    other = Progress()
    other.note(questions.question("roofline-2"), right=True, answer="d")
    check("roofline-3", "315 FLOP/B")
    assert [n for n, e in saved(labbook).items() if e["solved"]] == ["roofline-1", "roofline-2", "roofline-3"]


def test_the_file_has_the_schema_of_the_lab_book(labbook):
    check("roofline-1", RIGHT)
    assert "a progress file" in records.check(labbook / "progress.json")
    assert [p.name for p in labbook.iterdir()] == ["progress.json"]  # no temporary file is left


@pytest.mark.parametrize(
    "damage", ["", "{", '{"schema": "efflab-progress/1"}', '{"schema": "efflab-progress/2", "questions": {}}', "[]"]
)
def test_a_damaged_file_is_said_and_kept(labbook, damage, tmp_path):
    labbook.mkdir()
    (labbook / "progress.json").write_text(damage, encoding="utf-8")
    result = check("roofline-1", RIGHT)
    assert result.right and result.unsaved and "not saved" in str(result)
    assert (labbook / "progress.json").read_text(encoding="utf-8") == damage
    assert repr(progress).startswith("Progress cannot be shown: ")
    check("roofline-3", "315 FLOP/B")
    assert progress.export(tmp_path / "out.json").startswith("2 questions written")  # what is in memory
    (labbook / "progress.json").unlink()
    assert check("roofline-4", "1 FLOP/B").unsaved is None
    assert set(saved(labbook)) == {"roofline-1", "roofline-3", "roofline-4"}  # nothing was lost


def test_a_lab_book_that_cannot_be_written_is_said(labbook, monkeypatch, tmp_path):
    labbook.write_text("a file, not a folder", encoding="utf-8")
    result = check("roofline-1", RIGHT)
    assert result.right and "this is a file, not a folder" in result.unsaved
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "another"))
    check("roofline-3", "315 FLOP/B")
    assert set(saved(tmp_path / "another")) == {"roofline-1", "roofline-3"}


def test_a_full_disk_is_said(labbook, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    result = check("roofline-1", RIGHT)
    monkeypatch.undo()
    assert result.right and "No space left" in result.unsaved
    assert not list(labbook.glob("*.tmp"))


def test_repeated_failures_leave_one_folder(labbook, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (labbook / "progress.json").mkdir(parents=True)  # a folder in the file's place: nothing can be written there
    monkeypatch.setattr(Progress, "_file", lambda self: {})
    for answer in (WRONG, WRONG, RIGHT):
        assert "The content is kept in" in check("roofline-1", answer).unsaved
    folders = list((tmp_path / "temporary").iterdir())
    assert len(folders) == 1
    kept = folders[0] / "progress.json"
    assert read(kept)["roofline-1"].solved and read(kept)["roofline-1"].attempts == 3
    (labbook / "progress.json").rmdir()
    assert check("roofline-3", "315 FLOP/B").unsaved is None
    assert not list((tmp_path / "temporary").iterdir())  # it is saved where it belongs


def test_a_folder_without_permission_is_said(labbook, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    result = check("roofline-1", RIGHT)
    monkeypatch.undo()
    assert result.right and "may not write" in result.unsaved


def test_export_and_merge_keep_the_best(labbook, monkeypatch, tmp_path):
    check("roofline-1", WRONG)
    check("roofline-3", "315 FLOP/B")
    assert progress.export(tmp_path / "mine.json") == f"2 questions written to {tmp_path / 'mine.json'}."
    with pytest.raises(EfflabError, match="exists and is not overwritten"):
        progress.export(tmp_path / "mine.json")
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "second"))
    check("roofline-1", RIGHT)
    check("roofline-3", "1 FLOP/B")
    said = progress.merge(tmp_path / "mine.json")
    assert said == f"2 questions read from {tmp_path / 'mine.json'}; 1 newly solved."
    assert progress.merge(tmp_path / "mine.json").endswith("0 newly solved.")  # again changes nothing
    assert {n: (e.solved, e.answer) for n, e in progress.entries().items()} == {
        "roofline-1": (True, RIGHT),
        "roofline-3": (True, "315 FLOP/B"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ('{"schema": "efflab-progress/1", "questions": {"roofline-1"', "cut off"),
        ('{"schema": "efflab-progress/9", "questions": {}}', "newer than this efflab"),
        ('{"schema": "efflab-record/1"}', "a progress file has 'efflab-progress/1'"),
        ('{"schema": "other/1"}', "not known"),
        ('{"hello": 1}', "'schema' is missing"),
        ("\x89PNG", "not JSON"),
        ('{"schema": "efflab-progress/1", "questions": {"roofline-1": {"solved": "yes"}}}', "solved"),
        ('{"schema": "efflab-progress/1", "questions": {"roofline-1": {"attempts": -1}}}', "attempts"),
        ('{"schema": "efflab-progress/1", "questions": {}, "x": 1}', "no such field"),
    ],
)
def test_a_file_that_is_no_progress_is_refused_in_words(labbook, tmp_path, text, said):
    check("roofline-1", RIGHT)
    before = (labbook / "progress.json").read_bytes()
    path = tmp_path / "in.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EfflabError) as caught:
        progress.merge(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert (labbook / "progress.json").read_bytes() == before


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EfflabError, match="no such file"):
        progress.merge(tmp_path / "no.json")


ENTRY = st.builds(
    Entry,
    solved=st.booleans(),
    attempts=st.integers(0, 99),
    points=st.integers(0, 3),
    answer=st.none() | st.text(max_size=5),
)


@given(ENTRY, ENTRY, ENTRY)
def test_merging_keeps_the_best_in_any_order(a, b, c):
    def best(*several):
        entry = merged(*({"q": e} for e in several))["q"]
        return entry.solved, entry.attempts, entry.points

    assert best(a, b, c) == best(c, b, a) == best(a, b, c, a)
    assert best(a, b, c) == (
        any(e.solved for e in (a, b, c)),
        max(e.attempts for e in (a, b, c)),
        max(e.points for e in (a, b, c)),
    )
    answer = merged({"q": a}, {"q": b})["q"].answer
    assert answer in (a.answer, b.answer)
    if a.solved != b.solved:
        assert answer == (a if a.solved else b).answer


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}-[1-9]", fullmatch=True), ENTRY, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("p") / "p.json"
    path.write_text(dumps(entries), encoding="utf-8")
    assert read(path) == entries


def test_a_measurement_keeps_no_path(labbook, tmp_path):
    check("roofline-code-1", lambda m, n, k, bytes_per_element: 1.0)
    assert saved(labbook)["roofline-code-1"]["answer"] is None
