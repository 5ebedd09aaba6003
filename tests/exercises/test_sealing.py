"""The sealed page: holds no answer in plain, opens only for the right token, and agrees with Python.

The JavaScript under test is the site's own script, run by V8 without a browser.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_mini_racer import MiniRacer

from efflab.calculators import bundle
from efflab.errors import EfflabError
from efflab.exercises import check, front, questions, sealing
from efflab.exercises.questions import Choice, Numeric
from efflab.units import UNITS, parse

BANK = {name: item for topic in questions.topics() for name, item in questions.bank(topic).items()}
SEALED = [q for q in BANK.values() if isinstance(q, Choice | Numeric)]
NUMERIC = [q for q in SEALED if isinstance(q, Numeric)]


@pytest.fixture(scope="module")
def v8():
    """V8 with the site's script loaded."""
    machine = MiniRacer()
    machine.eval(bundle.units_script() + front.script() + "; 0")

    def call(expression: str, *arguments):
        texts = ", ".join(json.dumps(a) for a in arguments)
        return json.loads(machine.eval(f"JSON.stringify({expression}({texts}) ?? null)"))

    return call


@functools.cache
def sealed_once(name):
    """Sealing takes a while, as it should."""
    return sealing.seal(BANK[name])


def judged(v8, question, answer):
    """What the page would say: (outcome, feedback)."""
    sealed = sealed_once(question.id)
    if isinstance(question, Choice):
        found = v8("efflabQuiz.openChoice", sealed, answer)
    else:
        found = v8("efflabQuiz.judgeNumeric", sealed, answer, question.wrong)
        if "problem" in found:
            return "not counted", found["problem"]
    return ("right" if found["right"] else "wrong"), found["feedback"]


@pytest.mark.parametrize("question", SEALED, ids=lambda q: q.id)
def test_nothing_is_in_plain(question):
    text = json.dumps(sealing.seal(question), ensure_ascii=False)
    raw = b"".join(base64.b64decode(t) for t in re.findall(r"[A-Za-z0-9+/=]{40,}", text))
    secrets = []
    if isinstance(question, Choice):
        secrets += [o.feedback for o in question.options]
    else:
        secrets += [question.right, question.printed, *(m.feedback for m in question.misconceptions)]
        secrets += [m.name for m in question.misconceptions]
        secrets += [f"{v:.{d}g}" for v in (question.value, *question.bounds) for d in (3, 6, 17)]
    for secret in secrets:
        if len(secret) < 3:
            continue
        assert secret not in text and secret[:20] not in text, secret
        assert secret[:20].encode() not in raw
    assert "right" not in text and "feedback" not in text


@pytest.mark.parametrize("question", SEALED, ids=lambda q: q.id)
def test_lengths_and_counts_tell_nothing(question):
    sealed = sealing.seal(question)
    assert len({len(box) for box in sealed["boxes"]}) == 1
    if isinstance(question, Numeric):
        entries = base64.b64decode(sealed["entries"])
        size = sealing.ID + sealing.SEED
        assert len(entries) % (size * sealing.ENTRIES) == 0
        rows = [entries[i : i + size] for i in range(0, len(entries), size)]
        assert rows == sorted(rows) and len(set(rows)) == len(rows)


def test_the_right_box_is_not_always_in_the_same_place(v8):
    places = set()
    for question in NUMERIC:
        sealed = sealing.seal(question)
        for i, box in enumerate(sealed["boxes"]):
            alone = {
                **sealed,
                "boxes": [box if j == i else sealed["boxes"][i - 1] for j in range(len(sealed["boxes"]))],
            }
            found = v8("efflabQuiz.openNumeric", alone, question.value)
            if found and found["right"]:
                places.add(i)
    assert len(places) >= 3


@pytest.mark.parametrize("question", SEALED, ids=lambda q: q.id)
def test_sealing_is_reproducible(question):
    assert sealing.seal(question) == sealing.seal(question)


def test_salts_differ():
    assert len({sealing.seal(q)["salt"] for q in SEALED}) == len(SEALED)


