"""The bank: right values from first principles, every option and every mistake answered, broken files refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from efflab.catalog import accelerator
from efflab.errors import EfflabError
from efflab.exercises import check, questions
from efflab.exercises.checks import find
from efflab.exercises.questions import Choice, Code, Measurement, Numeric
from efflab.units import show

BANK = questions.bank("roofline")
NUMERIC = [q for q in BANK.values() if isinstance(q, Numeric)]
CHOICE = [q for q in BANK.values() if isinstance(q, Choice)]

# Each answer again, from the numbers in the question's text and nothing else.
BY_HAND = {
    "roofline-1": 989.4e12 / 3.35e12,
    "roofline-3": 2 * 512 * 1024 * 4096 / (2 * 512 * 1024 + 2 * 1024 * 4096 + 2 * 512 * 4096),
    "roofline-4": 2 * 8192 * 8192 / (2 * (8192 * 8192 + 8192 + 8192)),
    "roofline-5": 3 * (2**30 + 2**30),  # three operations, each 1 GiB in and 1 GiB out
    "roofline-6": (200 * 8 / 4.8e12) / max(8 / 4.8e12, 200 / 66.9e12),
    "roofline-7": 8 * (19.5e12 / 1.5e12),
    "roofline-8": 100 / (39 + 61 / 2),
    "roofline-9": 70e9 * 2 / 4.8e12,
    "roofline-11": (989.4e12 / 4.8e12) / 2,  # 2 FLOP per byte and sequence
    "roofline-13": 989.4e12 * 5e-6,
    "roofline-15": 5 / (2 + 2) * 3.35e12,
    "roofline-17": 140e9 / 450e9,
}
# The values that the named mistakes lead to, again by hand.
MISTAKES = {
    ("roofline-1", "used the sparse peak"): 1979e12 / 3.35e12,
    ("roofline-1", "turned the ratio over"): 3.35 / 989.4,
    ("roofline-1", "took an H200"): 989.4 / 4.8,
    ("roofline-1", "used the FP32 peak"): 66.9 / 3.35,
    ("roofline-3", "half"): 512 * 1024 * 4096 / (2 * (512 * 1024 + 1024 * 4096 + 512 * 4096)),
    ("roofline-3", "forgot the write"): 512 * 1024 * 4096 / (512 * 1024 + 1024 * 4096),
    ("roofline-3", "counted elements, not bytes"): 2 * 512 * 1024 * 4096 / (512 * 1024 + 1024 * 4096 + 512 * 4096),
    ("roofline-3", "counted only the weights"): 512,
    ("roofline-4", "half"): 0.5,
    ("roofline-4", "counted elements, not bytes"): 2,
    ("roofline-4", "took a square matrix product"): 8192 / 3,
    ("roofline-5", "wrote GB for GiB"): 6e9,
    ("roofline-5", "forgot the writes"): 3 * 2**30,
    ("roofline-5", "took the fused chain"): 2 * 2**30,
    ("roofline-5", "counted elements, not bytes"): 6 * 2**28,
    ("roofline-5", "kept the intermediates in the cache"): 4 * 2**30,
    ("roofline-6", "scaled without limit"): 200,
    ("roofline-6", "same work, same time"): 1,
    ("roofline-6", "forgot the writes"): 66.9 / 4.8 * 4,
    ("roofline-7", "forgot the write"): 52,
    ("roofline-7", "per byte"): 13,
    ("roofline-7", "used the tensor cores"): 312 / 1.5 * 8,
    ("roofline-8", "used the share of operations"): 1 / (0.002 + 0.499),
    ("roofline-8", "halved the rest"): 1 / (0.61 + 0.195),
    ("roofline-8", "gave the time left"): 0.695,
    ("roofline-9", "computed the arithmetic"): 140e9 / 989.4e12,
    ("roofline-9", "one byte per weight"): 70e9 / 4.8e12,
    ("roofline-9", "four bytes per weight"): 280e9 / 4.8e12,
    ("roofline-9", "took GB for GiB"): 140 * 2**30 / 4.8e12,
    ("roofline-11", "two bytes per weight"): 989.4 / 4.8,
    ("roofline-11", "counted a multiply-add as one, sparse"): 1978.8 / 4.8,
    ("roofline-11", "half"): 989.4 / 4.8 / 4,
    ("roofline-13", "used the sparse peak"): 1979e12 * 5e-6,
    ("roofline-13", "took milliseconds"): 989.4e12 * 5e-3,
    ("roofline-13", "took nanoseconds"): 989.4e12 * 5e-9,
    ("roofline-13", "used the FP32 peak"): 66.9e12 * 5e-6,
    ("roofline-15", "took the peak"): 989.4e12,
    ("roofline-15", "forgot the write"): 2.5 * 3.35e12,
    ("roofline-15", "four bytes per element"): 0.625 * 3.35e12,
    ("roofline-17", "used both directions"): 140 / 900,
    ("roofline-17", "used the memory bandwidth"): 140e9 / 4.8e12,
    ("roofline-17", "halved twice"): 140 / 225,
}


def written(value: float, question: Numeric) -> str:
    """The value as a learner would type it, in base units."""
    return f"{value:.9g} {question.unit}".strip()


def test_there_are_enough_of_each_kind():
    kinds = [type(q) for q in BANK.values()]
    assert kinds.count(Choice) + kinds.count(Numeric) >= 10
    assert kinds.count(Code) >= 5 and kinds.count(Measurement) == 1
    pages = [q for q in BANK if re.fullmatch(r"roofline-\d+", q)]
    assert pages == [f"roofline-{i}" for i in range(1, len(pages) + 1)] and len(pages) >= 8


def test_every_number_and_every_mistake_is_recomputed_here():
    assert {q.id for q in NUMERIC} == set(BY_HAND)
    assert {(q.id, m.name) for q in NUMERIC for m in q.misconceptions} == set(MISTAKES)


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_the_right_value_is_right(question: Numeric):
    by_hand = BY_HAND[question.id]
    assert question.value == pytest.approx(by_hand, rel=1e-9)
    result = check(question.id, written(by_hand, question))
    assert result.right and result.points == question.points and result.feedback == question.right
    assert question.printed and check(question.id, question.printed)
    # As the calculators show it, with three digits.
    assert check(question.id, show(by_hand, question.unit_type))


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{q}: {m}" for q, m in MISTAKES])
def test_a_mistake_is_recognised(name: str, mistake: str):
    question = BANK[name]
    result = check(name, written(MISTAKES[name, mistake], question))
    assert result.outcome == "wrong" and result.points == 0
    assert result.misconception == mistake
    assert result.feedback == next(m.feedback for m in question.misconceptions if m.name == mistake)


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_another_value_gets_the_general_feedback_and_no_answer(question: Numeric):
    result = check(question.id, written(question.value * 7.7, question))
    assert result.outcome == "wrong" and result.misconception is None and result.feedback == question.wrong
    for digits in (2, 3, 4, 5):
        assert f"{question.value:.{digits}g}" not in question.wrong


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_just_inside_is_right_and_just_outside_is_wrong(question: Numeric):
    share = float(question.tolerance.rstrip("%")) / 100
    by_hand = BY_HAND[question.id]
    for side in (-1, 1):
        inside, outside = by_hand * (1 + side * share * 0.99), by_hand * (1 + side * share * 1.01)
        assert check(question.id, written(inside, question))
        assert not check(question.id, written(outside, question))


@pytest.mark.parametrize("question", CHOICE, ids=lambda q: q.id)
def test_each_option_gets_its_own_feedback(question: Choice):
    for letter, option in question.ordered.items():
        for answer in (letter, letter.upper(), f"({letter})", option.text, f" {option.text.upper()} "):
            result = check(question.id, answer)
            assert result.outcome == ("right" if option.right else "wrong"), answer
            assert result.feedback == option.feedback
    assert sum(o.right for o in question.ordered.values()) == 1
    assert {o.feedback for o in question.options} == {o.feedback for o in question.ordered.values()}
    assert len({o.feedback for o in question.options}) == len(question.options)


def test_the_place_of_an_option_does_not_tell():
    in_bank = [next(i for i, o in enumerate(q.options) if o.right) for q in CHOICE]
    shown = [next(i for i, o in enumerate(q.ordered.values()) if o.right) for q in CHOICE]
    assert shown != in_bank
    assert len(set(shown)) >= 3


def test_the_right_option_is_not_always_the_longest():
    longest = [max(q.options, key=lambda o: len(o.text)).right for q in CHOICE]
    assert sum(longest) <= len(longest) / 2


@pytest.mark.parametrize("question", BANK.values(), ids=lambda q: q.id)
def test_hints_and_texts_are_plain(question):
    assert question.hints
    texts = [question.title, question.text, *question.hints]
    texts += [question.right] if not isinstance(question, Choice) else [o.feedback for o in question.options]
    for text in texts:
        assert not re.search(r"[<>]\w|TODO|\bsimply\b|\bjust\b|—", text), text
    if isinstance(question, Code | Measurement):
        assert callable(find("roofline", question.checker))


def test_constants_are_those_of_the_catalog():
    h100, h200, a100 = (accelerator(n) for n in ("H100 SXM", "H200 SXM", "A100 SXM 40GB"))
    for device, dtype, peak in (
        (h100, "bf16", 989.4e12), (h200, "bf16", 989.4e12), (h100, "fp32", 66.9e12), (h200, "fp32", 66.9e12),
        (a100, "fp32", 19.5e12), (a100, "bf16", 312e12),
    ):  # fmt: skip
        assert device.peak(dtype) == pytest.approx(peak)
    assert [h100.memory_bandwidth, h200.memory_bandwidth] == pytest.approx([3.35e12, 4.8e12])
    assert [h100.memory, h200.memory] == pytest.approx([80e9, 141e9])
    assert h200.link_bandwidth == pytest.approx(450e9)
    assert h100.peak_sparse["bf16"] == pytest.approx(1979e12, rel=1e-3)


def test_rates_stand_in_the_text():
    """A peak, a bandwidth or an overhead that the answer is computed from must be given to the reader."""
    for question in NUMERIC:
        stack = [question.answer]
        while stack:
            value = stack.pop()
            if isinstance(value, questions.Computed):
                stack += value.inputs.values()
            elif isinstance(value, str) and value.endswith("s") and value != "0 s":
                assert value.split()[0] in question.text, f"{question.id}: {value}"


GOOD = {
    "id": "t-1", "kind": "numeric", "title": "Title", "points": 1, "text": "Text", "hints": ["A hint."],
    "unit": "s", "answer": "2 s", "tolerance": "1%", "right": "Right.",
    "misconceptions": [{"name": "half", "value": "1 s", "feedback": "Half."}],
}  # fmt: skip
CHOOSE = {
    "id": "t-2", "kind": "choice", "title": "Title", "points": 1, "text": "Text", "hints": ["A hint."],
    "options": [{"text": "One", "feedback": "Yes.", "right": True}, {"text": "Two", "feedback": "No."}],
}  # fmt: skip


def save(folder: Path, *rows: dict, topic: str = "t") -> Path:
    path = folder / "t.yml"
    path.write_text(yaml.safe_dump({"topic": topic, "questions": list(rows)}), encoding="utf-8")
    return path


def test_a_good_file_loads(tmp_path: Path):
    assert [q.id for q in questions.read_bank(save(tmp_path, GOOD, CHOOSE))] == ["t-1", "t-2"]


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"unit": "parsec"}, "unit", "not a unit of efflab"),
        ({"answer": "2 B"}, "answer", "not a unit of time"),
        ({"answer": "2"}, "answer", "no unit"),
        (
            {"answer": {"formula": "roofline.ridge_pint", "inputs": {}}},
            "formula",
            "Did you mean 'roofline.ridge_point'",
        ),
        ({"answer": {"formula": "roofline.ridge_point", "inputs": {}}}, "answer", "gives FLOP/B"),
        ({"answer": {"formula": "roofline.memory_time", "inputs": {"bytes": "3 B"}}}, "answer", "'bytes' is not known"),
        (
            {"answer": {"formula": "roofline.memory_time", "inputs": {"bytes_moved": "3 B"}}},
            "",
            "'memory_bandwidth' is missing",
        ),
        ({"answer": {"arithmetic": "__import__('os')"}}, "answer", "more than numbers"),
        ({"answer": {"arithmetic": "1 / 0"}}, "answer", "division by zero"),
        ({"answer": {"arithmetic": "9 ** 9 ** 9"}}, "answer", "cannot be computed"),
        ({"answer": {"changed": {"a": 1}}}, "answer", "belong in a misconception"),
        ({"answer": {"arithmetic": "1", "formula": "x.y"}}, "answer", "exactly one"),
        ({"printed": "3 s"}, "printed", "not the computed answer 2 s"),
        ({"tolerance": "90%"}, "tolerance", "at most 20%"),
        ({"tolerance": "0%"}, "tolerance", "above 0%"),
        ({"answer": "0 s"}, "tolerance", "leaves no room"),
        (
            {"misconceptions": [{"name": "same", "value": "2.01 s", "feedback": "Same."}]},
            "misconceptions.0",
            "overlaps with that of answer",
        ),
        ({"misconceptions": [{"name": "far", "value": "5 s"}]}, "misconceptions.0.feedback", "required"),
        ({"points": 0}, "points", "greater than or equal to 1"),
        ({"hints": []}, "hints", "at least 1"),
        ({"hint": "x"}, "hint", "not permitted"),
        ({"id": "other-1"}, "id", "must start with 't-'"),
        ({"id": "t-01"}, "id", "pattern"),
        ({"kind": "numerical"}, "kind", "Did you mean 'numeric'"),
        ({"title": None}, "title", "valid string"),
    ],
    ids=str,
)
def test_a_wrong_question_is_refused_with_its_file_id_and_field(tmp_path, change, field, said):
    with pytest.raises(EfflabError) as caught:
        questions.read_bank(save(tmp_path, {**GOOD, **change}))
    message = str(caught.value)
    assert message.startswith("t.yml: question "), message
    assert str({**GOOD, **change}["id"]) in message and field in message and said in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([{"text": "One", "feedback": "Yes."}, {"text": "Two", "feedback": "No."}], "exactly one must be right, got 0"),
        ([{"text": t, "feedback": "Yes.", "right": True} for t in ("One", "Two")], "exactly one must be right, got 2"),
        ([{"text": "One", "feedback": f"{r}es.", "right": r} for r in (True, False)], "the same text"),
        ([{"text": "One", "feedback": "Yes.", "right": True}], "at least 2"),
        ([{"text": "One", "right": True}, {"text": "Two", "feedback": "No."}], "options.0.feedback"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(tmp_path, options, said):
    with pytest.raises(EfflabError, match=r"^t\.yml: question t-2: ") as caught:
        questions.read_bank(save(tmp_path, {**CHOOSE, "options": options}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected two keys"),
        ("- a\n- b\n", "expected two keys"),
        ("topic: t\nquestions: {}\n", "expected two keys"),
        ("topic: other\nquestions: []\n", "topic 'other' must be the file's name, 't'"),
        ("topic: t\nquestions:\n- [1, 2]\n", "expected a mapping"),
        ("topic: t\nquestions:\n- id: 'x\n", "not valid YAML"),
        ("topic: t\ntopic: t\nquestions: []\n", "line 2: not valid YAML: the key 'topic' appears twice"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, said):
    path = tmp_path / "t.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EfflabError) as caught:
        questions.read_bank(path)
    assert str(caught.value).startswith("t.yml") and said in str(caught.value)


def test_two_questions_with_one_id_are_refused(tmp_path):
    with pytest.raises(EfflabError, match=r"^t\.yml: question t-1: id: two questions have it"):
        questions.read_bank(save(tmp_path, GOOD, GOOD))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EfflabError, match=r"^t\.yml: cannot be read"):
        questions.read_bank(tmp_path / "t.yml")
