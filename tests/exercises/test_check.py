"""check, hint and show: units, texts, CI, bad input."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from efflab.errors import EfflabError
from efflab.exercises import CheckFailed, check, hint, progress, questions, show


@pytest.mark.parametrize(
    "answer",
    ["295.3 FLOP/B", "295.3FLOP/byte", "  295.3 FLOPs/B ", "2.953e2 FLOP/B", "2.953 × 10² FLOP/B", "0.2953e3 flop/B"],
)
def test_spellings_of_one_quantity(answer):
    assert check("roofline-1", answer)


@pytest.mark.parametrize("answer", ["6.44 GB", "6 GiB", "6,442,450,944 B", "6442 MB", "6144 MiB", "6.442e9 bytes"])
def test_decimal_and_binary_prefixes_are_respected(answer):
    assert check("roofline-5", answer)


@pytest.mark.parametrize("answer", ["6.44 GiB", "6.9 GB", "6 GB", "6.44 MB"])
def test_a_wrong_prefix_is_wrong(answer):
    assert check("roofline-5", answer).outcome == "wrong"


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("roofline-1", "295", "'295' has no unit. Add one, such as '295 FLOP/B'."),
        ("roofline-1", 295, "295 has no unit."),
        ("roofline-1", 295.3, "295.3 has no unit."),
        ("roofline-1", np.float32(295), "has no unit"),
        ("roofline-1", torch.tensor(295.0), "has no unit"),
        ("roofline-1", "295 GB/s", "'GB/s' is not a unit of arithmetic intensity"),
        ("roofline-1", "FLOP/B", "No number found"),
        ("roofline-1", "", "No number found"),
        ("roofline-1", "295,3 FLOP/B", "comma"),
        ("roofline-1", "1e999 FLOP/B", "not a finite number"),
        ("roofline-1", None, "got None"),
        ("roofline-1", True, "got True"),
        ("roofline-1", [295], "got [295]"),
        ("roofline-1", np.array([1.0, 2.0]), "Give one value"),
        ("roofline-5", "6.44 Gb", "means bits"),
        ("roofline-5", "6 gib", "not spelled as SI does"),
        ("roofline-9", "29.2", "no unit"),
        ("scaling_laws-1", "3.15e23", "'3.15e23' has no unit. Add the one that you mean, such as FLOP."),
        ("precision-14", "810", "'810' has no unit. Add the one that you mean, such as GB."),
        ("precision-14", 810, "810 has no unit. Write it as text with its unit, such as '3 GB'."),
        ("precision-14", "x", "Write it like '3.2 GB'."),
        ("precision-14", "810 s", "Write it in GB."),
        ("scaling_laws-7", "51.4", "Did you mean 51.4%?"),
        ("scaling_laws-7", 51.4, "Did you mean 51.4%?"),
        ("scaling_laws-7", np.float64(51.4), "Did you mean 51.4%?"),
        ("precision-20", " 70 ", "Did you mean 70%?"),
        ("precision-20", "29", "Did you mean 29%?"),
        ("precision-12", "1/0", "'1/0' divides by zero"),
        ("roofline-2", "e", "not an option"),
        ("roofline-2", 1, "letter"),
        ("roofline-2", "", "not an option"),
        ("roofline-code-1", 3, "Pass the function itself"),
        ("roofline-code-1", None, "Pass the function itself"),
        ("roofline-own-1", "no-such-record", "neither a file nor a record"),
        ("roofline-own-1", 3, "id or path"),
    ],
)
def test_what_is_no_answer_is_not_counted(name, answer, said):
    result = check(name, answer)
    assert result.outcome == "not counted" and said in result.feedback, result.feedback
    assert not result and result.points == 0
    assert name not in progress.entries()


def test_no_answer_at_all_says_how():
    for name in ("roofline-1", "roofline-2", "roofline-code-1"):
        result = check(name)
        assert result.outcome == "not counted" and f"check('{name}', " in result.feedback


def test_pure_numbers_need_no_unit():
    assert check("roofline-11", 103) and check("roofline-11", "103") and check("roofline-11", np.int64(103))
    assert check("roofline-8", "1.44x") and check("roofline-8", "144%") and check("roofline-8", 1.44)


def test_a_fraction_is_a_number():
    assert check("precision-12", "1/4") and check("precision-4", "1/128") and check("precision-4", " 1 / 128. ")
    assert check("precision-20", "80/114") and not check("precision-20", "34/114")
    assert check("roofline-1", "295/1").outcome == "not counted"


def test_a_share_above_one_may_be_a_known_mistake():
    assert check("precision-20", "2.35").misconception == "compared with what stays"
    assert check("precision-20", "200%").outcome == check("precision-20", "2e2").outcome == "wrong"


def test_the_text_is_the_same_each_time_and_folded():
    first, second = check("roofline-1", "590.7 FLOP/B"), check("roofline-1", "590.7 FLOP/B")
    assert repr(first) == repr(second) == str(first)
    lines = repr(first).splitlines()
    assert lines[0] == "roofline-1: not right yet. 0 of 1 point."
    assert lines[-1] == 'A hint: hint("roofline-1")'
    assert max(map(len, lines)) <= 100
    assert repr(check("roofline-1", "295 FLOP/B")).startswith("roofline-1: right. 1 of 1 point.\nEach byte")


@pytest.mark.parametrize("variable", [("CI", "true"), ("CI", "1"), ("EFFLAB_STRICT", "1")])
def test_under_ci_a_wrong_answer_raises(monkeypatch, variable):
    monkeypatch.delenv("EFFLAB_STRICT")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv(*variable)
    assert check("roofline-1", "295 FLOP/B").right
    for answer in ("590 FLOP/B", "7 FLOP/B", "295"):
        with pytest.raises(CheckFailed) as caught:
            check("roofline-1", answer)
        assert caught.value._render_traceback_() == [f"CheckFailed: {caught.value}"]
    assert caught.value.result.outcome == "not counted"


@pytest.mark.parametrize("variable", [("CI", "false"), ("CI", "0"), ("CI", ""), ("EFFLAB_STRICT", "0")])
def test_elsewhere_it_does_not(monkeypatch, variable):
    monkeypatch.delenv("EFFLAB_STRICT")
    monkeypatch.setenv("CI", "1" if variable[0] == "EFFLAB_STRICT" else "")
    monkeypatch.setenv(*variable)
    assert check("roofline-1", "590 FLOP/B").outcome == "wrong"


@pytest.mark.parametrize("function", [check, hint, show])
def test_an_unknown_question_names_the_nearest(function):
    with pytest.raises(EfflabError, match=r"'roofline-code-9' is not known\. Did you mean 'roofline-code-"):
        function("roofline-code-9")
    with pytest.raises(EfflabError, match="expected an id such as 'roofline-1'"):
        function(1)


@pytest.mark.parametrize("name", ["roofline", "roofline-99", "zzz", "Roofline-1", ""])
@pytest.mark.parametrize("function", [check, hint, show])
def test_of_all_names_only_the_nearest_five_are_listed(function, name):
    with pytest.raises(EfflabError) as caught:
        function(name)
    said = str(caught.value)
    named = {q for topic in questions.topics() for q in questions.bank(topic)}
    assert 1 <= len(named & set(re.findall(r"[a-z_]+-[a-z0-9-]+", said.replace(repr(name), "")))) <= 5
    assert "list" in said
    if name == "roofline":
        assert "is a topic" in said


def test_a_wrong_answer_after_a_right_one_keeps_the_points():
    right = lambda elements, operations, bytes_per_element, fused: (  # noqa: E731
        2 * elements * bytes_per_element * (1 if fused else operations)
    )
    wrong = lambda elements, operations, bytes_per_element, fused: 1  # noqa: E731
    first = check("roofline-code-3", wrong)
    assert str(first).startswith("roofline-code-3: not right yet. 0 of 2 points.") and first.kept == 0
    check("roofline-code-3", right)
    again = check("roofline-code-3", wrong)
    assert str(again).startswith("roofline-code-3: not right yet. You keep your 2 points.") and again.kept == 2
    assert "0 of 2" not in str(again) and progress.points("roofline")[0] == 2
    check("roofline-1", "295 FLOP/B")
    assert "You keep your point." in str(check("roofline-1", "1 FLOP/B"))


def test_hints_come_one_by_one_and_begin_again():
    hints = questions.question("roofline-1").hints
    said = [str(hint("roofline-1")) for _ in range(len(hints) + 1)]
    assert said[0] == said[-1] and said[0].startswith(f"Hint 1 of {len(hints)}: ")
    assert len(set(said)) == len(hints)
    assert str(hint("roofline-3")).startswith("Hint 1 of ")  # each question counts its own


@pytest.mark.parametrize("name", [name for topic in questions.topics() for name in questions.bank(topic)])
def test_showing_a_question_tells_no_answer(name):
    item = questions.question(name)
    text = repr(show(name))
    assert item.title in text and item.text in text
    if item.kind == "choice":
        for letter, option in item.ordered.items():
            assert f"({letter}) {option.text}" in text and option.feedback not in text
    else:
        assert item.right not in text
    assert show(name)._repr_markdown_() == text