@pytest.mark.parametrize("question", [q for q in SEALED if isinstance(q, Choice)], ids=lambda q: q.id)
def test_each_option_opens_its_own_feedback(v8, question):
    for letter, option in question.ordered.items():
        assert judged(v8, question, letter) == (check(question.id, letter).outcome, option.feedback)


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_ends_are_exact(v8, question):
    """One unit in the last place inside is recognised, one outside is not: as in Python."""
    sealed = sealing.seal(question)
    ranges = [(*question.bounds, question.right)]
    ranges += [(*question.misconception_bounds(i), m.feedback) for i, m in enumerate(question.misconceptions)]
    for low, high, feedback in ranges:
        for inside in (low, high, (low + high) / 2, math.nextafter(low, math.inf), math.nextafter(high, -math.inf)):
            assert v8("efflabQuiz.openNumeric", sealed, inside)["feedback"] == feedback
        for outside in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf), -low, -high, 0.0):
            found = v8("efflabQuiz.openNumeric", sealed, outside)
            assert found is None or found["feedback"] != feedback


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
@settings(max_examples=40)
@given(data=st.data())
def test_the_page_and_python_agree(v8, question, data):
    """Random answers near the right value and near each mistake, in several spellings."""
    centres = [
        question.value,
        *(sum(question.misconception_bounds(i)) / 2 for i in range(len(question.misconceptions))),
    ]
    value = data.draw(st.sampled_from(centres)) * data.draw(st.floats(0.85, 1.15))
    unit = data.draw(st.sampled_from(sorted(question.unit_type.accepted().items())))
    digits = data.draw(st.integers(1, 17))
    answer = f"{value / unit[1]:.{digits}g} {unit[0]}".strip()
    result = check(question.id, answer)
    outcome, feedback = judged(v8, question, answer)
    assert (outcome, feedback) == (result.outcome, result.feedback), answer


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_what_is_not_counted_is_said_alike(v8, question):
    number = re.match(r"[0-9.,]+(e-?[0-9]+)?", question.printed)[0]
    for answer in (
        number, f" {number} ", f"{number} parsec", "x", "1/4", "1/0", "51.4", "70", "1,234.5", "2.35", "300%", "3e2",
        "-70", "1", "1.0", "70x", "/4", "1/4/2", "1/4 B", "−3 / .5",
    ):  # fmt: skip
        result = check(question.id, answer)
        assert judged(v8, question, answer) == (result.outcome, result.feedback), answer


ALPHABET = "0123456789.,_+-−eExX×*·^{}()⁻¹⁰²³ \\timesGMkTPKiBbsFLOP/hmindyu%µ'\""


@given(
    text=st.text(ALPHABET, max_size=14)
    | st.from_regex(r" ?[-+−]?[0-9]{0,3}\.?[0-9]{0,2} ?/ ?[0-9]{0,3}\.?[0-9]{0,2} ?[GMsB]?", fullmatch=True)
    | st.from_regex(
        r"[-+−]?[0-9][0-9,_]{0,7}\.?[0-9]{0,3}(e-?[0-9]{1,3})?( ?[×x*] ?10\^?-?[0-9]{1,2})?"
        r" ?[GMkTKi]{0,2}[BFLOPsb/]{0,6}",
        fullmatch=True,
    ),
    symbol=st.sampled_from(sorted(UNITS)),
    example=st.sampled_from([None, "GB", "M GPU-h"]),
)
def test_reading_agrees_with_python_word_for_word(v8, text, symbol, example):
    read = v8("efflabQuiz.parse", text, symbol, example)
    try:
        value = parse(text, UNITS[symbol], "answer", example)
    except EfflabError as error:
        said = str(error).removeprefix("answer: ")
        assert read == {"problem": said[:1].upper() + said[1:]}
    else:
        if math.isfinite(value):
            assert read.keys() == {"value"}
            assert float(read["value"]) == value  # JavaScript writes 1e19 as an integer
        else:
            assert "not a finite number" in read["problem"]


def made(answer, tolerance="1%", **more):
    return Numeric.model_validate(
        {
            "id": "t-1", "kind": "numeric", "title": "Title", "points": 1, "text": "Text", "hints": ["A hint."],
            "unit": "", "answer": answer, "tolerance": tolerance, "right": "It is.", **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize("answer", [-3.0, -1e-9, 1e-20, 1e25, 1.0, math.e])
@given(factor=st.floats(0.97, 1.03))
def test_sign_and_magnitude(v8, answer, factor):
    question = made(answer)
    sealed = sealing.seal(question)
    for value in (answer * factor, -answer * factor):
        low, high = question.bounds
        found = v8("efflabQuiz.openNumeric", sealed, value)
        assert bool(found and found["right"]) == (low <= value <= high)


@pytest.mark.parametrize("margin", ["1e-12", "0.5", "1e-31"])
@given(share=st.floats(-1.5, 1.5))
def test_an_answer_of_zero(v8, margin, share):
    question = made(0.0, margin, misconceptions=[{"name": "one", "value": 1, "feedback": "One.", "tolerance": "1%"}])
    sealed = sealing.seal(question)
    value = share * float(margin)
    low, high = question.bounds
    found = v8("efflabQuiz.openNumeric", sealed, value)
    assert bool(found and found["right"]) == (low <= value <= high)
    assert v8("efflabQuiz.openNumeric", sealed, 0.0)["right"]
    assert v8("efflabQuiz.openNumeric", sealed, 1.0)["feedback"] == "One."


def test_ranges_that_share_a_bucket(v8):
    """Two ranges inside one bucket: the exact ends decide."""
    mistake = {"name": "near", "value": 1.0015, "feedback": "Near.", "tolerance": "0.01%"}
    question = made(1.001, "0.01%", misconceptions=[mistake])
    assert set(sealing.tokens(*question.bounds)) & set(sealing.tokens(*question.misconception_bounds(0)))
    sealed = sealing.seal(question)
    assert v8("efflabQuiz.openNumeric", sealed, 1.001)["right"] is True
    assert v8("efflabQuiz.openNumeric", sealed, 1.0015)["feedback"] == "Near."
    assert v8("efflabQuiz.openNumeric", sealed, 1.00125)["feedback"] == questions.CLOSE


def test_text_outside_ascii_survives(v8):
    sealed = sealing.seal(made(1.0, right="µ × 10⁹ — “ok” </script> 漢字 🙂"))
    assert v8("efflabQuiz.openNumeric", sealed, 1.0)["feedback"] == "µ × 10⁹ — “ok” </script> 漢字 🙂"


def test_a_wrong_box_does_not_open(v8):
    question = NUMERIC[0]
    sealed = sealing.seal(question)
    box = bytearray(base64.b64decode(sealed["boxes"][0]))
    box[-1] ^= 1
    damaged = {**sealed, "boxes": [base64.b64encode(bytes(box)).decode()] * len(sealed["boxes"])}
    assert v8("efflabQuiz.openNumeric", damaged, question.value) is None


def test_progress_files_agree(v8, tmp_path):
    from efflab.exercises import progress
    from efflab.exercises.progress_file import read

    check("roofline-1", "295 FLOP/B")
    check("roofline-2", "a")
    progress.export(tmp_path / "python.json")
    text = (tmp_path / "python.json").read_text(encoding="utf-8")
    # Read by the page, written by the page, read by Python.
    again = v8("((t) => efflabQuiz.writeProgress(efflabQuiz.readProgress(t)))", text)
    (tmp_path / "page.json").write_text(again, encoding="utf-8")
    assert read(tmp_path / "page.json") == read(tmp_path / "python.json") == progress.entries()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ('{"schema": "efflab-progress/1", "questions": {"roofl', "cut off"),
        ('{"schema": "efflab-progress/2", "questions": {}}', "newer"),
        ('{"schema": "efflab-record/1", "questions": {}}', "not a progress file"),
        ("[1]", "not a progress file"),
        ("null", "not a progress file"),
        ('{"schema": "efflab-progress/1"}', "no questions"),
        ('{"schema": "efflab-progress/1", "questions": []}', "no questions"),
        ('{"schema": "efflab-progress/1", "questions": {"roofline-1": {"solved": 1}}}', "'roofline-1' is damaged"),
        ('{"schema": "efflab-progress/1", "questions": {"__proto__": {"solved": true}}}', "damaged"),
        ('{"schema": "efflab-progress/1", "questions": {"roofline-1": null}}', "damaged"),
    ],
)
def test_the_page_refuses_what_is_no_progress(v8, text, said):
    got = v8(
        "((t) => { try { efflabQuiz.readProgress(t); return 'accepted'; } catch (e) { return e.message; } })", text
    )
    assert said in got


def test_the_script_evaluates_no_text_and_asks_no_host():
    quiz = (front.HERE / "quiz.js").read_text(encoding="utf-8")
    assert not re.search(
        r"\beval\b|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?://|fetch\(|XMLHttp",
        quiz.split("\n", 3)[3],
    )
    script = front.script()
    assert "</script" not in script.lower()
    for question in SEALED:  # titles and points only
        assert question.text[:40] not in script


def test_a_missing_tweetnacl_says_what_to_do(tmp_path):
    with pytest.raises(EfflabError, match="Run 'make assets'"):
        front.script(tmp_path / "nacl-fast.min.js")


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_a_near_miss_opens_its_own_feedback_and_tells_no_value(v8, question):
    sealed = sealed_once(question.id)
    for factor in (0.905, 0.94, 1.06, 1.095):
        value = question.value * factor
        found = v8("efflabQuiz.openNumeric", sealed, value)
        mistaken = any(
            low <= value <= high
            for low, high in (question.misconception_bounds(i) for i in range(len(question.misconceptions)))
        )
        if question.bounds[0] <= value <= question.bounds[1] or mistaken:
            assert found["feedback"] != questions.CLOSE  # the narrower range goes first
        else:
            assert found["feedback"] == questions.CLOSE and found["right"] is False
    for factor in (0.89, 1.11):
        found = v8("efflabQuiz.openNumeric", sealed, question.value * factor)
        assert found is None or found["feedback"] != questions.CLOSE
    assert questions.CLOSE[:5] not in json.dumps(sealed)


# Two tabs: the script twice, over one storage.
STORAGE = """
const kept = {};
const localStorage = {
  refuses: false,
  getItem: (k) => (k in kept ? kept[k] : null),
  setItem: (k, v) => { if (localStorage.refuses) throw new Error("full"); kept[k] = v; },
  removeItem: (k) => { delete kept[k]; },
};
const questions = () => JSON.parse(kept["efflab-progress"]).questions;
"""


@pytest.fixture
def tabs():
    """V8 with two copies of the script, `a` and `b`, that share a storage."""
    machine = MiniRacer()
    machine.eval(STORAGE)
    for name in ("a", "b"):
        machine.eval(
            f"{bundle.units_script()}{front.script()}; const {name} = efflabQuiz.store; {name}.load(); {name}.save(); 0"
        )

    def run(text):
        return json.loads(machine.eval(f"(() => {{ {text} }})(); JSON.stringify(questions())"))

    return run


def test_what_one_tab_erased_another_does_not_bring_back(tabs):
    stored = tabs(
        "a.note('roofline-1', true, '295 FLOP/B'); b.load();"  # b hears of it, as by a storage event
        "a.forget('roofline'); b.load(); b.note('roofline-3', false, '1 FLOP/B');"
    )
    assert set(stored) == {"roofline-3"}
    # And where the event has not arrived yet.
    stored = tabs("a.note('roofline-1', true, 'x'); b.load(); a.forget('roofline'); b.note('roofline-3', true, 'y');")
    assert set(stored) == {"roofline-3"}


def test_erasing_a_chapter_keeps_what_another_tab_wrote_of_others(tabs):
    assert set(tabs("a.note('roofline-1', true, 'x'); b.note('other-1', true, 'y'); a.forget('roofline');")) == {
        "other-1"
    }


def test_what_could_not_be_saved_is_saved_with_the_next(tabs):
    stored = tabs(
        "localStorage.refuses = true; a.note('roofline-1', true, 'x'); localStorage.refuses = false;"
        "b.note('roofline-2', false, 'a'); a.load(); a.note('roofline-3', false, 'z');"
    )
    assert {n: e["solved"] for n, e in stored.items()} == {
        "roofline-1": True, "roofline-2": False, "roofline-3": False,
    }  # fmt: skip


def test_attempts_of_two_tabs_add_up(tabs):
    stored = tabs("a.note('roofline-1', false, 'x'); b.note('roofline-1', false, 'y'); a.note('roofline-1', true, 'z')")
    assert stored == {"roofline-1": {"solved": True, "attempts": 3, "points": 1, "answer": "z"}}
    stored = tabs("b.note('roofline-1', false, 'w')")
    assert stored["roofline-1"] == {"solved": True, "attempts": 4, "points": 1, "answer": "z"}
